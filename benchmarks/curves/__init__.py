"""Collect trainings, fit a model to them that predicts learning curves (a surrogate), and simulate studies with it."""
