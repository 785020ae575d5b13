"""Layers of many kinds, each with its number of prunable weights. The number is counted by hand from the layer's sizes.

All layers take and return tensors of the shape (examples, places, channels).
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.layers import Conv1D

Made = tuple[nn.Module, int]


class Through(nn.Module):
    """A layer, and the function that calls it."""

    def __init__(self, layer: nn.Module, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.layer, x)


def channels_second(layer: Any, x: Tensor) -> Tensor:
    return layer(x.transpose(1, 2)).transpose(1, 2)


def on_a_plane(layer: Any, x: Tensor) -> Tensor:
    return layer(x.transpose(1, 2).unsqueeze(2)).flatten(2).transpose(1, 2)


def in_space(layer: Any, x: Tensor) -> Tensor:
    return layer(x.transpose(1, 2)[:, :, None, None]).flatten(2).transpose(1, 2)


def first_result(layer: Any, x: Tensor) -> Tensor:
    return layer(x)[0]


def sum_of_directions(layer: Any, x: Tensor) -> Tensor:
    first, second = layer(x)[0].chunk(2, -1)
    return first + second


def step_by_step(layer: Any, x: Tensor) -> Tensor:
    hidden, outputs = None, []
    for step in x.unbind(1):
        hidden = layer(step, hidden)
        outputs.append(hidden[0] if isinstance(hidden, tuple) else hidden)
    return torch.stack(outputs, 1)


def with_its_neighbour(layer: Any, x: Tensor) -> Tensor:
    return layer(x, x.roll(1, 1))


def _linear(a: int, b: int) -> Made:
    return nn.Linear(a, b), a * b


def _conv1d(a: int, b: int) -> Made:
    return Through(nn.Conv1d(a, b, 3, padding=1), channels_second), a * b * 3


def _conv2d(a: int, b: int) -> Made:
    return Through(nn.Conv2d(a, b, (1, 3), padding="same", padding_mode="circular"), on_a_plane), a * b * 3


def _conv3d(a: int, b: int) -> Made:
    return Through(nn.Conv3d(a, b, (1, 1, 2), padding=(0, 0, 1), bias=False), in_space), a * b * 2


def _grouped_conv(a: int, b: int) -> Made:
    groups = gcd(a, b)
    return Through(nn.Conv1d(a, b, 3, padding=1, groups=groups), channels_second), a * b * 3 // groups


def _transposed_conv(a: int, b: int) -> Made:
    return Through(nn.ConvTranspose1d(a, b, 2), channels_second), a * b * 2


def _grouped_transposed_conv(a: int, b: int) -> Made:
    groups = gcd(a, b)
    layer = nn.ConvTranspose2d(a, b, (1, 3), padding=(0, 1), groups=groups)
    return Through(layer, on_a_plane), a * b * 3 // groups


def _lstm(a: int, b: int) -> Made:
    h = b + 1  # both layers have outputs of size b; the first has inputs of size a, the second of size b
    return Through(nn.LSTM(a, h, 2, proj_size=b, batch_first=True), first_result), 4 * h * (a + 3 * b) + 2 * b * h


def _gru(a: int, b: int) -> Made:
    return Through(nn.GRU(a, b, bidirectional=True, batch_first=True), sum_of_directions), 2 * 3 * b * (a + b)


def _rnn(a: int, b: int) -> Made:
    return Through(nn.RNN(a, b, batch_first=True), first_result), b * (a + b)


def _lstm_cell(a: int, b: int) -> Made:
    return Through(nn.LSTMCell(a, b), step_by_step), 4 * b * (a + b)


def _gru_cell(a: int, b: int) -> Made:
    return Through(nn.GRUCell(a, b), step_by_step), 3 * b * (a + b)


class Attention(nn.Module):
    """Attention of queries of size b to keys and values of size a.

    Queries, keys and values have one packed weight matrix if a = b, and three matrices otherwise.
    """

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.lift = nn.Linear(a, b)
        self.attention = nn.MultiheadAttention(b, gcd(b, 2), kdim=a, vdim=a, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.lift(x), x, x, need_weights=False)[0]


def _attention(a: int, b: int) -> Made:
    return Attention(a, b), a * b + (b * b + 2 * a * b) + b * b


def _encoder(a: int, b: int) -> Made:
    layer = nn.TransformerEncoderLayer(b, gcd(b, 2), 5, dropout=0.1, activation="gelu", batch_first=True)
    return nn.Sequential(nn.Linear(a, b), layer), a * b + 4 * b * b + 2 * 5 * b


def _bilinear(a: int, b: int) -> Made:
    return Through(nn.Bilinear(a, a, b), with_its_neighbour), a * a * b


def _conv1d_of_gpt(a: int, b: int) -> Made:
    return Conv1D(b, a), a * b


class ThereAndBack(nn.Module):
    """A linear layer that also uses the transpose of its weight."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.there = nn.Linear(a, b)

    def forward(self, x: Tensor) -> Tensor:
        back = F.linear(self.there(x).tanh(), self.there.weight.T)
        return self.there(back)


