"""The check of what the code reads beside its modules: it must be declared to be there wherever the code goes."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tune_sparsity.experiments.base import evaluate, in_evaluation
from tune_sparsity.experiments.checks.shapes import FIT
from tune_sparsity.experiments.checks.suite import Check, Problem, Subject, spread, warning
from tune_sparsity.experiments.registry import home_of
from tune_sparsity.experiments.user_files import declared
from tune_sparsity.experiments.user_reads import read_in, watching

_FEW, _NAMED = 4, 3


def declares(subject: Subject) -> Iterator[Problem]:
    """Name what the code has read so far, and reads in a pass through the network, but does not declare."""
    experiment, home = subject.experiment, home_of(subject.experiment)
    if home is None:
        return
    with watching(False):  # data sets read files, too
        x, y = subject.batch(_FEW)
        some = spread(subject.data.val, _FEW)
    with torch.no_grad():
        experiment.loss(experiment.forward(in_evaluation(subject.model()), x), y)
        evaluate(experiment, subject.model(), some)
    try:
        known = declared(experiment, home)
    except ValueError as error:
        yield Problem(str(error))
        return
    missing = [path.relative_to(home).as_posix() for path in read_in(home) if path not in known]
    if missing:
        named = ", ".join(missing[:_NAMED]) + (f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else "")
        given = "".join(f"{name!r}, " for name in missing[:_NAMED]).strip()
        yield warning(
            f"the code reads {named} beside it, which the logged model and workers elsewhere do not have: declare what "
            f"it reads, Experiment(..., files=({given}))"
        )


CHECKS = (
    Check(
        "files", "files that the code reads beside its modules are declared", declares, (*FIT, "loss", "metric"), True
    ),
)
