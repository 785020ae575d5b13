"""Which MLflow store a study writes to, told from options and environment without importing MLflow."""

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
    """`option`, else MLFLOW_TRACKING_URI, else mlflow.db in the current folder; SQLite files as absolute paths."""
    uri = (option or "").strip() or os.environ.get("MLFLOW_TRACKING_URI", "").strip() or "sqlite:///mlflow.db"
    return _SQLITE.sub(lambda match: f"{match[1]}{Path.cwd() / match[2]}", uri)


def check_tracking_uri(uri: str) -> None:
    """Checks a tracking URI's form, without MLflow and without touching the store.

    Raises:
        ValueError: In one line, what is wrong and what is accepted.
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
    """Return the MLflow variables that are set and would redirect other tools' runs; here they are ignored."""
    return [name for name in STRAY if os.environ.get(name)]


def is_server(uri: str) -> bool:
    """Return whether something other than a database answers at the URI: it knows where artifacts go."""
    return uri.partition("://")[0].partition("+")[0].lower() not in _DATABASES


def with_driver(uri: str) -> str:
    """Return the URI with the package named by which Python speaks to PostgreSQL: which one `postgresql://` alone means
    differs between versions of SQLAlchemy."""
    scheme, _, rest = uri.partition("://")
    if scheme.lower() != "postgresql":
        return uri
    return next((f"postgresql+{name}://{rest}" for name in _POSTGRESQL if importlib.util.find_spec(name)), uri)


def check_driver(uri: str) -> None:
    """Raises ValueError, in one line, if the package is missing by which Python speaks to the URI's database."""
    if with_driver(uri).lower().startswith("postgresql://"):
        raise ValueError("postgresql://... needs the package psycopg2: pip install 'tune-sparsity[postgresql]'")


def sqlite_file(uri: str) -> Path | None:
    match = _SQLITE.match(uri)
    return Path(match[2]) if match else None
