"""Reads a study's configuration from the file of --config or from study.yaml, and writes study.yaml."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
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


_PLACE = {"storage", "study"}
_EXTENT = ("trials", "time_budget", "patience")
_ALWAYS = ("experiment", "method", "trials", "epochs", "seed")
"""Options that every study.yaml has. Without one of them, a resumed study would go on with the default."""
_ABOUT = "about"  # the part of study.yaml that has no options, but versions, the device and the data's checksum
_METRIC = "metric"  # a key in this part, if the metric is not accuracy
_METRIC_KEYS: dict[str, Any] = {"name": str, "maximize": bool, "percent": bool, "baseline": (int, float)}
MAX_MACS = "max_macs"  # a key in this part, if the goal is a latency: the multiply-adds that are expected to meet it
WITHHELD = "tracking_uri_without_password"  # a key in this part, if the URI has a password: it is then not an option


def read_config(options: dict[str, Any]) -> StudyConfig:
    """Return the configuration from the command line's options, and from the file of --config if it is given. An option
    on the command line overrides the same option in the file.

    Args:
        options: a dict from the names of the given options to their values. The value of "config" is the file's path.

    Raises:
        UsageError: if an option is wrong. If the mistake is in the file, the message names the line.
    """
    options = dict(options)
    file = options.pop("config", None)
    if file is None:
        return make_config(options)
    return _from_file(Path(file), options)


def read_study(study: str, storage: StudyStorage, options: dict[str, Any]) -> StudyConfig:
    """Return the configuration of an existing study.

    Args:
        study: the study's name in `storage`, or its folder.
        storage: the storage in which a name is looked up.
        options: options that replace those in study.yaml.

    Raises:
        UsageError: if there is no such study, if the object store cannot be read, or if study.yaml is damaged.
    """
    place, name = storage.find(study)
    path = place.study_yaml(name)
    return _from_file(path, {**options, "storage": place, "study": name}, _ALWAYS)


def check_withheld(config: StudyConfig) -> None:
    """Check that the user has given the tracking URI again, if this is necessary. A tracking URI with a password is not
    written to study.yaml. Without the URI, a resumed study would continue in another MLflow store.

    Raises:
        UsageError: if study.yaml lacks the URI, and the user has not given a URI.
    """
    uri = read_about(config).get(WITHHELD)
    if uri and not (config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "").strip()):
        raise UsageError(
            f"the study's runs are in {uri}, and study.yaml does not contain the password of this URI: give the URI "
            "and its password again, as --tracking-uri or in the variable MLFLOW_TRACKING_URI"
        )


def judged(goal: Goal, about: Mapping[str, Any]) -> Goal:
    """Return a copy of the goal, with the metric and the baseline (see Goal) that study.yaml contains. If study.yaml
    contains no metric, the metric is accuracy, and the baseline is 0.

    Args:
        goal: the goal to copy. The copy does not keep its metric and its baseline.
        about: the result of `read_about`.
    """
    metric = {**asdict(ACCURACY), "baseline": 0.0, **about.get(_METRIC, {})}
    baseline = metric.pop("baseline")
    return replace(goal, objective=Objective(**metric), baseline=baseline)


def read_about(config: StudyConfig) -> dict[str, Any]:
    """Return the entry "about" of the study.yaml of an existing study. The entry contains facts that are no options,
    such as the versions of packages and the checksum of the data. Return an empty dict if the entry is missing. Raise
    UsageError if the entry is damaged."""
    return about_in(config.storage.study_yaml(config.study))


def about_in(path: Path) -> dict[str, Any]:
    """Return the entry "about" of a study.yaml on this machine, as `read_about` does."""
    from tune_sparsity.search_spaces import read_mapping

    data, lines = read_mapping(path)
    about = data.get(_ABOUT) or {}
    if not isinstance(about, dict):
        raise UsageError(str(lines.error((_ABOUT,), f"{_ABOUT} must be a mapping, not {about!r}")))
    metric = about.get(_METRIC, {})
    if not isinstance(metric, dict) or not all(isinstance(metric[key], _METRIC_KEYS.get(key, ())) for key in metric):
        message = f"{_METRIC} must be a mapping of {', '.join(_METRIC_KEYS)}, not {metric!r}"
        raise UsageError(str(lines.error((_ABOUT, _METRIC), message)))
    return about


def _is_option(name: str) -> bool:
    return name in StudyConfig.model_fields


def _from_file(path: Path, options: dict[str, Any], required: Sequence[str] = ()) -> StudyConfig:
    from tune_sparsity.search_spaces import (  # imported here, because it imports torch, which takes seconds
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
    if lost := [name for name in required if name not in named]:
        raise UsageError(f"{path} lacks {lost[0]!r}, which tune-sparsity writes into this file: restore it")
    # An option without a value counts as not given. Unknown names stay, so that they cause an error.
    given = {name: data[key] for name, key in named.items() if data[key] is not None or not _is_option(name)}
    if any(name in options for name in GOALS):  # the command line's goal replaces the file's goal
        given = {name: value for name, value in given.items() if name not in GOALS}
        if "max_latency" not in options:
            given.pop("latency_batch", None)
    merged = {**given, **options}
    try:
        return StudyConfig(**merged)
    except ValidationError as error:
        place = error.errors()[0]["loc"]
        # An error without a place is about the goals. Then the message has the line of the file's last goal, unless an
        # option of the command line may be the mistake.
        goal = next((name for name in reversed(list(given)) if name in GOALS), "") if options.keys() <= _PLACE else ""
        field = str(place[0]) if place else goal
        if field in named and field not in options:
            raise UsageError(str(lines.error((named[field],), describe(error)))) from None
        raise UsageError(describe(error)) from None


def write_study_yaml(config: StudyConfig, *, epochs: int, checksum: str, device: str, goal: Goal | None = None) -> None:
    """Write study.yaml. The file contains the whole resolved configuration, the versions of packages, the device and
    the checksum of the data. --config accepts the file, to run the same study again.

    Args:
        config: the resolved configuration. A tracking URI with a password is left out.
        epochs: the number of epochs of a complete trial.
        checksum: the checksum of the data.
        device: the device on which trials train, "cpu" or "cuda".
        goal: the study's goal. If the goal's metric is not accuracy, the file contains the metric. For a goal of
            --max-latency, the file contains the number of multiply-adds that limits trials. If `goal` is None, the file
            contains neither the metric nor this number.
    """
    options, withheld = config.model_dump(mode="json"), {}
    if redact(options["tracking_uri"]) != options["tracking_uri"]:
        del options["tracking_uri"]  # because of the password: the user gives the URI again to resume the study
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
    if goal is not None and goal.max_latency is not None:
        about[MAX_MACS] = goal.max_macs
    import yaml

    text = yaml.safe_dump({**options, "about": about}, sort_keys=False)
    write_atomically(config.folder / STUDY_YAML, text)


def keep_extent(config: StudyConfig) -> None:
    """Write the options that say how long a resumed study searches into its study.yaml, so that the next `resume` goes
    on with them. The other entries of the file stay as they are."""
    import yaml

    path = config.folder / STUDY_YAML
    # The user may have written '-' in the names of options.
    entries = {key.replace("-", "_"): value for key, value in yaml.safe_load(path.read_text(encoding="utf-8")).items()}
    extent = {name: value for name, value in config.model_dump(mode="json").items() if name in _EXTENT}
    if {name: entries.get(name) for name in extent} != extent:
        write_atomically(path, yaml.safe_dump({**entries, **extent}, sort_keys=False))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
