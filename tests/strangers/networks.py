"""Small networks like those of users, each with its inputs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from tests.helpers.layers import Conv1D
from tests.strangers import cells, text
from tune_sparsity.sparsity import LayerRules


@dataclass(frozen=True)
class Stranger:
    """A network for tests.

    Attributes:
        make: returns a new network. Its weights are drawn from torch's global generator.
        inputs: a batch, or the shape of a batch of normally distributed numbers.
        rules: the layer rules. They decide which weights are pruned.
        inside: returns the network without its wrappers. None if `make` returns a network without wrappers.
        matrices: how many weights all prunable matrices have together, counted without the tested code.
    """

    make: Callable[[], nn.Module]
    inputs: tuple[int, ...] | Tensor
    matrices: int
    rules: LayerRules = field(default_factory=LayerRules)
    inside: Callable[[], nn.Module] | None = None

    @property
    def plain(self) -> Callable[[], nn.Module]:
        """A function that returns the network into which saved weights are loaded."""
        return self.inside or self.make

    def batch(self) -> Tensor:
        if isinstance(self.inputs, Tensor):
            return self.inputs
        dtype = next(self.make().parameters()).dtype
        return torch.randn(self.inputs, generator=torch.Generator().manual_seed(1)).to(dtype)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.out = nn.ConvTranspose2d(16, 4, 4, stride=2, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        down = self.down(x).relu()
        up = self.up(self.middle(down).relu()).relu()
        return self.out(torch.cat([down, up], 1))


def mobile() -> nn.Module:
    def block(channels: int, out: int) -> list[nn.Module]:
        depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        pointwise = nn.Conv2d(channels, out, 1, bias=False)
        return [depthwise, nn.BatchNorm2d(channels), nn.ReLU6(), pointwise, nn.BatchNorm2d(out), nn.ReLU6()]

    stem = [nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU6()]
    return nn.Sequential(*stem, *block(8, 16), *block(16, 24), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5))


class TiedAutoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.bias = nn.Linear(20, 10), nn.Parameter(torch.zeros(20))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.encoder(x).relu(), self.encoder.weight.T, self.bias)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def normed() -> nn.Module:
    user = nn.Linear(12, 12)
    parametrize.register_parametrization(user, "weight", Doubled())
    return nn.Sequential(
        nn.Linear(10, 12),
        parametrizations.weight_norm(nn.Linear(12, 12)),
        nn.ReLU(),
        nn.utils.weight_norm(nn.Linear(12, 12)),
        parametrizations.spectral_norm(nn.Linear(12, 12)),
        nn.utils.spectral_norm(nn.Linear(12, 12)),
        user,
        nn.Linear(12, 3),
    )


def frozen_backbone() -> nn.Module:
    backbone = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU())
    return nn.Sequential(backbone.requires_grad_(False), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.first, self.second = nn.Linear(10, 16), nn.Linear(16, 3), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x).relu()
        return torch.cat([self.first(features), self.second(features)], 1)


class HeadFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 3)
        self.body = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Graph(nn.Module):
    """Messages along the edges of a ring, gathered by index operations."""

    def __init__(self) -> None:
        super().__init__()
        self.message, self.update, self.read = nn.Linear(12, 16), nn.Linear(6 + 16, 16), nn.Linear(16, 3)
        self.register_buffer("source", torch.arange(8))
        self.register_buffer("target", (torch.arange(8) + 1) % 8)

    def forward(self, x: Tensor) -> Tensor:
        messages = self.message(torch.cat([x[:, self.source], x[:, self.target]], -1)).relu()
        gathered = torch.zeros_like(messages).index_add(1, self.target, messages)
        return self.read(self.update(torch.cat([x, gathered], -1)).relu().mean(1))


class Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.side, self.both = nn.Linear(10, 8), nn.Bilinear(8, 8, 6)
        self.out = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.both(self.side(x[:, 0]).tanh(), self.side(x[:, 1]).tanh()))


class Experts(nn.Module):
    """A mixture of experts. One parameter of shape (experts, inputs, outputs) has the matrices of all experts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.out = nn.Linear(10, 4), nn.Linear(12, 3)
        self.experts = nn.Parameter(0.3 * torch.randn(4, 10, 12))

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.einsum("bi,eio,be->bo", x, self.experts, self.gate(x).softmax(1))
        return self.out(mixed.relu())


def shared() -> nn.Module:
    block = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
    return nn.Sequential(nn.Linear(10, 16), block, block, nn.Linear(16, 3))


def perceptron(dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3)).to(dtype)


def compiled(network: nn.Module | None = None) -> nn.Module:
    return torch.compile(network or perceptron(), backend="eager")  # type: ignore[return-value]


def compiled_in_place() -> nn.Module:
    network = perceptron()
    network.compile(backend="eager")
    return network


