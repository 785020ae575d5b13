"""Defines the trials, the goal, the front and the file names of a study. This package imports neither Ray nor Optuna
nor MLflow."""
