"""Compare all methods under equal conditions, and compare RigL with a variant of RigL."""
