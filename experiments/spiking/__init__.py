"""Spiking networks: neurons that send spikes over time, with recurrence of their own, and networks of them."""

from tune_sparsity.experiments.spiking.scan import Constants, spiking_scan

__all__ = ["Constants", "spiking_scan"]
