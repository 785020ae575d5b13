"""LpSGD's precision over the whole supported range, and its steps of many parameters together."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.examples import examples
from tests.helpers.problems import normal
from tune_sparsity.sparsity.optim.lpsgd import LR_MAX, LpSGD

pytestmark = pytest.mark.usefixtures("either_step")

FLOATS = [torch.float32, torch.float64, torch.bfloat16]
exponents = st.floats(1.02, 2.0)
seeds = st.integers(0, 2**32 - 1)


def unit(x: Tensor, order: float) -> Tensor:
    """Divide each row by its norm of the given order. Rows of zeros do not change."""
    largest = x.abs().amax(1, keepdim=True)
    x = x / largest.where(largest > 0, 1.0)
    norm = (x.abs() ** order).sum(1, keepdim=True) ** (1 / order)
    return x / norm.where(norm > 0, 1.0)


class Reference:
    """The published step in float64. The rows may have any magnitude."""

    def __init__(self, w: Tensor, p: float) -> None:
        self.p, self.q = p, p / (p - 1)
        self.gain = (w.abs() ** p).sum(1, keepdim=True) ** (1 / p)
        w = unit(w, p)
        self.v = w.sign() * w.abs() ** (p - 1)
        self.buffer = torch.zeros_like(w)

    def step(self, g: Tensor, lr: float, momentum: float) -> Tensor:
        self.buffer = momentum * self.buffer + g
        d = g + momentum * self.buffer
        self.v = unit((1 - lr) * self.v - lr * unit(d, self.q), self.q)
        return self.v.sign() * self.v.abs() ** (1 / (self.p - 1))


def tolerance(dtype: torch.dtype, p: float) -> float:
    return 1e-9 if dtype == torch.float64 else 2e-6 * p / (p - 1)


def rounding(dtype: torch.dtype) -> float:
    """Return the relative error of rounding a parameter to bfloat16. For other dtypes it is 0, because `tolerance`
    contains the error."""
    return 2.0**-8 if dtype == torch.bfloat16 else 0.0


@examples(150)
@given(
    p=exponents,
    dtype=st.sampled_from(FLOATS),
    shape=st.lists(st.integers(1, 4), min_size=2, max_size=5).filter(lambda shape: torch.Size(shape[1:]).numel() >= 2),
    magnitudes=st.tuples(st.floats(-12, 12), st.floats(-12, 12)),
    lr=st.floats(0.001, LR_MAX),
    momentum=st.sampled_from([0.0, 0.9]),
    foreach=st.booleans(),
    zero=st.floats(0.0, 1.0),
    seed=seeds,
)
@example(1.02, torch.float32, [3, 4], (-12.0, 12.0), 0.1, 0.9, False, 0.5, 0)
@example(1.02, torch.bfloat16, [2, 3, 2, 2, 2], (12.0, -12.0), LR_MAX, 0.9, True, 0.5, 1)
def test_steps_equal_float64_steps_for_all_supported_dtypes_and_exponents(
    p: float,
    dtype: torch.dtype,
    shape: list[int],
    magnitudes: tuple[float, float],
    lr: float,
    momentum: float,
    foreach: bool,
    zero: float,
    seed: int,
) -> None:
    """The weights have two to five dimensions. The gradients of their rows range from 1e-12 to 1e12 and contain zeros,
    and one row never has a gradient."""
    rows = shape[0]
    start = normal(seed, *shape).to(dtype)
    param, other = nn.Parameter(start.clone()), nn.Parameter(normal(seed + 1, 2, 7).to(dtype))
    optimizer = LpSGD([param, other], lr, p=p, momentum=momentum, foreach=foreach)
    reference = Reference(start.double().flatten(1), p)
    scale = 10.0 ** torch.linspace(*magnitudes, rows, dtype=torch.float64).view(-1, *[1] * (len(shape) - 1))
    for k in range(4):
        g = scale * normal(seed + 2 + k, *shape) * (normal(seed + 9 + k, *shape) > 2 * zero - 1)
        if rows > 1:
            g[-1] = 0.0
        param.grad, other.grad = g.to(dtype), torch.ones_like(other)
        w = reference.step(param.grad.double().flatten(1), lr, momentum)
        optimizer.step()
        v = optimizer.state[param]["v"]
        assert v.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.allclose(v.double(), reference.v, atol=tolerance(dtype, p), rtol=0)
        end = param.detach().double().flatten(1) / reference.gain
        assert torch.allclose(end, w, atol=tolerance(dtype, p) + rounding(dtype), rtol=rounding(dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("p", [1.02, 1.07, 1.4, 2.0])
@pytest.mark.parametrize("fan_in", [2, 3, 100_000])
def test_steps_equal_float64_steps_for_fan_ins_from_2_to_100000(fan_in: int, p: float, dtype: torch.dtype) -> None:
    start = normal(0, 2, fan_in).to(dtype)
    param = nn.Parameter(start.clone())
    optimizer = LpSGD([param], 0.1, p=p)
    reference = Reference(start.double(), p)
    for k in range(4):
        param.grad = (1e-5 * normal(k + 1, 2, fan_in)).to(dtype)
        w = reference.step(param.grad.double(), 0.1, 0.9)
        optimizer.step()
    v = optimizer.state[param]["v"].double()
    assert torch.allclose(v, reference.v, atol=tolerance(dtype, p), rtol=0)
    end = param.detach().double() / reference.gain
    assert torch.allclose(end, w, atol=tolerance(dtype, p) + rounding(dtype), rtol=rounding(dtype))
    # The weights are on the sphere if their dual image v has the q-norm 1. In float32, entries of the weights may
    # underflow, so their own norm would be too small.
    q = p / (p - 1)
    assert torch.allclose((v.abs() ** q).sum(1) ** (1 / q), torch.ones(2, dtype=torch.float64), atol=1e-5)


@examples(30)
@given(exponents, st.sampled_from(FLOATS), st.integers(-12, 12), st.sampled_from([0.0, 0.9]), st.booleans(), seeds)
def test_linear_loss_ends_at_hoelders_minimiser_and_stays_there(
    p: float, dtype: torch.dtype, magnitude: int, momentum: float, foreach: bool, seed: int
) -> None:
    """For the gradient g, the loss <g, w> has its minimum over the sphere, -||g||_q, where the dual image v of w is
    -g/||g||_q."""
    q = p / (p - 1)
    g = (10.0**magnitude * normal(seed, 3, 20)).to(dtype)
    param, other = nn.Parameter(normal(seed + 1, 3, 20).to(dtype)), nn.Parameter(normal(seed + 2, 2, 20).to(dtype))
    optimizer = LpSGD([param, other], 0.2, p=p, momentum=momentum, foreach=foreach)
    for _ in range(150):
        param.grad, other.grad = g.clone(), torch.ones_like(other)
        optimizer.step()
    expected = -unit(g.double(), q)
    state = optimizer.state[param]
    assert torch.allclose(state["v"].double(), expected, atol=tolerance(dtype, p), rtol=0)
    norm = g.double().abs().amax(1) * (unit(g.double(), torch.inf).abs() ** q).sum(1) ** (1 / q)
    gain = optimizer.gain(param).double()
    attained = (g.double() * param.detach().double() / gain).sum(1)
    assert torch.allclose(attained, -norm, rtol=1e-9 if dtype == torch.float64 else 1e-3 + rounding(dtype))
    # The point is stationary: steps of any size leave it where it is.
    before = state["v"].clone()
    for lr in (0.25, 0.01):
        optimizer.param_groups[0]["lr"] = lr
        param.grad, other.grad = g.clone(), torch.ones_like(other)
        optimizer.step()
    assert torch.allclose(state["v"], before, atol=tolerance(dtype, p), rtol=0)


# ---- many parameters


def network(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """Return five weights. Their fan-ins are 12, 12, 20, 12 and 20, and the second weight is not contiguous."""
    shapes = [(5, 12), (4, 3, 2, 2), (6, 20), (3, 12), (2, 20)]
    params = [nn.Parameter(normal(k, *shape).to(dtype)) for k, shape in enumerate(shapes)]
    params[1] = nn.Parameter(params[1].detach().to(memory_format=torch.channels_last))
    return params


def steps(optimizer: LpSGD, params: list[nn.Parameter], start: int, stop: int) -> None:
    for k in range(start, stop):
        for index, param in enumerate(params):
            param.grad = normal(100 * k + index, *param.shape).to(param.dtype)
        optimizer.step()


@pytest.mark.parametrize("options", [{}, {"nesterov": False}, {"momentum": 0.0}, {"gain": True, "weight_decay": 0.1}])
@pytest.mark.parametrize("dtype", FLOATS)
def test_steps_of_many_parameters_equal_steps_of_each_single_parameter(
    dtype: torch.dtype, options: dict[str, Any]
) -> None:
    ends = []
    for foreach in (True, False):
        params = network(dtype)
        steps(LpSGD(params, 0.1, p=1.3, foreach=foreach, **options), params, 0, 5)
        ends.append(params)
    alone = network(dtype)
    optimizers = [LpSGD([param], 0.1, p=1.3, **options) for param in alone]
    for k in range(5):
        for index, (optimizer, param) in enumerate(zip(optimizers, alone, strict=True)):
            param.grad = normal(100 * k + index, *param.shape).to(dtype)
            optimizer.step()
    for end in ends:
        for param, other in zip(end, alone, strict=True):
            assert torch.allclose(param.double(), other.double(), rtol=1e-2 if dtype == torch.bfloat16 else 1e-4)


def test_a_step_moves_exactly_the_parameters_that_have_a_gradient() -> None:
    ends = []
    for foreach in (True, False):
        params = network()
        optimizer = LpSGD(params, 0.1, p=1.3, foreach=foreach)
        for k in range(6):
            for index, param in enumerate(params):
                param.grad = None if (k + index) % 3 == 0 else normal(100 * k + index, *param.shape).float()
            before = [param.detach().clone() for param in params]
            optimizer.step()
            for param, old in zip(params, before, strict=True):
                assert torch.equal(param, old) == (param.grad is None)
        ends.append(params)
    assert all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("foreach", [True, False])
def test_copying_and_loading_keep_the_state_of_each_parameter(foreach: bool) -> None:
    """The states of several parameters are views of one tensor. Copying and loading must not mix them up."""
    params = network()
    optimizer = LpSGD(params, 0.1, p=1.3, gain=True, foreach=foreach)
    steps(optimizer, params, 0, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    weights = copy.deepcopy(params)
    others, again = copy.deepcopy((params, optimizer))
    steps(optimizer, params, 3, 6)
    steps(again, others, 3, 6)
    assert all(torch.equal(a, b) for a, b in zip(params, others, strict=True))

    with torch.no_grad():
        for param, weight in zip(params, weights, strict=True):
            param.copy_(weight)
    optimizer.load_state_dict(saved)  # this optimizer has already made steps
    for index, param in enumerate(params):
        for key, value in saved["state"][index].items():
            assert torch.equal(optimizer.state[param][key], value)
    steps(optimizer, params, 3, 6)
    assert all(torch.equal(a, b) for a, b in zip(params, others, strict=True))
    # A change of an optimizer's state takes effect in the next step.
    optimizer.state[params[0]]["v"].neg_()
    before = params[0].detach().clone()
    steps(optimizer, params, 6, 7)
    assert (params[0].sign() == -before.sign()).double().mean() > 0.8


class Count(TorchDispatchMode):
    """Counts the operations that would start a kernel on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        views = ("view", "flatten", "detach", "split", "slice", "select", "reshape", "alias", "empty", "as_strided")
        self.operations += not any(name in str(func) for name in views)
        return func(*args, **(kwargs or {}))


