"""Tests a new MLflow store: copied tables are equal to the tables that MLflow creates."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.store.db import utils

from tune_sparsity.tuner.tracking.sqlite_template import kept_tables, make_store


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def migrations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list with one entry for each time that MLflow creates its tables."""
    calls: list[Any] = []
    make = utils._initialize_tables

    def counted(engine: Any) -> None:
        calls.append(engine)
        make(engine)

    monkeypatch.setattr("mlflow.store.tracking.sqlalchemy_store.mlflow.store.db.utils._initialize_tables", counted)
    return calls


def content(file: Path) -> tuple[list[Any], dict[str, list[Any]]]:
    """Return the schema of a database and the rows of its tables. The rows of `experiments` do not contain the
    times."""
    with closing(sqlite3.connect(file)) as database:
        schema = database.execute("SELECT type, name, sql FROM sqlite_master ORDER BY type, name").fetchall()
        tables = [name for kind, name, _ in schema if kind == "table"]
        rows = {name: database.execute(f'SELECT * FROM "{name}"').fetchall() for name in tables}
    rows["experiments"] = [row[:4] for row in rows["experiments"]]
    return schema, rows


def test_copied_tables_equal_the_tables_that_mlflow_creates(tmp_path: Path, migrations: list[Any]) -> None:
    made, copied = tmp_path / "made.db", tmp_path / "copied.db"
    make_store(made, "file:///one")
    assert kept_tables().is_file()
    make_store(copied, "file:///two")
    assert len(migrations) == 1
    schema, rows = content(made)
    other_schema, other_rows = content(copied)
    assert schema == other_schema
    assert [row[2] for row in rows.pop("experiments")] == ["file:///one/0"]
    assert [row[2] for row in other_rows.pop("experiments")] == ["file:///two/0"]
    assert rows == other_rows
    for file in (made, copied):
        client = MlflowClient(tracking_uri=f"sqlite:///{file}")
        assert client.get_experiment("0").name == "Default"
        assert client.create_experiment("first") == "1"
    assert content(kept_tables())[1]["experiments"] == []


def damaged(file: Path) -> None:
    file.write_bytes(b"SQLite format 3\0" + b"x" * 4096)


def of_another_version(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.execute("UPDATE alembic_version SET version_num = 'before'")
        database.commit()


def empty(file: Path) -> None:
    file.write_bytes(b"")


def without_a_version(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database:
        database.execute("DELETE FROM alembic_version")
        database.commit()


def names(file: Path) -> list[str]:
    return [name for _, name, _ in content(file)[0]]


@pytest.mark.parametrize("spoil", [damaged, of_another_version, without_a_version, empty])
def test_damaged_or_outdated_cached_tables_are_created_again(spoil: Any, tmp_path: Path, migrations: list[Any]) -> None:
    make_store(tmp_path / "first.db", "file:///a")
    spoil(kept_tables())
    for name in ("second.db", "third.db"):
        make_store(tmp_path / name, "file:///a")
        assert names(tmp_path / name) == names(tmp_path / "first.db")
        assert content(tmp_path / name)[1] == content(tmp_path / "first.db")[1]
    assert len(migrations) == 2


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path, cache: Path, migrations: list[Any]) -> None:
    cache.write_text("no folder")
    for name in ("first.db", "second.db"):
        make_store(tmp_path / name, "file:///a")
        assert content(tmp_path / name)[1]["experiments"]
    assert len(migrations) == 2


@pytest.mark.parametrize("package", ["mlflow", "sqlalchemy", "alembic"])
def test_another_package_version_has_its_own_cached_tables(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = kept_tables()
    monkeypatch.setattr(f"{package}.__version__", "99.0")
    assert kept_tables() != before
    assert kept_tables().parent == before.parent
