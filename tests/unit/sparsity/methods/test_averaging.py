"""Averages of the weights equal closed forms and torch's averages. Averaged weights keep the masks and lie on the
sphere, and a resumed training has the same averages."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.helpers.trainings import MASKED
from tests.unit.sparsity.methods.test_methods import STEPS, network, same, train, zeros
from tests.unit.sparsity.methods.test_methods import params as params_of
from tune_sparsity.sparsity import METHODS, SparseTraining, from_dual, prunable_layers, row_norm, zeros_for
from tune_sparsity.sparsity.averaging import Averaging, WeightAverage
from tune_sparsity.sparsity.optim.lpsgd import LpSGD
from tune_sparsity.sparsity.topology.static import StaticMask

SWA = {"averaging": "swa", "learning_rate": "hold"}
EMA = {"averaging": "ema", "ema_horizon": 0.3, "average_every": 2}


def build(name: str, model: nn.Module, **more: Any) -> SparseTraining:
    generator = torch.Generator().manual_seed(7)
    return METHODS[name].build(model, {**params_of(name, 0.9), **more}, total_steps=STEPS, generator=generator)


# ---- closed forms


def test_the_spread_of_weights_on_a_line_has_its_closed_form() -> None:
    """The variance of a + b t over t = 0 .. n - 1 is b^2 n (n + 1) / 12."""
    param = nn.Parameter(torch.zeros(50))
    a, b = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    average = WeightAverage([param], Averaging())
    average.keep_spread()
    assert average.spread() == []
    for t in range(40):
        param.data = a + b * t
        average.add()
    ((found, deviation),) = average.spread()
    assert found is param
    assert torch.allclose(deviation, b.abs() * math.sqrt(40 * 41 / 12), rtol=1e-4)
    again = WeightAverage([param], Averaging())
    again.keep_spread()
    again.load_state_dict(average.state_dict())
    assert torch.equal(again.spread()[0][1], deviation)


def test_the_spread_of_an_ema_is_the_weighted_standard_deviation_of_samples() -> None:
    samples = torch.randn(30, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    param = nn.Parameter(torch.zeros(20, dtype=torch.float64))
    average = WeightAverage([param], Averaging("ema", decay=0.8))
    average.keep_spread()
    for one in samples:
        param.data = one.clone()
        average.add()
    share = 0.2 * 0.8 ** torch.arange(29, -1, -1, dtype=torch.float64)
    share[0] = 0.8**29  # the mean begins with the first sample
    mean = (share[:, None] * samples).sum(0)
    variance = (share[:, None] * (samples - mean) ** 2).sum(0)
    assert torch.allclose(average.spread()[0][1], variance.sqrt())


@pytest.mark.parametrize(("kind", "decay"), [("swa", 0.0), ("ema", 0.9), ("ema", 0.0)])
def test_the_mean_of_weights_on_a_line_has_its_closed_form(kind: str, decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(50, generator=generator) for _ in range(2))
    param = nn.Parameter(torch.zeros(50))
    average = WeightAverage([param], Averaging(kind, decay=decay))
    for t in range(200):
        param.data = a + b * t
        average.add()
    behind = 199 / 2 if kind == "swa" else decay * (1 - decay**199) / (1 - decay)
    with average.swapped():
        torch.testing.assert_close(param.data, a + b * (199 - behind), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", ["swa", "ema"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_average_of_constant_weights_equals_the_weights_bit_for_bit(kind: str, dtype: torch.dtype) -> None:
    values = torch.cat([torch.randn(1000) * 10.0**k for k in (-30, -3, 0, 30)]).to(dtype)
    param = nn.Parameter(torch.cat([values, torch.zeros(9, dtype=dtype)]))
    before = param.detach().clone()
    average = WeightAverage([param], Averaging(kind, decay=0.37))
    for _ in range(100):
        average.add()
    assert average.take()
    assert torch.equal(param, before)
    assert not average.take()


def test_the_variance_of_the_mean_falls_as_one_over_the_number_of_samples() -> None:
    """If SGD minimises w^2/2 and the noise of its gradients has the standard deviation s, the mean of w over n steps
    has the variance s^2/n."""
    for n in (200, 800):
        torch.manual_seed(0)
        model = nn.Linear(200, 200, bias=False)
        nn.init.zeros_(model.weight)
        steps = 100 + n
        sparse = SparseTraining(
            model,
            prunable_layers(model, sphere=False),
            torch.optim.SGD(model.parameters(), 0.2),
            StaticMask(),
            [torch.ones(200, 200)],
            sparsity=0.0,
            mask_frozen_at=0.0,
            total_steps=steps,
            averaging=Averaging(begin=101 / steps),
        )
        for _ in range(steps):
            model.weight.grad = model.weight.detach() + 3.0 * torch.randn(200, 200)
            sparse.step()
        assert sparse.average is not None
        assert sparse.average.samples == n
        assert n * float(model.weight.detach().square().mean()) == pytest.approx(9.0, rel=0.05)


# ---- every method


@pytest.mark.parametrize("more", [SWA, EMA], ids=["swa", "ema"])
@pytest.mark.parametrize("name", MASKED)
def test_the_final_weights_equal_torchs_averaged_model_and_keep_the_masks(name: str, more: dict[str, Any]) -> None:
    model = network()
    sparse = build(name, model, **more)
    assert sparse.average is not None
    how = sparse.average.how
    oracle = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(how.decay) if how.kind == "ema" else None)
    for step in range(STEPS):
        if step == STEPS - 1:
            beside = copy.deepcopy((model, sparse))
        train(model, sparse, step, step + 1)
        if step < STEPS - 1 and sparse.average.samples > oracle.n_averaged:
            oracle.update_parameters(model)
    assert 0 < oracle.n_averaged == sparse.average.samples - 1 <= (STEPS * (1 - how.begin) + 1) / how.every
    end = {param: value.clone() for param, value in model.named_parameters()}
    with sparse.average.swapped():  # here the model has the weights of the last step, which are not averaged
        oracle.update_parameters(model)
        assert not same(dict(model.named_parameters()), end)
    for param, value in oracle.module.named_parameters():
        torch.testing.assert_close(end[param], value.detach(), rtol=1e-5, atol=1e-7)
    assert zeros(sparse) == zeros_for(0.0 if name == "dense" else 0.9, sparse.zeros()[1])
    assert all(
        torch.equal(layer.weight != 0, mask != 0) for layer, mask in zip(sparse.layers, sparse.masks, strict=True)
    )
    train(model, sparse, STEPS, STEPS + 3)  # an averaged network is not trained any more
    assert same(dict(model.named_parameters()), end)
    assert not beside[1].average.taken


@pytest.mark.parametrize("name", MASKED)
def test_averaging_changes_only_the_final_weights_of_a_training(name: str) -> None:
    model, other = network(), network()
    plain, averaged = build(name, model), build(name, other, averaging="swa")
    train(model, plain, 0, STEPS)
    train(other, averaged, 0, STEPS)
    assert averaged.average is not None
    with averaged.average.swapped():
        assert same(model.state_dict(), other.state_dict())
    assert not same(model.state_dict(), other.state_dict())


def test_averaged_rows_lie_on_the_sphere_and_have_gains_of_their_own() -> None:
    model = network()
    sparse = build("lpss", model, **SWA)
    train(model, sparse, 0, STEPS)
    optimizer = sparse.optimizer
    assert isinstance(optimizer, LpSGD)
    for layer, mask in zip(sparse.layers, sparse.masks, strict=True):
        if not layer.sphere:
            continue
        w = optimizer.sphere_weights(layer.weight)
        assert not w[mask == 0].any()
        some = mask.any(1)
        torch.testing.assert_close(row_norm(w[some], 1.3), torch.ones(int(some.sum()), 1))
        folded = optimizer.gain(layer.weight) * from_dual(optimizer.state[layer.weight]["v"], 1.3)
        torch.testing.assert_close(folded, layer.weight.detach(), rtol=1e-5, atol=1e-20)


@pytest.mark.parametrize("more", [SWA, EMA], ids=["swa", "ema"])
@pytest.mark.parametrize("stop", [10, 66, 79, 80])
@pytest.mark.parametrize("name", MASKED)
def test_resumed_equals_unbroken_bit_for_bit(name: str, stop: int, more: dict[str, Any]) -> None:
    model = network()
    sparse = build(name, model, **more)
    train(model, sparse, 0, stop)
    other = network(seed=5)
    again = build(name, other, **more)
    train(other, again, 0, 2)
    other.load_state_dict(model.state_dict())
    again.load_state_dict(copy.deepcopy(sparse.state_dict()))
    train(model, sparse, stop, STEPS)
    train(other, again, stop, STEPS)
    assert same(other.state_dict(), model.state_dict())
    assert same(again.state_dict(), sparse.state_dict())


def test_a_training_with_fewer_steps_than_planned_ends_on_its_average_so_far() -> None:
    model = network()
    sparse = build("gmp", model, **SWA)
    train(model, sparse, 0, 70)
    with sparse.average.swapped():  # type: ignore[union-attr]
        mean = {name: value.clone() for name, value in model.named_parameters()}
    sparse.finish()
    assert same(dict(model.named_parameters()), mean)
    early = build("gmp", other := network(), **SWA)
    train(other, early, 0, 30)
    early.finish()  # the mask was not fixed yet, so there is nothing to average
    assert not early.average.taken  # type: ignore[union-attr]
    assert zeros(early) == zeros_for(0.9, early.zeros()[1])


def test_parameters_of_half_precision_are_averaged_in_single() -> None:
    torch.manual_seed(0)
    param = nn.Parameter(torch.zeros(100, dtype=torch.bfloat16))
    average, total = WeightAverage([param], Averaging()), torch.zeros(100)
    for _ in range(300):
        param.data = (1 + 0.01 * torch.randn(100)).bfloat16()
        total += param.detach().float()
        average.add()
    average.take()
    assert torch.equal(param, (total / 300).bfloat16())


# ---- settings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"averaging": "mean"}, "averaging = 'mean' is not accepted: it takes none, swa, ema"),
        ({"tail": 0.0}, "tail = 0.0 is not accepted: it takes (0, 1]"),
        ({"ema_horizon": 2.0}, "ema_horizon = 2.0 is not accepted: it takes (0, 1]"),
        ({"average_every": 0}, "average_every = 0 is not accepted: it takes 1, 2, ..."),
        ({"learning_rate": "held"}, "learning_rate = 'held' is not accepted: it takes cosine, hold"),
    ],
)
@pytest.mark.parametrize("name", MASKED)
def test_invalid_settings_are_refused_in_one_line(name: str, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        build(name, network(), **wrong)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", MASKED)
def test_the_learning_rate_schedule_hold_is_constant_during_averaging(name: str) -> None:
    sparse = build(name, network(), **SWA, tail=0.25)
    assert sparse.average is not None
    begin = sparse.average.how.begin
    assert begin == (sparse.mask_frozen_at if sparse.mask_frozen_at >= 0.5 else 0.8)
    assert [sparse.learning_rate(at) for at in (begin, 0.5 * (1 + begin), 1.0)] == [0.25] * 3
    assert sparse.learning_rate(0.05) == sparse.learning_rate(0.75 * begin) == 1.0
    assert sparse.learning_rate(0.875 * begin) == pytest.approx(0.625)


def test_the_ema_horizon_is_a_share_of_the_averaged_samples() -> None:
    sparse = build("gmp", network(), **EMA)  # 24 steps with 12 samples; the horizon is 3.6 samples
    assert sparse.average is not None
    how = sparse.average.how
    assert (how.kind, how.begin, how.every) == ("ema", 0.7, 2)
    assert how.decay == pytest.approx(1 - 1 / 3.6)


@pytest.mark.parametrize("wrong", [{"kind": "sum"}, {"begin": 1.5}, {"every": 0}, {"decay": 1.0}])
def test_invalid_arguments_of_averaging_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="average"):
        Averaging(**wrong)


def test_parameters_still_get_gradients_after_averaging() -> None:
    model = network()
    sparse = build("dense", model, averaging="swa")
    train(model, sparse, 0, STEPS)
    loss = F.cross_entropy(model(torch.ones(2, 16)), torch.tensor([0, 1]))
    loss.backward()
    assert all(param.requires_grad and param.grad is not None for param in model.parameters())
