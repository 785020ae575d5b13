"""SparseTraining: the dual values and the momentum of dropped weights, schedules, and exact resuming."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers.problems import accuracy, batches, mlp
from tests.helpers.trainings import Script, X, Y, scripted, train, without, zero_weights
from tune_sparsity.sparsity.hoyer import hoyer
from tune_sparsity.sparsity.layers import prunable_layers
from tune_sparsity.sparsity.masks import zeros_for
from tune_sparsity.sparsity.methods.registry import LpssSettings, lpss
from tune_sparsity.sparsity.optim.lpsgd import LpSGD
from tune_sparsity.sparsity.schedules import Schedule
from tune_sparsity.sparsity.topology.magnitude import GlobalMagnitude
from tune_sparsity.sparsity.training import SparseTraining

# ---- gradients, momentum and the latent


def test_growth_sees_the_dense_gradient_though_the_step_is_masked() -> None:
    dropped = [(i, j) for i in range(10) for j in range(0, 20, 2)]
    model, sparse, topology = scripted({3: without(*dropped), 6: without(*dropped)})
    train(model, sparse, 0, 6)
    xs, ys = list(batches(X.double(), Y, 400))[6]
    sparse.zero_grad()
    F.cross_entropy(model(xs), ys).backward()
    dense = model[0].weight.grad.clone()
    sparse.step()
    assert torch.equal(topology.seen[6][0], dense)
    assert (dense[:, ::2] != 0).any()
    buffer = sparse.optimizer.state[model[0].weight]["momentum_buffer"]
    assert (buffer[:, ::2] == 0).all()
    assert (buffer[:, 1::2] != 0).any()


def test_momentum_of_dropped_weights_is_cleared() -> None:
    masks = without((0, 0), (3, 7))
    masks[1][2, 2] = 0
    model, sparse, _ = scripted({5: masks, 6: without()})
    train(model, sparse, 0, 5)
    state = sparse.optimizer.state
    assert state[model[0].weight]["momentum_buffer"][0, 0] != 0
    assert state[model[2].weight]["momentum_buffer"][2, 2] != 0
    train(model, sparse, 5, 6)
    for name, place in ((0, (0, 0)), (0, (3, 7)), (2, (2, 2))):
        buffer = state[model[name].weight]["momentum_buffer"]
        assert buffer[place] == 0
        assert (buffer != 0).sum() > 10
    train(model, sparse, 6, 7)  # weight (0, 0) is active again, and its momentum begins at its gradient
    assert state[model[0].weight]["momentum_buffer"][0, 0] != 0


def test_a_weight_that_regrows_starts_from_its_decayed_dual_value() -> None:
    script = {5: without((0, 0), (0, 1)), 15: without()}
    model, sparse, _ = scripted(script, momentum=0.0)
    weight, q = model[0].weight, 1.4 / 0.4
    train(model, sparse, 0, 5)
    v = sparse.optimizer.state[weight]["v"]
    expected = v[0].clone()
    for k, (xs, ys) in enumerate(batches(X.double(), Y, 15)):
        if k < 5:
            continue
        sparse.zero_grad()
        F.cross_entropy(model(xs), ys).backward()
        g = weight.grad[0].clone()
        g[:2] = 0  # in the published step, dropped weights have no gradient, so these two only decay
        expected = (1 - 0.05) * expected - 0.05 * g / (g.abs() ** q).sum() ** (1 / q)
        expected /= (expected.abs() ** q).sum() ** (1 / q)
        sparse.step()
        assert torch.allclose(v[0], expected, rtol=1e-9)
        assert weight[0, :2].tolist() == [0.0, 0.0]
        assert (v[0, :2] != 0).all()
    train(model, sparse, 15, 16)
    w = sparse.optimizer.gain(weight) * v.sign() * v.abs() ** (1 / 0.4)
    assert torch.allclose(weight, w, rtol=1e-9)
    assert (weight[0, :2] != 0).all()


def test_a_dropped_weight_continues_to_learn_if_dense_latent_is_true() -> None:
    ends = []
    for dense in (True, False):
        model, sparse, _ = scripted({0: without((0, 0))}, dense_latent=dense)
        before = sparse.optimizer.state[model[0].weight]["v"].clone()
        train(model, sparse, 0, 30)
        after = sparse.optimizer.state[model[0].weight]["v"]
        assert model[0].weight[0, 0] == 0
        ends.append((after / before)[0, 0].item())
    assert 0 < ends[1] < 1.5  # the weight only decayed, so it keeps its sign
    assert abs(ends[0] - ends[1]) > 0.05


def test_the_gain_of_a_neuron_without_connections_is_not_trained() -> None:
    # A whole neuron dropped: its gain has no gradient.
    model, sparse, _ = scripted({0: without(*((4, j) for j in range(20)))}, momentum=0.0)
    train(model, sparse, 0, 1)
    gain = sparse.optimizer.gain(model[0].weight)
    first = gain.clone()
    train(model, sparse, 1, 10)
    assert gain[4] == first[4]
    assert (gain[:4] != first[:4]).all()


def test_dense_latent_keeps_momentum_of_dropped_weights_only_on_the_sphere() -> None:
    masks = without((0, 0))
    masks[1][2, 2] = 0
    model, sparse, _ = scripted({5: masks}, dense_latent=True)
    train(model, sparse, 0, 10)
    assert sparse.optimizer.state[model[2].weight]["momentum_buffer"][2, 2] == 0
    assert sparse.optimizer.state[model[0].weight]["momentum_buffer"][0, 0] != 0


# ---- with another optimizer


def magnitude_pruning(model: nn.Module, optimizer: torch.optim.Optimizer, total: int) -> SparseTraining:
    layers = prunable_layers(model, sphere=False)
    masks = [torch.ones_like(layer.weight) for layer in layers]
    ramp = GlobalMagnitude(Schedule("cubic", 0.0, 0.9, 0.1, 0.7), 10)
    return SparseTraining(
        model, layers, optimizer, ramp, masks, sparsity=0.9, total_steps=total, learning_rate=lambda u: 1 - u
    )


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_gradual_magnitude_pruning_works_with_sgd_and_adam_of_torch(kind: str) -> None:
    model = mlp(20, 64, 32, 4)
    optimizer: torch.optim.Optimizer
    if kind == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True)
    else:
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
    sparse = magnitude_pruning(model, optimizer, 200)
    train(model, sparse, 0, 200)
    assert zero_weights(sparse) == sparse.zeros()[0] == zeros_for(0.9, 3456)
    assert accuracy(model, X, Y) > 0.95
    assert sparse.lr_sum == 0.0  # there is no sphere


def test_learning_rates_follow_the_schedule_from_their_own_peaks() -> None:
    model = mlp(20, 10, 4)
    layers = prunable_layers(model)
    groups = [
        {"params": [layers[0].weight], "p": 1.5, "lr": 0.04, "gain": True, "gain_lr": 0.5},
        {"params": [layers[1].weight], "lr": 0.2},
    ]
    masks = [torch.ones_like(layer.weight) for layer in layers]
    sparse = SparseTraining(
        model, layers, LpSGD(groups), Script({}), masks, sparsity=0, total_steps=10, learning_rate=lambda u: 1 - u
    )
    for k in range(10):
        train(model, sparse, k, k + 1)
        sphere, rest = sparse.optimizer.param_groups
        assert (sphere["lr"], sphere["gain_lr"], rest["lr"]) == pytest.approx(
            (0.04 * (1 - k / 10), 0.5 * (1 - k / 10), 0.2 * (1 - k / 10))
        )
    assert sparse.lr_sum == pytest.approx(0.04 * 5.5)  # 1 + .9 + ... + .1


def test_hoyer_is_the_mean_over_the_rows_of_all_layers() -> None:
    model = mlp(20, 64, 32, 4)
    sparse = lpss(model, total_steps=100, sparsity=0.9)
    rows = [hoyer(layer.weight.detach()[i]).item() for layer in sparse.layers for i in range(len(layer.weight))]
    assert len(rows) == 100
    assert sparse.hoyer() == pytest.approx(sum(rows) / 100, abs=1e-5)


# ---- resuming

TOTAL = 30


def lpss_run(feedback: str, momentum: float) -> tuple[nn.Module, SparseTraining]:
    model = mlp(20, 16, 8, 4)
    chosen = LpssSettings(0.8, 1.2, sphere_lr=0.05, momentum=momentum, threshold_interval=3, feedback=feedback)
    return model, lpss(model, chosen, total_steps=TOTAL)


def sgd_run() -> tuple[nn.Module, SparseTraining]:
    model = mlp(20, 16, 8, 4, norm=True)
    return model, magnitude_pruning(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), TOTAL)


@pytest.mark.parametrize(
    "make",
    [lambda: lpss_run("pi", 0.9), lambda: lpss_run("published", 0.9), lambda: lpss_run("pi", 0.0), sgd_run],
    ids=["pi", "published", "no momentum", "sgd"],
)
def test_a_training_resumed_at_any_step_equals_an_unbroken_training(
    make: Callable[[], tuple[nn.Module, SparseTraining]],
) -> None:
    model, sparse = make()
    files = []
    for k in range(TOTAL + 1):
        files.append(io.BytesIO())
        torch.save({"model": model.state_dict(), "sparse": sparse.state_dict()}, files[-1])
        if k < TOTAL:
            train(model, sparse, k, k + 1)
    unbroken = model.state_dict()
    for k, file in enumerate(files):
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        other, again = make()
        other.load_state_dict(saved["model"])
        again.load_state_dict(saved["sparse"])
        train(other, again, k, TOTAL)
        for name, value in other.state_dict().items():
            assert torch.equal(value, unbroken[name]), (k, name)
        assert all(torch.equal(mask, old) for mask, old in zip(again.masks, sparse.masks, strict=True))
        assert (again.steps, again.lr_sum, again.fixed) == (sparse.steps, sparse.lr_sum, sparse.fixed)
        assert again.topology.state_dict() == sparse.topology.state_dict()


def test_state_of_another_network_is_refused() -> None:
    _, one = lpss_run("pi", 0.9)
    other = lpss(mlp(20, 16, 4), total_steps=TOTAL)
    with pytest.raises(ValueError):  # noqa: PT011 - torch's own words
        other.load_state_dict(one.state_dict())


# ---- wrong use


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity must lie in \[0, 1\)"),
        ({"sparsity": -0.1}, r"sparsity must lie in \[0, 1\)"),
        ({"sparsity": float("nan")}, r"sparsity must lie in \[0, 1\)"),
        ({"total": 0}, "total_steps must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scripted({}, **options)


def test_masks_must_be_one_for_each_layer() -> None:
    model = mlp(20, 10, 4)
    layers = prunable_layers(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match="zip"):
        SparseTraining(model, layers, optimizer, Script({}), [torch.ones(10, 20)], sparsity=0.5, total_steps=10)
