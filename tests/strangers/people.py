"""Networks that resemble those in bug reports for pruning tools. Each has a part that a tool may not expect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

from tests.strangers.networks import Stranger
from tune_sparsity.sparsity import LayerRules


class Between(nn.Module):
    """Two linear layers with 10 x 16 and 16 x 3 weights, and a user's code between them.

    Args:
        between: takes this module and an activation, and returns the next activation.
        parts: layers and parameters for `between`. They become attributes of this module.
    """

    def __init__(self, between: Callable[[Any, Tensor], Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.between = between
        self.first, self.last = nn.Linear(10, 16), nn.Linear(16, 3)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self, self.first(x)).relu())


_ENDS = 10 * 16 + 16 * 3


def pruned_before() -> nn.Module:
    layer = nn.Linear(16, 16)
    prune.l1_unstructured(layer, "weight", 0.5)
    return Between(lambda self, x: self.layer(x), layer=layer)


def recomputed(*, reentrant: bool) -> nn.Module:
    block = nn.Sequential(nn.Linear(16, 8), nn.Dropout(0.1), nn.Linear(8, 16))
    return Between(lambda self, x: checkpoint(self.block, x, use_reentrant=reentrant), block=block)


class NoCopies(Between):
    """A network that cannot be copied or pickled, and that has `__slots__`."""

    __slots__ = ("scale",)

    def __init__(self) -> None:
        super().__init__(lambda self, x: self.scale * x)
        self.scale = 3.0

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError("no copies")

    def __getstate__(self) -> NoReturn:
        raise TypeError("no pickles")


def codes(dtype: torch.dtype) -> nn.Module:
    """Return a network with a frozen weight in an eight-bit dtype, as in quantised layers."""
    table = nn.Parameter((3 * torch.randn(16, 16)).to(dtype), requires_grad=False)
    return Between(lambda self, x: F.linear(x, self.table.float() / 4), table=table)


def of_no_size() -> nn.Module:
    empty = nn.Linear(0, 16), nn.Linear(16, 0), nn.Parameter(torch.empty(0))
    parts = dict(zip(("out_of_nothing", "into_nothing", "nothing"), empty, strict=True))
    return Between(lambda self, x: x + self.out_of_nothing(self.into_nothing(x)) + self.nothing.sum(), **parts)


class DroppedWeights(nn.LSTM):
    """An LSTM that drops some of its recurrent weights in training, as in AWD-LSTM."""

    def __init__(self) -> None:
        super().__init__(16, 8, bidirectional=True, batch_first=True)
        raw = self.weight_hh_l0
        del self._parameters["weight_hh_l0"]
        self.weight_hh_l0_raw = raw

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        self.__dict__["weight_hh_l0"] = F.dropout(self.weight_hh_l0_raw, 0.3, self.training)
        self._flat_weights[1] = self.weight_hh_l0
        return super().forward(x.unsqueeze(1))[0][:, 0]


class Standardised(nn.Conv1d):
    """A convolution that standardises its weight in each forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2), keepdim=True)
        weight = weight / (weight.std((1, 2), keepdim=True) + 1e-5)
        return super()._conv_forward(x.unsqueeze(1), weight, self.bias).mean(1)


class Signs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return weight.sign()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


def halves_of_one_tensor() -> nn.Module:
    left, right = (nn.Linear(16, 16) for _ in range(2))
    left.weight, right.weight = (nn.Parameter(half) for half in (0.3 * torch.randn(16, 32)).chunk(2, 1))
    return Between(lambda self, x: self.left(x) * self.right(x), left=left, right=right)


def transposed_in_memory() -> nn.Module:
    layer = nn.Linear(16, 16)
    layer.weight = nn.Parameter(layer.weight.data.T)
    return Between(lambda self, x: self.layer(x), layer=layer)


