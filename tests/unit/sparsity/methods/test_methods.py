"""Every method reaches its exact target and keeps its zeros, and a resumed training equals an unbroken one."""

from __future__ import annotations

import copy
import functools
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.helpers.examples import examples
from tests.helpers.trainings import MASKED, STILL
from tune_sparsity.sparsity import METHODS, LpssSettings, SparseTraining, lpss
from tune_sparsity.sparsity.masks import zeros_for

STEPS = 80
MOVES = "no mask moves late: look whether the topology is due before mask_frozen_at, or add the method to STILL"
SPARSE = [name for name in MASKED if name != "dense"]


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 4))


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    y = torch.randint(0, 4, (32,), generator=generator)
    return torch.randn(32, 16, generator=generator) + 2 * F.one_hot(y, 16), y


def params(name: str, sparsity: float) -> dict[str, Any]:
    own: dict[str, Any] = {} if name == "dense" else {"final_sparsity": sparsity}
    if name == "lpss":
        return {**own, "p": 1.3, "threshold_interval": 7}
    return {**own, "interval": 7} if name in ("rigl", "set", "sparse-momentum", "gmp") else own


def build(name: str, model: nn.Module, sparsity: float = 0.9) -> SparseTraining:
    generator = torch.Generator().manual_seed(7)
    return METHODS[name].build(model, params(name, sparsity), total_steps=STEPS, generator=generator)


def train(model: nn.Module, sparse: SparseTraining, start: int, stop: int) -> None:
    for step in range(start, stop):
        x, y = batch(step)
        sparse.zero_grad()
        F.cross_entropy(model(x), y).backward()
        sparse.step()


def zeros(sparse: SparseTraining) -> int:
    return sum(int((layer.weight == 0).sum()) for layer in sparse.layers)


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", SPARSE)
def test_every_method_ends_on_its_exact_sparsity_and_learns(name: str, sparsity: float) -> None:
    model = network()
    sparse = build(name, model, sparsity)
    x, y = batch(0)
    before = F.cross_entropy(model(x), y)
    train(model, sparse, 0, STEPS)
    total = sum(layer.weight.numel() for layer in sparse.layers)
    assert zeros(sparse) == zeros_for(sparsity, total)
    assert all(mask.any() for mask in sparse.masks)
    if sparsity == 0.5:  # 80 steps are too few for random masks with a tenth of the weights
        assert F.cross_entropy(model(x), y) < 0.7 * before


def depthwise() -> nn.Sequential:
    """Return a network with a depthwise convolution of 16 filters with 9 weights each. Later layers have longer
    rows."""
    torch.manual_seed(0)
    layers = [nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 16, 1), nn.BatchNorm2d(16), nn.ReLU()]
    layers += [nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.ReLU()]
    layers += [nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32)]
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))


@pytest.mark.parametrize("distribution", ["global", "erk", "uniform"])
@pytest.mark.parametrize("name", ["lpss", "gmp"])
@pytest.mark.parametrize("model", [network, depthwise])
def test_every_neuron_keeps_a_weight_if_two_weights_per_neuron_remain(
    model: Callable[[], nn.Module], name: str, distribution: str
) -> None:
    trained = model()
    given = {**params(name, 0.85), "distribution": distribution}
    sparse = METHODS[name].build(trained, given, total_steps=STEPS, generator=torch.Generator().manual_seed(7))
    train(trained, sparse, 0, STEPS)
    total = sparse.zeros()[1]
    assert zeros(sparse) == zeros_for(0.85, total)
    assert 2 * sum(len(layer.rows()) for layer in sparse.layers) <= total - zeros(sparse)
    assert all((layer.rows() != 0).any(1).all() for layer in sparse.layers)


@pytest.mark.parametrize("name", ["lpss", "gmp"])
def test_an_unknown_distribution_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^distribution = 'ekr' is not accepted: it takes uniform, erk, global$"):
        METHODS[name].configure({**params(name, 0.9), "distribution": "ekr"})


@pytest.mark.parametrize("name", ["set", "rigl", "sparse-momentum"])
def test_drop_and_grow_keep_the_sparsity_and_move_the_mask(name: str) -> None:
    model = network()
    sparse = build(name, model)
    first = [mask.clone() for mask in sparse.masks]
    total = sum(mask.numel() for mask in sparse.masks)
    for step in range(60):
        train(model, sparse, step, step + 1)
        assert sparse.zeros() == (zeros_for(0.9, total), total)
    moved = sum(int((old != new).sum()) for old, new in zip(first, sparse.masks, strict=True))
    assert moved > 20
    counts = [int(mask.sum()) for mask in first]
    if name == "sparse-momentum":
        assert counts != [int(mask.sum()) for mask in sparse.masks]  # connections move between layers
    else:
        assert counts == [int(mask.sum()) for mask in sparse.masks]


