"""Test the counted bytes of the tensors that exist at a time, and the peak of this number, against counts by hand."""

from __future__ import annotations

import torch
from torch import nn

from tune_sparsity.sparsity.cost.live_bytes import LiveBytes

N = 1000
BYTES = 4 * N


def test_a_tensor_is_counted_from_its_creation_until_its_release() -> None:
    x = torch.ones(N)
    with LiveBytes([x]) as live:
        assert live.now == BYTES
        y = x * 2
        z = y + 1
        assert (live.now, live.peak) == (3 * BYTES, 3 * BYTES)
        del y
        z = z * 2  # the old tensor is alive until the new one exists
        assert (live.now, live.peak) == (2 * BYTES, 3 * BYTES)
    with live:
        w = torch.cat([z, z, z])
    assert (live.now, live.peak) == (5 * BYTES, 5 * BYTES)
    del w, z
    assert live.now == BYTES


def test_views_and_work_in_place_take_no_memory() -> None:
    x = torch.ones(10, N // 10)
    with LiveBytes([x]) as live:
        x.view(-1)[3:].t().mul_(2).add_(1)
        assert live.peak == BYTES


def test_existing_tensors_are_counted_once_if_listed_or_used() -> None:
    x, y = torch.ones(N), torch.ones(N)
    with LiveBytes([x, x, x[3:]]) as live:
        assert live.now == BYTES
        x.add_(y)
        assert live.now == 2 * BYTES


def test_the_tensors_of_a_backward_pass_are_counted() -> None:
    layer, x = nn.Linear(50, 40, bias=False), torch.ones(30, 50)
    with LiveBytes([x, *layer.parameters()]) as live:
        layer(x).square().sum().backward()
        assert layer.weight.grad is not None
        # The network, the batch and the gradient stay.
        assert live.now == 4 * (2 * 50 * 40 + 30 * 50)
        # The backward pass of square() needs the output and at least two more tensors of its size. At this time, the
        # weight has no gradient yet.
        assert live.peak >= live.now + 4 * 30 * 40
