"""Test trainings by users' loops: they have the same guarantees as trainings by the built-in loop."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.experiments.own.loops import LOOPS
from tune_sparsity.experiments import LoopError, NotFinite, OwnLoop, OwnTraining, find
from tune_sparsity.experiments.checks import Level, first_look
from tune_sparsity.experiments.own import first_look as look_module
from tune_sparsity.experiments.own import training as module
from tune_sparsity.experiments.own.first_look import looked_at
from tune_sparsity.experiments.own.loop import as_inputs, call
from tune_sparsity.sparsity.wrappers import plain_state
from tune_sparsity.tuner.storage.places import Folder
from tune_sparsity.tuner.worker import checkpoints

PARAMS = {
    "lpss": {"final_sparsity": 0.8, "p": 1.5, "sphere_lr": 0.05, "lr": 0.05},
    "gmp": {"final_sparsity": 0.8, "lr": 0.05},
    "rigl": {"final_sparsity": 0.8, "lr": 0.05},
    "dense": {"lr": 0.05},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "loops.py").write_text(LOOPS)
    return tmp_path / "loops.py"


def loop(file: Path, name: str) -> OwnLoop:
    experiment = find(f"{file}:{name}")
    assert isinstance(experiment, OwnLoop)
    return looked_at(experiment, None)


def begun(experiment: OwnLoop, method: str = "lpss", epochs: int = 4, seed: int = 3) -> OwnTraining:
    return OwnTraining(experiment, method, PARAMS[method], epochs=epochs, seed=seed)


@pytest.mark.parametrize("method", PARAMS)
def test_a_loop_ends_exactly_at_its_target_sparsity(file: Path, method: str) -> None:
    training = begun(loop(file, "train"), method)
    epochs = [training.epoch() for _ in range(4)]
    weights = 8 * 24 + 24 * 4
    zeros = 0 if method == "dense" else int(0.8 * weights)
    assert training.finished
    assert abs(epochs[-1]["nonzero_weights"] - (weights - zeros)) <= 1
    layers = [training.model[0].weight, training.model[4].weight]
    assert sum(int((one != 0).sum()) for one in layers) == epochs[-1]["nonzero_weights"]
    assert epochs[-1]["val_accuracy"] == epochs[-1]["val_accuracy_at_target"] > 0.4
    assert epochs[-1]["steps"] == epochs[-1]["steps_announced"] == 40
    assert training.close() is None


def test_the_schedules_of_a_loop_last_for_the_studys_number_of_epochs(file: Path) -> None:
    training = begun(loop(file, "train"), epochs=6)
    last = [training.epoch() for _ in range(6)][-1]
    assert last["steps"] == last["steps_announced"] == 60
    assert training.sparse.fixed
    training.close()


@pytest.mark.parametrize("method", PARAMS)
def test_a_loop_that_was_broken_off_goes_on_bit_for_bit(file: Path, tmp_path: Path, method: str) -> None:
    experiment = loop(file, "train")
    whole, first = begun(experiment, method), begun(experiment, method)
    expected = [whole.epoch() for _ in range(4)]
    first.epoch()
    (tmp_path / "checkpoints").mkdir()
    place = Folder(tmp_path / "checkpoints")
    checkpoints.write(place, 0, 1, checkpoints.pack(first.state_dict()))
    first.close()
    torch.rand(3)
    again = begun(experiment, method)
    again.load_state_dict(next(checkpoints.newest(place, 0)))
    assert again.epochs_done == 1
    found = [again.epoch() for _ in range(3)]
    for one, other in zip(expected[1:], found, strict=True):
        assert {**one, "epoch_seconds": 0} == {**other, "epoch_seconds": 0}
    state, other_state = plain_state(whole.model), plain_state(again.model)
    assert all(torch.equal(state[name], other_state[name]) for name in state)
    whole.close(), again.close()


def test_a_stopped_trial_ends_its_loop(file: Path) -> None:
    training = begun(loop(file, "train"))
    training.epoch()
    assert training.close() is None
    assert not training._thread.is_alive()


def test_an_evaluation_keeps_the_training_mode_and_the_random_state(file: Path) -> None:
    """The sparse training evaluates twice in an epoch, because its masks still change; the dense training evaluates
    once. After the epoch, both have the same random state."""
    experiment = loop(file, "train")
    sparse, dense = begun(experiment), begun(experiment, "dense")
    sparse.epoch(), dense.epoch()
    assert torch.equal(sparse._random["torch"], dense._random["torch"])
    assert sparse.model.training
    assert not sparse.sparse.fixed
    sparse.close(), dense.close()


@pytest.mark.parametrize(
    ("name", "epochs", "error", "message"),
    [
        ("never_reports", 0, LoopError, r"epoch 0 ended without trial\.report"),
        ("leaves_early", 2, LoopError, "the loop ended after 2 of 4 epochs"),
        ("raises", 1, OSError, "the disk of the examples is gone"),
        ("percents", 0, ValueError, r"the accuracy is 97\.5, but must lie in \[0, 1\]"),
        ("reports_nothing", 1, LoopError, r"trial\.report got accuracy = None: give a number"),
        ("reports_sparsity", 0, LoopError, r"trial\.report got sparsity, which the trial measures itself"),
        ("reports_words", 0, LoopError, r"trial\.report got seconds = 'three': give a number"),
    ],
)
def test_a_training_gives_the_reason_if_its_loop_fails_or_ends_early(
    file: Path, name: str, epochs: int, error: type[Exception], message: str
) -> None:
    training = begun(loop(file, name))
    for _ in range(epochs):
        training.epoch()
    with pytest.raises(error, match=message):
        training.epoch()


def test_a_second_report_in_an_epoch_is_refused(file: Path) -> None:
    training = begun(loop(file, "reports_twice"), epochs=1)
    training.epoch()
    assert "once in each epoch of trial.epochs" in str(training.close())


def test_a_report_after_the_last_epoch_loses_no_result(file: Path) -> None:
    training = begun(loop(file, "reports_after_the_end"))
    last = [training.epoch() for _ in range(4)][-1]
    assert last["sparsity"] == pytest.approx(0.8, abs=0.01)
    assert "once in each epoch of trial.epochs" in str(training.close())


def test_nan_weights_raise_not_finite(file: Path) -> None:
    training = begun(loop(file, "train"))
    training.epoch()
    with torch.no_grad():
        training.model[4].bias.fill_(torch.nan)
    with pytest.raises(NotFinite, match="in epoch 2"):
        training.epoch()
    training.close()


@pytest.mark.parametrize(("name", "made"), [("half_the_steps", 20), ("more_steps", 80)])
def test_a_loop_with_more_or_fewer_steps_than_announced_meets_its_sparsity(file: Path, name: str, made: int) -> None:
    training = begun(loop(file, name))
    last = [training.epoch() for _ in range(4)][-1]
    assert (last["steps"], last["steps_announced"]) == (made, 40)
    assert last["nonzero_weights"] == pytest.approx(0.2 * 288, abs=1)
    assert sum(int((one != 0).sum()) for one in (training.model[0].weight, training.model[4].weight)) == int(
        last["nonzero_weights"]
    )
    training.close()


def test_a_loop_that_catches_every_exception_still_ends(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the stop, a step of the loop raises Stopped. The loop catches only Exception, and Stopped is a
    BaseException."""
    training = begun(loop(file, "goes_on"))
    training.epoch()
    monkeypatch.setattr(module, "_PATIENCE", 5.0)
    training.close()
    assert not training._thread.is_alive()