class FakeQuantised(nn.Linear):
    """A linear layer that rounds its weight and its outputs, as in quantisation-aware training."""

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.fake_quantize_per_tensor_affine(self.weight, 0.02, 0, -128, 127)
        return torch.fake_quantize_per_tensor_affine(F.linear(x, weight, self.bias), 0.05, 0, -128, 127)


class Running(nn.Module):
    """A layer that subtracts a running mean. In training, each forward pass replaces its buffer by a new tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


class FrozenStatistics(nn.BatchNorm1d):
    """A batch normalisation that stays in evaluation mode. Its train() and its eval() return None instead of itself."""

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(False)


class ReturnsNothing(Between):
    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)


def bag() -> nn.Module:
    return nn.Sequential(nn.EmbeddingBag(11, 16, sparse=True), nn.Linear(16, 3))


def factors() -> nn.Module:
    up, down = (nn.Parameter(0.3 * torch.randn(shape)) for shape in ((16, 4), (4, 16)))
    return Between(lambda self, x: x @ self.up @ self.down, up=up, down=down)


def zeros() -> nn.Module:
    layer = nn.Linear(16, 16)
    nn.init.zeros_(layer.weight)
    return Between(lambda self, x: x + self.layer(x), layer=layer)


def _numbers(make: Callable[[], nn.Module], matrices: int, rules: LayerRules | None = None) -> Stranger:
    inputs = torch.randn(48, 10, generator=torch.Generator().manual_seed(1))
    return Stranger(make, inputs, matrices, rules or LayerRules())


PEOPLE: dict[str, Stranger] = {
    "pruned before": _numbers(pruned_before, _ENDS),
    "complex layer": _numbers(
        lambda: Between(lambda self, x: self.layer(x.cfloat()).abs(), layer=nn.Linear(16, 16, dtype=torch.cfloat)),
        _ENDS,
    ),
    "recomputed": _numbers(lambda: recomputed(reentrant=False), _ENDS + 2 * 16 * 8),
    "recomputed, reentrant": _numbers(lambda: recomputed(reentrant=True), _ENDS + 2 * 16 * 8),
    "no copies": _numbers(NoCopies, _ENDS),
    "int8": _numbers(lambda: codes(torch.int8), _ENDS),
    "float8": _numbers(lambda: codes(torch.float8_e4m3fn), _ENDS),
    "layers of no size": _numbers(of_no_size, _ENDS),
    "dropped weights": _numbers(
        lambda: Between(lambda self, x: self.lstm(x), lstm=DroppedWeights()), _ENDS + 2 * 32 * 16 + 32 * 8
    ),
    "standardised": _numbers(
        lambda: Between(lambda self, x: self.conv(x), conv=Standardised(1, 8, 3, padding=1)), _ENDS + 24
    ),
    "signs": _numbers(
        lambda: Between(lambda self, x: F.linear(x, Signs.apply(self.layer.weight)), layer=nn.Linear(16, 16)),
        _ENDS + 16 * 16,
    ),
    "halves of one tensor": _numbers(halves_of_one_tensor, _ENDS + 2 * 16 * 16),
    "transposed in memory": _numbers(transposed_in_memory, _ENDS + 16 * 16),
    "fake quantised": _numbers(
        lambda: Between(lambda self, x: self.layer(x), layer=FakeQuantised(16, 16)), _ENDS + 16 * 16
    ),
    "running mean": _numbers(lambda: Between(lambda self, x: self.norm(x), norm=Running()), _ENDS),
    "train() of its own": _numbers(
        lambda: ReturnsNothing(lambda self, x: self.norm(x), norm=FrozenStatistics(16)), _ENDS
    ),
    "sparse gradients": Stranger(
        bag, torch.arange(48 * 4).view(48, 4) ** 2 % 11, 11 * 16 + 16 * 3, LayerRules(prune={nn.EmbeddingBag: 1})
    ),
    "factors": _numbers(factors, _ENDS + 2 * 16 * 4, LayerRules(prune={"up": 0, "down": 0})),
    "zeros at first": _numbers(zeros, _ENDS + 16 * 16),
}
