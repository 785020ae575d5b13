"""Metrics: their names and directions, and their values over batches of unequal size."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor, nn

from tests.helpers.examples import needs_gpu
from tune_sparsity.experiments.base import Data, Experiment, NotFinite, Recipe, Split, correct, evaluate
from tune_sparsity.experiments.metrics import Metric, Scorer, metric_of
from tune_sparsity.experiments.training import Training

torchmetrics = pytest.importorskip("torchmetrics", reason="no torchmetrics: pip install tune-sparsity[metrics]")
CPU = torch.device("cpu")


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def no_data(_: object) -> Data:
    raise AssertionError("the data is not needed here")


def experiment(metric: Any) -> Experiment:
    return Experiment("x", no_data, nn.Identity, Recipe(1, 1), metric=metric)


def rmse(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean().sqrt()


def scored(metric: Any, outputs: Any, targets: Any, sizes: tuple[int, ...]) -> float:
    """Return the metric's value after batches of these sizes."""
    scorer = Scorer(metric_of(metric), CPU)
    for x, y in zip(outputs.split(sizes), targets.split(sizes), strict=True):
        scorer.add(x, y)
    return scorer.value()


@pytest.mark.parametrize("name", ["", "RMSE", "mean error", "1st", "val-rmse", "sparsity", "seconds", "x_at_target", 3])
def test_names_that_cannot_be_columns_are_refused_in_one_line(name: Any) -> None:
    with pytest.raises(ValueError, match=r"metric") as error:
        Metric(name, rmse)
    assert "\n" not in str(error.value)


def test_a_metric_named_accuracy_must_be_maximised_and_in_percent() -> None:
    Metric("accuracy", rmse, percent=True)
    for wrong in ({"maximize": False, "percent": True}, {}):
        with pytest.raises(ValueError, match="another name"):
            Metric("accuracy", rmse, **wrong)


def test_a_plain_function_becomes_the_metric_accuracy() -> None:
    assert metric_of(correct) == Metric("accuracy", correct, each=True, percent=True)


@pytest.mark.parametrize(
    ("made", "name", "maximize", "percent"),
    [
        (lambda: torchmetrics.F1Score(task="multiclass", num_classes=3), "multiclass_f1_score", True, True),
        (lambda: torchmetrics.AUROC(task="binary"), "binary_auroc", True, True),
        (lambda: torchmetrics.MeanSquaredError(squared=False), "mean_squared_error", False, False),
        (lambda: torchmetrics.R2Score(), "r2_score", True, False),
        (lambda: torchmetrics.MatthewsCorrCoef(task="binary"), "binary_matthews_corr_coef", True, False),
        (lambda: torchmetrics.CohenKappa(task="multiclass", num_classes=3), "multiclass_cohen_kappa", True, False),
        (lambda: torchmetrics.text.Perplexity(), "perplexity", False, False),
    ],
)
def test_a_torchmetrics_metric_tells_its_name_and_direction(
    made: Any, name: str, maximize: bool, percent: bool
) -> None:
    metric = metric_of(made())
    assert (metric.name, metric.maximize, metric.percent, metric.each) == (name, maximize, percent, False)


def test_a_torchmetrics_metric_without_a_direction_must_be_wrapped() -> None:
    unknown = torchmetrics.PearsonCorrCoef()
    with pytest.raises(ValueError, match=r'give Metric\("pearson_corr_coef", PearsonCorrCoef\(...\), maximize=...\)'):
        metric_of(unknown)
    wrapped = Metric("pearson", unknown)
    x = normal(0, 50)
    assert scored(wrapped, x, 3 * x + 1, (20, 30)) == pytest.approx(1)
    assert scored(wrapped, x, -x, (1, 49)) == pytest.approx(-1)


@pytest.mark.parametrize("sizes", [(90,), (40, 40, 10), (1, 7, 82)])
def test_macro_f1_over_unequal_batches_equals_macro_f1_over_all_examples(sizes: tuple[int, ...]) -> None:
    logits, y = normal(1, 90, 3), (normal(2, 90) > 0.8).long() + (normal(3, 90) > 1.2).long()
    expected = f1_score(y.numpy(), logits.argmax(1).numpy(), average="macro")
    macro = torchmetrics.F1Score(task="multiclass", num_classes=3, average="macro")
    assert scored(macro, logits, y, sizes) == pytest.approx(expected, abs=1e-6)
    assert scored(macro, logits, y, sizes) == pytest.approx(expected, abs=1e-6)  # the metric was reset
    halves = zip(logits.split(45), y.split(45), strict=True)
    means = [f1_score(b.numpy(), a.argmax(1).numpy(), average="macro") for a, b in halves]
    assert sum(means) / len(means) != pytest.approx(expected, abs=1e-3)  # the mean over batches is something else


@pytest.mark.parametrize("sizes", [(60,), (25, 25, 10), (59, 1)])
def test_a_function_takes_all_outputs_and_targets(sizes: tuple[int, ...]) -> None:
    outputs, y = normal(4, 60, 1), normal(5, 60, 1)
    assert scored(Metric("rmse", rmse, maximize=False), outputs, y, sizes) == float(rmse(outputs, y))
    logits, labels = normal(6, 60), (normal(7, 60) > 1).long()
    auroc = Metric("auroc", lambda o, t: roc_auc_score(t.numpy(), o.numpy()), percent=True)
    assert scored(auroc, logits, labels, sizes) == pytest.approx(roc_auc_score(labels.numpy(), logits.numpy()))


