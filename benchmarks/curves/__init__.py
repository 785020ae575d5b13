"""A table of trainings to search on, its surrogate, and simulated studies. See docs in `table` and `collect`."""
