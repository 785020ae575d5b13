"""The built-in experiments, a module a data set, and their networks."""
