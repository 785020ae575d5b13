"""Random networks: a sequence of layers of all kinds. Some layers are frozen, used twice or changed in another way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.strangers.generated_layers import LAYERS, NORMS, Made, Through
from tune_sparsity.sparsity import LayerRules

PLACES, WIDTH, TOKENS, CLASSES = 6, 4, 9, 3
FRONTS = ("numbers", "tokens", "sparse tokens", "tied tokens")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
WEIGHT_NORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old weight norm": nn.utils.weight_norm,
    "old spectral norm": nn.utils.spectral_norm,
}
_OF_ONE_WEIGHT = ("linear", "convolution", "convolution, 2d", "grouped convolution", "transposed convolution")
CHANGES = {
    **dict.fromkeys(("none", "frozen", "twice", "unused", "in float64"), tuple(LAYERS)),
    # In a parameter list of width 1, no parameter is a matrix, and a rule that fits no weight is an error.
    "dense by a rule": tuple(kind for kind in LAYERS if kind != "parameter list"),
    "frozen but named": ("linear",),
    **dict.fromkeys(WEIGHT_NORMS, _OF_ONE_WEIGHT),
}
"""The changes that are made to layers, and for each change the kinds of layers that can get it."""


class Cast(nn.Module):
    """A layer that computes in a given dtype, independently of the dtype of the network."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.dtype = layer.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.to(self.dtype)).to(x.dtype)


@dataclass(frozen=True)
class Part:
    """A layer of a network, the change that is made to it, and the normalisation after it."""

    kind: str
    change: str
    width: int
    norm: str

    def make(self, inputs: int) -> Made:
        """Return the layer and how many of its weights can be pruned."""
        if self.change == "twice":
            layer, weights = LAYERS[self.kind](self.width, self.width)
            return nn.Sequential(nn.Linear(inputs, self.width), layer, nn.Tanh(), layer), inputs * self.width + weights
        layer, weights = LAYERS[self.kind](inputs, self.width)
        if self.change == "in float64":
            return Cast(layer, torch.float64), weights
        if self.change in WEIGHT_NORMS:
            WEIGHT_NORMS[self.change](layer.layer if isinstance(layer, Through) else layer)
            return layer, 0
        layer.requires_grad_("frozen" not in self.change)
        return layer, 0 if self.change in ("frozen", "dense by a rule") else weights


@dataclass(frozen=True)
class Plan:
    """The structure of a network.

    Attributes:
        front: the kind of the inputs, one of `FRONTS`. Tokens go through an embedding. For "sparse tokens", its
            gradient is sparse. For "tied tokens", a linear layer behind the embedding shares its weight.
        heads: how many linear layers give outputs.
        heads_first: whether the heads are registered before the other layers.
        prunes_embedding: whether the layer rules say that the embedding is pruned.
    """

    parts: tuple[Part, ...]
    front: str = "numbers"
    heads: int = 1
    heads_first: bool = False
    prunes_embedding: bool = False
    dtype: torch.dtype = torch.float32

    def make(self) -> nn.Module:
        """Return a fresh network, its weights drawn from torch's global generator."""
        usual = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            return Generated(self)
        finally:
            torch.set_default_dtype(usual)

    @property
    def rules(self) -> LayerRules:
        prune: dict[Any, Any] = {nn.Embedding: 1} if self.prunes_embedding and self.front != "numbers" else {}
        named = {f"parts.{i}.0.weight": 1 for i, part in enumerate(self.parts) if part.change == "frozen but named"}
        dense = tuple(f"parts.{i}.0.*" for i, part in enumerate(self.parts) if part.change == "dense by a rule")
        return LayerRules(prune=prune | named, dense=dense)

    def batch(self, examples: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        if self.front == "numbers":
            return torch.randn(examples, PLACES, WIDTH, generator=generator)
        return torch.randint(0, TOKENS, (examples, PLACES), generator=generator)

    def prepare(self, x: Tensor) -> Tensor:
        return x.to(self.dtype) if self.front == "numbers" else x


class Generated(nn.Module):
    """The network of a plan.

    Attributes:
        prunable: how many weights can be pruned.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        used = [i for i, part in enumerate(plan.parts) if part.change != "unused"]
        front, width, self.prunable = _front(plan)
        last = plan.parts[used[-1]].width if used else width
        heads = nn.ModuleList(nn.Linear(last, CLASSES) for _ in range(plan.heads))
        self.prunable += plan.heads * last * CLASSES
        if plan.heads_first:
            self.heads = heads
        self.front, self.parts, self.used = front, nn.ModuleList(), used
        for part in plan.parts:
            layer, weights = part.make(width)
            self.parts.append(nn.Sequential(layer, NORMS[part.norm](part.width)))
            self.prunable += weights
            width = width if part.change == "unused" else part.width
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        x = self.front(x)
        for i in self.used:
            y = self.parts[i](x).tanh()
            x = x + y if x.shape == y.shape else y
        return torch.cat([head(x.mean(1)) for head in self.heads], 1)


def _front(plan: Plan) -> tuple[nn.Module, int, int]:
    """Return the first part of the network, the width of its outputs and how many of its weights can be pruned."""
    if plan.front == "numbers":
        return nn.Identity(), WIDTH, 0
    embedding = nn.Embedding(TOKENS, WIDTH, sparse=plan.front == "sparse tokens")
    if plan.front == "tied tokens":
        behind = nn.Linear(WIDTH, TOKENS)
        behind.weight = embedding.weight
        return nn.Sequential(embedding, behind), TOKENS, TOKENS * WIDTH
    return embedding, WIDTH, TOKENS * WIDTH if plan.prunes_embedding else 0


@st.composite
def parts(draw: st.DrawFn) -> Part:
    change = draw(st.sampled_from(list(CHANGES)))
    return Part(
        draw(st.sampled_from(CHANGES[change])),
        change,
        draw(st.sampled_from([1, 4, 6, 12])),
        draw(st.sampled_from(list(NORMS))),
    )


def plans() -> st.SearchStrategy[Plan]:
    """Return a Hypothesis strategy for networks of up to four layers, and one or two heads after them."""
    return st.builds(
        Plan,
        st.lists(parts(), max_size=4).map(tuple),
        front=st.sampled_from(FRONTS),
        heads=st.integers(1, 2),
        heads_first=st.booleans(),
        prunes_embedding=st.booleans(),
        dtype=st.sampled_from(DTYPES),
    )
