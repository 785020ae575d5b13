"""Change the set of active connections during the training: define which connections are dropped or grow, and when."""
