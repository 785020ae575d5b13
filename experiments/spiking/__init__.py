"""Spiking networks: neurons that send spikes over time, with recurrence of their own, and networks of them."""

from tune_sparsity.experiments.spiking.network import ReadOut, SpikingLayer, SpikingNetwork
from tune_sparsity.experiments.spiking.neurons.scan import Constants, spiking_scan

__all__ = ["Constants", "ReadOut", "SpikingLayer", "SpikingNetwork", "spiking_scan"]
