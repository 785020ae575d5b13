"""Whole neurons, with the inputs that they feed: which ones go together, which go first, and how they are removed."""