@pytest.mark.parametrize("name", ["static", "snip"])
def test_a_mask_chosen_at_the_start_never_changes(name: str) -> None:
    model = network()
    sparse = build(name, model)
    train(model, sparse, 0, 1)
    first = [mask.clone() for mask in sparse.masks]
    train(model, sparse, 1, STEPS)
    assert all(torch.equal(old, new) for old, new in zip(first, sparse.masks, strict=True))


def test_snip_keeps_the_largest_products_of_weight_and_gradient() -> None:
    model = network()
    sparse = build("snip", model)
    x, y = batch(0)
    sparse.zero_grad()
    F.cross_entropy(model(x), y).backward()
    scores = torch.cat([(layer.weight * layer.weight.grad).abs().flatten() for layer in sparse.layers])
    sparse.step()
    kept = torch.cat([mask.flatten() for mask in sparse.masks]).bool()
    assert scores[kept].min() >= scores[~kept].max()


def test_dense_is_plain_sgd() -> None:
    model, other = network(), network()
    sparse = build("dense", model)
    train(model, sparse, 0, 20)
    sgd = torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)
    for step in range(20):
        sgd.param_groups[0]["lr"] = 0.05 * sparse.learning_rate(step / STEPS)
        x, y = batch(step)
        sgd.zero_grad()
        F.cross_entropy(other(x), y).backward()
        sgd.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert sparse.sparsity() == 0.0


def test_regrown_connections_start_at_zero_and_without_momentum() -> None:
    model = network()
    sparse = build("rigl", model)
    grown_at_all = False
    for step in range(50):
        old = [mask.clone() for mask in sparse.masks]
        x, y = batch(step)
        sparse.zero_grad()
        F.cross_entropy(model(x), y).backward()
        sparse._move_masks()
        for layer, before, after in zip(sparse.layers, old, sparse.masks, strict=True):
            grown = (before == 0) & (after != 0)
            grown_at_all |= bool(grown.any())
            assert not layer.weight[grown].any()
            buffer = sparse.optimizer.state[layer.weight].get("momentum_buffer")
            assert buffer is None or not buffer[(before != 0) & (after == 0)].any()
        sparse.step()
    assert grown_at_all


@functools.cache
def unbroken(name: str) -> list[bytes]:
    """Return the saved states of a training before every step and after the last step."""
    model = network()
    sparse = build(name, model)
    files = []
    for step in range(STEPS + 1):
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "sparse": sparse.state_dict()}, file)
        files.append(file.getvalue())
        if step < STEPS:
            train(model, sparse, step, step + 1)
    return files


