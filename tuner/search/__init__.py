"""Proposes trials with Optuna and decides on early stopping. Only this package imports Optuna."""
