"""An empty MLflow store in an SQLite file.

MLflow makes its tables by going through all versions that they ever had, in seconds of a processor that a study's first
trials need. So it does it once for each user and each set of versions, its own and those of the packages that it makes
them with: the tables are kept in the user's cache, and a new store begins as a copy of them.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from tune_sparsity.cache import cache_folder
from tune_sparsity.tuner.system.files import write_bytes


def make_store(file: Path, artifacts: str) -> None:
    """Makes the store in a file that does not exist yet, in a folder of nobody else's.

    Args:
        artifacts: URI of the place for the artifacts of MLflow's default experiment.

    Raises:
        OSError, MlflowException: if it cannot be made.
    """
    template = kept_tables()
    copy = file.with_name(f"copy-{file.name}")  # MLflow keeps in mind what it found behind a name
    with suppress(Exception):  # whatever is wrong with a copy, MLflow makes a new one
        shutil.copyfile(template, copy)
        _check(copy)
        _open(copy, artifacts)
        copy.rename(file)
        return
    copy.unlink(missing_ok=True)
    _open(file, artifacts)
    with suppress(OSError, sqlite3.Error):
        _keep(file, template)


def kept_tables() -> Path:
    """Says where the tables are that MLflow makes with the versions installed; they have no content.

    The file is not there before MLflow first made them.
    """
    import alembic
    import mlflow
    import sqlalchemy

    made_by = "-".join(f"{each.__name__}-{each.__version__}" for each in (mlflow, sqlalchemy, alembic))
    return cache_folder() / f"{made_by}.db"


def _check(file: Path) -> None:
    """Raises unless it is a sound database with a version: with others MLflow tries for a minute and a half."""
    with closing(sqlite3.connect(file)) as database:
        (sound,) = database.execute("PRAGMA quick_check").fetchone()
        if sound != "ok" or database.execute("SELECT * FROM alembic_version").fetchone() is None:
            raise sqlite3.DatabaseError(sound)


def _open(file: Path, artifacts: str) -> None:
    """MLflow makes what is missing, and refuses tables that are not of its version."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import Engine, event

    event.listen(Engine, "connect", _without_waiting)
    try:
        SqlAlchemyStore(f"sqlite:///{file}", artifacts).engine.dispose()
    finally:
        event.remove(Engine, "connect", _without_waiting)


def _without_waiting(connection: Any, _: Any) -> None:
    """Of some hundred transactions on a file that nobody else has, only the last needs to be on the disk."""
    connection.execute("PRAGMA synchronous=OFF")


def _keep(file: Path, template: Path) -> None:
    """The default experiment stays out: it says where its artifacts are."""
    tables = file.with_name(f"tables-{file.name}")
    shutil.copyfile(file, tables)
    with closing(sqlite3.connect(tables, isolation_level=None)) as database:
        database.execute("DELETE FROM experiments")
        database.execute("VACUUM")
    template.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(template, tables.read_bytes())
