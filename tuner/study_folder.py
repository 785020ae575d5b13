"""A study that has ended, as its folder tells of it: for the commands that look at studies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tuner.config import StudyConfig, UsageError
from tuner.config_file import read_study
from tuner.goal import Goal
from tuner.records import TrialRecord


@dataclass(frozen=True)
class EndedStudy:
    """What an ended study left in its folder.

    Attributes:
        config: from study.yaml, its storage and name from where the folder lies now.
        about: study.yaml's account of versions, device and data.
        result: result.json.
    """

    config: StudyConfig
    about: dict[str, Any]
    result: dict[str, Any]

    @property
    def folder(self) -> Path:
        return self.config.folder

    @property
    def goal(self) -> Goal:
        config = self.config
        if config.max_nonzero is not None:
            return Goal((self.result["target"],), max_nonzero=config.max_nonzero)
        if config.front is not None:
            return Goal((config.front[0],), ceiling=config.front[1])
        assert config.target is not None
        return Goal(config.target if isinstance(config.target, tuple) else (config.target,))

    def records(self) -> list[TrialRecord]:
        """All ended trials, by number."""
        from tuner.warm_start import records_of  # brings Optuna

        return records_of(self.folder)

    @property
    def networks(self) -> list[str]:
        """The networks that the study wrote, as folders under its own: "best" first."""
        found = (path.parent for pattern in ("best*", "front/*") for path in self.folder.glob(f"{pattern}/model.json"))
        return sorted(path.relative_to(self.folder).as_posix() for path in found)


def read_ended(study: str, storage: Path, options: dict[str, Any] | None = None) -> EndedStudy:
    """An ended study, by its name in `storage` or by its folder.

    Args:
        options: of StudyConfig, in the place of study.yaml's.

    Raises:
        UsageError: if there is none, or if it has not ended.
    """
    config = read_study(study, storage, options or {})
    result = config.folder / "result.json"
    try:
        document = json.loads(result.read_text(encoding="utf-8"))
        about = yaml.safe_load((config.folder / "study.yaml").read_text(encoding="utf-8")).get("about") or {}
        return EndedStudy(config, dict(about), dict(document))
    except FileNotFoundError:
        raise UsageError(f"study {study!r} has not ended: go on with it: tune-sparsity resume {study}") from None
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UsageError(f"study {study!r}: {result} cannot be read: {error}") from None