def same(one: Any, other: Any) -> bool:
    """Return whether two states are equal bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@examples(7)
@given(stop=st.integers(0, STEPS), used=st.integers(0, 2))
@pytest.mark.parametrize("name", MASKED)
def test_resumed_at_any_step_equals_unbroken_bit_for_bit(name: str, stop: int, used: int) -> None:
    """The state is loaded into a new training, or into a training that has already taken one or two steps."""
    files = unbroken(name)
    saved = torch.load(io.BytesIO(files[stop]), weights_only=True)
    model = network(seed=5)
    sparse = build(name, model)
    train(model, sparse, 0, used)
    model.load_state_dict(saved["model"])
    sparse.load_state_dict(saved["sparse"])
    assert same(sparse.state_dict(), saved["sparse"])  # nothing is lost, nothing added
    train(model, sparse, stop, STEPS)
    end = torch.load(io.BytesIO(files[-1]), weights_only=True)
    assert same(model.state_dict(), end["model"])
    assert same(sparse.state_dict(), end["sparse"])


@pytest.mark.parametrize("name", MASKED)
def test_state_holds_masks_schedule_and_controller(name: str) -> None:
    early, late = (torch.load(io.BytesIO(unbroken(name)[k]), weights_only=True)["sparse"] for k in (1, STEPS - 1))
    assert (early["steps"], late["steps"]) == (1, STEPS - 1)
    assert same(early["masks"], late["masks"]) == (name in STILL), f"{name}: {MOVES}"
    assert same(early["optimizer"]["param_groups"], late["optimizer"]["param_groups"]) is False  # learning rates differ


@pytest.mark.parametrize("stop", [0, 20, 70])
@pytest.mark.parametrize("name", MASKED)
def test_a_copy_of_the_training_goes_on_like_the_original(name: str, stop: int) -> None:
    model = network()
    sparse = build(name, model)
    train(model, sparse, 0, stop)
    other, again = copy.deepcopy((model, sparse))
    train(model, sparse, stop, STEPS)
    assert not same(other.state_dict(), model.state_dict())  # the copy did not change with the original
    train(other, again, stop, STEPS)
    assert same(other.state_dict(), model.state_dict())
    assert same(again.state_dict(), sparse.state_dict())


@pytest.mark.parametrize("name", SPARSE)
def test_dropped_weights_lose_their_momentum(name: str) -> None:
    model = network()
    sparse = build(name, model)
    dropped_at_all = 0
    for step in range(STEPS):
        old = [mask.clone() for mask in sparse.masks]
        train(model, sparse, step, step + 1)
        for layer, before, after in zip(sparse.layers, old, sparse.masks, strict=True):
            dropped = (before != 0) & (after == 0)
            dropped_at_all += int(dropped.sum())
            buffer = sparse.optimizer.state[layer.weight]["momentum_buffer"].view_as(layer.weight)
            assert not buffer[after == 0].any()
            assert not layer.weight[after == 0].any()
    assert dropped_at_all > 0 or name in STILL, f"{name}: {MOVES}"


def zeros_of(model: nn.Module) -> int:
    return sum(int((m.weight == 0).sum()) for m in model.modules() if isinstance(m, nn.Linear))


@pytest.mark.parametrize("name", SPARSE)
def test_copies_and_averages_of_the_network_keep_the_sparsity(name: str) -> None:
    model = network()
    sparse = build(name, model)
    averaged = {start: AveragedModel(model) for start in (30, 64)}
    moving = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for step in range(STEPS):
        train(model, sparse, step, step + 1)
        for start, average in averaged.items():
            if step >= start:
                average.update_parameters(model)
        if sparse.fixed:
            moving.update_parameters(model)
    wanted = zeros(sparse)
    for other in (copy.deepcopy(model), averaged[64].module, moving.module, pickle.loads(pickle.dumps(model))):
        assert zeros_of(other) == wanted
        assert all(
            not dict(other.named_parameters())[layer.name][mask == 0].any()
            for layer, mask in zip(sparse.layers, sparse.masks, strict=True)
        )
    # The rule: an average begins when the mask is fixed. An average that begins earlier is denser.
    if name not in STILL:
        assert zeros_of(averaged[30].module) < wanted, f"{name}: {MOVES}"
    fresh = network(seed=9)
    fresh.load_state_dict(model.state_dict())
    assert zeros_of(fresh) == wanted


def test_the_error_names_a_nan_or_infinite_parameter() -> None:
    model = network()
    sparse = build("rigl", model)
    train(model, sparse, 0, 3)
    sparse.check_finite()
    with torch.no_grad():
        model[2].weight[3, 4] = math.inf
    with pytest.raises(FloatingPointError, match=r"^2\.weight is NaN or infinite$"):
        sparse.check_finite()


@pytest.mark.parametrize(
    ("model", "settings", "sparsity", "message"),
    [
        (nn.Linear, None, None, r"^model must be a network, an nn\.Module, got <class .*Linear'>$"),
        (network().parameters(), None, None, "^model must be a network"),
        (network(), torch.optim.Adam(network().parameters()), None, "^settings must be LpssSettings, got Adam$"),
        (network(), None, 90, r"^sparsity = 90 is not accepted: it takes \[0, 1\)$"),
        (network(), LpssSettings(0.5, 1.2), 0.9, "^sparsity = 0.9 contradicts final_sparsity = 0.5 of the settings$"),
    ],
)
def test_invalid_or_contradictory_arguments_of_lpss_are_refused(
    model: Any, settings: Any, sparsity: float | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        lpss(model, settings, total_steps=10, sparsity=sparsity)


@pytest.mark.parametrize("name", MASKED)
def test_invalid_settings_are_refused_in_one_line(name: str) -> None:
    for wrong in ({"lr": -1.0}, {"lr": math.nan}, {"momentum": 1.0}, {"no_such": 1}):
        with pytest.raises(ValueError, match=r"lr|momentum|no_such") as caught:
            METHODS[name].build(network(), {**params(name, 0.9), **wrong}, total_steps=9, generator=torch.Generator())
        assert "\n" not in str(caught.value)
