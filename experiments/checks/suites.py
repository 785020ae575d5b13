"""List all checks of an experiment in their order, and run them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tune_sparsity.experiments.base import Data, Experiment
from tune_sparsity.experiments.checks import data, files, network, own_loops, shapes, training
from tune_sparsity.experiments.checks.suite import Check, Finding, Level, Subject, run
from tune_sparsity.experiments.own.loop import OwnLoop

CHECKS: tuple[Check, ...] = (*shapes.CHECKS, *data.CHECKS, *network.CHECKS, *training.CHECKS, *files.CHECKS)


def inspect(experiment: Experiment, data_dir: Path | None = None) -> Iterator[Finding]:
    """Run all checks on an experiment, and yield the finding of each check when the check ends.

    Args:
        experiment: the experiment, or the user's own training loop.
        data_dir: the folder of the data. If None, this is the default folder.

    Raises:
        DataUnavailable: if the data cannot be found or downloaded.
    """
    if isinstance(experiment, OwnLoop):
        return run(own_loops.CHECKS, own_loops.LoopSubject(experiment, data_dir))
    return run(CHECKS, Subject(experiment, data_dir))


def first_fault(experiment: Experiment, loaded: Data) -> Finding | None:
    """Run the quick checks, and return the finding of the first check that fails, or None if none fails.

    Args:
        experiment: the experiment.
        loaded: the experiment's data.
    """
    return next((finding for finding in first_look(experiment, loaded) if finding.level is Level.FAILED), None)


def first_look(
    experiment: Experiment, loaded: Data, *, told: bool = False, data_dir: Path | None = None
) -> Iterator[Finding]:
    """Run the checks with which a study begins, and yield their findings.

    Args:
        experiment: the experiment. A user's training loop must be an OwnLoop that the function `looked_at` has
            returned.
        loaded: the experiment's data.
        told: whether to run, in addition to the quick checks, the checks whose attribute `told` is true. If such a
            check fails, its finding becomes a warning. For a user's training loop, this argument has no effect.
        data_dir: the folder of the data.
    """
    if isinstance(experiment, OwnLoop):
        subject = own_loops.LoopSubject(experiment, data_dir)
        subject.experiment = experiment
        yield from run([check for check in own_loops.CHECKS if check.quick], subject)
        return
    checks = [check for check in CHECKS if check.quick or (told and check.told)]
    mild = {check.name for check in checks if not check.quick}
    for finding in run(checks, Subject(experiment, data_dir, loaded)):
        fault = finding.level is Level.FAILED and finding.check in mild
        yield replace(finding, level=Level.WARNING) if fault else finding


def assert_sound(experiment: Experiment, data_dir: Path | None = None) -> None:
    """Run all checks, and raise AssertionError if a check fails. Use this function in a test of an experiment. The
    arguments are those of `inspect`.

    Raises:
        AssertionError: if a check fails. The message has one line for each failed check.
        DataUnavailable: if the data cannot be found or downloaded.
    """
    failed = [finding for finding in inspect(experiment, data_dir) if finding.level is Level.FAILED]
    assert not failed, "\n".join(f"{finding.check}: {finding.text}" for finding in failed)
