"""study.yaml: a study's whole configuration, enough to run it again, and what it ran on."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import TYPE_CHECKING, Any

import yaml

from tune_sparsity.tuner.config_file import WITHHELD
from tune_sparsity.tuner.errors import redact
from tune_sparsity.tuner.system.files import write_atomically

if TYPE_CHECKING:
    from tune_sparsity.tuner.prepare import Prepared

STUDY_YAML = "study.yaml"
_PACKAGES = ("tune-sparsity", "torch", "torchvision", "ray", "optuna", "mlflow", "numpy")


def write_study_yaml(prepared: Prepared, device: str) -> None:
    """The whole resolved configuration, enough to run the study again with --config, and what it ran on."""
    config, withheld = prepared.config.model_dump(mode="json"), {}
    if redact(config["tracking_uri"]) != config["tracking_uri"]:
        del config["tracking_uri"]  # it holds a password: a resume takes it from the environment or the command line
        withheld = {WITHHELD: redact(prepared.config.tracking_uri)}
    config["epochs"] = prepared.epochs
    about: dict[str, Any] = {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "device": device,
        "data_sha256": prepared.checksum,
        **withheld,
    }
    text = yaml.safe_dump({**config, "about": about}, sort_keys=False)
    write_atomically(prepared.config.folder / STUDY_YAML, text)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
