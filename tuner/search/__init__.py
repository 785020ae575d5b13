"""Proposes trials and stops hopeless ones. The only package that imports Optuna."""
