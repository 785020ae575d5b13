"""A study that has ended, as its folder tells of it: for the commands that look at studies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tune_sparsity.tuner.config.files import judged, read_study
from tune_sparsity.tuner.config.study_config import StudyConfig
from tune_sparsity.tuner.errors import UsageError
from tune_sparsity.tuner.storage.study_storage import StudyStorage
from tune_sparsity.tuner.study.goal import Goal
from tune_sparsity.tuner.study.trial import TrialRecord


@dataclass(frozen=True)
class EndedStudy:
    """What an ended study left in its folder.

    Attributes:
        config: from study.yaml, its storage and name from where the study lies now.
        about: study.yaml's account of versions, device and data.
        result: result.json.
        folder: the study's, or a copy of it on this machine.
    """

    config: StudyConfig
    about: dict[str, Any]
    result: dict[str, Any]
    folder: Path

    @property
    def results(self) -> Path:
        """Return where files go that are made from the study: its folder, or one of its name here if it is in a
        store."""
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
        if config.front is not None:
            return Goal((config.front[0],), ceiling=config.front[1])
        assert config.target is not None
        return Goal(config.target if isinstance(config.target, tuple) else (config.target,))

    def records(self) -> list[TrialRecord]:
        """Return all ended trials, by number."""
        from tune_sparsity.tuner.search.journal import records_of  # brings Optuna

        return records_of(self.folder)

    @property
    def networks(self) -> list[str]:
        """Return the networks that the study wrote, as folders under its own: "best" first."""
        found = (path.parent for pattern in ("best*", "front/*") for path in self.folder.glob(f"{pattern}/model.json"))
        return sorted(path.relative_to(self.folder).as_posix() for path in found)


def read_ended(study: str, storage: StudyStorage, options: dict[str, Any] | None = None) -> EndedStudy:
    """Return an ended study, by its name in `storage` or by its folder.

    Args:
        options: of StudyConfig, in the place of study.yaml's.

    Raises:
        UsageError: if there is none, or if it has not ended.
    """
    config = read_study(study, storage, options or {})
    try:
        folder = config.storage.readable(config.study)
    except OSError as error:
        raise UsageError(f"--storage {error}") from None
    result = folder / "result.json"
    try:
        document = json.loads(result.read_text(encoding="utf-8"))
        about = yaml.safe_load((folder / "study.yaml").read_text(encoding="utf-8")).get("about") or {}
        return EndedStudy(config, dict(about), dict(document), folder)
    except FileNotFoundError:
        raise UsageError(f"study {study!r} has not ended: go on with it: tune-sparsity resume {study}") from None
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UsageError(f"study {study!r}: {result} cannot be read: {error}") from None
