"""Test the comparison of fronts on test images."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.curves.choosing import VALIDATION, Measured, Task
from benchmarks.curves.fronts import mean_accuracy
from benchmarks.curves.real_fronts import grid, redrawn
from benchmarks.front import FRONT
from tune_sparsity.experiments import find


def test_the_front_is_chosen_by_one_accuracy_and_judged_by_the_other() -> None:
    trials = [(0.6, 0.9, 0.8), (0.7, 0.95, 0.7), (0.99, 0.5, 0.6)]  # the first trial is not on the front
    assert mean_accuracy(trials) == pytest.approx((0.2 * 0.7 + 0.29 * 0.6) / 0.49)


def test_luck_on_the_validation_images_gains_nothing() -> None:
    rng = np.random.default_rng(0)
    correct = (rng.random((40, 3 * VALIDATION)) < 0.9).astype(float)
    measured = Measured(correct, correct, np.full(40, 0.99))
    assert redrawn(measured) == pytest.approx(0.9, abs=0.01)
    assert correct[:, :VALIDATION].mean(1).max() > 0.92


def test_a_grid_and_a_study_have_trials_at_both_ends_of_the_front() -> None:
    experiment = find("digits")
    task = Task(experiment, experiment.load(None), 1)
    found = grid(task, 3, 0)
    assert found.sparsity == pytest.approx([0.5, 1 - (0.5 * 0.01) ** 0.5, 0.99], abs=1e-4)
    assert found.correct.shape == (3, 540)
    assert task.searched(FRONT, 2, 0).sparsity.max() >= 0.9899
