"""Compute the costs of a network: multiply-adds, memory during a computation, and the bytes of a packed file. A packed
file stores a network in few bytes: zeros need almost no space in it."""
