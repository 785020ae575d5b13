"""Test the checks of metrics that are computed on a whole split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tune_sparsity.experiments import Data, Experiment, Metric, Recipe, Split
from tune_sparsity.experiments.checks import Level, assert_sound, first_fault


def load(data_dir: Path | None) -> Data:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(300, 6, generator=g)
    y = x.sum(1, keepdim=True) + 0.1 * torch.randn(300, 1, generator=g)
    return Data(*(Split(x[a:b], y[a:b]) for a, b in ((0, 200), (200, 250), (250, 300))))


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 1))


def rmse(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean().sqrt()


def raises(outputs: Tensor, targets: Tensor) -> Tensor:
    raise RuntimeError("broken on purpose")


RMSE = Metric("rmse", rmse, maximize=False)
SOUND = Experiment("line", load, model, Recipe(2, 16), nn.functional.mse_loss, RMSE)
FAULTS: dict[str, tuple[Any, str, str]] = {
    "raises": (Metric("m", raises), "metric", "broken on purpose"),
    "chance": (Metric("m", lambda o, t: torch.rand(())), "metric", "for the same outputs and targets"),
    "several numbers": (Metric("m", lambda o, t: o[:, 0]), "metric", "m cannot be measured on 50 validation examples"),
    "not a number": (Metric("m", lambda o, t: torch.nan), "metric", "the metric m is nan, on 50 validation examples"),
    "not in per cent": (Metric("m", lambda o, t: 2, percent=True), "metric", "the m is 2, but must lie in [0, 1]"),
    "one score": (rmse, "metric", "or give a tune_sparsity.Metric"),
    "large scores": (Metric("m", lambda o, t: 50 + o[:, 0] * 0, each=True, percent=True), "metric", "score of 50"),
    "no function": (Metric("m", 3), "experiment", "its metric is a int"),
}


def test_a_metric_with_name_and_direction_fails_no_check() -> None:
    assert_sound(SOUND)
    each = Metric("mae", lambda o, t: (o - t).abs().squeeze(1), maximize=False, each=True)
    assert first_fault(replace(SOUND, metric=each), load(None)) is None


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_a_metric_is_described_in_one_line(name: str) -> None:
    metric, check, said = FAULTS[name]
    fault = first_fault(replace(SOUND, metric=metric), load(None))
    assert fault is not None
    assert (fault.check, fault.level) == (check, Level.FAILED)
    assert said in fault.text
    assert "\n" not in fault.text


def test_a_metric_of_torchmetrics_must_tell_its_direction() -> None:
    torchmetrics = pytest.importorskip("torchmetrics", reason="no torchmetrics: pip install tune-sparsity[metrics]")
    assert first_fault(replace(SOUND, metric=torchmetrics.MeanSquaredError()), load(None)) is None
    fault = first_fault(replace(SOUND, metric=torchmetrics.PearsonCorrCoef(num_outputs=1)), load(None))
    assert fault is not None
    assert "PearsonCorrCoef does not tell whether larger is better" in fault.text
