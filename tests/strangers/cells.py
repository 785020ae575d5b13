"""Recurrent networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(6, 8, num_layers=2, bidirectional=True, proj_size=5, batch_first=True, dropout=0.1)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0][:, -1])


class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.GRU(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[1][0])


class Rnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.RNN(6, 12, nonlinearity="relu", batch_first=True), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0].mean(1))


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x.new_zeros(len(x), 8), x.new_zeros(len(x), 8)
        for step in x.unbind(1):
            hidden = self.cell(step, hidden)
        return self.head(hidden[0])


class ByHand(nn.Module):
    """A minimal gated unit, a recurrent cell made of linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.forget, self.candidate, self.head = nn.Linear(14, 8), nn.Linear(14, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x.new_zeros(len(x), 8)
        for step in x.unbind(1):
            gate = self.forget(torch.cat([step, hidden], 1)).sigmoid()
            hidden = hidden.lerp(self.candidate(torch.cat([step, gate * hidden], 1)).tanh(), gate)
        return self.head(hidden)
