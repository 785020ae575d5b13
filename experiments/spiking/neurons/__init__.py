"""Spiking neurons step by step over time, in torch and compiled."""
