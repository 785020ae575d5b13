"""All checks in their order, and the ways to run them."""

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
    """Yield every check's finding, one after the other.

    Raises:
        DataUnavailable: when the data set is not to be had.
    """
    if isinstance(experiment, OwnLoop):
        return run(own_loops.CHECKS, own_loops.LoopSubject(experiment, data_dir))
    return run(CHECKS, Subject(experiment, data_dir))


def first_fault(experiment: Experiment, loaded: Data) -> Finding | None:
    """Return the first of the quick checks that fails, on data that were loaded already; None if none does."""
    return next((finding for finding in first_look(experiment, loaded) if finding.level is Level.FAILED), None)


def first_look(
    experiment: Experiment, loaded: Data, *, told: bool = False, data_dir: Path | None = None
) -> Iterator[Finding]:
    """Yield what the quick checks find, on data that were loaded already, or of a loop that was looked at.

    Args:
        told: also what those checks find that cost little more. Of these a fault is a warning too.
        data_dir: where the data are.
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
    """For tests: raises AssertionError with a line for every check that fails."""
    failed = [finding for finding in inspect(experiment, data_dir) if finding.level is Level.FAILED]
    assert not failed, "\n".join(f"{finding.check}: {finding.text}" for finding in failed)