class Wrapper(nn.Module):
    """A wrapper as users write it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


def partly(wrap: Callable[[nn.Module], nn.Module] = lambda part: part) -> nn.Module:
    """Return a network of two parts. `wrap` can put each part into a wrapper."""
    body = nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU())
    return nn.Sequential(OrderedDict(body=wrap(body), head=wrap(nn.Linear(16, 3))))


def partly_compiled() -> nn.Module:
    return partly(compiled)


def audio() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 8, 5, padding=2),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.ConvTranspose1d(8, 8, 4, stride=2, groups=4),
        nn.ReLU(),
        nn.ConvTranspose1d(8, 2, 3),
    )


def video() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.ConvTranspose3d(4, 4, 2, groups=2), nn.Conv3d(4, 2, 1)
    )


def channels_last() -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2), nn.Conv2d(6, 2, 1)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


_MLP = 10 * 24 + 24 * 16 + 16 * 3
_TOKENS = torch.arange(24).view(4, 6) % 11

STRANGERS: dict[str, Stranger] = {
    "attention encoder": Stranger(text.Encoder, (4, 6, 8), 8 * 16 + 4 * 16 * 16 + 2 * 16 * 32 + 16 * 3),
    "encoder and decoder": Stranger(text.Translator, (4, 6, 16), 12 * 16 * 16 + 4 * 16 * 24),
    "attention over other sizes": Stranger(text.Cross, (4, 6, 12), 12 * 12 + 12 * 8 + 12 * 6 + 12 * 12 + 12 * 3),
    "GPT-2-like": Stranger(text.Gpt, _TOKENS, 2 * (16 * 48 + 16 * 16 + 2 * 16 * 32) + 16 * 11),
    "LM head": Stranger(text.LanguageModel, _TOKENS, 2 * 4 * 16 * 16 + 16 * 11),
    "embedding-heavy text": Stranger(
        text.bag, _TOKENS, 11 * 32 + 32 * 8 + 8 * 3, LayerRules(prune={nn.EmbeddingBag: 1})
    ),
    "LSTM": Stranger(cells.Lstm, (4, 5, 6), 2 * (32 * 6 + 32 * 5 + 5 * 8) + 2 * (32 * 10 + 32 * 5 + 5 * 8) + 10 * 3),
    "GRU": Stranger(cells.Gru, (4, 5, 6), 24 * 6 + 24 * 8 + 8 * 3),
    "RNN": Stranger(cells.Rnn, (4, 5, 6), 12 * 6 + 12 * 12 + 12 * 3),
    "LSTM cell": Stranger(cells.Cell, (4, 5, 6), 32 * 6 + 32 * 8 + 8 * 3),
    "recurrent cell by hand": Stranger(cells.ByHand, (4, 5, 6), 2 * 14 * 8 + 8 * 3),
    "U-Net": Stranger(UNet, (2, 3, 16, 16), 3 * 8 * 9 + 8 * 16 * 9 + 16 * 8 * 4 + 16 * 2 * 16),
    "MobileNet-like": Stranger(mobile, (4, 3, 16, 16), 3 * 8 * 9 + 8 * 9 + 8 * 16 + 16 * 9 + 16 * 24 + 24 * 5),
    "audio decoder": Stranger(audio, (2, 2, 12), 2 * 8 * 5 + 8 * 2 * 4 + 8 * 2 * 3),
    "video": Stranger(video, (2, 2, 5, 5, 5), 2 * 4 * 27 + 4 * 2 * 8 + 4 * 2),
    "channels last": Stranger(channels_last, (2, 3, 8, 8), 3 * 8 * 9 + 8 * 6 * 4 + 6 * 2),
    "tied autoencoder": Stranger(TiedAutoencoder, (4, 20), 200),
    "shared block": Stranger(shared, (4, 10), 10 * 16 + 16 * 16 + 16 * 3),
    "norms of weights": Stranger(normed, (4, 10), 10 * 12 + 12 * 3),
    "frozen backbone": Stranger(frozen_backbone, (4, 10), 16 * 8 + 8 * 3),
    "frozen backbone, named": Stranger(
        frozen_backbone, (4, 10), 10 * 20 + 16 * 8 + 8 * 3, LayerRules(prune={"0.0.weight": 1})
    ),
    "compiled": Stranger(compiled, (4, 10), _MLP, inside=perceptron),
    "compiled in place": Stranger(compiled_in_place, (4, 10), _MLP, inside=perceptron),
    "data parallel": Stranger(lambda: nn.DataParallel(perceptron()), (4, 10), _MLP, inside=perceptron),
    "compiled data parallel": Stranger(
        lambda: compiled(nn.DataParallel(perceptron())), (4, 10), _MLP, inside=perceptron
    ),
    "wrapped by a user": Stranger(
        lambda: Wrapper(compiled()), (4, 10), _MLP, LayerRules(off_sphere=("4.weight",)), perceptron
    ),
    "compiled parts": Stranger(partly_compiled, (4, 10), _MLP, LayerRules(off_sphere=("head.weight",)), partly),
    "bfloat16": Stranger(lambda: perceptron(torch.bfloat16), (4, 10), _MLP),
    "float64": Stranger(lambda: perceptron(torch.float64), (4, 10), _MLP),
    "two heads": Stranger(TwoHeads, (4, 10), 10 * 16 + 16 * 5),
    "head first": Stranger(HeadFirst, (4, 10), 10 * 16 + 16 * 16 + 16 * 3),
    "one linear layer": Stranger(lambda: nn.Linear(10, 4), (4, 10), 40),
    "one neuron": Stranger(lambda: nn.Linear(10, 1), (4, 10), 10),
    "one layer of Conv1D": Stranger(lambda: Conv1D(4, 10), (4, 10), 40),
    "graph": Stranger(Graph, (4, 8, 6), 12 * 16 + 22 * 16 + 16 * 3),
    "pairs": Stranger(Pairs, (4, 2, 10), 10 * 8 + 8 * 8 * 6 + 6 * 2),
    "experts": Stranger(Experts, (4, 10), 10 * 4 + 4 * 10 * 12 + 12 * 3, LayerRules(prune={"experts": 1})),
}
