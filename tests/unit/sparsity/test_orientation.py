"""The rows of a weight agree with the definition of each layer: the row of a neuron holds all weights on which this
neuron's output depends."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.layers import Conv1D
from tests.helpers.problems import normal
from tune_sparsity.sparsity import METHODS, lpss
from tune_sparsity.sparsity.layers import prunable_layers
from tune_sparsity.sparsity.optim.foreach import ForeachStep
from tune_sparsity.sparsity.optim.lpsgd import LpSGD
from tune_sparsity.sparsity.orientation import STANDARD, Orientation, oriented

pytestmark = pytest.mark.usefixtures("either_step")

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    # a layer, its input, and the dimension of its outputs' channels
    "Linear": (lambda: nn.Linear(6, 4), (2, 6), 1),
    "Conv1D": (lambda: Conv1D(4, 6), (2, 6), 1),
    "Conv1D square": (lambda: Conv1D(5, 5), (2, 5), 1),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3), (1, 4, 5, 5), 1),
    "Conv2d grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (1, 4, 5, 5), 1),
    "Conv2d depthwise": (lambda: nn.Conv2d(4, 8, (3, 1), groups=4), (1, 4, 5, 5), 1),
    "ConvTranspose1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2), (1, 4, 5), 1),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, (2, 3)), (1, 4, 3, 3), 1),
    "ConvTranspose2d grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (1, 4, 3, 3), 1),
    "ConvTranspose2d depthwise": (lambda: nn.ConvTranspose2d(4, 4, 2, groups=4), (1, 4, 3, 3), 1),
    "ConvTranspose3d grouped": (lambda: nn.ConvTranspose3d(6, 3, 2, groups=3), (1, 6, 2, 2, 2), 1),
}


def one(layer: nn.Module) -> tuple[nn.Parameter, Orientation]:
    (found,) = prunable_layers(layer, sphere=False)
    return found.weight, found.orientation


@pytest.mark.parametrize("name", LAYERS)
def test_a_row_holds_the_weights_that_its_neuron_depends_on(name: str) -> None:
    make, shape, channels = LAYERS[name]
    layer, x = make(), torch.rand(shape) + 0.5
    weight, orientation = one(layer)
    outputs = layer(x).transpose(0, channels).flatten(1).abs().sum(1)
    rows = orientation.rows(weight.detach())
    assert len(rows) == len(outputs)
    for neuron, output in enumerate(outputs):
        (seen,) = torch.autograd.grad(output, [weight], retain_graph=True)
        expected = torch.zeros_like(rows)
        expected[neuron] = 1
        assert torch.equal((orientation.rows(seen) != 0).float(), expected)


def test_the_rows_of_a_transposed_convolution_follow_its_definition() -> None:
    """The row of an output channel holds one kernel for each input channel of the same group."""
    layer = nn.ConvTranspose2d(6, 4, (2, 3), groups=2)
    weight, orientation = one(layer)
    rows = orientation.rows(weight.detach())
    assert rows.shape == (4, 3 * 2 * 3)
    for group in range(2):
        for output in range(2):
            by_hand = torch.cat([weight[3 * group + i, output].flatten() for i in range(3)])
            assert torch.equal(rows[2 * group + output], by_hand)
    assert orientation.turned(weight).shape == (4, 3, 2, 3)


@pytest.mark.parametrize("name", LAYERS)
def test_conversion_to_rows_and_back_restores_a_weight(name: str) -> None:
    weight, orientation = one(LAYERS[name][0]())
    assert torch.equal(orientation.turned_back(orientation.turned(weight), weight.shape), weight)
    assert torch.equal(orientation.turned_back(orientation.rows(weight).clone(), weight.shape), weight)


def test_the_fan_in_dimensions_of_a_parameter_determine_its_rows() -> None:
    x = torch.arange(24).view(2, 3, 4)
    assert oriented((1, 2), 3) == oriented((-1, 1), 3) == STANDARD
    assert torch.equal(oriented(1, 3).rows(x), x.transpose(1, 2).reshape(8, 3))
    assert torch.equal(oriented((0, 1), 3).rows(x), x.permute(2, 0, 1).reshape(4, 6))


def close(ours: Tensor, theirs: Tensor) -> None:
    """Check that the tensors are equal except for rounding errors: their values may be sums in different orders."""
    few = 20 * torch.finfo(ours.dtype).eps
    torch.testing.assert_close(ours, theirs, rtol=few, atol=few)


def twin(rows: Tensor, orientation: Orientation, shape: torch.Size) -> nn.Parameter:
    return nn.Parameter(orientation.turned_back(rows.detach().clone(), shape).contiguous())


@pytest.mark.parametrize("name", [name for name in LAYERS if "1D" in name or "Transpose" in name])
@pytest.mark.parametrize("foreach", [None, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gain", [False, True])
def test_an_oriented_weight_is_trained_like_a_matrix_with_the_same_rows(
    name: str, foreach: bool | None, dtype: torch.dtype, gain: bool
) -> None:
    """LpSGD trains a weight with an orientation like a plain matrix with the same rows, also with a mask. The states of
    both agree, too."""
    weight, orientation = one(LAYERS[name][0]())
    start = normal(0, *orientation.rows(weight).shape, dtype=dtype)
    matrix, turned = nn.Parameter(start.clone()), twin(start, orientation, weight.shape)
    settings = {"p": 1.4, "lr": 0.05, "gain": gain, "foreach": foreach}
    plain = LpSGD([{"params": [matrix], **settings}])
    ours = LpSGD([{"params": [turned], "orientation": tuple(orientation), **settings}])
    generator = torch.Generator().manual_seed(0)
    for step in range(4):
        if step == 2:
            mask = (torch.rand(start.shape, generator=generator) > 0.5).to(dtype)
            plain.set_masks({matrix: mask})
            ours.set_masks({turned: orientation.turned_back(mask, weight.shape)})
        matrix.grad = torch.randn(start.shape, generator=generator).to(dtype)
        turned.grad = orientation.turned_back(matrix.grad.clone(), weight.shape)
        plain.step()
        ours.step()
        close(orientation.rows(turned), matrix)
    close(ours.state[turned]["v"], plain.state[matrix]["v"])
    close(orientation.rows(ours.log_magnitude(turned)), plain.log_magnitude(matrix))


@pytest.mark.parametrize("name", ["Conv1D", "ConvTranspose2d", "ConvTranspose2d grouped"])
def test_rows_of_ungrouped_weights_are_contiguous_until_training_ends(name: str) -> None:
    layer, shape, _ = LAYERS[name]
    model = nn.Sequential(layer(), nn.Flatten())
    model.append(nn.Linear(model(torch.ones(shape)).shape[1], 2))
    sparse = lpss(model, total_steps=2, sparsity=0.5)
    turned = sparse.layers[0]
    for step in range(2):
        rows = turned.rows()
        assert (rows.data_ptr() == turned.weight.data_ptr() and rows.is_contiguous()) == ("grouped" not in name)
        sparse.zero_grad()
        model(torch.rand(shape) + step).square().sum().backward()
        sparse.step()
    assert turned.weight.is_contiguous()


@pytest.mark.parametrize("orientation", [((2,), 1), ((0, 1), 1), ((0,), 3)])
def test_an_orientation_that_a_parameter_cannot_have_is_refused(orientation: tuple[tuple[int, ...], int]) -> None:
    with pytest.raises(ValueError, match=r"^orientation .* does not suit the shape \(4, 6\) of a parameter$"):
        LpSGD([{"params": [nn.Parameter(torch.ones(4, 6))], "p": 1.4, "orientation": orientation}])


def test_a_channels_last_weight_keeps_its_memory_format() -> None:
    weight = nn.Parameter(normal(0, 4, 3, 2, 2, dtype=torch.float32).to(memory_format=torch.channels_last))
    optimizer, before = LpSGD([weight], p=1.4), weight.stride()
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert weight.stride() == before
    ((_, (block,)),) = optimizer._blocks.values()
    assert isinstance(block, ForeachStep)  # the compiled step rounds differently


def test_load_state_dict_keeps_the_orientation() -> None:
    def make() -> tuple[nn.Parameter, LpSGD]:
        weight = nn.Parameter(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)))
        return weight, LpSGD([{"params": [weight], "p": 1.4, "orientation": ((0,), 1)}])

    (first, saved), (second, loaded) = make(), make()
    first.grad = second.grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    saved.step()
    loaded.load_state_dict(saved.state_dict())
    with torch.no_grad():
        second.copy_(first)
    saved.step()
    loaded.step()
    assert torch.equal(first, second)
    assert torch.allclose((second.abs() ** 1.4).sum(0) ** (1 / 1.4), loaded.gain(second)[:, 0])
    earlier = saved.state_dict()
    for group in earlier["param_groups"]:
        del group["orientation"]  # an earlier version saved no orientation
    loaded.load_state_dict(earlier)
    assert loaded.param_groups[0]["orientation"] is None


def test_erk_uses_the_oriented_dimensions_of_a_layer() -> None:
    grouped = nn.ConvTranspose2d(8, 8, 2, groups=4)  # 8 neurons, each of 2 channels and a kernel of 2 x 2
    model = nn.Sequential(nn.Linear(40, 40), grouped, Conv1D(8, 40), nn.Linear(40, 3))
    sparse = METHODS["static"].build(
        model, {"final_sparsity": 0.85}, total_steps=1, generator=torch.Generator().manual_seed(0)
    )
    sums = {"0.weight": 80, "1.weight": 8 + 2 + 2 + 2, "2.weight": 48, "3.weight": 43}
    kept = {layer.name: int(mask.sum()) for layer, mask in zip(sparse.layers, sparse.masks, strict=True)}
    assert sum(kept.values()) == 2104 - sparse.zeros()[0]
    for name in sums:  # density x size = a constant x the sum of the dimensions
        assert kept[name] == pytest.approx(sum(kept.values()) * sums[name] / sum(sums.values()), abs=1)
