"""Runs a study: prepares it, runs its trials, tests the best network and writes the files."""
