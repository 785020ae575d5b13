"""Runs a study: prepares it, runs its trials, judges the best, writes its files."""
