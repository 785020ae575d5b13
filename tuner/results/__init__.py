"""Turns the trials of a study into its results: tables, networks, exported files, and the costs of the networks."""
