"""Runs a study: checks its inputs, runs its trials, tests the best networks and writes the files."""
