"""Create an empty MLflow store in an SQLite file, quickly.

MLflow creates its tables by running the migrations of all its versions. These migrations take seconds, and slow down
the first trials of a study. The empty tables are therefore stored in the user's cache, and a new store begins as a copy
of them. The cache has a file for each combination of versions of MLflow and its database packages.
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
    """Create a store in a new file. No other process may use the folder of the file.

    Args:
        file: the SQLite file.
        artifacts: the URI of the folder for the artifacts of MLflow's default experiment.

    Raises:
        OSError, MlflowException: if the store cannot be created.
    """
    template = kept_tables()
    copy = file.with_name(f"copy-{file.name}")  # another name, because MLflow remembers a store that failed
    with suppress(Exception):  # if the copy is unusable, MLflow creates new tables
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
    """Return the path of the cached file with empty tables, for the installed versions of MLflow and its database
    packages.

    The file exists only after MLflow has created these tables once.
    """
    import alembic
    import mlflow
    import sqlalchemy

    made_by = "-".join(f"{each.__name__}-{each.__version__}" for each in (mlflow, sqlalchemy, alembic))
    return cache_folder() / f"{made_by}.db"


def _check(file: Path) -> None:
    """Raise sqlite3.Error if the file is no valid database with a schema version. With an invalid database, MLflow
    would try for 90 seconds."""
    with closing(sqlite3.connect(file)) as database:
        (sound,) = database.execute("PRAGMA quick_check").fetchone()
        if sound != "ok" or database.execute("SELECT * FROM alembic_version").fetchone() is None:
            raise sqlite3.DatabaseError(sound)


def _open(file: Path, artifacts: str) -> None:
    """Let MLflow open the store. MLflow creates missing tables, and refuses tables of another version."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import Engine, event

    event.listen(Engine, "connect", _without_waiting)
    try:
        SqlAlchemyStore(f"sqlite:///{file}", artifacts).engine.dispose()
    finally:
        event.remove(Engine, "connect", _without_waiting)


def _without_waiting(connection: Any, _: Any) -> None:
    """Let SQLite commit without waiting for the disk. This saves time in about a hundred transactions, and is safe
    because no other process uses the file yet."""
    connection.execute("PRAGMA synchronous=OFF")


def _keep(file: Path, template: Path) -> None:
    """Save the tables in the cache. The default experiment is removed from them, because it contains the location of
    its artifacts."""
    tables = file.with_name(f"tables-{file.name}")
    shutil.copyfile(file, tables)
    with closing(sqlite3.connect(tables, isolation_level=None)) as database:
        database.execute("DELETE FROM experiments")
        database.execute("VACUUM")
    template.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(template, tables.read_bytes())
