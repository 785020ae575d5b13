"""Defines a study's trials, goal, front and file names. The code is pure data, without Ray, Optuna and MLflow."""