def _there_and_back(a: int, b: int) -> Made:
    return ThereAndBack(a, b), a * b


def _tied(a: int, b: int) -> Made:
    first, second = nn.Linear(b, b), nn.Linear(b, b)
    second.weight = first.weight
    return nn.Sequential(nn.Linear(a, b), first, nn.Tanh(), second), a * b + b * b


class Listed(nn.Module):
    """Matrices in a ParameterList. They are not prunable: no prunable kind of layer has such a list."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.matrices = nn.ParameterList([0.3 * torch.randn(a, b) for _ in range(2)])
        self.empty = nn.ModuleList()

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrices[0] + (x @ self.matrices[1]).sin()


def _listed(a: int, b: int) -> Made:
    return Listed(a, b), 0


class Spectral(nn.Module):
    """A filter of complex numbers."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.lift, self.filter = nn.Linear(a, b), nn.Parameter(torch.randn(3, b, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        found = torch.fft.rfft(self.lift(x).float(), dim=1)
        return torch.fft.irfft(F.pad(found[:, :3] * self.filter, (0, 0, 0, 1)), n=x.shape[1], dim=1).to(x.dtype)


def _spectral(a: int, b: int) -> Made:
    return Spectral(a, b), a * b


class MadeInForward(nn.Module):
    """A layer with a weight that is the output of another layer, as in hypernetworks."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.shape, self.code, self.maker = (b, a), nn.Parameter(torch.randn(3)), nn.Linear(3, a * b)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.maker(self.code).view(self.shape))


def _made_in_forward(a: int, b: int) -> Made:
    return MadeInForward(a, b), 3 * a * b


LAYERS: dict[str, Callable[[int, int], Made]] = {
    "linear": _linear,
    "convolution": _conv1d,
    "convolution, 2d": _conv2d,
    "convolution, 3d": _conv3d,
    "grouped convolution": _grouped_conv,
    "transposed convolution": _transposed_conv,
    "grouped transposed convolution": _grouped_transposed_conv,
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN": _rnn,
    "LSTM cell": _lstm_cell,
    "GRU cell": _gru_cell,
    "attention": _attention,
    "encoder layer": _encoder,
    "bilinear": _bilinear,
    "Conv1D": _conv1d_of_gpt,
    "there and back": _there_and_back,
    "tied": _tied,
    "parameter list": _listed,
    "complex filter": _spectral,
    "weight made in forward": _made_in_forward,
}
"""(channels that come in, channels that go out) -> the layer, and its prunable weights."""


class Normalised(Through):
    """A normalisation that expects the channels in the second dimension."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__(norm, channels_second)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "no norm": lambda width: nn.Identity(),
    "batch norm": lambda width: Normalised(nn.BatchNorm1d(width)),
    "group norm": lambda width: Normalised(nn.GroupNorm(1, width)),
    "layer norm": nn.LayerNorm,
    "RMS norm": nn.RMSNorm,
    "dropout": lambda width: nn.Dropout(0.2),
    "in place": lambda width: nn.ReLU(inplace=True),
}
