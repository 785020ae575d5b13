"""Test that no check fails on the built-in experiments."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tune_sparsity.experiments import Experiment, Split, find
from tune_sparsity.experiments.checks import Finding, Level, assert_sound, inspect


def findings(experiment: Experiment) -> dict[str, Finding]:
    return {finding.check: finding for finding in inspect(experiment)}


def few(experiment: Experiment, data_dir: Path | None, n: int = 2000) -> Experiment:
    """Return the experiment with only the first examples of each split."""
    data = experiment.load(data_dir)
    parts = {name: Split(*(part[:n].clone() for part in getattr(data, name))) for name in ("train", "val", "test")}
    return replace(experiment, load=lambda d: replace(data, **parts))


def test_digits_passes_all_checks_without_a_warning() -> None:
    assert {finding.level for finding in findings(find("digits")).values()} == {Level.OK}


@pytest.mark.parametrize("name", ["mnist", "mnist-lenet5", "uci-dna", "uci-mushroom", "uci-climate"])
def test_built_in_experiments_fail_no_check(name: str, data_dir: Path) -> None:
    assert_sound(few(find(name), data_dir))


@pytest.mark.slow
def test_an_augmented_residual_net_fails_no_check(data_dir: Path) -> None:
    assert_sound(few(find("fashion-mnist-wrn"), data_dir, n=100))
