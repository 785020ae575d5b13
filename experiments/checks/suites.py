"""List all checks in their order, and run them."""

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
    """Run all checks on an experiment, and yield one finding for each check as soon as it ends.

    Args:
        experiment: the experiment or the user's training loop.
        data_dir: the folder for `experiment.load`. If None, this is the default folder.

    Raises:
        DataUnavailable: if the data cannot be found or downloaded.
    """
    if isinstance(experiment, OwnLoop):
        return run(own_loops.CHECKS, own_loops.LoopSubject(experiment, data_dir))
    return run(CHECKS, Subject(experiment, data_dir))


def first_fault(experiment: Experiment, loaded: Data) -> Finding | None:
    """Return the finding of the first quick check that fails, or None. The data are already loaded."""
    return next((finding for finding in first_look(experiment, loaded) if finding.level is Level.FAILED), None)


def first_look(
    experiment: Experiment, loaded: Data, *, told: bool = False, data_dir: Path | None = None
) -> Iterator[Finding]:
    """Yield the findings of the quick checks.

    Args:
        experiment: the experiment, or a user's training loop after `looked_at`.
        loaded: the experiment's data.
        told: whether to run also the checks with the attribute `told`. If one of these fails, its finding is a warning.
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
    """Run all checks, and raise AssertionError if one fails. Use this function in a test of an experiment. The
    arguments are those of `inspect`.

    Raises:
        AssertionError: if a check fails. The message has a line for every failed check.
        DataUnavailable: if the data cannot be found or downloaded.
    """
    failed = [finding for finding in inspect(experiment, data_dir) if finding.level is Level.FAILED]
    assert not failed, "\n".join(f"{finding.check}: {finding.text}" for finding in failed)
