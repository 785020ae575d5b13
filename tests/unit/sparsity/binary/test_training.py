"""The method `binary`: a training from its first step to its stored network."""

from __future__ import annotations

import copy
import gc
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.helpers.problems import accuracy, blobs, mlp
from tests.helpers.trainings import train
from tune_sparsity.sparsity import METHODS
from tune_sparsity.sparsity.binary.training import BinaryTraining
from tune_sparsity.sparsity.schedules import warmup_cosine

STEPS = 60
SETTINGS = [{}, {"activations": "real"}, {"flips": "bop", "gamma": 0.02, "tau": 0.01}]


def build(model: nn.Module, settings: dict[str, Any], steps: int = STEPS) -> BinaryTraining:
    training = METHODS["binary"].build(model, {"lr": 1e-2, **settings}, total_steps=steps, generator=torch.Generator())
    assert isinstance(training, BinaryTraining)
    return training


def saved(model: nn.Module, training: BinaryTraining) -> bytes:
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "sparse": training.state_beside_network()}, file)
    return file.getvalue()


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_binary_training_learns_and_ends_on_signs(settings: dict[str, Any]) -> None:
    model = mlp(20, 64, 64, 4)
    training = build(model, settings)
    assert not training.fixed
    train(model, training, 0, STEPS, total=STEPS)  # type: ignore[arg-type]
    assert training.fixed
    x, y = blobs()
    assert accuracy(model, x, y) > 0.95
    assert {layer.name for layer in training.layers} == {"0.weight", "2.weight", "4.weight"}
    assert all(set(layer.weight.unique().tolist()) <= {-1, 1} for layer in training.layers)
    of_signs = [] if settings.get("activations") == "real" else ["2.weight", "4.weight"]
    assert training.names_of_signs == of_signs
    measured = training.measures()
    assert (measured["sparsity"], measured["nonzero_weights"]) == (0.0, 20 * 64 + 64 * 64 + 64 * 4)
    training.check_finite()


def test_lr_and_gamma_follow_the_same_schedule() -> None:
    model = mlp(20, 16, 4)
    training = build(model, {"flips": "bop", "gamma": 0.02})
    for step in (0, 3, STEPS // 2, STEPS - 1):
        train(model, training, training.steps, step, total=STEPS)  # type: ignore[arg-type]
        group = training.optimizer.param_groups[0]
        assert group["lr"] == 1e-2 * warmup_cosine(step / STEPS)
        assert group["gamma"] == 0.02 * warmup_cosine(step / STEPS)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("stop", [0, 1, 30])
def test_resumed_equals_unbroken_bit_for_bit(settings: dict[str, Any], stop: int) -> None:
    model = mlp(20, 16, 12, 4)
    training = build(model, settings)
    train(model, training, 0, stop, total=STEPS)  # type: ignore[arg-type]
    state = torch.load(io.BytesIO(saved(model, training)), weights_only=True)
    other = mlp(20, 16, 12, 4, seed=3)
    resumed = build(other, settings)
    train(other, resumed, 0, 2, total=STEPS)  # type: ignore[arg-type]
    other.load_state_dict(state["model"])
    resumed.load_state_dict(state["sparse"])
    for one in ((model, training), (other, resumed)):
        train(*one, stop, STEPS, total=STEPS)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_copy_goes_on_like_the_original() -> None:
    model = mlp(20, 16, 12, 4)
    training = build(model, {})
    train(model, training, 0, 10, total=STEPS)  # type: ignore[arg-type]
    other, again = copy.deepcopy((model, training))
    before = copy.deepcopy(other.state_dict())
    train(model, training, 10, STEPS, total=STEPS)  # type: ignore[arg-type]
    assert all(torch.equal(before[name], one) for name, one in other.state_dict().items())
    train(other, again, 10, STEPS, total=STEPS)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_learning_rate_follows_its_schedule_from_the_first_step_on() -> None:
    model = mlp(20, 16, 4)
    training = build(model, {"lr": 0.1}, steps=100)
    weight = model[0].weight
    rates = []
    for _ in range(20):
        before = weight.detach().float().clone()
        F.cross_entropy(model(torch.rand(8, 20)), torch.arange(8) % 4).backward()
        rates.append(float((weight.detach().float() - before).abs().max()))
        training.step()
    # Warm-up takes 5 steps. Adam's first step has the size of the learning rate.
    assert rates[0] < 0.2 * max(rates[4:8])
    assert rates[19] > 0.01


def test_an_ended_training_holds_no_latent_weights() -> None:
    model = mlp(20, 16, 12, 4)
    training = build(model, {}, steps=3)
    train(model, training, 0, 3, total=3)  # type: ignore[arg-type]
    training.zero_grad()
    gc.collect()
    assert not training.optimizer.state
    assert not any(param.requires_grad for param in model.parameters())
    before = copy.deepcopy(model.state_dict())
    training.step()
    training.finish()
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())


def test_check_finite_names_a_parameter_that_is_nan() -> None:
    model = mlp(20, 16, 4)
    training = build(model, {})
    training.check_finite()
    model[0].bias.data[2] = torch.nan
    with pytest.raises(FloatingPointError, match=r"^0\.bias is NaN or infinite$"):
        training.check_finite()


@pytest.mark.parametrize(
    "wrong",
    [{"lr": 0.0}, {"activations": "none"}, {"flips": "adam"}, {"gamma": 0.0}, {"tau": 1.0}, {"final_sparsity": 0.5}],
)
def test_invalid_settings_are_refused_in_one_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))) as told:
        build(mlp(20, 8, 4), wrong)
    assert "\n" not in str(told.value)
