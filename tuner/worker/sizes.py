"""What a network in training takes: bytes of its packed file, and multiply-adds."""

from __future__ import annotations

from contextlib import suppress

from tune_sparsity.experiments import OwnTraining, Training
from tune_sparsity.sparsity.cost.layout import Budget, Layout
from tune_sparsity.sparsity.cost.multiply_adds import Uses
from tune_sparsity.sparsity.wrappers import plain_state


def limit_bytes(training: Training | OwnTraining, most: int | None) -> None:
    """Let the training end with a packed file of so many bytes at most.

    Args:
        most: bytes; None: however many there are.
    """
    if most is not None and training.sparse.final_sparsity > 0:  # what never prunes fits, or does not
        training.sparse.excess = Budget(_layout(training), most).excess


def _layout(training: Training | OwnTraining) -> Layout:
    return Layout.of(plain_state(training.model), [layer.name for layer in training.sparse.layers])


def network_cost(training: Training | OwnTraining, uses: Uses | None) -> dict[str, float]:
    """Return the size of the network's packed file in bytes, and its multiply-adds with weights that are not zero, of
    an example; without what is not known.

    Args:
        uses: how often the network uses its weights.
    """
    masks = {layer.name: mask for layer, mask in zip(training.sparse.layers, training.sparse.masks, strict=True)}
    found = {}
    with suppress(ValueError):  # of a tensor that no packed file can have
        found["size_bytes"] = float(_layout(training).size(masks))
    if uses is not None:
        found["macs"] = float(uses.macs({name: int(mask.count_nonzero()) for name, mask in masks.items()}))
    return found
