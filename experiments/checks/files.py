"""Check that an experiment declares, in `Experiment.files`, the data files that its code reads.

Workers on other machines, and the model that a study writes to MLflow, get copies of the declared data files. They do
not get other data files.
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

NAME, HOLDS = "files", "the data files that the code reads are declared"
_FEW, _NAMED = 4, 3


def declares(subject: Subject) -> Iterator[Problem]:
    """Yield a problem if the code reads files that the experiment does not declare. This check makes a network and runs
    it, because the network may also read files."""
    experiment = subject.experiment
    if home_of(experiment) is None:
        return
    with watching(Reader.DATA):  # some data sets read a file for each example
        x, y = subject.batch(_FEW)
        some = spread(subject.data.val, _FEW)
    with torch.no_grad():
        experiment.loss(experiment.forward(in_evaluation(subject.model()), x), y)
        evaluate(experiment, subject.model(), some)
    if subject.data.in_memory:
        elsewhere = "workers get the loaded data, but not these files. To send them with the code, declare them"
    else:
        elsewhere = "other machines may lack these files. Put them into --data-dir on each machine, or declare them"
    yield from undeclared(experiment, subject.data_dir, elsewhere)


def undeclared(experiment: Experiment, data_dir: Path | None, elsewhere: str = "") -> Iterator[Problem]:
    """Yield a problem if the code has read files in the experiment's folder that the experiment does not declare.

    Args:
        experiment: the experiment.
        data_dir: the folder of the data. Files in this folder need no declaration.
        elsewhere: advice to the user about files that are read only while the data are loaded. The warning about these
            files contains this text.
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
        named, files = _named(code, home, experiment)
        yield warning(
            f"the code reads {named}, but workers on other machines and the model in MLflow do not get these files: "
            f"declare them, {files}"
        )
    elif load:
        named, files = _named(load, home, experiment)
        yield warning(f"load reads {named}: {elsewhere}, {files}")


def _named(paths: Iterable[Path], home: Path, experiment: Experiment) -> tuple[str, str]:
    """Return two texts for a message: the names of the files, and the code that declares them."""
    names = [path.relative_to(home).as_posix() for path in paths]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    given = "".join(f"{name!r}, " for name in names[:_NAMED]).strip()
    own = experiment.origin is experiment  # otherwise it is a training loop
    declaration = f"Experiment(..., files=({given}))" if own else f"{experiment.name}.files = ({given})"
    return ", ".join(names[:_NAMED]) + more, declaration


CHECKS = (Check(NAME, HOLDS, declares, (*FIT, "loss", "metric"), True),)
