"""Build networks of spiking neurons. Each neuron can also read its own earlier output (self-recurrence)."""

from tune_sparsity.experiments.spiking.network import ReadOut, SpikingLayer, SpikingNetwork
from tune_sparsity.experiments.spiking.neurons.scan import Constants, spiking_scan

__all__ = ["Constants", "ReadOut", "SpikingLayer", "SpikingNetwork", "spiking_scan"]
