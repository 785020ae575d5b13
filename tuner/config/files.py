"""Configurations that come from files: --config, and the study.yaml of a study to be resumed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tune_sparsity.tuner.config.study_config import GOALS, StudyConfig, describe, make_config
from tune_sparsity.tuner.errors import UsageError, redact
from tune_sparsity.tuner.storage.study_storage import StudyStorage
from tune_sparsity.tuner.study.goal import Goal
from tune_sparsity.tuner.study.layout import STUDY_YAML
from tune_sparsity.tuner.study.objective import ACCURACY, Objective
from tune_sparsity.tuner.system.files import write_atomically

_PACKAGES = ("tune-sparsity", "torch", "torchvision", "ray", "optuna", "mlflow", "numpy")


_ABOUT = "about"  # study.yaml's account of versions and data: no option
_METRIC = "metric"  # in that account, where it is not accuracy
WITHHELD = "tracking_uri_without_password"  # in that account, where the URI is not among the options for its password


def read_config(options: dict[str, Any]) -> StudyConfig:
    """Return the configuration from the command line's options and, beneath them, the file that `config` names.

    Raises:
        UsageError: with the line of the file where that is where the mistake is.
    """
    options = dict(options)
    file = options.pop("config", None)
    if file is None:
        return make_config(options)
    return _from_file(Path(file), options)


def read_study(study: str, storage: StudyStorage, options: dict[str, Any]) -> StudyConfig:
    """Return the configuration of an existing study, by its name in `storage` or by its folder.

    Raises:
        UsageError: if there is none, or if the object store cannot be read.
    """
    place, name = storage.find(study)
    return _from_file(place.study_yaml(name), {**options, "storage": place, "study": name})


def check_withheld(config: StudyConfig) -> None:
    """Raises UsageError if the study's tracking URI was not kept, for the password in it, and is not given again: its
    runs would go on in another store."""
    uri = read_about(config).get(WITHHELD)
    if uri and not (config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "").strip()):
        raise UsageError(
            f"the study's runs are in {uri}, whose password is not kept: give the whole URI again, by "
            "MLFLOW_TRACKING_URI or --tracking-uri"
        )


def judged(goal: Goal, about: Mapping[str, Any]) -> Goal:
    """Return the goal with the metric that study.yaml's account names; without one the metric is accuracy."""
    metric = {**asdict(ACCURACY), "baseline": 0.0, **about.get(_METRIC, {})}
    baseline = metric.pop("baseline")
    return replace(goal, objective=Objective(**metric), baseline=baseline)


def read_about(config: StudyConfig) -> dict[str, Any]:
    """Return the account of versions, data and metric in the study.yaml of a study that exists."""
    from tune_sparsity.search_spaces import read_mapping

    data, _ = read_mapping(config.storage.study_yaml(config.study))
    return dict(data.get(_ABOUT) or {})


def _is_option(name: str) -> bool:
    return name in StudyConfig.model_fields


def _from_file(path: Path, options: dict[str, Any]) -> StudyConfig:
    from tune_sparsity.search_spaces import (  # with torch, in seconds that a study without a file saves
        BadFile,
        read_mapping,
    )

    try:
        data, lines = read_mapping(path)
    except BadFile as error:
        raise UsageError(str(error)) from None
    data.pop(_ABOUT, None)
    named = {key.replace("-", "_"): key for key in data}
    if twice := [key for key in data if named[key.replace("-", "_")] != key]:
        raise UsageError(str(lines.error((twice[0],), f"{twice[0]!r} is given twice, once with '-' and once with '_'")))
    # An option without a value is not given; a name that is no option is told all the same.
    given = {name: data[key] for name, key in named.items() if data[key] is not None or not _is_option(name)}
    if any(name in options for name in GOALS):  # the command line's goal is given instead of the file's
        given = {name: value for name, value in given.items() if name not in GOALS}
    merged = {**given, **options}
    try:
        return StudyConfig(**merged)
    except ValidationError as error:
        place = error.errors()[0]["loc"]
        # Without a place it is about the goals: then the last one that the file gives is where to look.
        field = str(place[0]) if place else next((name for name in reversed(list(given)) if name in GOALS), "")
        if field in named and field not in options:
            raise UsageError(str(lines.error((named[field],), describe(error)))) from None
        raise UsageError(describe(error)) from None


def write_study_yaml(config: StudyConfig, *, epochs: int, checksum: str, device: str, goal: Goal | None = None) -> None:
    """Write the whole resolved configuration, enough to run the study again with --config, and what it ran on.

    Args:
        epochs: of a trial, with the experiment's own where the options give none.
        checksum: of the data.
        device: that the trials train on, "cpu" or "cuda".
        goal: whose metric is written, unless it is accuracy.
    """
    options, withheld = config.model_dump(mode="json"), {}
    if redact(options["tracking_uri"]) != options["tracking_uri"]:
        del options["tracking_uri"]  # it holds a password: a resume takes it from the environment or the command line
        withheld = {WITHHELD: redact(config.tracking_uri)}
    options["epochs"] = epochs
    about: dict[str, Any] = {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "device": device,
        "data_sha256": checksum,
        **withheld,
    }
    if goal is not None and goal.objective != ACCURACY:
        about[_METRIC] = {**asdict(goal.objective), "baseline": goal.baseline}
    import yaml

    text = yaml.safe_dump({**options, "about": about}, sort_keys=False)
    write_atomically(config.folder / STUDY_YAML, text)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
