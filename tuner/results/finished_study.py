"""Reads an ended study from its folder. The commands that report, compare and export studies use this module."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune_sparsity.tuner.config.files import about_in, judged, read_study
from tune_sparsity.tuner.config.study_config import StudyConfig
from tune_sparsity.tuner.errors import UsageError
from tune_sparsity.tuner.storage.study_storage import StudyStorage
from tune_sparsity.tuner.study.goal import Goal
from tune_sparsity.tuner.study.layout import STUDY_YAML
from tune_sparsity.tuner.study.trial import TrialRecord


@dataclass(frozen=True)
class EndedStudy:
    """Holds an ended study, as it was read from its files.

    Attributes:
        config: the configuration from study.yaml. Only `storage` and `study` (its name) say where this process has
            found the study, because the study's folder may have been moved or renamed.
        about: facts from study.yaml: versions of packages, the device and the data.
        result: the content of result.json.
        folder: the study's folder, or a local copy of the folder if the study is in an object store.
    """

    config: StudyConfig
    about: dict[str, Any]
    result: dict[str, Any]
    folder: Path

    @property
    def results(self) -> Path:
        """Return the folder for new files about the study. This is the study's own folder. If the study is in an object
        store, it is a folder with the study's name in the current folder."""
        return self.config.storage.results(self.config.study)

    @property
    def goal(self) -> Goal:
        return judged(self._wanted(), self.about)

    def _wanted(self) -> Goal:
        config = self.config
        if config.max_nonzero is not None:
            return Goal((self.result["target"],), max_nonzero=config.max_nonzero)
        if config.max_bytes is not None:
            return Goal((self.result["target"],), max_bytes=config.max_bytes)
        if config.max_macs is not None:
            return Goal((self.result["target"],), max_macs=config.max_macs)
        if config.max_latency is not None:
            limit = {"max_macs": self.result["max_macs"], "latency_batch": self.result["latency_batch"]}
            return Goal((self.result["target"],), max_latency=config.max_latency, **limit)
        if config.front is not None:
            return Goal((config.front[0],), ceiling=config.front[1])
        assert config.target is not None
        return Goal(config.target if isinstance(config.target, tuple) else (config.target,))

    def records(self) -> list[TrialRecord]:
        """Return the records of all ended trials, ordered by the trials' numbers."""
        from tune_sparsity.tuner.search.journal import records_of  # imported here, because it imports Optuna

        return records_of(self.folder)

    @property
    def networks(self) -> list[str]:
        """Return the folders of the study's networks, relative to the study's folder. "best" is first."""
        found = (path.parent for pattern in ("best*", "front/*") for path in self.folder.glob(f"{pattern}/model.json"))
        return sorted(path.relative_to(self.folder).as_posix() for path in found)


def read_ended(study: str, storage: StudyStorage, options: dict[str, Any] | None = None) -> EndedStudy:
    """Return an ended study.

    Args:
        study: the name of a study in `storage`, or the path of a study's folder.
        storage: the folder or object store that contains studies.
        options: options of StudyConfig that replace those in study.yaml.

    Raises:
        UsageError: if there is no such study, or if it has not ended.
    """
    config = read_study(study, storage, options or {})
    try:
        folder = config.storage.readable(config.study)
    except OSError as error:
        raise UsageError(f"--storage {error}") from None
    result = folder / "result.json"
    try:
        document = json.loads(result.read_text(encoding="utf-8"))
        return EndedStudy(config, about_in(folder / STUDY_YAML), dict(document), folder)
    except FileNotFoundError:
        raise UsageError(f"study {study!r} has not ended. Continue it with: tune-sparsity resume {study}") from None
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"study {study!r}: {result} cannot be read: {error}") from None
