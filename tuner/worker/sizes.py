"""Measures the costs of a network after training: the bytes of its packed file, multiply-adds and synaptic
operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from tune_sparsity.experiments import OwnTraining, Training
from tune_sparsity.experiments.spiking.operations import activity
from tune_sparsity.sparsity import METHODS
from tune_sparsity.sparsity.binary.training import BinaryTraining
from tune_sparsity.sparsity.cost.layout import Budget, Layout
from tune_sparsity.sparsity.cost.multiply_adds import Uses
from tune_sparsity.sparsity.few_bits import ALL_BITS, SIGN_BITS, Precision, biases_of, halved
from tune_sparsity.sparsity.layers import Layer
from tune_sparsity.sparsity.masks import sparsity_with
from tune_sparsity.sparsity.neurons.groups import NeuronGroups
from tune_sparsity.sparsity.wrappers import plain_state
from tune_sparsity.tuner.study.trial import FINAL_SPARSITY, SPIKE_RATE, WEIGHT_BITS, WIDTH


@dataclass(frozen=True)
class ByteLimit:
    """Limits the size of the packed files of a study's networks. A packed file is this package's smallest format of a
    network.

    Attributes:
        most: the limit in bytes.
        layouts: a dict from a number of bits to the layout of the packed file of a network whose weights have this
            number of bits. A layout describes which bytes the file contains (see `Layout`).
        bits: the smallest number of bits of a weight among the networks of the study that are not binary.
        neurons: the groups of neurons of the experiment's network, if trials may begin with fewer neurons. A trial
            leaves out all neurons of a group or none of them. None if all trials begin with all neurons.
    """

    most: int
    layouts: Mapping[int, Layout]
    bits: int
    neurons: NeuronGroups | None = None

    def part(self, bits: int, width: float) -> Layout:
        """Return the layout of the packed file of a network that has fewer neurons than the experiment's network.

        Args:
            bits: the number of bits of a weight.
            width: the width w in (0, 1]: a layer keeps about n^w of its n neurons. With w = 1, a layer keeps all
                neurons.
        """
        layout = self.layouts[bits]
        if self.neurons is None or width == 1.0:
            return layout
        alive = self.neurons.widest(width)
        kept = zip(self.neurons.layers, self.neurons.left(alive), strict=True)
        return layout.part({one.name: (weights, int(alive[one.first].sum())) for one, weights in kept})

    def nonzero(self, bits: int, width: float = 1.0) -> int:
        """Return approximately how many nonzero weights a network may have within the limit. The arguments are those of
        `part`."""
        return max(len(self.layouts[bits].prunable), self.part(bits, width).nonzero_within(self.most))

    def neuron_bytes(self, width: float = 1.0) -> int:
        """Return how many bytes the biases and the scales of all neurons take in the packed file of a network. The
        network has the width `width` (see `part`), and its weights have the number of bits in the attribute `bits`. If
        this is less than 32, each neuron has a scale, by which its weights are multiplied."""
        part = self.part(self.bits, width)
        return int(part.neuron_bytes(part.weights))

    def met_by(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of a trial's parameters. In the copy, the final sparsity is raised, if necessary, so that the
        network's packed file approximately meets the limit."""
        if not _prunes(method):
            return dict(params)
        bits, width = params.get(WEIGHT_BITS, ALL_BITS), params.get(WIDTH, 1.0)
        asked = params.get(FINAL_SPARSITY, getattr(METHODS[method].settings, FINAL_SPARSITY, 0.0))
        weights = self.layouts[bits].weights
        needed = sparsity_with(weights - self.nonzero(bits, width), weights)
        return {**params, FINAL_SPARSITY: max(asked, needed)}

    def hold(self, method: str, training: Training | OwnTraining) -> None:
        """Make a training prune more weights, if necessary, so that the packed file of its network has at most `most`
        bytes. This has no effect on a method that never prunes."""
        if _prunes(method):
            training.sparse.excess = Budget(_layout(training), self.most).excess


