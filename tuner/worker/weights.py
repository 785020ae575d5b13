"""Writes the network of a trial, with its masks, in the safetensors format."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from tune_sparsity.experiments import OwnTraining, Training
from tune_sparsity.sparsity.few_bits import ALL_BITS
from tune_sparsity.sparsity.orientation import STANDARD
from tune_sparsity.sparsity.wrappers import plain_state
from tune_sparsity.tuner.study.layout import ORIENTATIONS, PRECISION, SPREAD
from tune_sparsity.tuner.system import files
from tune_sparsity.tuner.worker.sizes import precision_of


def save_weights(training: Training | OwnTraining, path: Path) -> None:
    """Write the bytes from `packed_weights` to a file. The file appears as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, packed_weights(training))


def packed_weights(training: Training | OwnTraining) -> bytes:
    """Return the network as bytes in the safetensors format. For a weight "w", "w.mask" is its mask. "w.spread" is the
    standard deviation of the weight's values over training steps. "w.spread" exists only if the weights are averaged
    over training steps, and if this standard deviation is measured.

    The metadata contain the orientation of each weight that does not have the standard orientation (see Orientation).
    The metadata also contain the precision of weights with few bits."""
    state = plain_state(training.model)
    tensors: dict[str, Tensor] = {
        # Copies, because a network may share tensors, and safetensors refuses shared tensors.
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in state.items()
    }
    for layer, mask in zip(training.sparse.layers, training.sparse.masks, strict=True):
        tensors[f"{layer.name}.mask"] = mask.cpu().bool().contiguous()
    spread = {} if training.sparse.average is None else {p.data_ptr(): s for p, s in training.sparse.average.spread()}
    for name, tensor in state.items():
        if tensor.data_ptr() in spread and tensor.numel():
            tensors[f"{name}{SPREAD}"] = spread[tensor.data_ptr()].cpu().contiguous().clone()
    turned = {layer.name: layer.orientation for layer in training.sparse.layers if layer.orientation != STANDARD}
    about = {ORIENTATIONS: json.dumps(turned)} if turned else {}
    if training.sparse.weight_bits != ALL_BITS:
        precision = precision_of(training.model, training.sparse.layers, training.sparse.weight_bits)
        about[PRECISION] = json.dumps(precision, default=dict)
    return save(tensors, about or None)
