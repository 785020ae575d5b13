"""Define the built-in experiments and their networks. Most modules load one data set."""
