"""Build networks of spiking neurons with self-recurrence."""

from tune_sparsity.experiments.spiking.network import ReadOut, SpikingLayer, SpikingNetwork
from tune_sparsity.experiments.spiking.neurons.scan import Constants, spiking_scan

__all__ = ["Constants", "ReadOut", "SpikingLayer", "SpikingNetwork", "spiking_scan"]
