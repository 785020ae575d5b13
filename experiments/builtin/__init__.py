"""Contain the built-in experiments, one module for each data set, and their networks."""
