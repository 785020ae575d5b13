"""Read, split and augment data sets."""