def test_more_layers_with_the_same_fan_ins_need_no_more_operations() -> None:
    counts = []
    for repeats in (1, 8):
        # The gradient of a parameter that is not contiguous would need one more operation.
        params = [nn.Parameter(param.detach().contiguous()) for _ in range(repeats) for param in network()]
        optimizer = LpSGD(params, 0.1, p=1.3, gain=True, foreach=True)
        steps(optimizer, params, 0, 2)
        with Count() as count:
            optimizer.step()
        counts.append(count.operations)
    assert counts[0] == counts[1] < 80


def test_a_step_off_the_cpu_never_waits_for_the_device() -> None:
    # A meta tensor has no values. Functions that need a value, such as item(), raise an error.
    params = [nn.Parameter(param.detach().to("meta")) for param in network()]
    bias = nn.Parameter(torch.ones(5, device="meta"))
    with pytest.raises(RuntimeError, match="meta"):
        bias.sum().item()
    learnt, constant = params[::2], params[1::2]
    groups = [{"params": learnt, "p": 1.3, "gain": True}, {"params": constant, "p": 1.3}]
    optimizer = LpSGD([*groups, {"params": [bias], "weight_decay": 0.1}], 0.1)
    optimizer.set_masks({param: torch.ones_like(param) for param in (learnt[0], constant[0])})
    for _ in range(3):
        for param in (*params, bias):
            param.grad = torch.ones_like(param)
        optimizer.step()
    kept = {"v", "gain", "momentum_buffer"}
    assert all(optimizer.state[param].keys() == kept | {"gain_momentum"} for param in learnt)
    assert all(optimizer.state[param].keys() == kept for param in constant)
    assert all(state.device.type == "meta" for param in params for state in optimizer.state[param].values())


