"""The tracking URI: the accepted URIs, the default, and messages without passwords."""

from __future__ import annotations

from pathlib import Path

import pytest

from tune_sparsity.tuner.config.tracking_uri import check_tracking_uri, resolve_tracking_uri
from tune_sparsity.tuner.errors import redact


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:///mlflow.db",
        "sqlite:////data/mlflow.db",
        "postgresql://user:secret@host/db",
        "postgresql+psycopg2://host/db",
        "mysql+pymysql://host/db",
        "http://localhost:5000",
        "https://host/path",
        "databricks",
        "databricks://profile",
    ],
)
def test_uris_of_databases_and_servers_are_accepted(uri: str) -> None:
    check_tracking_uri(uri)


@pytest.mark.parametrize(
    "uri", ["", "./mlruns", "/data/mlruns", "file:///data", "sqlite://", "sqlite:///:memory:", "http://", "ftp://host"]
)
def test_the_error_about_a_refused_uri_is_one_line(uri: str) -> None:
    with pytest.raises(ValueError, match="sqlite:///FILE") as caught:
        check_tracking_uri(uri)
    assert "\n" not in str(caught.value)


def test_the_uri_comes_from_the_option_the_environment_or_a_default_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_tracking_uri(None) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///./other.db?timeout=5")
    assert resolve_tracking_uri("") == f"sqlite:///{tmp_path}/other.db?timeout=5"
    assert resolve_tracking_uri("http://host:5000") == "http://host:5000"
    assert resolve_tracking_uri("sqlite:////data/mlflow.db") == "sqlite:////data/mlflow.db"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "uri", ["postgresql://me:hunter2@host/db", "https://hunter2@host/x", "http://host/?password=hunter2&a=1"]
)
def test_credentials_are_not_shown(uri: str) -> None:
    assert "hunter2" not in redact(f"cannot reach {uri} now")
    assert "host" in redact(uri)
