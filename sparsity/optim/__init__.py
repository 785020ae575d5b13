"""The optimizer on the Lp sphere, LpSGD, and the ways in which its step is computed."""
