"""Weights of few bits: they are exact products of scales and codes, the gradients of the scales are correct, and every
method keeps its zeros and can be resumed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers.trainings import MASKED
from tests.unit.sparsity.methods.test_averaging import build
from tests.unit.sparsity.methods.test_methods import STEPS, batch, depthwise, network, same, train, zeros
from tune_sparsity.sparsity import METHODS, SparseTraining, prunable_layers, zeros_for
from tune_sparsity.sparsity.cost.layout import Layout
from tune_sparsity.sparsity.cost.writer import encode, load
from tune_sparsity.sparsity.few_bits import Codes, FewBits, FewBitsTraining, Precision, codes_of, largest_code
from tune_sparsity.tuner.worker.sizes import precision_of


def exact(sparse: SparseTraining) -> bool:
    """Return whether each prunable weight equals its scale times its code bit for bit. Check that the masked weights,
    and no other weights, have the code 0."""
    codes = sparse.codes()
    assert list(codes) == [layer.name for layer in sparse.layers]
    for layer, mask in zip(sparse.layers, sparse.masks, strict=True):
        own = codes[layer.name]
        assert (own.codes.dtype, own.scales.dtype) == (torch.int8, torch.float16)
        assert own.codes.shape == layer.weight.shape
        assert own.scales.shape == (len(layer.weight),)
        assert torch.equal(own.codes != 0, mask != 0)
        assert int(own.codes.abs().max()) <= largest_code(own.bits)
        assert own.scales.isfinite().all()
    return all(torch.equal(codes[layer.name].weight(), layer.weight) for layer in sparse.layers)


# ---- every method


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("name", MASKED)
def test_weights_of_every_method_end_on_codes_with_the_exact_sparsity(name: str, bits: int) -> None:
    model = network()
    sparse = build(name, model, weight_bits=bits, bits_share=0.25)
    assert (sparse.total_steps, sparse.few_bits.how.steps) == (60, 20)  # type: ignore[union-attr]
    train(model, sparse, 0, 59)
    assert sparse.codes() == {}
    x, y = batch(0)
    train(model, sparse, 59, 60)
    rounded = F.cross_entropy(model(x), y).item()
    assert exact(sparse)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train(model, sparse, 60, STEPS)
    assert exact(sparse)
    assert zeros(sparse) == zeros_for(0.0 if name == "dense" else 0.9, sparse.zeros()[1])
    assert all(torch.equal(one, one.half().float()) for one in model.parameters() if one.dim() == 1)
    assert all(not torch.equal(value, before[key]) for key, value in model.state_dict().items())  # biases learn too
    if bits == 2:
        assert F.cross_entropy(model(x), y) < rounded


@pytest.mark.parametrize("stop", [30, 60, 70, 80])
@pytest.mark.parametrize("name", MASKED)
def test_resumed_equals_unbroken_bit_for_bit(name: str, stop: int) -> None:
    options = {"weight_bits": 4, "bits_share": 0.25}
    model, other = network(), network(seed=5)
    sparse, again = build(name, model, **options), build(name, other, **options)
    train(model, sparse, 0, stop)
    train(other, again, 0, 65 if stop > 60 else 2)
    other.load_state_dict(model.state_dict())
    again.load_state_dict(copy.deepcopy(sparse.state_dict()))
    train(model, sparse, stop, STEPS)
    train(other, again, stop, STEPS)
    assert same(other.state_dict(), model.state_dict())
    assert same(again.state_dict(), sparse.state_dict())
    assert exact(again)


def turned() -> nn.Sequential:
    """Return a network in channels-last memory format. The second dimension of its transposed convolutions' weights
    stands for the neurons."""
    torch.manual_seed(0)
    layers = [nn.Unflatten(1, (1, 4, 4)), nn.ConvTranspose2d(1, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3)]
    whole = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    return whole.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("name", ["lpss", "gmp"])
@pytest.mark.parametrize("model", [turned, depthwise])
def test_transposed_depthwise_and_channels_last_weights_end_on_codes(model: Callable[[], nn.Module], name: str) -> None:
    trained = model()
    sparse = build(name, trained, weight_bits=4)
    train(trained, sparse, 0, STEPS)
    assert exact(sparse)
    assert zeros(sparse) == zeros_for(0.9, sparse.zeros()[1])


def test_a_training_with_fewer_steps_than_planned_is_rounded_at_its_end() -> None:
    model = network()
    sparse = build("gmp", model, weight_bits=4)
    train(model, sparse, 0, 30)
    sparse.finish()
    assert exact(sparse)
    assert zeros(sparse) == zeros_for(0.9, sparse.zeros()[1])


@pytest.mark.parametrize("name", ["lpss", "gmp", "rigl", "snip"])
def test_only_biases_of_hidden_rows_without_weights_become_zero(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 4))
    sparse = build(name, model, weight_bits=4, bits_share=0.25, final_sparsity=0.97)
    before = model[4].bias.detach().clone()
    train(model, sparse, 0, 55)
    assert sparse.fixed
    for layer in range(2):
        used = (model[2 * layer].weight != 0).any(1)
        assert 0 < used.sum() < len(used)
        assert (model[2 * layer].bias[~used] == 0).all()
    train(model, sparse, 55, STEPS)
    for layer in range(2):
        assert torch.equal(model[2 * layer].bias != 0, (model[2 * layer].weight != 0).any(1))
    # A bias of the last layer is never set to zero: it changes an output, also if its neuron has no weights.
    assert (model[4].bias != before).all()

    names, state = {"0.weight", "2.weight", "4.weight"}, model.state_dict()
    layers = prunable_layers(model, sphere=False)
    precision = precision_of(model, layers, 4)
    assert precision == Precision(4, ("0.bias", "2.bias", "4.bias"), {"0.bias": "0.weight", "2.bias": "2.weight"})
    data = encode(precision.of(state, names), precision.with_zeros(names))
    assert len(data) == Layout.of(state, names, precision).size({name: state[name] for name in names})
    assert all(torch.equal(tensor.float(), state[name]) for name, tensor in load(data).items())


def test_biases_rounded_to_float16_are_trained_from_their_exact_values() -> None:
    # Each step is smaller than the spacing of float16 at 1. Many such steps together still move the bias.
    weight, bias = torch.ones(1, 1), nn.Parameter(torch.ones(1))
    training = FewBitsTraining([weight], [torch.ones(1, 1)], [bias], FewBits(4, 100))
    training.begin()
    seen = set()
    for _ in range(100):
        bias.grad = torch.ones(1)
        training.step()
        seen.add(bias.item())
    # With a constant gradient, each step of Adam is as long as the learning rate. The rate falls from 3e-4 to 0 as a
    # cosine: 100 steps add up to .015.
    assert bias.item() == pytest.approx(1 - 100 * 3e-4 / 2, abs=1e-3)
    assert all(value == float(torch.tensor(value).half()) for value in seen)
    assert len(seen) > 5


def test_layers_without_elements_are_trained_and_packed() -> None:
    with pytest.warns(UserWarning, match="zero-element"):
        model = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 0), nn.Linear(0, 8), nn.Linear(8, 4))
    sparse = build("gmp", model, weight_bits=4)
    train(model, sparse, 0, STEPS)
    state, names = model.state_dict(), {layer.name for layer in sparse.layers}
    precision = precision_of(model, sparse.layers, 4)
    data = encode(precision.of(state, names), precision.with_zeros(names))
    masks = {layer.name: mask for layer, mask in zip(sparse.layers, sparse.masks, strict=True)}
    assert len(data) == Layout.of(state, names, precision).size(masks)
    assert all(torch.equal(tensor.float(), state[name]) for name, tensor in load(data).items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="needs weights in float32 or float64"):
        FewBitsTraining([torch.ones(2, 2, dtype=dtype)], [torch.ones(2, 2)], [], FewBits(4, 10))


@pytest.mark.parametrize(
    ("precision", "reason"),
    [
        (Precision(4), "w cannot be stored exactly with 4 bits per weight"),
        (Precision(halves=("w",)), "w has numbers that float16 cannot represent exactly"),
    ],
)
def test_tensors_of_another_precision_are_refused(precision: Precision, reason: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=reason):
        precision.of({"w": torch.randn(4, 30)}, {"w"})


def test_nothing_is_averaged_where_weights_get_few_bits() -> None:
    assert build("gmp", network(), averaging="swa", weight_bits=4).average is None


# ---- one weight


def alone(weight: torch.Tensor, bits: int, mask: torch.Tensor | None = None, steps: int = 100) -> FewBitsTraining:
    mask = torch.ones_like(weight) if mask is None else mask
    weight.mul_(mask)
    return FewBitsTraining([weight], [mask], [], FewBits(bits, steps))


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_a_row_uses_all_codes_except_zero(bits: int) -> None:
    weight = torch.linspace(-1, 1, 5000).repeat(3, 1) * torch.tensor([[1e-3], [1.0], [40.0]])
    training = alone(weight, bits)
    training.begin()
    (codes,) = training.codes()
    assert not (codes.codes == 0).any()
    assert all(len(row.unique()) == 2 * largest_code(bits) for row in codes.codes)
    assert 2 * largest_code(bits) == (254 if bits == 8 else 2**bits)
    assert torch.equal(weight, codes.weight())


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_initial_scales_have_no_more_error_than_scales_from_largest_weights(bits: int) -> None:
    torch.manual_seed(0)
    before = torch.randn(20, 300)
    weight = before.clone()
    alone(weight, bits).begin()
    scale = before.abs().amax(1, keepdim=True) / largest_code(bits)
    plain = torch.copysign((before / scale).abs().round().clamp(1, largest_code(bits)), before) * scale
    error, other = (before - weight).square().sum(1), (before - plain).square().sum(1)
    assert (error <= other * 1.01).all()  # scales are float16
    assert bits == 8 or error.sum() < 0.8 * other.sum()


def test_gradients_of_scales_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    weight, mask = torch.randn(6, 40, dtype=torch.float64), (torch.rand(6, 40) < 0.5).double()
    training = alone(weight, 4, mask)
    training.begin()
    (codes,) = training.codes()
    scales, target = codes.scales.double(), torch.randn(6, 40, dtype=torch.float64)

    def loss(logs: torch.Tensor) -> torch.Tensor:
        return (codes.codes * logs.exp()[:, None] - target).square().sum(1)

    weight.grad = 2 * (weight - target)
    training.step()
    step, logs = 1e-5, scales.log()
    expected = (loss(logs + step) - loss(logs - step)) / (2 * step)
    found = training._adam.state[training._log_scales]["exp_avg"] / 0.1
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_row_without_weights_has_no_scale_and_stays_zero() -> None:
    torch.manual_seed(0)
    weight, mask = torch.randn(4, 9), torch.ones(4, 9)
    mask[2] = 0
    training = alone(weight, 4, mask)
    training.begin()
    for _ in range(5):
        weight.grad = torch.randn(4, 9)
        training.step()
    (codes,) = training.codes()
    assert (codes.scales == 0).tolist() == [False, False, True, False]
    assert torch.equal(codes.weight(), weight)
    assert weight.isfinite().all()


def test_a_weight_without_a_gradient_does_not_change_after_its_rounding() -> None:
    torch.manual_seed(0)
    weights = [torch.randn(4, 9), torch.randn(5, 7)]
    training = FewBitsTraining(weights, [torch.ones_like(one) for one in weights], [], FewBits(4, 50))
    training.begin()
    before = [one.clone() for one in weights]
    for _ in range(20):
        weights[1].grad = torch.randn(5, 7)
        training.step()
    assert torch.equal(weights[0], before[0])
    assert not torch.equal(weights[1], before[1])


@pytest.mark.parametrize("magnitude", [1e-30, 1e-6, 1e8])
def test_scales_beyond_the_range_of_float16_are_clamped(magnitude: float) -> None:
    torch.manual_seed(0)
    weight = magnitude * torch.randn(5, 50)
    training = alone(weight, 8)
    training.begin()
    (codes,) = training.codes()
    assert (codes.scales.isfinite() & (codes.scales > 0)).all()
    assert torch.equal(codes.weight(), weight)
    assert (weight != 0).all()


def test_active_weights_that_are_zero_get_a_code() -> None:
    weight = torch.zeros(2, 3)
    weight[0, 0] = 1.0
    training = alone(weight, 2)
    training.begin()
    (codes,) = training.codes()
    assert (codes.codes != 0).all()


def test_a_weight_is_its_code_times_the_scale_of_its_row() -> None:
    codes = Codes(torch.tensor([[1, -2], [0, 8]], dtype=torch.int8), torch.tensor([0.5, 0.25]).half(), 4)
    assert torch.equal(codes.weight(), torch.tensor([[0.5, -1.0], [0.0, 2.0]]))


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_codes_and_scales_are_found_from_the_weights_only(bits: int) -> None:
    torch.manual_seed(0)
    codes = torch.randint(-largest_code(bits), largest_code(bits) + 1, (60, 7, 3)) * (torch.rand(60, 7, 3) < 0.3)
    # Row 5 has no weights. All codes of row 6 are multiples of 2.
    codes[5], codes[6] = 0, 2 * codes[7].sign()
    scales = (10 ** torch.linspace(-6, 4, 60)).half()
    weight = Codes(codes.to(torch.int8), scales, bits).weight()
    found = codes_of(weight, bits)
    assert found is not None
    assert (found.codes.dtype, found.scales.dtype) == (torch.int8, torch.float16)
    assert torch.equal(found.weight(), weight)
    assert int(found.codes.abs().max()) <= largest_code(bits)
    assert codes_of(torch.randn(60, 21), bits) is None


def test_codes_of_a_trained_network_are_found_in_its_weights() -> None:
    model = network()
    sparse = build("lpss", model, weight_bits=4)
    train(model, sparse, 0, STEPS)
    for layer in sparse.layers:
        found = codes_of(layer.weight, 4)
        assert found is not None
        assert torch.equal(found.weight(), layer.weight)


# ---- settings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weight_bits": 3}, "weight_bits = 3 is not accepted: it takes 32, 8, 4, 2"),
        ({"weight_bits": True}, "weight_bits = True is not accepted: it takes 32, 8, 4, 2"),
        ({"bits_share": 1.0}, "bits_share = 1.0 is not accepted: it takes (0, 1)"),
    ],
)
@pytest.mark.parametrize("name", MASKED)
def test_invalid_settings_are_refused_in_one_line(name: str, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        build(name, network(), **wrong)
    assert str(caught.value) == message


@pytest.mark.parametrize(("total", "steps"), [(1, 0), (2, 1), (3, 1), (100, 30)])
def test_at_least_one_step_precedes_the_rounding_to_few_bits(total: int, steps: int) -> None:
    few = METHODS["gmp"].configure({"weight_bits": 4, "bits_share": 0.3}).few_bits_of(total)
    assert few == FewBits(4, steps)


def test_impossible_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="bits must be 8, 4 or 2"):
        FewBits(3, 10)
