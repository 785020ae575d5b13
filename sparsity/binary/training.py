"""Train a binary network through the same interface as SparseTraining."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tune_sparsity.sparsity.binary.convert import fold, make_binary
from tune_sparsity.sparsity.binary.optimizer import BinaryOptimizer
from tune_sparsity.sparsity.few_bits import SIGN_BITS
from tune_sparsity.sparsity.layers import Layer
from tune_sparsity.sparsity.schedules import warmup_cosine
from tune_sparsity.sparsity.topology.static import StaticMask
from tune_sparsity.sparsity.training import SparseTraining
from tune_sparsity.sparsity.wrappers import plain_name


class BinaryTraining(SparseTraining):
    """Trains a binary network. The network's layers are replaced in place by binary blocks, and at the end by layers
    for inference.

    The backward pass updates the weights, and `step()` updates the other parameters. There are no masks. At the end
    each weight is -1 or +1.

    Args:
        model: a network that can be binary; see the function `make_binary`.
        activations: "binary" or "real", as in `make_binary`.
        total_steps: the number of steps. The learning rate falls to 0 at the last step.
        settings: keyword arguments for BinaryOptimizer: lr, flips, gamma and tau.
    """

    steps_in_backward = True
    names_of_signs: Sequence[str] = ()  # names of weights of layers whose inputs are signs; empty until `finish`

    def __init__(self, model: nn.Module, activations: str, *, total_steps: int, **settings: Any) -> None:
        blocks = make_binary(model, activations)
        self._reads_signs = [bool(block.before) for block in blocks]
        self._weights = sum(block.weight.numel() for block in blocks)
        weights, biases = [block.weight for block in blocks], [block.bias for block in blocks]
        self._binary = BinaryOptimizer(weights, biases, **settings)
        super().__init__(
            model,
            [],
            self._binary,
            StaticMask(),
            [],
            sparsity=0.0,
            total_steps=total_steps,
            mask_frozen_at=1.0,
            learning_rate=warmup_cosine,
        )
        self._follow_schedules()  # the first backward pass updates weights before `quick_step` sets any rate

    def _follow_schedules(self) -> None:
        """Set the rates of the next step. Bop's gamma falls with the learning rate, so that fewer and fewer signs
        change."""
        super()._follow_schedules()
        self._binary.param_groups[0]["gamma"] = self._binary.defaults["gamma"] * self.learning_rate(self.progress)

    @property
    def weight_bits(self) -> int:
        """Return the number of bits of a weight after the training, which is 1."""
        return SIGN_BITS

    @torch.no_grad()
    def quick_step(self) -> None:
        """Update the remaining parameters. (The backward pass itself has already updated the binary weights.) After the
        end of the training, this method does nothing."""
        if self.fixed:
            return
        self._binary.step()
        self.steps += 1
        self._follow_schedules()
        if self.steps >= self.total_steps:
            self.finish()

    def move_masks(self) -> None:
        """Do nothing, because there are no masks."""

    def finish(self) -> None:
        """End the training and replace the binary blocks by layers for inference. A second call has no effect."""
        if self.fixed:
            return
        layers = fold(self.model)
        self._binary.close()
        self.layers = [
            Layer(plain_name(self.model, f"{name}.weight"), layer.weight, sphere=False) for name, layer in layers
        ]
        pairs = zip(self.layers, self._reads_signs, strict=True)
        self.names_of_signs = [layer.name for layer, reads in pairs if reads]
        self.masks = [torch.ones_like(layer.weight, dtype=torch.bool) for layer in self.layers]
        self.fixed = True

    project = finish

    @contextmanager
    def projected(self) -> Iterator[None]:
        """Return a context manager that changes nothing: this network has no weights to prune."""
        yield

    def zeros(self) -> tuple[int, int]:
        """Return the number of zero weights, which is 0, and the number of weights in all layers."""
        return 0, self._weights

    def hoyer(self) -> float:
        """Return the Hoyer sparsity. It is 0, because all weights of a row have the same magnitude."""
        return 0.0

    def check_finite(self) -> None:
        """Raise FloatingPointError if a trained parameter is NaN or infinite. After the training there is nothing to
        check."""
        if not self.fixed:
            super().check_finite()
