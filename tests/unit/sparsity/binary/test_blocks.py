"""Binary layers in training: their gradients, and the memory that they keep during and after a step."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.problems import mlp
from tune_sparsity.sparsity.binary.bits import signs
from tune_sparsity.sparsity.binary.blocks import BinaryBlock, in_parts, normalise, normalise_backward
from tune_sparsity.sparsity.binary.convert import make_binary
from tune_sparsity.sparsity.binary.products import ConvolutionProduct, LinearProduct, Product
from tune_sparsity.sparsity.cost.live_bytes import LiveBytes


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def exact(y: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient of the normalisation: autograd computes it from the definition."""
    y = y.clone().requires_grad_()
    centred = y - y.mean((0, 2))[:, None]
    (centred / centred.abs().mean((0, 2))[:, None]).backward(grad)
    assert y.grad is not None
    return y.grad


def test_the_normalisation_has_mean_zero_and_magnitude_one() -> None:
    y = random(50, 6, 3)
    normalised, mean, size = normalise(y)
    torch.testing.assert_close(normalised.mean((0, 2)), torch.zeros(6).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(normalised.abs().mean((0, 2)), torch.ones(6).double())
    torch.testing.assert_close(normalised * size[:, None] + mean[:, None], y)


def test_the_normalisation_gradient_is_exact_if_all_magnitudes_are_equal() -> None:
    """The backward pass knows only the signs of the normalised numbers. Here these numbers are equal to their signs."""
    sign = signs(random(20, 5, 2)).double()
    sign[10:] = -sign[:10]  # so that the mean is 0
    y, grad = 3 * sign + 0.5, random(20, 5, 2, seed=1)
    _, _, size = normalise(y)
    torch.testing.assert_close(normalise_backward(grad, sign, size), exact(y, grad), rtol=0, atol=1e-12)


def test_the_normalisation_gradient_is_near_autograd_for_other_magnitudes() -> None:
    y, grad = random(64, 24, 1), random(64, 24, 1, seed=1)
    normalised, _, size = normalise(y)
    found, true = normalise_backward(grad, signs(normalised).double(), size), exact(y, grad)
    assert F.cosine_similarity(found.flatten(), true.flatten(), 0) > 0.99


def test_the_exact_normalisation_gradient_has_the_closed_form() -> None:
    y, grad = random(64, 24, 1), random(64, 24, 1, seed=1)
    normalised, _, size = normalise(y)
    u, sign = grad / size[:, None], normalised.sign()
    along = (u * normalised).mean((0, 2))[:, None]
    closed = u - u.mean((0, 2))[:, None] - along * (sign - sign.mean((0, 2))[:, None])
    torch.testing.assert_close(closed, exact(y, grad), rtol=0, atol=1e-12)


PRODUCTS: list[tuple[Product, tuple[int, ...], tuple[int, ...]]] = [
    (LinearProduct(), (7, 33), (20, 33)),
    (ConvolutionProduct((1, 1), (1, 1), (1, 1), -1.0), (3, 2, 6, 5), (11, 2, 3, 3)),
    (ConvolutionProduct((2, 1), (0, 2), (1, 2), -1.0), (3, 2, 9, 8), (9, 2, 3, 2)),
    (ConvolutionProduct((1, 1), (1, 1), (1, 1), -1.0, (2, 2)), (3, 2, 6, 7), (17, 2, 3, 3)),
]


def reference(product: Product, x: Tensor, weight: Tensor) -> Tensor:
    """Return the result of `product`, computed with operations of torch that autograd can differentiate."""
    if isinstance(product, LinearProduct):
        return F.linear(x, weight)
    (rows, columns), pool = product.padding, product.pool
    padded = F.pad(x, (columns, columns, rows, rows), value=product.fill)
    return F.max_pool2d(F.conv2d(padded, weight, None, product.stride, 0, product.dilation), pool)


@pytest.mark.parametrize(("product", "inputs", "weights"), PRODUCTS)
def test_gradients_of_products_are_those_of_autograd(
    product: Product, inputs: tuple[int, ...], weights: tuple[int, ...]
) -> None:
    x, weight = random(*inputs, seed=1).requires_grad_(), random(*weights, seed=2).requires_grad_()
    y = reference(product, x, weight)
    assert torch.equal(product(x, weight), y)
    grad = random(*y.shape, seed=3)
    expected = torch.autograd.grad(y, (x, weight), grad)
    by_input = torch.zeros_like(x)
    with torch.no_grad():
        by_weight = product.gradients(x, weight, grad, by_input)
    torch.testing.assert_close((by_input, by_weight), expected)


@pytest.mark.parametrize(("product", "inputs", "weights"), PRODUCTS)
@pytest.mark.parametrize("kind", ["sign", "relu", "none"])
def test_a_block_computed_in_parts_equals_the_block_computed_at_once(
    product: Product, inputs: tuple[int, ...], weights: tuple[int, ...], kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block that computes eight rows at a time has the outputs and gradients of tensor operations on all rows."""
    monkeypatch.setattr("tune_sparsity.sparsity.binary.blocks._TOGETHER", 1)
    latent, x = 0.3 * random(*weights, seed=2), signs(random(*inputs, seed=1)).requires_grad_()
    block = BinaryBlock(latent, product, kind, None)
    block.bias.data = 0.1 * random(weights[0], seed=4).float()
    out = block(x)
    y = reference(product, x.detach(), signs(latent))
    flat = y.reshape(*y.shape[:2], -1)
    normalised, _, size = normalise(flat)
    h = (normalised + block.bias.detach()[:, None]).view(y.shape)
    torch.testing.assert_close(out.detach(), {"sign": signs(h), "relu": h.relu(), "none": h}[kind])

    grad = random(*out.shape, seed=5).float()
    passes = {"sign": h.abs() <= 1, "relu": h >= 0, "none": torch.ones_like(h) > 0}[kind]
    through = (grad * passes).view(flat.shape)
    by_y = normalise_backward(through, signs(h).view(flat.shape), size).view(y.shape)
    again, weight = x.detach().clone().requires_grad_(), signs(latent).requires_grad_()
    by_input, by_weight = torch.autograd.grad(reference(product, again, weight), (again, weight), by_y)
    out.backward(grad)
    torch.testing.assert_close(x.grad, by_input)
    torch.testing.assert_close(block.bias.grad, through.sum((0, 2)))
    assert block.weight.grad is not None
    certain = by_weight.abs() > 1e-4  # if a sum is about 0, rounding decides its sign
    assert torch.equal(block.weight.grad.float()[certain], by_weight.sign()[certain])
    assert certain.float().mean() > 0.9


def test_parts_of_a_weight_begin_at_whole_bytes_and_cover_all_rows() -> None:
    for rows, fan_in, results in ((1, 3, 1), (10, 1000, 100), (257, 5000, 100), (300, 3, 100_000)):
        parts = list(in_parts(torch.empty(rows, fan_in), results))
        assert all(part.start % 8 == 0 for part in parts)
        assert [row for part in parts for row in range(part.start, part.stop)] == list(range(rows))


def retained(forward: Callable[[], Tensor], own: list[Tensor]) -> int:
    """Return the bytes that autograd saves for the backward pass. Tensors in `own` exist anyway and are not counted."""
    sizes, known = dict[int, int](), {tensor.untyped_storage().data_ptr() for tensor in own}

    def pack_hook(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        sizes[memory.data_ptr()] = memory.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda tensor: tensor):
        kept = forward()  # its graph is alive while sizes are read, so that no memory is used twice
    total = sum(size for place, size in sizes.items() if place not in known)
    del kept
    return total


def test_a_hidden_layer_keeps_two_bits_per_output_for_the_backward_pass() -> None:
    batch, widths = 100, (784, 256, 256, 10)
    model = mlp(*widths)
    make_binary(model)
    x = torch.rand(batch, widths[0])
    found = retained(lambda: model(x), [x, *model.parameters()])
    gates = sum(batch * -(-width // 8) for width in widths[1:-1])
    outputs = sum(batch * -(-width // 8) for width in widths[1:])  # signs, also the inputs of the next layer
    assert found == gates + outputs + 4 * sum(widths[1:])


def test_a_step_frees_its_memory_without_the_garbage_collector() -> None:
    """There are no cycles of references, which only Python's garbage collector would free."""
    model = mlp(20, 16, 16, 3)
    make_binary(model)
    x, y = torch.rand(8, 20), torch.arange(8) % 3
    alive = LiveBytes([x, y, *model.parameters(), *model.buffers()])
    gc.collect()
    gc.disable()
    try:
        counts = set()
        for step in range(200):
            with alive:
                F.cross_entropy(model(x), y).backward()
            if step:
                counts.add(alive.now)
    finally:
        gc.enable()
    assert len(counts) == 1


@pytest.mark.parametrize("pool", [(1, 1), (2, 2)])
def test_a_linear_layer_takes_the_sign_bits_of_a_flattened_convolution(pool: tuple[int, int]) -> None:
    """The convolution makes the sign bits, in the order of nn.Flatten."""
    layers = [nn.Conv2d(1, 8, 3), nn.MaxPool2d(pool), nn.ReLU(), nn.Flatten()]
    width = 8 * (6 // pool[0]) ** 2
    model = nn.Sequential(*layers, nn.Linear(width, 12), nn.ReLU(), nn.Linear(12, 4))
    blocks = make_binary(model)
    x = torch.rand(16, 1, 8, 8)
    captured = list[Tensor]()
    blocks[1].register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    model(x).square().sum().backward()
    alone = BinaryBlock(blocks[1].weight.detach(), LinearProduct(), "sign", None)
    alone.bias.data = blocks[1].bias.data
    again = captured[0].detach()
    grad = torch.autograd.grad(model[4:](again.requires_grad_()).square().sum(), blocks[1].weight)[0]
    assert blocks[1].weight.grad is not None
    agree = (grad == blocks[1].weight.grad).float().mean()
    assert agree == 1
