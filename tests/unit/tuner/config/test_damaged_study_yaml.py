"""Test studies whose study.yaml was changed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tune_sparsity.tuner.config.files import keep_extent, read_about, read_study, write_study_yaml
from tune_sparsity.tuner.config.study_config import StudyConfig, make_config
from tune_sparsity.tuner.errors import UsageError
from tune_sparsity.tuner.storage.study_storage import LocalStorage


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of the study.yaml of a study called `one`."""
    monkeypatch.chdir(tmp_path)
    config = make_config({"target": 0.85, "study": "one"}).resolved()
    config.folder.mkdir(parents=True)
    write_study_yaml(config, epochs=3, checksum="a" * 64, device="cpu")
    return config.folder / "study.yaml"


def read(**options: Any) -> StudyConfig:
    return read_study("one", LocalStorage(Path("studies")), options)


@pytest.mark.parametrize("name", ["experiment", "method", "trials", "epochs", "seed"])
def test_a_study_yaml_without_an_option_that_is_always_written_is_refused(name: str, file: Path) -> None:
    assert read().epochs == 3
    entries = yaml.safe_load(file.read_text())
    del entries[name]
    file.write_text(yaml.safe_dump(entries))
    with pytest.raises(UsageError, match=rf"study\.yaml lacks '{name}'"):
        read()


@pytest.mark.parametrize(
    "about", ["3", "[1]", "text", "{metric: 3}", "{metric: {foo: f1}}", "{metric: {name: f1, maximize: 1}}"]
)
def test_damaged_facts_in_study_yaml_are_told_with_their_line(about: str, file: Path) -> None:
    options = file.read_text().split("about:")[0]
    file.write_text(f"{options}about: {about}\n")
    line = options.count("\n") + 1
    with pytest.raises(UsageError, match=rf"study\.yaml:{line}: (about|metric) must be a mapping"):
        read_about(read())


def test_an_error_about_an_option_of_the_command_line_names_no_line_of_the_file(file: Path) -> None:
    with pytest.raises(UsageError, match=r"^--group"):
        read(group="cascade")


def test_keep_extent_replaces_an_option_that_the_user_has_written_with_a_dash(file: Path) -> None:
    file.write_text(file.read_text().replace("time_budget: null", "time-budget: 1h"))
    assert read().time_budget == 3600
    for seconds in (3600, 120):
        keep_extent(read(time_budget=seconds).resolved())
        assert read().time_budget == seconds
