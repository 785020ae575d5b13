"""The optimizers of binary weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers.problems import mlp
from tune_sparsity.sparsity.binary.bits import signs
from tune_sparsity.sparsity.binary.convert import make_binary
from tune_sparsity.sparsity.binary.optimizer import BETA_1, BinaryOptimizer, adam_of_signs, bop


@pytest.mark.parametrize("size", [1.0, 1e-3, 40.0])
def test_adam_of_signs_equals_adam_for_gradients_of_equal_magnitude(size: float) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = 0.1 * torch.randn(9, 5, generator=generator, dtype=torch.float64)
    ours, mean = weight.clone(), torch.zeros_like(weight)
    theirs = nn.Parameter(weight.clone())
    adam = torch.optim.Adam([theirs], lr=1e-3, betas=(BETA_1, 0.999), eps=0)
    for step in range(1, 41):
        sign = torch.randn(9, 5, generator=generator, dtype=torch.float64).sign()
        theirs.grad = size * sign
        adam.step()
        adam_of_signs(ours, mean, sign, 1e-3, step)
        torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-6)
    assert (ours - weight).abs().max() > 1e-3


def test_latent_weights_do_not_grow_above_1() -> None:
    weight, mean = torch.full((8, 2), 0.99), torch.zeros(8, 2)
    for step in range(1, 30):
        adam_of_signs(weight, mean, -torch.ones(8, 2), 0.1, step)
    assert torch.equal(weight, torch.ones(8, 2))


def test_bop_flips_weights_whose_mean_gradient_has_their_sign_and_exceeds_tau() -> None:
    weight = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    mean = torch.tensor([[0.2, -0.2, 0.2, -0.2]])
    bop(weight, mean, mean.clone(), gamma=0.5, tau=0.1)
    assert weight.tolist() == [[-1, 1, -1, 1]]
    bop(weight, mean, mean.clone(), gamma=0.5, tau=0.5)
    assert weight.tolist() == [[-1, 1, -1, 1]]


@pytest.mark.parametrize("flips", ["signs", "bop"])
def test_no_gradient_outlives_the_backward_pass(flips: str) -> None:
    model = mlp(20, 16, 3)
    blocks = make_binary(model)
    optimizer = BinaryOptimizer([b.weight for b in blocks], [b.bias for b in blocks], 1e-2, flips)
    before = [block.weight.detach().clone() for block in blocks]
    x, y = torch.rand(30, 20), torch.arange(30) % 3
    F.cross_entropy(model(x), y).backward()
    assert all(block.weight.grad is None for block in blocks)
    assert all(block.bias.grad is not None for block in blocks)
    assert all(optimizer.state[block.weight]["mean"].dtype == torch.float16 for block in blocks)
    if flips == "signs":
        assert all(not torch.equal(block.weight, old) for block, old in zip(blocks, before, strict=True))
    else:
        assert all(torch.equal(block.weight, signs(block.weight).half()) for block in blocks)
    biases = [block.bias.detach().clone() for block in blocks]
    optimizer.step()
    assert all(not torch.equal(block.bias, old) for block, old in zip(blocks, biases, strict=True))


@pytest.mark.parametrize("flips", ["signs", "bop"])
def test_the_optimizer_lowers_the_training_loss(flips: str) -> None:
    torch.manual_seed(0)
    model = mlp(20, 32, 32, 3)
    blocks = make_binary(model)
    optimizer = BinaryOptimizer([b.weight for b in blocks], [b.bias for b in blocks], 1e-2, flips)
    x = torch.randn(90, 20)
    y = (x[:, :3]).argmax(1)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]
