"""Defines the configuration of a study, and checks the values of its options.

tuner.driver.checks and tuner.driver.prepare check whether the options fit the machine, the experiment and its data.
"""

from __future__ import annotations

import os
import re
import warnings
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tune_sparsity.tuner.config.fields import Bytes, Front, Latency, Target, split
from tune_sparsity.tuner.config.tracking_uri import check_tracking_uri, resolve_tracking_uri
from tune_sparsity.tuner.errors import EMPTY, UsageError, redact, unknown
from tune_sparsity.tuner.storage.study_storage import STUDY_NAME, LocalStorage, StudyStorage, parse_storage

if TYPE_CHECKING:
    from tune_sparsity.sparsity.cost.layout import Layout
    from tune_sparsity.tuner.study.goal import Goal

SAMPLERS = ("tpe", "gp", "nsgaii", "cmaes", "qmc", "random")
SCHEDULERS = ("asha", "none")
GOALS = ("target", "front", "max_nonzero", "max_bytes", "max_macs", "max_latency")
"""The options of the goal. Exactly one of them must be given."""
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""The environment variable that Ray sets for a command that runs as a Ray job (`ray job submit`)."""
FLAGS = ("system_metrics",)
"""The options without a value on the command line. In files their value is true or false."""
_NUMBERS = {"int_parsing": "a whole number", "float_parsing": "a number"}
"""The accepted values after pydantic's types of errors."""
_MILLION = 1_000_000  # a larger number of trials or epochs is surely a typing error
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(value: Any) -> Any:
    """Return the seconds from a text such as "90", "90s", "30m", "1h30m" or "2d". Raise ValueError for any other text.
    Return a value that is not a text unchanged, because pydantic checks the value later."""
    if not isinstance(value, str):
        return value
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", value)
    if parts and "".join(number + unit for number, unit in parts) == value:
        return sum(float(number) * _UNITS[unit] for number, unit in parts)
    try:
        return float(value)
    except ValueError:
        raise ValueError("give the time as 90s, 30m, 1h30m or a number of seconds") from None


Duration = Annotated[float, BeforeValidator(parse_duration), Field(gt=0, le=3650 * 86400, allow_inf_nan=False)]


def storage_of(text: str) -> StudyStorage:
    """Return the storage for a value of --storage. Raise UsageError if the value is wrong."""
    try:
        return parse_storage(text)
    except ValueError as error:
        raise UsageError(f"--storage {redact(text)!r}: {error}") from None


def _registered_name(name: str) -> str:
    if not name.strip() or len(name) > 250 or set(name) & set("/:") or not name.isprintable():
        raise ValueError("give a name with 1 to 250 printable characters, without '/' and ':'")
    return name


# Pydantic warns that its metaclass has a method with this name, but this does no harm.
warnings.filterwarnings("ignore", message='Field name "register" in "StudyConfig" shadows')


