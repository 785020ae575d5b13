"""The configuration of a study: typed, checked once, here; everything behind it may rely on it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from tuner.tracking_uri import check_tracking_uri, resolve_tracking_uri

SAMPLERS = ("tpe", "gp", "nsgaii", "cmaes", "qmc", "random")
SCHEDULERS = ("asha", "none")
_STUDY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class UsageError(Exception):
    """A mistake of the user's: one line that says what is wrong and what is accepted. The command exits with 2."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that is not known, with the nearest ones first."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    return f"unknown {kind} {name!r}{hint}: accepted are {', '.join(known)}"


def parse_duration(value: Any) -> Any:
    """Seconds from 90, "90", "90s", "30m", "1h30m" or "2d"; anything else is left for pydantic to refuse."""
    if not isinstance(value, str):
        return value
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", value)
    if parts and "".join(number + unit for number, unit in parts) == value:
        return sum(float(number) * _UNITS[unit] for number, unit in parts)
    try:
        return float(value)
    except ValueError:
        raise ValueError("give it as 90s, 30m, 1h30m or seconds") from None


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


Duration = Annotated[float, BeforeValidator(parse_duration), Field(gt=0, allow_inf_nan=False)]


class StudyConfig(BaseModel):
    """Everything that a study depends on, as the command line and study.yaml name it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: float = Field(ge=0, lt=1, allow_inf_nan=False)
    experiment: str = "digits"
    method: Annotated[list[str], BeforeValidator(_split), Field(min_length=1)] = ["lpss"]
    space: str | None = None
    trials: int = Field(default=32, ge=1)
    time_budget: Duration | None = None
    epochs: int | None = Field(default=None, ge=1)
    final_seeds: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**32)
    sampler: str = "tpe"
    scheduler: str = "asha"
    concurrency: int | None = Field(default=None, ge=1)
    cpus_per_trial: float = Field(default=1, gt=0, allow_inf_nan=False)
    gpus_per_trial: Literal["auto"] | Annotated[float, Field(ge=0, allow_inf_nan=False)] = "auto"
    address: str | None = None
    storage: Path = Path("studies")
    study: str = ""
    tracking_uri: str = ""
    data_dir: Path | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any) -> Any:
        if isinstance(value, bool):  # pydantic would take true for 1
            raise ValueError("true and false are the value of no option")
        return value

    @field_validator("method")
    @classmethod
    def _methods(cls, names: list[str]) -> list[str]:
        from sparsity import METHODS

        for name in names:
            if name not in METHODS:
                raise ValueError(unknown("method", name, METHODS))
        if len(set(names)) < len(names):
            raise ValueError("a method is given twice")
        return names

    @field_validator("sampler")
    @classmethod
    def _sampler(cls, name: str) -> str:
        if name not in SAMPLERS:
            raise ValueError(unknown("sampler", name, SAMPLERS))
        if name == "cmaes":
            raise ValueError("cmaes handles neither two objectives nor constraints: use tpe, gp, nsgaii, qmc or random")
        return name

    @field_validator("scheduler")
    @classmethod
    def _scheduler(cls, name: str) -> str:
        if name not in SCHEDULERS:
            raise ValueError(unknown("scheduler", name, SCHEDULERS))
        return name

    @field_validator("study")
    @classmethod
    def _study(cls, name: str) -> str:
        if name and not _STUDY_NAME.fullmatch(name):
            raise ValueError("a study's name has letters, digits, '.', '_' and '-' only, and starts with the first two")
        return name

    @field_validator("storage", mode="before")
    @classmethod
    def _storage(cls, value: Any) -> Any:
        if isinstance(value, str) and "://" in value:
            raise ValueError("only a folder is supported so far")
        return value

    @field_validator("gpus_per_trial")
    @classmethod
    def _whole_gpus(cls, value: float | str) -> float | str:
        if not isinstance(value, str) and value > 1 and value != int(value):
            raise ValueError("give a share of up to 1, or a whole number, or auto")
        return value

    @field_validator("tracking_uri")
    @classmethod
    def _tracking(cls, uri: str) -> str:
        if uri:
            check_tracking_uri(uri)
        return uri

    @property
    def folder(self) -> Path:
        """The study's own folder."""
        return self.storage / self.study

    def resolved(self) -> StudyConfig:
        """With the defaults that depend on the rest filled in, the study's name and the tracking URI, and with
        absolute paths, since a worker or a later resume may run in another folder."""
        where, _, attribute = self.experiment.rpartition(":")
        is_file = self.space is not None and Path(self.space).suffix in {".yaml", ".yml"}
        paths = {
            "storage": self.storage.absolute(),
            "data_dir": self.data_dir and self.data_dir.absolute(),
            "experiment": f"{Path(where).absolute()}:{attribute}" if where.endswith(".py") else self.experiment,
            "space": str(Path(self.space).absolute()) if self.space and is_file else self.space,
        }
        name = self.study or default_study_name(self.experiment, self.target, datetime.now())
        uri = resolve_tracking_uri(self.tracking_uri or None)
        return self.model_copy(update={**paths, "study": name, "tracking_uri": uri})


def default_study_name(experiment: str, target: float, now: datetime) -> str:
    """EXPERIMENT-TARGET-TIME, in characters that a folder's name can have."""
    last = re.split(r"[:/\\]", experiment)[-1] or "study"
    safe = re.sub(r"[^A-Za-z0-9_-]", "-", last)[:60]
    return f"{safe.lstrip('-_') or 'study'}-{target:g}-{now:%Y%m%d-%H%M%S}"


def make_config(options: dict[str, Any]) -> StudyConfig:
    """The checked configuration.

    Args:
        options: names and values of the fields; those from a file and from the command line together.

    Raises:
        UsageError: with the first thing that is wrong.
    """
    try:
        return StudyConfig(**options)
    except ValidationError as error:
        raise UsageError(describe(error)) from None


def describe(error: ValidationError) -> str:
    """The first of pydantic's errors as one line: the option, what it was given, what is accepted."""
    first = error.errors()[0]
    field = str(first["loc"][0]) if first["loc"] else ""
    option = f"--{field.replace('_', '-')}"
    if first["type"] == "missing":
        return f"{option} is missing: give the sparsity to reach, e.g. --target 0.9"
    if first["type"] == "extra_forbidden":
        return unknown("option", field, StudyConfig.model_fields)
    given = repr(first["input"])
    given = given if len(given) <= 80 else given[:77] + "..."
    return f"{option} {given}: {' '.join(_accepted(field, first['msg']).split())}"


def _accepted(field: str, message: str) -> str:
    if field == "target":
        return "the target is a sparsity in [0, 1), e.g. 0.9"
    return message.removeprefix("Value error, ").replace("Input should", "it should")
