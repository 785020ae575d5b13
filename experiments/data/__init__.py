"""Reading, splitting and augmenting data sets."""
