"""Finds and checks the URI of MLflow's store, without importing MLflow."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from pathlib import Path

from tune_sparsity.tuner.errors import redact

ACCEPTED = "sqlite:///FILE, postgresql://..., mysql://..., mssql://..., http(s)://HOST or databricks"
STRAY = ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_POSTGRESQL = ("psycopg2", "psycopg")
_SQLITE = re.compile(r"^(sqlite(?:\+\w+)?:///)([^?]+)", re.IGNORECASE)


def resolve_tracking_uri(option: str | None) -> str:
    """Return the tracking URI: `option`; or else the variable MLFLOW_TRACKING_URI; or else the SQLite file mlflow.db in
    the current folder. The path of an SQLite file becomes absolute."""
    uri = (option or "").strip() or os.environ.get("MLFLOW_TRACKING_URI", "").strip() or "sqlite:///mlflow.db"
    return _SQLITE.sub(lambda match: f"{match[1]}{Path.cwd() / match[2]}", uri)


def check_tracking_uri(uri: str) -> None:
    """Check the form of a tracking URI, without importing MLflow and without access to the store.

    Raises:
        ValueError: if the form is wrong. The message, in one line, says what is accepted.
    """
    scheme, _, rest = uri.partition("://")
    plain = scheme.partition("+")[0].lower()
    if plain in ("postgresql", "mysql", "mssql", "http", "https") and rest.strip("/"):
        return
    if plain == "sqlite" and (file := sqlite_file(uri)) is not None and file.name not in ("", ":memory:"):
        return
    plugins = importlib.metadata.entry_points(group="mlflow.tracking_store")
    if scheme == "databricks" or scheme in plugins.names:
        return
    folder = "MLflow no longer writes to plain folders: " if plain == "file" or "://" not in uri else ""
    raise ValueError(f"tracking URI {redact(uri)!r}: {folder}use {ACCEPTED}")


def stray_environment() -> list[str]:
    """Return the names of those MLflow environment variables that are set, but have no effect on a study."""
    return [name for name in STRAY if os.environ.get(name)]


def is_server(uri: str) -> bool:
    """Return whether the URI names a server instead of a database. A server decides itself where it stores
    artifacts."""
    return uri.partition("://")[0].partition("+")[0].lower() not in _DATABASES


def with_driver(uri: str) -> str:
    """Add the name of the installed database driver to the URI of a PostgreSQL database, as in postgresql+psycopg2://.
    A database driver is a Python package, psycopg2 or psycopg. Without its name, different versions of SQLAlchemy
    choose different packages. Return any other URI unchanged."""
    scheme, _, rest = uri.partition("://")
    if scheme.lower() != "postgresql":
        return uri
    return next((f"postgresql+{name}://{rest}" for name in _POSTGRESQL if importlib.util.find_spec(name)), uri)


def check_driver(uri: str) -> None:
    """Raise ValueError, with a message in one line, if the URI names a PostgreSQL database and no database driver for
    PostgreSQL is installed."""
    if with_driver(uri).lower().startswith("postgresql://"):
        raise ValueError("postgresql://... needs the package psycopg2: pip install 'tune-sparsity[postgresql]'")


def sqlite_file(uri: str) -> Path | None:
    """Return the file that an SQLite URI names. Return None for any other URI."""
    match = _SQLITE.match(uri)
    return Path(match[2]) if match else None