def _prunes(method: str) -> bool:
    return FINAL_SPARSITY in {field.name for field in fields(METHODS[method].settings)}


def layout_of(model: nn.Module, layers: Sequence[Layer], bits: int = ALL_BITS) -> Layout:
    """Return the layout of a network's packed file, from which the file's size is computed.

    Args:
        model: the network.
        layers: its prunable layers.
        bits: the number of bits of a prunable weight.

    Raises:
        ValueError: if the packed format cannot hold one of the tensors.
    """
    return Layout.of(plain_state(model), [layer.name for layer in layers], precision_of(model, layers, bits))


def binary_size(model: nn.Module) -> int:
    """Return the size of a network's packed file in bytes, if all its prunable weights have one bit. This function
    changes `model` itself into a binary network.

    Raises:
        ValueError: if the network cannot be binary, or if the packed format cannot hold it.
    """
    training = BinaryTraining(model, "binary", total_steps=1, lr=1.0)
    training.finish()
    masks = {layer.name: mask for layer, mask in zip(training.layers, training.masks, strict=True)}
    return layout_of(model, training.layers, SIGN_BITS).size(masks)


def precision_of(model: nn.Module, layers: Sequence[Layer], bits: int) -> Precision:
    """Return the `Precision` of a trained network. It says how many bits the tensors take in the packed file.

    Args:
        model: the network.
        layers: its prunable layers.
        bits: the number of bits of a prunable weight.
    """
    if bits == ALL_BITS:
        return Precision()
    if bits == SIGN_BITS:
        return Precision(bits, signs=True)
    weights = {id(layer.weight) for layer in layers}
    trained = {one.data_ptr() for one in model.parameters() if halved(one) and id(one) not in weights and one.numel()}
    state = plain_state(model)
    halves = tuple(name for name, tensor in state.items() if tensor.data_ptr() in trained)
    return Precision(bits, halves, biases_of(model, layers))


def _layout(training: Training | OwnTraining) -> Layout:
    return layout_of(training.model, training.sparse.layers, training.sparse.weight_bits)


def network_cost(training: Training | OwnTraining, uses: Uses | None) -> dict[str, float]:
    """Return a dict from the names of costs of a network to their values. Costs that are not known are left out.

    "size_bytes" is the size of the packed file. "macs" is the number of multiply-adds with nonzero weights for one
    example. For a binary network, "bit_ops" is the number of those multiply-adds whose weight and input can each be
    only -1 or +1.

    Args:
        training: the training that has the network and its masks.
        uses: how many multiplications use each weight for one example (see `Uses`); None if unknown.
    """
    masks = {layer.name: mask for layer, mask in zip(training.sparse.layers, training.sparse.masks, strict=True)}
    found = {}
    with suppress(ValueError):  # the packed format cannot hold one of the tensors
        found["size_bytes"] = float(_layout(training).size(masks))
    if uses is not None:
        nonzero = {name: int(mask.count_nonzero()) for name, mask in masks.items()}
        found["macs"] = float(uses.macs(nonzero))
        if isinstance(training.sparse, BinaryTraining):
            found["bit_ops"] = float(round(sum(nonzero[n] * uses.prunable[n] for n in training.sparse.names_of_signs)))
    return found


def spiking_cost(training: Training | OwnTraining, macs: float | None) -> dict[str, float]:
    """Return a dict from the names of costs of a spiking network to their values: "syn_ops", the synaptic operations
    for one example, and the spike rate of each spiking layer.

    The costs are measured on the validation data. Return an empty dict if the network has no spiking layers, or if the
    experiment is a user's own training loop.

    Args:
        training: the training that has the network.
        macs: the network's multiply-adds for one example. If None, "syn_ops" is left out.
    """
    if not isinstance(training, Training):
        return {}
    measured = activity(training.experiment, training.model, training.val_split)
    if measured is None:
        return {}
    operations = {} if macs is None else {"syn_ops": float(measured.synaptic_operations(int(macs)))}
    return operations | {f"{SPIKE_RATE}{layer}": rate for layer, rate in measured.rates.items()}
