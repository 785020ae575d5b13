"""Optimize on the Lp sphere with LpSGD, and compute its step in several ways."""
