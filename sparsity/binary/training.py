"""A training of a binary network, in the place of a sparse training."""

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
    """Trains a network binary: its layers are replaced in place, and at the end by what is used of them.

    The weights are stepped within the backward pass, and `step()` steps the rest. There are no masks; at the end each
    weight is -1 or +1.

    Args:
        model: what `make_binary` takes.
        activations: as there.
        total_steps: the number of steps that the learning rate is laid over.
        settings: of BinaryOptimizer.
    """

    steps_in_backward = True
    names_of_signs: Sequence[str] = ()  # of the layers' weights whose inputs are signs, too; known at the end

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
        self._follow_schedules()  # for the weights' first step

    @property
    def weight_bits(self) -> int:
        """Return the bits of a weight at the end."""
        return SIGN_BITS

    @torch.no_grad()
    def quick_step(self) -> None:
        """Step what the backward pass has not stepped. After the last step it does nothing."""
        if self.fixed:
            return
        self._binary.step()
        self.steps += 1
        self._follow_schedules()
        if self.steps >= self.total_steps:
            self.finish()

    def move_masks(self) -> None:
        """Do nothing: there are none."""

    def finish(self) -> None:
        """End the training: the network is what is used of it. Does nothing the second time."""
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
        """Within it the network is as it is: nothing is projected."""
        yield

    def zeros(self) -> tuple[int, int]:
        """(0, all weights of the layers)."""
        return 0, self._weights

    def hoyer(self) -> float:
        """0: all weights of a row have one magnitude."""
        return 0.0

    def check_finite(self) -> None:
        """Raise FloatingPointError as that of other trainings does, until the weights are signs."""
        if not self.fixed:
            super().check_finite()
