"""SparseTraining: exact sparsities, masks that hold, a latent that lives on, and runs that resume bit for bit."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparsity.distributions import layer_counts
from sparsity.hoyer import hoyer
from sparsity.layers import prunable_layers
from sparsity.masks import zeros_for
from sparsity.optimizer import LpSGD
from sparsity.recipes import LpssSettings, lpss
from sparsity.schedules import KINDS, Schedule
from sparsity.topology import Pruned, Ramp
from sparsity.training import SparseTraining
from tests.sparsity.problems import accuracy, batches, blobs, mlp

X, Y = blobs()


def train(model: nn.Module, sparse: SparseTraining, start: int, stop: int, total: int = 400) -> None:
    """The steps start..stop-1 of one fixed sequence of batches."""
    dtype = next(model.parameters()).dtype
    for k, (xs, ys) in enumerate(batches(X.to(dtype), Y, total)):
        if start <= k < stop:
            sparse.zero_grad()
            F.cross_entropy(model(xs), ys).backward()
            sparse.step()


def zero_weights(sparse: SparseTraining) -> int:
    """Counted from the network's own weights."""
    return sum(int((layer.weight == 0).sum()) for layer in sparse.layers)


class Script:
    """A topology that sets the masks it is told to, by step, and remembers the gradients it was shown."""

    def __init__(self, masks: dict[int, list[Tensor]]) -> None:
        self.masks, self.step = masks, 0
        self.seen: dict[int, list[Tensor]] = {}

    def due(self, step: int, total: int) -> bool:
        self.step = step
        return step in self.masks

    def update(self, layers: Sequence[Pruned], progress: float) -> list[Tensor]:
        self.seen[self.step] = [layer.gradient().clone() for layer in layers]
        return self.masks[self.step]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def scripted(
    script: dict[int, list[Tensor]], *, momentum: float = 0.9, total: int = 100, **options: Any
) -> tuple[nn.Module, SparseTraining, Script]:
    """A network of one sphere layer (10 neurons of 20 weights) and an ordinary one, all connections active."""
    model = mlp(20, 10, 4).double()
    layers = prunable_layers(model)
    rest = [model[0].bias, *model[2].parameters()]
    groups = [{"params": [layers[0].weight], "p": 1.4, "lr": 0.05, "gain": True}, {"params": rest, "lr": 0.1}]
    topology = Script(script)
    masks = [torch.ones_like(layer.weight) for layer in layers]
    sparse = SparseTraining(
        model,
        layers,
        LpSGD(groups, momentum=momentum),
        topology,
        masks,
        sparsity=options.pop("sparsity", 0.0),
        total_steps=total,
        fix_at=options.pop("fix_at", 1.0),
        **options,
    )
    return model, sparse, topology


def without(*places: tuple[int, int]) -> list[Tensor]:
    masks = [torch.ones(10, 20).double(), torch.ones(4, 10).double()]
    for i, j in places:
        masks[0][i, j] = 0
    return masks


# ---- the final sparsity


def convolutional() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Unflatten(1, (1, 4, 5)),
            nn.Conv2d(1, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, padding=1, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(48, 4),
        )


@pytest.mark.parametrize("target", [0.5, 0.8, 0.9, 0.95, 0.98, 0.99])
@pytest.mark.parametrize("network", [lambda: mlp(20, 64, 32, 4), convolutional], ids=["mlp", "convolutional"])
def test_final_sparsity_is_exact_to_the_weight(network: Callable[[], nn.Module], target: float) -> None:
    model = network()
    sparse = lpss(model, total_steps=100, sparsity=target)
    total = sum(p.numel() for name, p in model.named_parameters() if p.dim() > 1)
    train(model, sparse, 0, 100)
    assert sparse.zeros() == (zeros_for(target, total), total)
    assert zero_weights(sparse) == zeros_for(target, total)
    assert sparse.sparsity() >= target > sparse.sparsity() - 1 / total


