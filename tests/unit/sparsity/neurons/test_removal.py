"""The smaller network computes the same as the masked network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.helpers.examples import examples
from tests.strangers.generated import Part, Plan, plans
from tests.unit.sparsity.neurons import networks
from tune_sparsity.sparsity import Layer, prunable_layers
from tune_sparsity.sparsity.masks import zeros_for
from tune_sparsity.sparsity.neurons.finding import neuron_groups
from tune_sparsity.sparsity.neurons.groups import NeuronGroups
from tune_sparsity.sparsity.neurons.removal import smaller

pytest.importorskip("torch_pruning")

EQUAL = {torch.float32: 1e-5, torch.float64: 1e-12}


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
    """Fill all parameters and buffers with one dimension (such as biases and running statistics) with random values."""
    generator = torch.Generator().manual_seed(seed)
    vectors = [param for param in model.parameters() if param.dim() == 1]
    for vector in (*vectors, *(buffer for buffer in model.buffers() if buffer.dim() == 1)):
        vector.copy_(0.5 + torch.rand(vector.shape, generator=generator))


def masked(model: nn.Module, layers: list[Layer], example: Any, sparsity: float) -> tuple[NeuronGroups, list[Tensor]]:
    """Mask neurons of a network for this sparsity, or for the highest possible sparsity if that is lower."""
    groups = neuron_groups(model, layers, example)
    logs = [layer.weight.detach().abs().log2() for layer in layers]
    wanted = min(sparsity, groups.highest_sparsity)
    masks = groups.masks(logs, wanted)
    total = sum(mask.numel() for mask in masks)
    # At the highest sparsity, a few zeros may be missing, because the most important neurons stay (see masks_until).
    assert sum(int((mask == 0).sum()) for mask in masks) >= zeros_for(wanted, total) or wanted < sparsity
    assert all(mask.any() for mask in masks)
    for layer, mask in zip(layers, masks, strict=True):
        layer.weight.data.mul_(mask)
    return groups, masks


def check(model: nn.Module, example: Any, sparsity: float, dtype: torch.dtype = torch.float32) -> NeuronGroups:
    """Check that the smaller network has exactly the active weights of the masked network, and the same outputs."""
    model, example = model.to(dtype).eval(), example.to(dtype) if example.is_floating_point() else example
    layers = prunable_layers(model, sphere=False)
    groups, masks = masked(model, layers, example, sparsity)
    found = smaller(model, groups, masks)
    with torch.no_grad():
        expected, outputs = model(example), found(example)
    assert outputs.shape == expected.shape
    assert (outputs - expected).abs().max() <= EQUAL[dtype] * expected.abs().max().clamp_min(1)
    parameters = dict(found.named_parameters())
    for layer, mask in zip(layers, masks, strict=True):
        assert parameters[layer.name].numel() == mask.count_nonzero()
        assert torch.equal(parameters[layer.name].flatten(), layer.weight[mask != 0])
    assert {type(a) for a in found.modules()} == {type(a) for a in model.modules()}
    return groups


@pytest.mark.parametrize("dtype", EQUAL)
@pytest.mark.parametrize("sparsity", [0.3, 0.9, 0.999])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (networks.mlp, (4, 12)),
        (networks.lenet, (4, 1, 28, 28)),
        (networks.resnet, (4, 3, 12, 12)),
        (networks.densenet, (4, 3, 12, 12)),
        (networks.grouped, (4, 3, 12, 12)),
        (networks.transposed, (4, 3, 12, 12)),
        (networks.Vit, (4, 3, 12, 12)),
        (networks.encoder, (4, 5, 6)),
        (networks.Recurrent, (4, 5, 6)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_smaller_network_computes_the_same_as_the_masked_network(
    make: Callable[[], nn.Module], shape: tuple[int, ...], sparsity: float, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model, example = make(), torch.randn(shape)
    randomise(model, 1)
    check(model, example, sparsity, dtype)
    if sparsity < 0.5:  # with so many neurons, the outputs still depend on the inputs
        with torch.no_grad():
            outputs = model(example.to(dtype))
        assert not any(torch.equal(a, b) for a, b in zip(outputs, outputs.roll(1, 0), strict=True))


LARGE = ("densenet121", "resnext50_32x4d", "convnext_tiny")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", *(pytest.param(name, marks=pytest.mark.long) for name in LARGE)]
)
def test_smaller_torchvision_networks_compute_the_same(name: str) -> None:
    torch.manual_seed(0)
    model, example = torchvision.models.get_model(name, num_classes=10), torch.randn(2, 3, 32, 32)
    groups = check(model, example, 0.7)
    norms = sum(isinstance(module, nn.LayerNorm) for module in model.modules())
    assert len(groups.whole) <= 1 + 2 * norms


def test_concatenated_channels_before_a_flattening_stay() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 1), networks.Dense(8, 4), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 5))
    groups = check(model, torch.randn(3, 3, 8, 8), 0.5)
    assert [name for name, _ in groups.whole] == ["0.weight", "1.conv.weight", "6.weight"]
    assert groups.count == 16


def test_failed_tracing_is_the_reason_why_a_network_keeps_all_its_neurons() -> None:
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=10).eval()
    groups = neuron_groups(model, prunable_layers(model), torch.randn(2, 3, 32, 32))
    assert groups.count == 0
    assert all(reason.startswith("torch-pruning cannot trace the network: ") for _, reason in groups.whole)


@examples(50)
# With only the most important neuron of each layer, fewer than 75 % of the weights are zero (see masks_until).
@example(seed=2075312, sparsity=0.75)
@given(seed=st.integers(0, 2**32 - 1), sparsity=st.floats(0, 0.99))
def test_smaller_generated_convolutional_networks_compute_the_same(seed: int, sparsity: float) -> None:
    torch.manual_seed(seed)
    model, example = networks.generated(seed), torch.randn(3, 3, 8, 8)
    randomise(model, seed)
    groups = check(model, example, sparsity, torch.float64)
    head = list(dict(model.named_parameters()))[-2]
    assert groups.whole == ((head, "no layer is seen to read its outputs"),)


def traced(model: nn.Module, example: Tensor) -> tuple[Tensor, list[bool]]:
    """Return the outputs and, for each call of a module in `model.parts`, whether its output has the shape of its
    input."""
    alike: list[bool] = []
    hooks = [
        part.register_forward_hook(lambda _, inputs, output: alike.append(inputs[0].shape == output.shape))
        for part in model.parts.children()  # type: ignore[union-attr]
    ]
    outputs = model(example)
    for hook in hooks:
        hook.remove()
    return outputs, alike


ENDLESS = Plan(
    parts=(Part("GRU cell", "frozen", 1, "batch norm"), Part("GRU", "in float64", 1, "no norm")),
    front="tied tokens",
    heads=2,
    heads_first=False,
    prunes_embedding=True,
    dtype=torch.float64,
)


def test_a_network_with_a_cycle_of_channel_indices_keeps_all_its_neurons() -> None:
    torch.manual_seed(1683)
    model, example = ENDLESS.make().eval(), ENDLESS.prepare(ENDLESS.batch(4, 1683))
    groups = neuron_groups(model, prunable_layers(model, ENDLESS.rules, sphere=False), example)
    assert groups.count == 0


@settings(examples(25), suppress_health_check=list(HealthCheck))
@example(plan=ENDLESS, seed=1683)
@given(plan=plans(), seed=st.integers(0, 2**32 - 1))
def test_smaller_generated_networks_of_all_kinds_compute_the_same(plan: Plan, seed: int) -> None:
    """Some layers of these networks keep all their neurons."""
    torch.manual_seed(seed)
    model, example = plan.make().eval(), plan.prepare(plan.batch(4, seed))
    try:
        with torch.no_grad():
            model(example)
            layers = prunable_layers(model, plan.rules, sphere=False)
    except (RuntimeError, TypeError, ValueError):  # torch lacks an operation in half precision, or nothing is prunable
        assume(False)
    groups, masks = masked(model, layers, example, 0.5)
    with torch.no_grad():
        (expected, before), (outputs, after) = (traced(one, example) for one in (model, smaller(model, groups, masks)))
    # A generated network adds the input of a part to its output if both shapes are equal. The smaller network may have
    # other equal shapes, and then computes something else.
    assume(before == after)
    assert (outputs - expected).abs().max() <= 100 * torch.finfo(plan.dtype).eps * expected.abs().max().clamp_min(1)