class StudyConfig(BaseModel):
    """Holds all settings of a study. The name of a field is also the name of its option on the command line, and of its
    key in study.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: Target = None
    front: Front = None
    max_nonzero: int | None = Field(default=None, ge=1)
    max_bytes: Bytes = None
    max_macs: int | None = Field(default=None, ge=1)
    max_latency: Latency = None
    latency_batch: int | None = Field(default=None, ge=1, le=65_536)
    experiment: str = "digits"
    method: Annotated[list[str], BeforeValidator(split), Field(min_length=1)] = ["lpss"]
    pattern: str | None = None
    space: str | None = None
    trials: int = Field(default=32, ge=1, le=_MILLION)
    time_budget: Duration | None = None
    patience: int | None = Field(default=None, ge=1, le=_MILLION)
    epochs: int | None = Field(default=None, ge=1, le=_MILLION)
    final_seeds: int = Field(default=0, ge=0, le=1000)
    group: Literal["cascade", "reflect"] | None = None
    ensemble: Literal["resample"] | None = None
    members: int = Field(default=10, ge=2, le=1000)
    seed: int = Field(default=0, ge=0, lt=2**32)
    sampler: str = "tpe"
    warm_start: Annotated[list[str], BeforeValidator(split)] = []
    scheduler: str = "asha"
    concurrency: int | None = Field(default=None, ge=1, le=_MILLION)
    cpus_per_trial: float = Field(default=1, gt=0, le=1024, allow_inf_nan=False)
    workers_per_trial: int = Field(default=1, ge=1, le=1024)
    gpus_per_trial: Literal["auto"] | Annotated[float, Field(ge=0, le=1024, allow_inf_nan=False)] = "auto"
    address: str | None = None
    storage: Annotated[InstanceOf[StudyStorage], PlainSerializer(str, return_type=str)] = LocalStorage(Path("studies"))
    study: str = ""
    tracking_uri: str = ""
    data_dir: Path | None = None
    system_metrics: bool = False
    register: Annotated[str, AfterValidator(_registered_name)] | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _no_other_type(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and info.field_name not in FLAGS:  # pydantic would convert true to 1
            raise ValueError("true and false are not accepted here")
        if isinstance(value, bytes):  # pydantic would convert them to text
            raise ValueError("binary data are not accepted here")
        if isinstance(value, str) and "\0" in value:
            raise ValueError("a null character is not accepted here")
        return value

    @field_validator("method")
    @classmethod
    def _methods(cls, names: list[str]) -> list[str]:
        from tune_sparsity.sparsity import METHODS

        for name in names:
            if name not in METHODS:
                raise ValueError(unknown("method", name, METHODS))
        if len(set(names)) < len(names):
            raise ValueError("a method is given twice")
        return names

    @field_validator("pattern")
    @classmethod
    def _pattern(cls, text: str | None) -> str | None:
        from tune_sparsity.sparsity.patterns import pattern_from

        return None if text is None else str(pattern_from(text))

    @field_validator("sampler")
    @classmethod
    def _sampler(cls, name: str) -> str:
        if name not in SAMPLERS:
            raise ValueError(unknown("sampler", name, SAMPLERS))
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
        if name and not STUDY_NAME.fullmatch(name):
            raise ValueError("use 1 to 100 of letters, digits, '.', '_' and '-', and begin with a letter or a digit")
        return name

    @field_validator("experiment", "space", "storage", "data_dir", "address", mode="before")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if isinstance(value, str) and not value.strip():
            raise ValueError(EMPTY)
        return value

    @field_validator("storage", mode="before")
    @classmethod
    def _storage(cls, value: Any) -> Any:
        return value if isinstance(value, StudyStorage) else parse_storage(value)

    @field_validator("gpus_per_trial")
    @classmethod
    def _whole_gpus(cls, value: float | str) -> float | str:
        if not isinstance(value, str) and value > 1 and value != int(value):
            raise ValueError("give auto, a fraction of at most 1, or a whole number")
        return value

    @field_validator("tracking_uri")
    @classmethod
    def _tracking(cls, uri: str) -> str:
        if uri:
            check_tracking_uri(uri)
        return uri

    @model_validator(mode="after")
    def _no_shared_gpu(self) -> StudyConfig:
        gpus = self.gpus_per_trial
        if self.workers_per_trial > 1 and not isinstance(gpus, str) and 0 < gpus < 1:
            raise ValueError(
                f"--workers-per-trial {self.workers_per_trial}: the workers of a trial cannot share a GPU: give "
                f"--gpus-per-trial 0 or 1 instead of {gpus:g}"
            )
        return self

    @model_validator(mode="after")
    def _one_goal(self) -> StudyConfig:
        given = [f"--{name.replace('_', '-')}" for name in GOALS if getattr(self, name) is not None]
        if not given:
            raise ValueError(
                "--target is missing: give a goal, such as --target 0.9, or --target 0.8,0.9, --front 0.5:0.99, "
                "--max-nonzero 20000, --max-bytes 10kB, --max-macs 12000 or --max-latency 2ms"
            )
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are different goals: give only one of them")
        return self

    @model_validator(mode="after")
    def _timed(self) -> StudyConfig:
        if self.latency_batch is not None and self.max_latency is None:
            raise ValueError(
                f"--latency-batch {self.latency_batch}: this option needs --max-latency: give both options"
            )
        if self.final_seeds and self.max_latency is not None:
            raise ValueError(
                f"--final-seeds {self.final_seeds}: networks that are trained again are not timed: leave this option "
                "out, or give --max-macs instead of --max-latency"
            )
        return self

    @model_validator(mode="after")
    def _networks_to_group(self) -> StudyConfig:
        if self.group is not None and self.front is None and not isinstance(self.target, tuple):
            raise ValueError(
                f"--group {self.group}: a group needs two networks, and this goal gives one: give --front 0.5:0.99 or "
                "several targets"
            )
        if self.group == "reflect" and self.workers_per_trial > 1:
            raise ValueError("--group reflect trains in one process: give --workers-per-trial 1")
        return self

    def goal(self, layers: int, weights: int, layout: Layout | None = None) -> Goal:
        """Return the goal of the study for a network. Call this method only if the goal is neither --max-macs nor
        --max-latency. tuner.driver.latency makes those goals.

        Args:
            layers: the number of prunable layers.
            weights: the number of prunable weights.
            layout: the layout of the network's packed file; None if the packed format cannot hold the network.

        Raises:
            UsageError: if --max-nonzero is larger than the number of weights, if the goal leaves fewer nonzero weights
                than there are layers, or if no packed file of the network is as small as --max-bytes.
        """
        if self.max_bytes is not None:
            return self._within_bytes(layers, weights, layout)
        if self.max_nonzero is not None and not layers <= self.max_nonzero <= weights:
            raise UsageError(
                f"--max-nonzero {self.max_nonzero}: the network has {weights:,} prunable weights in {layers} layers: "
                f"give a number from {layers} to {weights}"
            )
        from tune_sparsity.sparsity import zeros_for
        from tune_sparsity.tuner.study.goal import sparsity_of

        goal = self._goal(weights)
        if (left := weights - zeros_for(goal.highest, weights)) < layers:
            raise UsageError(
                f"--{'target' if self.front is None else 'front'} {goal.highest!r}: only {left} of the {weights:,} "
                f"prunable weights would stay nonzero, but each of the {layers} prunable layers needs a nonzero "
                f"weight: give at most {sparsity_of(weights - layers, weights)!r}"
            )
        return goal

    def _within_bytes(self, layers: int, weights: int, layout: Layout | None) -> Goal:
        from tune_sparsity.tuner.study.goal import within_bytes

        assert self.max_bytes is not None
        if layout is None:
            raise UsageError(
                f"--max-bytes {self.max_bytes}: a packed file cannot hold some tensors of this network, because of "
                "their dtype or their number of dimensions: give --max-nonzero instead"
            )
        if self.max_bytes < (least := layout.least()):
            raise UsageError(f"--max-bytes {self.max_bytes}: this network needs at least {least:,} bytes")
        return within_bytes(self.max_bytes, max(layers, layout.nonzero_within(self.max_bytes)), weights)

    def _goal(self, weights: int) -> Goal:
        from tune_sparsity.tuner.study.goal import along_front, at_most, at_targets

        if self.max_nonzero is not None:
            return at_most(self.max_nonzero, weights)
        if self.front is not None:
            return along_front(*self.front)
        assert self.target is not None
        return at_targets(*(self.target if isinstance(self.target, tuple) else (self.target,)))

    @property
    def wanted(self) -> str:
        """Return a short text for the goal, for example "0.9" or "10000-bytes". The default name of the study contains
        this text."""
        if self.max_nonzero is not None:
            return f"{self.max_nonzero}-weights"
        if self.max_bytes is not None:
            return f"{self.max_bytes}-bytes"
        if self.max_macs is not None:
            return f"{self.max_macs}-macs"
        if self.max_latency is not None:
            return f"{self.max_latency:.7g}-ms"
        if self.front is not None:
            return f"{self.front[0]:g}-to-{self.front[1]:g}"
        targets = self.target if isinstance(self.target, tuple) else (self.target,)
        return "-".join(f"{target:g}" for target in targets) if len(targets) < 4 else f"{len(targets)}-targets"

    @property
    def folder(self) -> Path:
        """Return the study's folder. If the study is in an object store, return the folder on this machine in which the
        driver works."""
        return self.storage.folder(self.study)

    def resolved(self) -> StudyConfig:
        """Return the configuration with the missing values filled in: the study's name, the tracking URI, the address
        "auto" if this process is a Ray job, and the batch size for measuring the latency if the goal is --max-latency.
        All paths become absolute, because workers and a later `resume` may run in other folders."""
        where, _, attribute = self.experiment.rpartition(":")
        is_file = self.space is not None and Path(self.space).suffix in {".yaml", ".yml"}
        paths = {
            "storage": self.storage.absolute(),
            "data_dir": self.data_dir and self.data_dir.absolute(),
            "experiment": f"{Path(where).absolute()}:{attribute}" if where.endswith(".py") else self.experiment,
            "space": str(Path(self.space).absolute()) if self.space and is_file else self.space,
        }
        name = self.study or default_study_name(self.experiment, self.wanted, datetime.now())
        uri = resolve_tracking_uri(self.tracking_uri or None)
        address = self.address or ("auto" if JOB in os.environ else None)
        batch = self.latency_batch or (None if self.max_latency is None else 1)
        filled = {"study": name, "tracking_uri": uri, "address": address, "latency_batch": batch}
        return self.model_copy(update={**paths, **filled})


def default_study_name(experiment: str, wanted: str, now: datetime) -> str:
    """Return the name EXPERIMENT-GOAL-TIME. Replace characters of the experiment that a folder's name cannot have.

    Args:
        experiment: the value of --experiment.
        wanted: the goal as a text (see StudyConfig.wanted).
        now: the time.
    """
    last = re.split(r"[:/\\]", experiment)[-1] or "study"
    safe = re.sub(r"[^A-Za-z0-9_-]", "-", last)[:60]
    return f"{safe.lstrip('-_') or 'study'}-{wanted}-{now:%Y%m%d-%H%M%S}"


def make_config(options: dict[str, Any]) -> StudyConfig:
    """Return the checked configuration.

    Args:
        options: a dict from the names of StudyConfig's fields to their values.

    Raises:
        UsageError: if a value is wrong. The message is about the first wrong value.
    """
    try:
        return StudyConfig(**options)
    except ValidationError as error:
        raise UsageError(describe(error)) from None


def describe(error: ValidationError) -> str:
    """Return pydantic's first error as one line, with the option, its value and the accepted values."""
    first = error.errors()[0]
    if not first["loc"]:  # the error is about several options, which its message names
        return first["msg"].removeprefix("Value error, ")
    field = str(first["loc"][0])
    option = f"--{field.replace('_', '-')}"
    if first["type"] == "extra_forbidden":
        return unknown("option", field, StudyConfig.model_fields)
    given = redact(repr(first["input"]))
    given = given if len(given) <= 80 else given[:77] + "..."
    if first["type"] in _NUMBERS:
        return f"{option} {given}: it should be {_NUMBERS[first['type']]}"
    accepted = first["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    if accepted.startswith("unknown "):  # the text already names the value
        return f"{option}: {accepted}"
    return f"{option} {given}: {' '.join(accepted.split())}"