@settings(max_examples=30)
@given(
    target=st.integers(0, 99).map(lambda k: k / 100),
    p=st.floats(1.02, 2.0),
    rate=st.floats(0.001, 0.25),
    shape=st.sampled_from(KINDS),
    start=st.floats(0.01, 1.0),
    span=st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda s: abs(s[0] - s[1]) > 1e-3).map(sorted),
    interval=st.integers(1, 10),
    feedback=st.sampled_from(["pi", "published"]),
    initial=st.floats(0, 0.9),
    steps=st.integers(1, 30),
)
def test_final_sparsity_is_exact_whatever_the_settings(
    target: float,
    p: float,
    rate: float,
    shape: str,
    start: float,
    span: list[float],
    interval: int,
    feedback: str,
    initial: float,
    steps: int,
) -> None:
    model = mlp(20, 12, 4)
    chosen = LpssSettings(
        target,
        p,
        sphere_lr=rate,
        threshold=Schedule(shape, start, 0.0, *span),
        threshold_interval=interval,
        feedback=feedback,
        initial_sparsity=initial,
    )
    sparse = lpss(model, chosen, total_steps=steps)
    train(model, sparse, 0, steps)
    assert sparse.fixed
    assert zero_weights(sparse) == sparse.zeros()[0] == zeros_for(target, 288)
    assert all(torch.isfinite(param).all() for param in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_final_sparsity_is_exact_in_other_precisions(dtype: torch.dtype) -> None:
    # In float16 at p = 1.05 most weights underflow: they still count as weights, and the masks decide.
    model = mlp(20, 64, 32, 4).to(dtype)
    sparse = lpss(model, LpssSettings(0.6, 1.05, sphere_lr=0.05, threshold_interval=5), total_steps=100)
    train(model, sparse, 0, 99)
    underflown = zero_weights(sparse) > sparse.zeros()[0]
    assert underflown or dtype != torch.float16  # bfloat16 has float32's range, and may or may not
    train(model, sparse, 99, 100)
    assert sparse.zeros()[0] == zeros_for(0.6, 3456)
    assert zero_weights(sparse) == zeros_for(0.6, 3456)


def test_steps_after_the_last_keep_the_final_sparsity() -> None:
    model = mlp(20, 64, 32, 4)
    sparse = lpss(model, LpssSettings(0.3, 1.02, sphere_lr=0.2, threshold_interval=5), total_steps=50)
    train(model, sparse, 0, 49)
    small = sum(int((layer.weight.abs() < 2.0**-100).sum()) for layer in sparse.layers)
    assert small > sparse.zeros()[0]  # active weights as good as zero
    for k in range(49, 55):
        train(model, sparse, k, k + 1)
        assert zero_weights(sparse) == sparse.zeros()[0] == zeros_for(0.3, 3456)
    assert sparse.progress == 1.0


# ---- masks


@pytest.mark.parametrize("p", [1.05, 1.5])
def test_pruned_weights_are_zero_after_every_step(p: float) -> None:
    model = mlp(20, 64, 32, 4)
    sparse = lpss(model, LpssSettings(0.9, p, sphere_lr=0.05, threshold_interval=5), total_steps=200)
    assert sparse.sparsity() == pytest.approx(0.2, abs=1e-3)
    seen = set()
    for k in range(200):
        train(model, sparse, k, k + 1)
        for layer, mask in zip(sparse.layers, sparse.masks, strict=True):
            assert (layer.weight[mask == 0] == 0).all()
            # On the sphere nothing else is zero, unless it underflows: at p = 1.05, |v| < .006 does.
            if layer.sphere and p == 1.5:
                assert (layer.weight[mask == 1] != 0).all()
        seen.add(sparse.zeros()[0])
    assert len(seen) > 10


@pytest.mark.parametrize("drop", ["ramp", "threshold"])
def test_mask_does_not_move_once_it_is_fixed(drop: str) -> None:
    model = mlp(20, 64, 32, 4)
    settings = LpssSettings(0.9, 1.3, sphere_lr=0.05, drop=drop, threshold_interval=1)
    sparse = lpss(model, settings, total_steps=100)
    train(model, sparse, 0, 70)
    assert not sparse.fixed
    before = [mask.clone() for mask in sparse.masks]
    train(model, sparse, 70, 71)
    assert sparse.fixed
    moved = not all(torch.equal(mask, old) for mask, old in zip(sparse.masks, before, strict=True))
    assert moved == (drop == "threshold")  # a ramp of a threshold_interval of 1 has arrived a step before
    fixed = [mask.clone() for mask in sparse.masks]
    weights = model[0].weight.detach().clone()
    for k in range(71, 100):
        train(model, sparse, k, k + 1)
        assert all(torch.equal(mask, old) for mask, old in zip(sparse.masks, fixed, strict=True))
    assert not torch.equal(model[0].weight, weights)  # it trained on


def test_mask_projected_by_hand_does_not_move_either() -> None:
    model = mlp(20, 64, 32, 4)
    sparse = lpss(model, LpssSettings(0.9, 1.3, sphere_lr=0.05, threshold_interval=1), total_steps=100)
    train(model, sparse, 0, 30)
    sparse.project()
    fixed = [mask.clone() for mask in sparse.masks]
    train(model, sparse, 30, 60)
    assert sparse.progress < sparse.fix_at
    assert all(torch.equal(mask, old) for mask, old in zip(sparse.masks, fixed, strict=True))


def test_projection_keeps_the_most_salient_of_the_active_weights() -> None:
    model = mlp(20, 64, 32, 4)
    sparse = lpss(model, LpssSettings(0.9, 1.3, sphere_lr=0.05), total_steps=400)
    train(model, sparse, 0, 100)
    assert sparse.sparsity() < 0.9
    weights = [layer.weight.detach().abs().flatten().clone() for layer in sparse.layers]
    sparse.project()
    # Ranked together on the sphere; the last layer, which is off it, by itself.
    for part in (slice(0, 2), slice(2, 3)):
        magnitudes = torch.cat(weights[part])
        masks = torch.cat([mask.flatten() for mask in sparse.masks[part]])
        assert magnitudes[masks == 1].min() > magnitudes[masks == 0].max()
    once = torch.cat([mask.flatten() for mask in sparse.masks])
    sparse.project()
    assert torch.equal(once, torch.cat([mask.flatten() for mask in sparse.masks]))


def test_layers_off_the_sphere_get_their_erk_share() -> None:
    # At p near 1 the few large weights of the sphere's rows would take all: the last layer would lose whole classes.
    model = mlp(20, 64, 32, 4)
    sparse = lpss(model, LpssSettings(0.95, 1.05), total_steps=400)
    train(model, sparse, 0, 60)
    sparse.project()
    shapes = [layer.weight.shape for layer in sparse.layers]
    assert int(sparse.masks[2].sum()) == layer_counts(shapes, 0.95, "erk")[2]
    assert sparse.masks[2].any(1).all()
    assert sparse.zeros()[0] == zeros_for(0.95, sum(shape.numel() for shape in shapes))


def test_projection_takes_active_weights_of_zero_before_pruned_ones() -> None:
    model, sparse, _ = scripted({0: without(*((i, j) for i in range(10) for j in range(10)))}, sparsity=0.5)
    with torch.no_grad():
        model[2].weight.zero_()  # an output layer that starts at zero, as some do
    sparse.masks[0].copy_(without(*((i, j) for i in range(10) for j in range(10)))[0])
    sparse.project()
    assert sparse.zeros() == (120, 240)
    assert sparse.masks[0][:, :10].sum() == 0  # none of the 100 pruned ones came back
    assert sparse.masks[0].sum() + sparse.masks[1].sum() == 120


def test_a_network_sparser_than_its_target_gets_weights_back() -> None:
    model, sparse, _ = scripted({0: without(*((i, j) for i in range(10) for j in range(19)))}, sparsity=0.5)
    train(model, sparse, 0, 1)
    assert sparse.zeros()[0] == 190
    sparse.project()
    assert sparse.zeros()[0] == 120


def test_masks_given_are_not_the_masks_kept() -> None:
    model = mlp(20, 10, 4)
    layers = prunable_layers(model)
    given_masks = [torch.ones_like(layer.weight) for layer in layers]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    ramp = Ramp(Schedule("constant", 0.5), 1)
    sparse = SparseTraining(model, layers, optimizer, ramp, given_masks, sparsity=0.5, total_steps=10)
    train(model, sparse, 0, 1)
    assert sparse.sparsity() == 0.5
    assert all((mask == 1).all() for mask in given_masks)


# ---- projected()


def test_projected_shows_the_final_sparsity_and_restores_the_weights_exactly() -> None:
    model = mlp(20, 64, 32, 4)
    sparse = lpss(model, LpssSettings(0.9, 1.3, sphere_lr=0.05), total_steps=400)
    train(model, sparse, 0, 100)
    before = copy.deepcopy(model.state_dict())
    zeros = sparse.zeros()
    with sparse.projected():
        assert zero_weights(sparse) == zeros_for(0.9, 3456)
        inside = copy.deepcopy(model.state_dict())
    assert zeros[0] < zeros_for(0.9, 3456)
    assert sparse.zeros() == zeros
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    sparse.project()
    assert all(torch.equal(inside[name], value) for name, value in model.state_dict().items())
    with sparse.projected():  # fixed: it is its own projection
        assert all(torch.equal(inside[name], value) for name, value in model.state_dict().items())


def test_projected_restores_the_weights_after_an_error() -> None:
    model = mlp(20, 64, 32, 4)
    sparse = lpss(model, total_steps=400, sparsity=0.9)
    before = copy.deepcopy(model.state_dict())

    def fail() -> None:
        with sparse.projected():
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


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
    train(model, sparse, 6, 7)  # it is back: its momentum starts from its gradient alone
    assert state[model[0].weight]["momentum_buffer"][0, 0] != 0


def test_latent_of_a_dropped_connection_decays_and_comes_back() -> None:
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
        g[:2] = 0  # the published step, with nothing but decay for what is dropped
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


def test_dense_latent_goes_on_learning_while_it_is_dropped() -> None:
    ends = []
    for dense in (True, False):
        model, sparse, _ = scripted({0: without((0, 0))}, dense_latent=dense)
        before = sparse.optimizer.state[model[0].weight]["v"].clone()
        train(model, sparse, 0, 30)
        after = sparse.optimizer.state[model[0].weight]["v"]
        assert model[0].weight[0, 0] == 0
        ends.append((after / before)[0, 0].item())
    assert 0 < ends[1] < 1.5  # it only decayed: its sign is the old one
    assert abs(ends[0] - ends[1]) > 0.05


def test_gains_and_biases_see_only_what_the_network_saw() -> None:
    # A whole neuron dropped: its gain has no gradient.
    model, sparse, _ = scripted({0: without(*((4, j) for j in range(20)))}, momentum=0.0)
    train(model, sparse, 0, 1)
    gain = sparse.optimizer.gain(model[0].weight)
    assert gain is not None
    first = gain.clone()
    train(model, sparse, 1, 10)
    assert gain[4] == first[4]
    assert (gain[:4] != first[:4]).all()


def test_momentum_of_ordinary_layers_is_cleared_with_a_dense_latent_too() -> None:
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
    ramp = Ramp(Schedule("cubic", 0.0, 0.9, 0.1, 0.7), 10)
    return SparseTraining(
        model, layers, optimizer, ramp, masks, sparsity=0.9, total_steps=total, learning_rate=lambda u: 1 - u
    )


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_gradual_magnitude_pruning_with_torchs_optimizers(kind: str) -> None:
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
    assert sparse.travel == 0.0  # there is no sphere


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
    assert sparse.travel == pytest.approx(0.04 * 5.5)  # 1 + .9 + ... + .1


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
def test_resumed_at_any_step_equals_the_unbroken_run(make: Callable[[], tuple[nn.Module, SparseTraining]]) -> None:
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
        assert (again.steps, again.travel, again.fixed) == (sparse.steps, sparse.travel, sparse.fixed)
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
