"""Provides the functions for Python and notebooks: `tune` runs a study, and `load_study` reads an ended one."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cached_property
from inspect import isfunction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_sparsity.experiments import Experiment, Trial, own_loop
from tune_sparsity.experiments.registry import PICKLED
from tune_sparsity.tuner.config.study_config import StudyConfig, make_config, storage_of
from tune_sparsity.tuner.errors import EXIT_DONE, EXIT_INFEASIBLE, EXIT_USAGE, UsageError
from tune_sparsity.tuner.results.finished_study import EndedStudy, read_ended

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from torch import nn


class StudyFailed(RuntimeError):
    """A study ended without a result. The message is the last line of the study's output."""


def tune(
    experiment: str | Experiment | Callable[[Trial], object] = "digits", *, quiet: bool = False, **options: Any
) -> Study:
    """Search for the most accurate sparse network, as the command `tune-sparsity` does, and return the study.

    The study runs in another process. This process prints the study's progress. An interrupt ends the study cleanly,
    and `tune-sparsity resume` continues it.

    Example::

        study = tune("digits", target=0.9, trials=8)
        study.best.test_accuracy

    Args:
        experiment: a value of --experiment, an Experiment, or a training loop (a function of a Trial). An Experiment or
            a loop is pickled into the folder of the studies, together with code from the cells of a notebook. In this
            case, MLflow gets no model of the best network.
        quiet: whether to print nothing.
        options: the options of the command, with "_" instead of "-", such as target=0.9, max_nonzero=20000, method,
            trials or epochs. For an option with several values, give a list. One option must be the goal: target (a
            sparsity in [0, 1), or a list of sparsities), front (the lowest and the highest sparsity, "0.5:0.99"),
            max_nonzero (a number of weights), max_bytes, max_macs or max_latency ("2ms").

    Returns:
        The ended study. Its `best` is None if no trial meets the target.

    Raises:
        ValueError: if an option is wrong. The message is that of the command `tune-sparsity`.
        StudyFailed: if the study failed.
        KeyboardInterrupt: if the study was interrupted.
    """
    given = {name: value for name, value in options.items() if value is not None}
    try:
        config = make_config({**given, "experiment": experiment if isinstance(experiment, str) else "digits"})
        if not isinstance(experiment, str):
            config = config.model_copy(update={"experiment": _kept(experiment, config)})
        document = _led(config, quiet=quiet)
    except UsageError as error:
        raise ValueError(str(error)) from None
    return Study(read_ended(document["study"], config.storage))


def load_study(study: str | Path, storage: str | Path = "studies") -> Study:
    """Read a study that has ended.

    Args:
        study: the study's name in `storage`, or its folder.
        storage: the folder of studies, or s3://BUCKET/PREFIX.

    Returns:
        The study.

    Raises:
        ValueError: if there is no such study, or if it has not ended.
    """
    try:
        return Study(read_ended(str(study), storage_of(str(storage))))
    except UsageError as error:
        raise ValueError(str(error)) from None


class Study:
    """The results of an ended study. A notebook shows them as a table of the Pareto front.

    Attributes:
        name: the study's name.
        folder: the folder of the study's files.
        result: the content of result.json.
        best: the best network; None if no trial meets the target.
    """

    def __init__(self, ended: EndedStudy) -> None:
        self._ended = ended
        self.name, self.folder, self.result = ended.config.study, ended.folder, ended.result
        self.best = None if self.result["best"] is None else Found(ended, "best", self.result["best"])

    @property
    def networks(self) -> dict[str, Found]:
        """Return the networks that the study has written, as a dict from the names of their folders to `Found` objects.
        Names are, for example, "best", "best-0.9" or "front/t0003"."""
        trials = {one["trial"]: one for one in self.result["pareto"]}
        found = {}
        for name in self._ended.networks:
            about = json.loads((self.folder / name / "model.json").read_text(encoding="utf-8"))
            found[name] = Found(self._ended, name, {**about, **about["metrics"], **trials.get(about["trial"], {})})
        return found

    @cached_property
    def trials(self) -> pd.DataFrame:
        """Return a table with one row for each trial. It has the columns of trials.csv: the number, the state, the
        parameters and the metrics. Sparsities are fractions in [0, 1]."""
        return self._table("trials.csv")

    @cached_property
    def front(self) -> pd.DataFrame:
        """Return a table with one row for each trial on the Pareto front, in order of increasing sparsity. It has the
        columns of `trials`."""
        return self._table("pareto.csv")

    @cached_property
    def epochs(self) -> pd.DataFrame:
        """Return a table with one row for each epoch of each trial. It has the columns of epochs.csv, such as "number"
        (of the trial), "epoch" (from 1), "train_loss" and "sparsity"."""
        return self._table("epochs.csv")

    def _table(self, name: str) -> pd.DataFrame:
        import pandas as pd

        return pd.read_csv(self.folder / name)

    @cached_property
    def pictures(self) -> Mapping[str, go.Figure]:
        """Return a dict from names to the study's plotly figures. Names are, for example, "front", "progress",
        "training", "layers", "weights", "hoyer", "curves", "parallel" and "importances". A figure without content is
        left out."""
        from tune_sparsity.tuner.reports.plots.gallery import figures, front_title, pictured

        goal, records = self._ended.goal, self._ended.records()
        return figures(pictured(front_title(self.result["experiment"], goal), goal, records, self.folder))

    def __repr__(self) -> str:
        return f"Study({self.name!r}, best={self.best!r})"

    def _repr_html_(self) -> str:
        return f"<p>{self.name}: {len(self.trials)} trials. The front:</p>{self.front.to_html(index=False)}"


