"""LpSGD equals a direct float64 translation of its formula, torch's SGD, and finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.helpers.examples import examples
from tests.helpers.problems import batches, blobs, mlp, normal, norms, step
from tune_sparsity.sparsity.optim.lpsgd import LR_MAX, LpSGD

pytestmark = pytest.mark.usefixtures("either_step")


seeds = st.integers(0, 2**32 - 1)


class Direct:
    """The published step in float64, written exactly as its formula, without protection from overflow."""

    def __init__(self, w: Tensor, p: float) -> None:
        self.p, self.q = p, p / (p - 1)
        self.gain = (w.abs() ** p).sum(1, keepdim=True) ** (1 / p)
        w = w / self.gain
        self.v = w.sign() * w.abs() ** (p - 1)
        self.buffer: Tensor | None = None

    def step(self, g: Tensor, lr: float, momentum: float, nesterov: bool) -> Tensor:
        self.buffer = g.clone() if self.buffer is None else momentum * self.buffer + g
        d = g + momentum * self.buffer if nesterov else self.buffer
        v = (1 - lr) * self.v - lr * d / (d.abs() ** self.q).sum(1, keepdim=True) ** (1 / self.q)
        self.v = v / (v.abs() ** self.q).sum(1, keepdim=True) ** (1 / self.q)
        return self.v.sign() * self.v.abs() ** (1 / (self.p - 1))


@given(
    st.floats(1.02, 2.0),
    st.floats(0.001, LR_MAX),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.booleans(),
    seeds,
    st.booleans(),
)
def test_steps_equal_the_formula(p: float, lr: float, momentum: float, nesterov: bool, seed: int, double: bool) -> None:
    dtype = torch.float64 if double else torch.float32
    start = normal(seed, 3, 12)
    param = nn.Parameter(start.to(dtype))
    optimizer = LpSGD([param], lr, p=p, momentum=momentum, nesterov=nesterov)
    direct = Direct(start, p)
    for k in range(5):
        g = normal(seed + 1 + k, 3, 12)
        step(optimizer, param, g)
        w = direct.step(g, lr, momentum, nesterov)
        rough = 1e-9 if double else 2e-6 * p / (p - 1)
        assert torch.allclose(optimizer.state[param]["v"].double(), direct.v, atol=rough, rtol=0)
        assert torch.allclose(param.detach().double() / direct.gain, w, atol=rough, rtol=0)


@pytest.mark.parametrize("gain", [False, True])
def test_lpsgd_starts_from_the_projected_weights_with_row_norms_as_gains(gain: bool) -> None:
    start = torch.tensor([[1.0, -2.0, 3.0], [0.1, 0.1, 0.1], [0.0, 0.0, 0.0]])
    param = nn.Parameter(start.clone())
    optimizer = LpSGD([param], p=1.5, gain=gain)
    direct = Direct(start[:2].double(), 1.5)
    assert torch.equal(param, start)
    assert torch.allclose(optimizer.state[param]["v"][:2].double(), direct.v, atol=1e-6)
    assert torch.allclose(optimizer.gain(param)[:2].double(), direct.gain, rtol=1e-6)
    assert torch.allclose(optimizer.gain(param) * optimizer.sphere_weights(param), start, rtol=1e-5)
    assert torch.allclose(norms(optimizer.sphere_weights(param)[:2], 1.5), torch.ones(2, dtype=torch.float64))
    step(optimizer, param, torch.tensor([[0.0] * 3, [0.0] * 3, [1.0] * 3]))
    assert torch.allclose(param[:2], start[:2], rtol=1e-5)
    w = -(3 ** (-1 / 1.5)) * (optimizer.gain(param)[2].item())  # the row of zeros gets three equal weights of norm 1
    assert param[2].tolist() == pytest.approx([w] * 3, rel=1e-5)
    assert (optimizer.gain(param)[2] == 1) != gain


@pytest.mark.parametrize("p", [1.03, 1.07, 1.2, 1.5, 2.0])
def test_norms_stay_at_one_through_a_training(p: float) -> None:
    x, y = blobs()
    model = mlp(20, 64, 32, 4)
    sphere = [model[0].weight, model[2].weight]
    rest = [param for param in model.parameters() if all(param is not other for other in sphere)]
    optimizer = LpSGD([{"params": sphere, "p": p, "lr": 0.05}, {"params": rest, "lr": 0.1}])
    first = F.cross_entropy(model(x), y).item()
    worst = 0.0
    for xs, ys in batches(x, y, 300):
        optimizer.zero_grad()
        F.cross_entropy(model(xs), ys).backward()
        optimizer.step()
        worst = max(worst, *(float((norms(optimizer.sphere_weights(one), p) - 1).abs().max()) for one in sphere))
    assert worst < 1e-5
    assert F.cross_entropy(model(x), y).item() < 0.5 * first


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1e3, 1e8, 1e-30, 1e30])
def test_steps_do_not_depend_on_the_scale_of_the_gradients(scale: float, nesterov: bool) -> None:
    ends = []
    for factor in (1.0, scale):
        param = nn.Parameter(normal(0, 4, 200, dtype=torch.float32))
        optimizer = LpSGD([param], 0.05, p=1.07, nesterov=nesterov)
        for k in range(10):
            step(optimizer, param, factor * normal(k + 1, 4, 200))
        ends.append(param.detach())
    assert torch.allclose(ends[0], ends[1], atol=2e-5)
    assert (ends[0] - normal(0, 4, 200).float()).abs().max() > 0.1  # the weights changed


def test_scaling_gradients_by_a_power_of_two_changes_no_weight() -> None:
    ends = []
    for factor in (1.0, 2.0**-40, 2.0**40):
        param = nn.Parameter(normal(0, 4, 50, dtype=torch.float32))
        optimizer = LpSGD([param], 0.05, p=1.07)
        for k in range(10):
            step(optimizer, param, factor * normal(k + 1, 4, 50, dtype=torch.float32))
        ends.append(param.detach())
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("p", [1.02, 1.07, 1.5, 2.0])
def test_neuron_without_a_gradient_stays_as_it_is(p: float) -> None:
    param = nn.Parameter(normal(0, 2, 30, dtype=torch.float32))
    optimizer = LpSGD([param], 0.1, p=p)
    before = param.detach().clone()
    for k in range(50):
        step(optimizer, param, torch.stack([torch.zeros(30), normal(k, 30, dtype=torch.float32)]))
    assert torch.allclose(param[0], before[0], atol=1e-4)
    assert (param[1] - before[1]).abs().max() > 0.01
    assert torch.isfinite(param).all()


@examples(30)
@given(
    st.sampled_from([1.02, 1.05, 1.07, 1.5, 2.0]), st.floats(0.05, LR_MAX), st.sampled_from([0.0, 0.9]), st.booleans()
)
def test_row_of_zero_weights_comes_onto_the_sphere(p: float, lr: float, momentum: float, gain: bool) -> None:
    # On its way the norm of v passes every magnitude, and |v|^q with it: at p = 1.02 that is |v|^51.
    param = nn.Parameter(torch.zeros(2, 5))
    optimizer = LpSGD([param], lr, p=p, momentum=momentum, gain=gain, gain_lr=0.0)
    assert torch.isfinite(param).all()
    grad = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0], [0.0] * 5])
    for _ in range(20 + int(8 / lr)):
        step(optimizer, param, grad)
        assert torch.isfinite(param).all()
        assert torch.isfinite(optimizer.state[param]["v"]).all()
    w = optimizer.sphere_weights(param)
    assert w[0].tolist() == pytest.approx([-1.0, 0.0, 0.0, 0.0, 0.0], abs=1e-5)
    assert w[1].tolist() == [0.0] * 5


@examples(15)
@given(st.floats(1.02, 2.0), st.sampled_from([0.0, 0.9]), seeds)
def test_a_linear_loss_reaches_its_minimum_on_the_sphere(p: float, momentum: float, seed: int) -> None:
    g = normal(seed, 3, 20)
    param = nn.Parameter(normal(seed + 1, 3, 20))
    optimizer = LpSGD([param], 0.2, p=p, momentum=momentum)
    for _ in range(200):
        step(optimizer, param, g)
    q = p / (p - 1)
    expected = -g / (g.abs() ** q).sum(1, keepdim=True) ** (1 / q)
    assert torch.allclose(optimizer.state[param]["v"], expected, atol=1e-9)
    w = optimizer.sphere_weights(param)
    assert torch.allclose((g * w).sum(1), -((g.abs() ** q).sum(1) ** (1 / q)), rtol=1e-9)
    assert torch.allclose(param, optimizer.gain(param) * w, rtol=1e-9)


@pytest.mark.parametrize("p", [1.02, 1.07, 2.0])
def test_a_gradient_parallel_to_the_dual_image_changes_no_weight(p: float) -> None:
    # With the gradient d = ||d||_q v, a step computes v <- (1 - 2 lr) v. No other gradient makes the norm of v smaller.
    # Then v is normalised.
    param = nn.Parameter(normal(0, 3, 40, dtype=torch.float32))
    optimizer = LpSGD([param], LR_MAX, p=p, momentum=0.0)
    before = param.detach().clone()
    for _ in range(10):
        step(optimizer, param, 7 * optimizer.state[param]["v"])
    assert torch.allclose(param, before, atol=1e-4)


def test_a_convolution_is_trained_like_a_matrix_with_the_same_rows() -> None:
    start, grads = normal(0, 6, 3, 3, 3), [normal(k + 1, 6, 3, 3, 3) for k in range(4)]
    flat = nn.Parameter(start.flatten(1).clone())
    ends = []
    for memory in (torch.contiguous_format, torch.channels_last):
        conv = nn.Parameter(start.clone().to(memory_format=memory))
        optimizer = LpSGD([conv], 0.1, p=1.3, gain=True)
        for g in grads:
            conv.grad = g.clone().to(memory_format=memory)
            optimizer.step()
        assert optimizer.sphere_weights(conv).shape == (6, 27)
        assert optimizer.log_magnitude(conv).shape == conv.shape
        ends.append(conv.detach())
    optimizer = LpSGD([flat], 0.1, p=1.3, gain=True)
    for g in grads:
        step(optimizer, flat, g)
    for end in ends:
        assert torch.allclose(end.flatten(1), flat, rtol=1e-12)


# ---- saliency


def test_log_magnitude_is_the_logarithm_of_the_weights_that_the_network_uses() -> None:
    param = nn.Parameter(normal(0, 4, 30))
    optimizer = LpSGD([param], p=1.3, gain=True)
    assert torch.allclose(optimizer.log_magnitude(param), param.detach().abs().log2(), rtol=1e-9)
    plain = nn.Parameter(normal(0, 4, 30))
    assert torch.allclose(LpSGD([plain], p=1.3).log_magnitude(plain), plain.detach().abs().log2(), rtol=1e-9)


def test_log_magnitude_does_not_underflow() -> None:
    param = nn.Parameter(normal(0, 2, 300, dtype=torch.float32))
    optimizer = LpSGD([param], 0.1, p=1.02)
    for k in range(100):
        step(optimizer, param, normal(k + 1, 2, 300, dtype=torch.float32) * torch.linspace(0.001, 1, 300))
    log_magnitude = optimizer.log_magnitude(param)
    assert (param.abs() < 2.0**-100).any()  # practically zero
    assert torch.isfinite(log_magnitude).all()
    v = optimizer.state[param]["v"].abs()
    assert torch.equal(log_magnitude.argsort(dim=1)[:, -50:], v.argsort(dim=1)[:, -50:])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_error_for_a_nan_gradient_names_the_parameter_which_stays_unchanged(bad: float) -> None:
    weights = {name: torch.nn.Parameter(torch.randn(4, 6)) for name in ("first.weight", "second.weight")}
    optimizer = LpSGD([{"params": list(weights.items()), "p": 1.3}])
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    for weight in weights.values():
        weight.grad = torch.ones(4, 6)
    weights["first.weight"].grad[2, 3] = bad
    with pytest.raises(FloatingPointError, match=r"first\.weight"):
        optimizer.step()
    assert torch.equal(weights["first.weight"], before["first.weight"])


def test_a_step_works_if_all_neurons_except_one_have_zero_gradients() -> None:
    weight = torch.nn.Parameter(torch.randn(2000, 6))
    optimizer = LpSGD([{"params": [weight], "p": 1.7, "gain": True}], lr=0.25)
    before = weight.detach().clone()
    weight.grad = torch.zeros(2000, 6)
    weight.grad[0] = 1.0
    optimizer.step()
    assert torch.isfinite(weight).all()
    assert torch.allclose(weight[1:], before[1:], rtol=1e-4)
    assert not torch.allclose(weight[0], before[0], rtol=1e-3)


def test_quick_step_equals_step_and_calls_the_registered_hooks() -> None:
    def made() -> tuple[nn.Sequential, LpSGD]:
        model = mlp(20, 16, 4)
        return model, LpSGD([{"params": [model[0].weight], "p": 1.5, "lr": 0.1}, {"params": [model[2].weight]}], 0.1)

    (plain, by_step), (quick, by_quick) = made(), made()
    called = list[str]()
    for round_, (xs, ys) in enumerate(batches(*blobs(), 3)):
        for model, optimizer in ((plain, by_step), (quick, by_quick)):
            optimizer.zero_grad()
            F.cross_entropy(model(xs), ys).backward()
        by_step.step()
        if round_ == 1:
            by_quick.register_step_pre_hook(lambda *_: called.append("before"))
            by_quick.register_step_post_hook(lambda *_: called.append("after"))
        if round_ == 2:
            torch.optim.lr_scheduler.StepLR(by_quick, 10)  # replaces `step` by a function that counts steps
        with torch.no_grad():
            by_quick.quick_step()
        assert called == [[], ["before", "after"], ["before", "after"] * 2][round_]
    assert "step" in vars(by_quick)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), quick.parameters(), strict=True))
