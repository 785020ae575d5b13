"""Check that an experiment declares the files that its code reads besides its modules.

Workers on other machines and the logged model get only the declared files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from tune_sparsity.experiments.base import Experiment, evaluate, in_evaluation
from tune_sparsity.experiments.checks.shapes import FIT
from tune_sparsity.experiments.checks.suite import Check, Problem, Subject, spread, warning
from tune_sparsity.experiments.registry import home_of
from tune_sparsity.experiments.user_files import declared
from tune_sparsity.experiments.user_reads import Reader, read_in, watching

NAME, HOLDS = "files", "files that the code reads beside its modules are declared"
_FEW, _NAMED = 4, 3


def declares(subject: Subject) -> Iterator[Problem]:
    """Yield a problem if the code reads files that the experiment does not declare. The check runs the network once,
    because the network may read files, too."""
    experiment = subject.experiment
    if home_of(experiment) is None:
        return
    with watching(Reader.DATA):  # data sets read files, too
        x, y = subject.batch(_FEW)
        some = spread(subject.data.val, _FEW)
    with torch.no_grad():
        experiment.loss(experiment.forward(in_evaluation(subject.model()), x), y)
        evaluate(experiment, subject.model(), some)
    if subject.data.in_memory:
        elsewhere = "workers get the data without it. To send it along, declare it"
    else:
        elsewhere = "workers on other machines do not have it. Keep it in --data-dir on all of them, or declare it"
    yield from undeclared(experiment, subject.data_dir, elsewhere)


def undeclared(experiment: Experiment, data_dir: Path | None, elsewhere: str = "") -> Iterator[Problem]:
    """Yield a problem if the code has read files that the experiment does not declare. Files in `data_dir` need no
    declaration, because they are data.

    Args:
        elsewhere: the end of the message for files that only `load` reads. It tells the user what to do.
    """
    home = home_of(experiment)
    if home is None:
        return
    try:
        known = declared(experiment, home)
    except ValueError as error:
        yield Problem(str(error))
        return
    data = data_dir.resolve() if data_dir is not None else None
    code, load = (
        [one for one in read_in(home, reader) if one not in known and not (data and one.is_relative_to(data))]
        for reader in Reader
    )
    if code:
        named, files = _named(code, home)
        yield warning(
            f"the code reads {named} beside it, which the logged model and workers on other machines lack: declare "
            f"what it reads, {files}"
        )
    elif load:
        named, files = _named(load, home)
        yield warning(f"load reads {named} beside the code: {elsewhere}, {files}")


def _named(paths: Iterable[Path], home: Path) -> tuple[str, str]:
    """Return the names of the files as a text, and as an argument of Experiment."""
    names = [path.relative_to(home).as_posix() for path in paths]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    given = "".join(f"{name!r}, " for name in names[:_NAMED]).strip()
    return ", ".join(names[:_NAMED]) + more, f"Experiment(..., files=({given}))"


CHECKS = (Check(NAME, HOLDS, declares, (*FIT, "loss", "metric"), True),)