class Found:
    """A network that a study has found. Each entry of the network in result.json is an attribute of this object: for
    example trial, method, params, sparsity, nonzero_weights, val_accuracy and test_accuracy. If the experiment's metric
    is not accuracy but, for example, rmse, the object has val_rmse and test_rmse instead."""

    def __init__(self, ended: EndedStudy, folder: str, about: dict[str, Any]) -> None:
        self._ended, self._folder, self._about = ended, folder, about

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in self._about:
            return self._about[name]
        raise AttributeError(f"this network has no {name!r}. Its attributes: {', '.join(self._about)}")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._about})

    def network(self) -> nn.Module:
        """Return the network in evaluation mode. Its pruned weights are exactly 0.

        Raises:
            ValueError: if the experiment cannot be found, or if the experiment's network has changed, so that the
                weights no longer fit.
        """
        from safetensors.torch import load_file

        from tune_sparsity.tuner.config.experiment import find_experiment
        from tune_sparsity.tuner.results.networks import split_masks
        from tune_sparsity.tuner.study.layout import MODEL

        try:
            tensors = split_masks(load_file(self._ended.folder / self._folder / MODEL))[0]
            return find_experiment(self._ended.config.experiment).network_with(tensors)
        except (UsageError, RuntimeError, OSError) as error:
            raise ValueError(
                f"the network {self._folder} of {self._ended.config.study} cannot be made: {error}"
            ) from None

    def __repr__(self) -> str:
        objective = self._ended.goal.objective
        value, trial, sparsity = self._about[objective.val], self._about["trial"], self._about["sparsity"]
        return f"<{trial}: {objective.name} {objective.text(value)} at {sparsity:.2%} sparsity>"


def _kept(experiment: Any, config: StudyConfig) -> str:
    """Pickle an experiment into a file in the storage folder. Return the value of --experiment that loads the file."""
    import cloudpickle

    try:
        experiment = own_loop(experiment) if isfunction(experiment) else experiment
    except ValueError as error:
        raise UsageError(str(error)) from None
    if not isinstance(experiment, Experiment):
        kind = type(experiment).__name__
        raise UsageError(
            f"experiment must be a name, a tune_sparsity.Experiment or a training loop (a function), got a {kind}"
        )
    try:
        content = cloudpickle.dumps(experiment)
    except Exception as error:
        raise UsageError(
            f"the experiment {experiment.name} cannot be pickled ({error}): define the experiment in a file"
        ) from error
    folder = config.storage.results(".experiments").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(content).hexdigest()[:16]}{PICKLED}"
    path.write_bytes(content)
    return f"{path}:{experiment.name}"


def _led(config: StudyConfig, *, quiet: bool) -> dict[str, Any]:
    """Run the command in a new process, and return the result that the command prints as JSON. The command forks its
    process to start workers. This process may have threads, for example in a notebook, and a fork would lack them."""
    import yaml

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "study.yaml"
        given = config.model_dump(mode="json", exclude_unset=True, exclude_none=True)
        file.write_text(yaml.safe_dump({**given, "experiment": config.experiment}), encoding="utf-8")
        command = [sys.executable, "-m", "tune_sparsity", "--config", str(file), "--json"]
        result = Path(folder) / "result.json"  # a file, because a pipe would be full before it is read
        with (
            result.open("w") as out,
            subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True) as process,
        ):
            said = _follow(process, quiet=quiet)
        document = result.read_text(encoding="utf-8")
    code = process.returncode
    if code == EXIT_USAGE:
        raise UsageError(
            said[-1].removeprefix("tune-sparsity: ")
            if said
            else f"the study's process refused the options with exit code {code}, and printed no reason"
        )
    if code not in (EXIT_DONE, EXIT_INFEASIBLE):
        raise StudyFailed(said[-1] if said else f"the study's process ended with {code}")
    found: dict[str, Any] = json.loads(document)
    return found


def _follow(process: subprocess.Popen[str], *, quiet: bool) -> list[str]:
    """Print the lines of a study's progress as they arrive, except if `quiet` is true. Return all lines."""
    assert process.stderr is not None
    said: list[str] = []
    try:
        for line in process.stderr:
            said.append(line.rstrip())
            if not quiet:
                print(said[-1], flush=True)
        return said
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        rest = process.communicate()[1].splitlines()
        raise KeyboardInterrupt(rest[-1] if rest else "") from None
