"""Collect a table of trainings, fit a surrogate to it, and simulate studies on the surrogate."""
