"""Compute the costs of a network: multiply-adds, memory, and the bytes of a packed file, where zeros need almost no
space."""
