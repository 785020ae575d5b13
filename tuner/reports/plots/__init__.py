"""Draw the plots of a study."""