def test_scores_per_example_may_lie_outside_the_range_from_0_to_1() -> None:
    mae = Metric("mae", lambda o, t: (o - t).abs().squeeze(1), maximize=False, each=True)
    outputs, y = 100 * normal(8, 31, 1), normal(9, 31, 1)
    assert scored(mae, outputs, y, (10, 21)) == pytest.approx(float((outputs - y).abs().mean()))


def test_perplexity_is_e_to_the_mean_loss_over_all_tokens() -> None:
    logits, tokens = normal(10, 12, 5, 7), torch.arange(60).reshape(12, 5) % 7
    expected = float(F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).exp())

    def perplexity(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten()).exp()

    for metric in (Metric("perplexity", perplexity, maximize=False), torchmetrics.text.Perplexity()):
        assert scored(metric, logits, tokens, (5, 5, 2)) == pytest.approx(expected, rel=1e-5)


class Boxes(NamedTuple):
    corner: Tensor
    size: Tensor


def test_nested_outputs_are_concatenated_leaf_by_leaf() -> None:
    def check(outputs: Any, targets: Any) -> float:
        assert isinstance(outputs["boxes"], Boxes)
        assert outputs["boxes"].size.tolist() == [0, 1, 2, 10, 11]
        assert [part.tolist() for part in outputs["pair"]] == [[0, 1, 2, 10, 11], [0, -1, -2, -10, -11]]
        return float(targets[0].sum())

    scorer = Scorer(Metric("checked", check), CPU)
    for x in (torch.arange(3), torch.tensor([10, 11])):
        scorer.add({"boxes": Boxes(x[:, None], x), "pair": (x, -x)}, [x])
    assert scorer.value() == 24


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_nan_or_infinite_metric_raises_an_error_that_names_it(value: float) -> None:
    split = Split(normal(0, 6, 2), torch.zeros(6))
    with pytest.raises(NotFinite, match=f"the metric odd is {value}"):
        evaluate(experiment(Metric("odd", lambda o, t: value)), nn.Identity(), split)


@pytest.mark.parametrize(("value", "inside"), [(0.0, True), (1 + 1e-7, True), (1.01, False), (-0.2, False)])
def test_a_metric_in_percent_must_lie_between_0_and_1(value: float, inside: bool) -> None:
    split = Split(normal(0, 6, 2), torch.zeros(6))
    for percent in (False, True):
        subject = experiment(Metric("odd", lambda o, t: value, percent=percent))
        if inside or not percent:
            assert evaluate(subject, nn.Identity(), split) == value
        else:
            with pytest.raises(ValueError, match=r"the odd is .*, but must lie in \[0, 1\]"):
                evaluate(subject, nn.Identity(), split)


def test_nan_outputs_raise_an_error_before_the_metric_is_called() -> None:
    never = Metric("never", lambda o, t: 1 / 0)
    with pytest.raises(NotFinite, match="outputs are NaN for 6 of 6 examples"):
        evaluate(experiment(never), nn.Identity(), Split(torch.full((6, 2), torch.nan), torch.zeros(6)))


def test_an_epoch_names_its_measurements_after_the_metric() -> None:
    x = normal(0, 40, 4)
    split = Split(x, x.sum(1, keepdim=True))

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))

    own = Experiment("own", no_data, model, Recipe(4, 8), F.mse_loss, Metric("rmse", rmse, maximize=False))
    training = Training(own, split, split, "gmp", {"final_sparsity": 0.5, "lr": 0.05}, epochs=4, seed=0)
    measured = [training.epoch() for _ in range(4)]
    with torch.no_grad():
        expected = float(rmse(training.model.eval()(x), split.y))
    assert measured[3]["val_rmse"] == measured[3]["val_rmse_at_target"] == pytest.approx(expected)
    assert measured[0]["val_rmse_at_target"] != measured[0]["val_rmse"]
    assert not [name for name in measured[0] if "accuracy" in name]


@pytest.mark.gpu
@needs_gpu
def test_values_on_a_gpu_are_those_on_the_cpu() -> None:
    logits, y = normal(1, 90, 3), torch.arange(90) % 3
    for metric in (
        torchmetrics.F1Score(task="multiclass", num_classes=3, average="macro"),
        Metric("error", lambda o, t: (o.argmax(1) != t).float().mean(), maximize=False),
        Metric("accuracy", correct, each=True, percent=True),
    ):
        model = nn.Linear(3, 3)
        here = evaluate(experiment(metric), model, Split(logits, y), batch=40)
        there = evaluate(experiment(metric), model.cuda(), Split(logits, y), batch=40)
        assert there == pytest.approx(here, abs=1e-6)


def test_the_tolerance_allows_different_rounding_on_another_device() -> None:
    assert metric_of(correct).tolerance(0.9, 100) == 0.025
    assert metric_of(correct).tolerance(0.9, 10**6) == 0.005
    far = Metric("rmse", rmse, maximize=False)
    assert far.tolerance(54.0, 80) < 1.1
