"""Measurements. Not tests: they take minutes, and their figures go into RESULTS.md with the command that gave them."""
