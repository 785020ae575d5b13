"""Proposes trials and decides on early stopping. No other package imports Optuna."""