@pytest.mark.parametrize("epochs", [1, 4])
def test_a_loop_that_does_not_end_after_a_stop_raises_loop_error(
    file: Path, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    training = begun(loop(file, "never_ends"))
    for _ in range(epochs):
        training.epoch()
    monkeypatch.setattr(module, "_PATIENCE", 0.2)
    with pytest.raises(LoopError, match=r"the loop still runs 0\.2 s after the trial was stopped"):
        training.close()
    sys.modules["experiment_file_loops"].ENOUGH.append(1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_optimizer", r"call trial\.sparsify\(model, total_steps=\.\.\.\) first"),
        ("no_epochs", r"no_epochs never calls trial.epochs"),
        (
            "fails_at_once",
            r"fails before its first step: FileNotFoundError: no examples in /nowhere \(.*loops\.py:\d+\)",
        ),
        ("other_model", r"other_model\.model makes another network than the loop trains: the shape of 0\.weight is"),
    ],
)
def test_inspecting_a_loop_finds_its_faults(file: Path, name: str, message: str) -> None:
    with pytest.raises(LoopError, match=message):
        loop(file, name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("misnamed", "has an unknown attribute 'modle': it may have baseline, files, layers, metric, model"),
        ("takes_nothing", "a loop takes one argument, the trial"),
        ("asynchronous", "a loop is a function without `async` and `yield`"),
        ("generator", "a loop is a function without `async` and `yield`"),
    ],
)
def test_a_function_that_is_no_loop_is_refused(file: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find(f"{file}:{name}")


def test_inspecting_a_loop_finds_data_and_layers_and_keeps_the_random_state(file: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    experiment = loop(file, "train")
    assert torch.equal(before, torch.get_rng_state())
    assert experiment.recipe.epochs == 4
    assert experiment.load(None).val.x.shape == (16, 8)
    assert experiment.layers.last == ("4.weight",)
    assert experiment.layers.normalised == ("0.weight",)


def test_a_loop_that_does_not_end_after_its_inspection_raises_loop_error(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(look_module, "_PATIENCE", 0.2)
    with pytest.raises(LoopError, match=r"swallows: the loop still runs 0\.2 s after it was ended"):
        loop(file, "swallows")
    sys.modules["experiment_file_loops"].ENOUGH.append(1)


@pytest.mark.parametrize("averaged", [False, True])
def test_a_batch_norm_that_a_loop_keeps_in_evaluation_mode_does_not_change(file: Path, averaged: bool) -> None:
    experiment = loop(file, "still")
    assert experiment.layers.normalised == ()
    averaging = {"averaging": "ema"} if averaged else {}
    training = OwnTraining(experiment, "lpss", PARAMS["lpss"] | averaging, epochs=4, seed=3)
    seen = []
    training._ready()
    training.model[1].register_forward_pre_hook(lambda norm, _: seen.append((norm.training, norm.running_mean.clone())))
    for _ in range(4):
        training.epoch()
    assert not any(measures or mean.any() for measures, mean in seen)
    assert training.model[1].running_mean.tolist() == [0.0] * 24
    training.close()


X, Y = torch.zeros(3, 2), torch.ones(3, 4)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((X,), {}),
        ((X, Y), {}),
        (({"a": X, "b": Y},), {}),
        (({"a": X}, Y), {}),
        (((X, Y),), {}),
        ((X,), {"mask": Y}),
        (({"a": X},), {"mask": Y}),
        ((), {"input_mask": X, "input_ids": Y}),
        ((), {"input_ids": X}),
    ],
)
def test_a_recorded_call_of_a_network_is_repeated_with_equal_arguments(args: Any, kwargs: Any) -> None:
    class Called(torch.nn.Module):
        def forward(self, *given: Any, **named: Any) -> Any:
            return given, named

    assert call(Called(), as_inputs(args, kwargs)) == (args, kwargs)


def test_the_last_layer_of_a_network_that_takes_a_dict_is_found(file: Path) -> None:
    assert loop(file, "takes_a_dict").layers.last == ("out.weight",)


def test_a_loop_whose_last_layer_is_not_found_gets_a_warning(file: Path) -> None:
    told = {
        name: {finding.check: finding.text for finding in first_look(one, one.load(None)) if finding.level != Level.OK}
        for name, one in ((name, loop(file, name)) for name in ("hidden", "unnamed"))
    }
    assert set(told["hidden"]) == {"loop"}
    assert "the layer registered last counts as the last layer" in told["hidden"]["loop"]
    assert told["unnamed"] == {}


def test_an_inspected_loop_without_a_model_function_can_make_networks(file: Path) -> None:
    experiment = loop(file, "unnamed")
    assert not experiment.rebuilt
    one, other = experiment.network(), experiment.network()
    assert one is not other
    assert [tuple(p.shape) for p in one.parameters()] == [tuple(p.shape) for p in other.parameters()]
