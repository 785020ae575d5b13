"""Compute layers of spiking neurons step by step over time, in torch and in compiled code."""