# ---- gradients that are no numbers


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["sphere.1", "plain.0", "plain.1"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_nan_or_infinite_gradient_names_its_parameter(dtype: torch.dtype, name: str, bad: float) -> None:
    named = {f"{kind}.{k}": nn.Parameter(torch.ones(3, 4, dtype=dtype)) for kind in ("sphere", "plain") for k in (0, 1)}
    of = lambda kind: [(name, param) for name, param in named.items() if name.startswith(kind)]  # noqa: E731
    optimizer = LpSGD([{"params": of("sphere"), "p": 1.3}, {"params": of("plain")}], 0.1)
    before = named[name].detach().clone()
    for param in named.values():
        param.grad = torch.ones_like(param)
    named[name].grad[2, 1] = bad
    with pytest.raises(FloatingPointError, match=f"^the gradient of {name} is NaN or infinite$"):
        optimizer.step()
    assert torch.equal(named[name], before)


def test_a_finite_gradient_of_an_ordinary_parameter_may_have_an_infinite_sum() -> None:
    param = nn.Parameter(torch.zeros(4))
    param.grad = torch.full((4,), 3e38)  # finite, though its sum is not
    LpSGD([param], 1e-37, momentum=0.0).step()
    assert param.tolist() == pytest.approx([-30.0] * 4)


@pytest.mark.parametrize("p", [1.07, 1.5, 2.0])
def test_rows_without_a_gradient_stay_if_denormals_are_flushed_to_zero(p: float) -> None:
    param = nn.Parameter(normal(0, 4, 30).float())
    optimizer = LpSGD([param], p=p, lr=0.1, gain=True, foreach=True)
    before = param.detach().clone()
    param.grad = normal(1, 4, 30).float()
    param.grad[1] = 0
    # Workers flush denormal numbers to zero. If the step clamped numbers to a denormal lower limit, such as 1e-38, this
    # limit would count as zero.
    torch.set_flush_denormal(True)
    try:
        optimizer.step()
    finally:
        torch.set_flush_denormal(False)
    torch.testing.assert_close(param[1], before[1])
    assert not torch.equal(param[0], before[0])
    assert param.isfinite().all()
