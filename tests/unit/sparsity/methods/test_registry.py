"""The methods refuse wrong settings with an error of one line. The trained networks are sparse and have learned."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Generator, nn

from tests.helpers.problems import accuracy, batches, blobs, mlp
from tune_sparsity.sparsity import METHODS, LpssSettings, lpss, suggest_p
from tune_sparsity.sparsity.methods.registry import nested
from tune_sparsity.sparsity.optim.lpsgd import LpSGD
from tune_sparsity.sparsity.schedules import Schedule
from tune_sparsity.sparsity.topology.controller import PaperFeedback, ProportionalIntegral
from tune_sparsity.sparsity.topology.magnitude import GlobalMagnitude

GOOD = {"final_sparsity": 0.9, "p": 1.3}


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


# ---- settings


@pytest.mark.parametrize(
    ("name", "values", "accepted"),
    [
        ("final_sparsity", [1.0, -0.1, 1.5, math.nan], "[0, 1)"),
        ("p", [1.0, 1.0199, 2.01, math.nan, math.inf], "[1.02, 2]"),
        ("sphere_lr", [0.0, -0.1, 0.26, math.nan], "(0, 0.25]"),
        ("lr", [0.0, -1.0, math.inf, math.nan], "(0, inf)"),
        ("momentum", [-0.1, 1.0, math.nan], "[0, 1)"),
        ("weight_decay", [-1e-9, math.inf, math.nan], "[0, inf)"),
        ("drop", ["magnitude", "", None], "ramp, threshold"),
        ("threshold", ["square", "", None, 3], "constant, linear, cosine, exponential, cubic"),
        ("threshold_interval", [0, -1, 2.5, "40", math.inf], "1, 2, ..."),
        ("feedback", ["pid", None], "published, pi"),
        ("feedback_gain", [-0.1, 1.0, math.nan], "[0, 1)"),
        ("initial_sparsity", [-0.1, 1.0, math.nan], "[0, 1)"),
    ],
)
def test_errors_of_invalid_settings_name_the_parameter_and_accepted_values(
    name: str, values: list[Any], accepted: str
) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"^{name} = ") as error:
            LpssSettings(**{**GOOD, name: value})
        assert accepted in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(LpssSettings) if f.type == "float"])
@pytest.mark.parametrize("value", ["0.5", None, [0.5]])
def test_settings_that_are_not_numbers_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} = .* it takes a number$"):
        LpssSettings(**{**GOOD, name: value})


def test_ends_of_the_ranges_are_accepted() -> None:
    LpssSettings(0.0, 1.02, sphere_lr=0.25, threshold={"begin": 0.0, "end": 1.0, "start": 1.0}, momentum=0.0)
    LpssSettings(0.999, 2.0, threshold_interval=1, feedback_gain=0.0, initial_sparsity=0.0)
    LpssSettings(np.float64(0.5), np.float32(1.5), threshold_interval=np.int64(10))  # samplers return such types


def test_methods_refuse_unknown_and_missing_parameters_by_name() -> None:
    method = METHODS["lpss"]
    with pytest.raises(
        ValueError, match=r"^lpss has no parameter 'rho': it takes average_every, averaging, .*, weight_decay, width$"
    ):
        method.build(mlp(20, 8, 4), {**GOOD, "rho": 0.2}, total_steps=10, generator=generator())
    with pytest.raises(ValueError, match=r"^lpss needs the parameter 'p'$"):
        method.build(mlp(20, 8, 4), {"final_sparsity": 0.9}, total_steps=10, generator=generator())
    with pytest.raises(ValueError, match=r"^p = 3 is not accepted"):
        method.build(mlp(20, 8, 4), {**GOOD, "p": 3}, total_steps=10, generator=generator())


def test_lpss_builds_the_training_that_its_parameters_describe() -> None:
    params = {**GOOD, "sphere_lr": 0.02, "lr": 0.3, "momentum": 0.5, "threshold.end": 0.6}
    sparse = METHODS["lpss"].build(mlp(20, 8, 4), params, total_steps=10, generator=generator())
    sphere, rest = sparse.optimizer.param_groups
    assert (sphere["p"], sphere["lr"], sphere["gain_lr"], sphere["momentum"]) == (1.3, 0.02, 0.3, 0.5)
    assert (rest["p"], rest["lr"], rest["momentum"]) == (None, 0.3, 0.5)
    assert (sparse.final_sparsity, sparse.total_steps, sparse.mask_frozen_at) == (0.9, 10, 0.6)


# ---- networks


def test_every_parameter_is_in_exactly_one_optimizer_group() -> None:
    model = mlp(20, 8, 4, norm=True)
    sparse = lpss(model, total_steps=10)
    trained = [id(param) for group in sparse.optimizer.param_groups for param in group["params"]]
    assert sorted(trained) == sorted(id(param) for param in model.parameters())


@pytest.mark.parametrize("norm", [False, True])
def test_gains_are_learnt_unless_a_batch_normalisation_follows(norm: bool) -> None:
    model = mlp(20, 8, 6, 4, norm=norm)
    optimizer = lpss(model, total_steps=10, sparsity=0.5).optimizer
    assert isinstance(optimizer, LpSGD)
    weight = model[0].weight
    assert optimizer.gain(weight).shape == (8, 1)
    assert torch.allclose(optimizer.sphere_weights(weight).norm(p=suggest_p(0.5), dim=1), torch.ones(8))
    assert [group["gain"] for group in optimizer.param_groups] == [not norm, False]


def test_a_network_of_one_layer_has_no_sphere() -> None:
    sparse = lpss(nn.Linear(20, 4), total_steps=10, sparsity=0.5)
    assert [group["p"] for group in sparse.optimizer.param_groups] == [None]


def test_the_generator_decides_the_random_initial_masks() -> None:
    def first(seed: int | None) -> torch.Tensor:
        model = mlp(20, 30, 4)
        return lpss(model, total_steps=10, generator=None if seed is None else generator(seed)).masks[0]

    assert torch.equal(first(None), first(0))
    assert torch.equal(first(3), first(3))
    assert not torch.equal(first(3), first(4))
    assert int((first(0) == 0).sum()) == 120


def test_initial_sparsity_is_never_above_the_final_one() -> None:
    sparse = lpss(mlp(20, 30, 4), LpssSettings(0.1, 1.9, initial_sparsity=0.5), total_steps=10)
    assert sparse.sparsity() == pytest.approx(0.1)


def test_the_feedback_setting_selects_the_threshold_controller() -> None:
    def feedback(name: str) -> Any:
        settings = LpssSettings(0.9, 1.3, drop="threshold", feedback=name, feedback_gain=0.2)
        return lpss(mlp(20, 8, 4), settings, total_steps=10).topology

    published, pi = feedback("published").feedback, feedback("pi").feedback
    assert isinstance(published, PaperFeedback)
    assert (published.target, published.delta) == (0.9, 0.2)
    assert isinstance(pi, ProportionalIntegral)
    assert pi.ki == pytest.approx(0.2)
    assert (pi.reference(0.0), pi.reference(1.0)) == (0.2, 0.9)


def test_ramp_rises_from_the_initial_to_the_final_sparsity() -> None:
    settings = LpssSettings(0.9, 1.3, threshold={"begin": 0.2, "end": 0.6}, threshold_interval=7)
    topology = lpss(mlp(20, 8, 4), settings, total_steps=1000).topology
    assert isinstance(topology, GlobalMagnitude)
    assert topology.interval == 7
    assert [topology.sparsity(at) for at in (0.0, 0.2, 0.4, 0.6, 1.0)] == pytest.approx([0.2, 0.2, 0.8125, 0.9, 0.9])


@pytest.mark.parametrize(("steps", "interval"), [(10, 1), (141, 16), (333, 39), (10_000, 40)])
def test_masks_move_at_least_five_times_in_a_short_training(steps: int, interval: int) -> None:
    settings = LpssSettings(0.9, 1.3, threshold={"begin": 0.1, "end": 0.7})
    for drop in ("ramp", "threshold"):
        topology = lpss(mlp(20, 8, 4), dataclasses.replace(settings, drop=drop), total_steps=steps).topology
        assert topology.interval == interval
        assert sum(topology.due(step, steps) for step in range(steps)) >= min(5, 0.6 * steps - 1)
    params = {"begin": 0.1, "end": 0.7, "final_sparsity": 0.9}
    topology = METHODS["gmp"].build(mlp(20, 8, 4), params, total_steps=steps, generator=torch.Generator()).topology
    assert topology.interval == interval


def test_weight_decay_applies_to_gains_and_to_weights_outside_the_sphere() -> None:
    settings = LpssSettings(0.9, 1.3, weight_decay=0.01)
    with_gains = lpss(mlp(20, 8, 4), settings, total_steps=10).optimizer.param_groups
    assert [(group["p"], group["weight_decay"]) for group in with_gains] == [(1.3, 0.01), (None, 0.01)]
    normalised = nn.Sequential(nn.Linear(20, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    without = lpss(normalised, settings, total_steps=10).optimizer.param_groups
    assert [(group["p"], group["weight_decay"]) for group in without] == [(1.3, 0.0), (None, 0.01)]


def test_default_exponent_is_the_theorys() -> None:
    for target, p in ((0.5, 1.338), (0.9, 1.104)):
        group = lpss(mlp(20, 8, 4), total_steps=10, sparsity=target).optimizer.param_groups[0]
        assert group["p"] == pytest.approx(p, abs=1e-3)


def test_a_users_training_loop_reaches_exactly_its_target_and_learns() -> None:
    x, y = blobs(n=800, features=30, classes=10)
    held_x, held_y = x[::4], y[::4]
    kept = torch.arange(800) % 4 != 0
    model = mlp(30, 100, 50, 10)
    assert accuracy(model, held_x, held_y) < 0.4

    steps = 500
    sparse = lpss(model, total_steps=steps, sparsity=0.9)
    for xs, ys in batches(x[kept], y[kept], steps):
        sparse.zero_grad()
        F.cross_entropy(model(xs), ys).backward()
        sparse.step()

    weights = torch.cat([model[k].weight.flatten() for k in (0, 2, 4)])
    assert len(weights) == 8500
    assert int((weights == 0).sum()) == 7650
    assert accuracy(model, held_x, held_y) > 0.9


def test_a_network_with_normalisation_learns_too() -> None:
    x, y = blobs(n=800, features=30, classes=10)
    model = mlp(30, 100, 50, 10, norm=True)
    sparse = lpss(model, LpssSettings(0.9, 1.2), total_steps=300)
    for xs, ys in batches(x, y, 300):
        sparse.zero_grad()
        F.cross_entropy(model(xs), ys).backward()
        sparse.step()
    assert sparse.zeros() == (7650, 8500)
    assert accuracy(model, x, y) > 0.9


def test_early_layers_take_an_exponent_of_their_own() -> None:
    model = nn.Sequential(*(layer for _ in range(5) for layer in (nn.Linear(12, 12), nn.ReLU())), nn.Linear(12, 3))
    settings = LpssSettings(0.9, 1.07, p_early=1.2, early_layers=2)
    sparse = lpss(model, settings, total_steps=10)
    groups = [(group["p"], len(group["params"])) for group in sparse.optimizer.param_groups]
    assert groups == [(1.2, 2), (1.07, 3), (None, 7)]
    for index, p in ((0, 1.2), (2, 1.2), (4, 1.07), (8, 1.07)):
        w = sparse.optimizer.sphere_weights(model[index].weight)
        assert torch.allclose((w.abs() ** p).sum(1), torch.ones(12), atol=1e-5)


def test_the_published_learning_rate_peaks_after_a_sixth_of_the_training() -> None:
    sparse = lpss(nn.Linear(3, 2), LpssSettings(0.5, 1.3, learning_rate="published"), total_steps=10)
    assert sparse.learning_rate(1 / 6) == pytest.approx(1.0)
    assert sparse.learning_rate(1.0) == pytest.approx(0.0001)
    assert sparse.learning_rate(1 - 3 / 50) == pytest.approx(0.002)


def test_the_published_learning_rate_depends_on_the_number_of_epochs() -> None:
    params = {**GOOD, "learning_rate": "published"}
    for given, epochs in (({}, 250), ({"knots_for_epochs": 40}, 40)):
        sparse = METHODS["lpss"].build(
            nn.Linear(3, 2), {**params, **given}, total_steps=10, generator=generator(), epochs=250
        )
        assert sparse.learning_rate(1 - 3 / epochs) == pytest.approx(0.002)
        assert sparse.learning_rate(1 - 3 / epochs - 0.01) > 0.0021


def test_an_exported_network_has_its_gains_in_its_weights() -> None:
    torch.manual_seed(0)
    x, y = blobs(200)
    model = mlp(20, 12, 8, 4)
    sparse = lpss(model, total_steps=40, sparsity=0.5)
    gains = {layer.name: sparse.optimizer.gain(layer.weight).clone() for layer in sparse.layers if layer.sphere}
    for inputs, targets in batches(x, y, 10):
        sparse.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        sparse.step()
    assert set(model.state_dict()) == set(mlp(20, 12, 8, 4).state_dict())  # no entries for gains
    loaded = mlp(20, 12, 8, 4)
    loaded.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()})
    assert torch.equal(loaded(x), model(x))
    assert isinstance(sparse.optimizer, LpSGD)
    for layer, mask in zip(sparse.layers, sparse.masks, strict=True):
        if layer.sphere:
            gain, w = sparse.optimizer.gain(layer.weight), sparse.optimizer.sphere_weights(layer.weight)
            assert (gain / gains[layer.name] - 1).abs().max() > 0.01  # trained, neuron by neuron
            assert torch.allclose(loaded.state_dict()[layer.name], gain * w * mask, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [("p_early", 1.0), ("p_early", "1.2"), ("early_layers", 0), ("learning_rate", "fast"), ("knots_for_epochs", 0)],
)
def test_errors_name_invalid_early_layer_and_learning_rate_settings(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        LpssSettings(0.9, 1.3, **{name: value})  # type: ignore[arg-type]


def test_parameters_with_a_dot_in_their_names_form_one_nested_value() -> None:
    params = {"p": 1.4, "threshold.start": 0.2, "threshold.end": 0.7}
    assert nested(params) == {"p": 1.4, "threshold": {"start": 0.2, "end": 0.7}}
    assert nested({}) == {}
    with pytest.raises(ValueError, match="threshold is given both as one value and by its part 'start'"):
        nested({**params, "threshold": {"start": 0.1}})


@pytest.mark.parametrize("name", METHODS)
def test_configure_makes_settings_and_refuses_unknown_parameters(name: str) -> None:
    required = {"p": 1.4, "final_sparsity": 0.9}
    params = {key: value for key, value in required.items() if key in METHODS[name].settings.__dataclass_fields__}
    assert METHODS[name].configure(params) == METHODS[name].settings(**params)
    with pytest.raises(ValueError, match="has no parameter 'nonsense'"):
        METHODS[name].configure({**params, "nonsense": 1})


@pytest.mark.parametrize(
    ("threshold", "said"),
    [
        *(({"start": value}, "threshold.start") for value in (0.0, 1.1, math.nan, "0.2")),
        *(({"begin": value}, "threshold.begin") for value in (-0.1, 0.7, 0.9, math.nan)),
        *(({"end": value}, "threshold.end") for value in (1.1, math.inf)),
        ({"stop": -0.1}, "threshold.stop"),
        ({"shape": "square"}, "threshold.shape"),
        ({"begins": 0.1}, "threshold.begins"),
        ({}, "threshold"),
        ({"at1": 0.0, "value1": 0.2}, "threshold"),
    ],
)
def test_errors_of_invalid_schedules_name_the_invalid_setting(threshold: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=rf"^{said} ") as error:
        LpssSettings(**{**GOOD, "threshold": threshold})
    assert "\n" not in str(error.value)


def test_a_schedule_can_be_an_object_a_mapping_dotted_parameters_or_a_shape() -> None:
    whole = LpssSettings(0.9, 1.3, threshold=Schedule("linear", 0.2, 0.0, 0.1, 0.6))
    assert LpssSettings(0.9, 1.3, threshold={"shape": "linear", "end": 0.6}) == whole
    parts = {"final_sparsity": 0.9, "p": 1.3, "threshold.shape": "linear", "threshold.end": 0.6}
    assert METHODS["lpss"].configure(parts) == whole
    assert LpssSettings(0.9, 1.3, threshold="linear").threshold == Schedule("linear", 0.2, 0.0, 0.1, 0.7)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("p", {"shape": "linear", "start": 1.9, "stop": 1.0}, "p = "),
        ("p", {"shape": "linear", "start": 2.1, "stop": 1.5}, "p = "),
        ("p", {"shape": "linear"}, "p needs"),
        ("p", {"at1": 0.5, "value1": 3.0}, "p = "),
        ("p", {"at1": 1.5, "value1": 1.5}, "p.at1"),
        ("p", {"at1": 0.5, "value2": 1.5}, "p needs the knots"),
        ("learning_rate", {"shape": "cosine", "start": 1.5}, "learning_rate = "),
        ("learning_rate", {"at1": 0.0, "value1": "high"}, "learning_rate.value1"),
    ],
)
def test_errors_name_invalid_schedules_of_p_and_the_learning_rate(name: str, value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=rf"^{said}"):
        LpssSettings(**{**GOOD, name: value})


def test_weights_stay_on_the_sphere_of_p_while_p_changes() -> None:
    p = {"at1": 0.0, "value1": 1.9, "at2": 0.5, "value2": 1.3}
    model = mlp(20, 8, 4)
    sparse = lpss(model, LpssSettings(0.8, p, threshold={"begin": 0.2, "end": 0.6}), total_steps=20)
    optimizer = sparse.optimizer
    assert isinstance(optimizer, LpSGD)
    seen = []
    for inputs, targets in batches(*blobs(), steps=20):
        sparse.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        sparse.step()
        now = optimizer.param_groups[0]["p"]
        seen.append(now)
        w = optimizer.sphere_weights(optimizer.param_groups[0]["params"][0])
        assert torch.allclose(w.abs().pow(now).sum(1), torch.ones(len(w)), atol=1e-4)
    assert seen[0] == 1.9
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == pytest.approx(1.3)


def test_the_learning_rate_follows_its_knots() -> None:
    knots = {"at1": 0.0, "value1": 0.0, "at2": 0.5, "value2": 1.0, "at3": 1.0, "value3": 0.0}
    sparse = lpss(mlp(20, 8, 4), LpssSettings(0.8, 1.4, learning_rate=knots), total_steps=10)
    assert [sparse.learning_rate(at) for at in (0.0, 0.25, 0.5, 1.0)] == [0.0, 0.5, 1.0, 0.0]
