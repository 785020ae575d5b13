"""Test the upload of a study's folder to an object store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.s3_servers import S3Server
from tests.helpers.waiting import until
from tune_sparsity.tuner.storage import s3, sync
from tune_sparsity.tuner.storage.lease import OWNER, Lease
from tune_sparsity.tuner.storage.local_copy import download
from tune_sparsity.tuner.storage.s3 import S3Prefix
from tune_sparsity.tuner.storage.sync import Mirror


class Watched(S3Prefix):
    """A prefix in an object store that records in which order objects are written and removed."""

    told: list[str] = []  # noqa: RUF012

    def write(self, name: str, content: bytes) -> None:
        super().write(name, content)
        if name != OWNER:
            self.told.append(name)

    def remove(self, name: str) -> None:
        super().remove(name)
        self.told.append(f"-{name}")


def put(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def watched(store: S3Prefix) -> Watched:
    Watched.told.clear()
    return Watched(store.bucket, store.prefix, store.endpoint, store.region)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a study's files, and with files that are not part of the study."""
    study = tmp_path / "study"
    put(study, study_dot_yaml="y", optuna_dot_journal="j1", result_dot_json="r", trials_dot_csv="t")
    put(study, _dot_weights__3_dot_safetensors="w3", best__model_dot_json="b", tracking__outbox_dot_jsonl="o")
    put(study, tracking__sent_dot_json="s", tracking__lock="", _dot_ray__x="ray", _dot_trials_dot_tmp="half")
    (study / "outside").symlink_to("/etc/hostname")
    return study


def test_the_upload_order_leaves_a_resumable_study_at_every_moment(
    watched: Watched, folder: Path, tmp_path: Path
) -> None:
    copy = Mirror(watched, folder, Lease(watched, folder))
    assert copy.round()
    order = watched.told.copy()
    assert order[:3] == ["study.yaml", "tracking/outbox.jsonl", "tracking/sent.json"]
    assert order.index(".weights/3.safetensors") < order.index("optuna.journal") < order.index("best/model.json")
    assert order[-1] == "result.json"
    assert len(order) == len(set(order)) == 8
    watched.told.clear()
    assert copy.round()
    assert watched.told == []
    put(folder, _dot_weights__5_dot_safetensors="w5", optuna_dot_journal="j1 j2")
    (folder / ".weights" / "3.safetensors").unlink()
    assert copy.round()
    assert watched.told == [".weights/5.safetensors", "optuna.journal", "-.weights/3.safetensors"]
    download(watched, tmp_path / "again")
    found = {path.relative_to(tmp_path / "again").as_posix() for path in (tmp_path / "again").rglob("*.*")}
    assert {".weights/5.safetensors", "optuna.journal", "best/model.json", "result.json"} <= found
    assert not {name for name in found if "ray" in name or "tmp" in name or "outside" in name}


def test_the_journal_is_uploaded_a_round_later_if_a_weights_file_disappears(
    watched: Watched, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Mirror(watched, folder, Lease(watched, folder))
    content = copy._content

    def gone(name: str) -> Any:
        return None if name.startswith(".weights") else content(name)

    with monkeypatch.context() as patched:
        patched.setattr(copy, "_content", gone)
        assert not copy.round()
    assert "optuna.journal" not in watched.names()
    assert copy.round()
    assert watched.read("optuna.journal") == b"j1"


@pytest.mark.usefixtures("quick")
def test_failed_uploads_are_repeated_and_the_files_not_sent_are_counted(
    watched: Watched, server: S3Server, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, value in (
        (sync, "EVERY", 0.2),
        (sync, "PATIENCE", 1.0),
        (s3, "_SILENCE", 1.0),
    ):
        monkeypatch.setattr(module, name, value)
    s3._client.cache_clear()
    owner = Lease(watched, folder)
    owner.take()
    with Mirror(watched, folder, owner) as copy:
        until(lambda: copy.complete)
        server.pause()
        put(folder, trials_dot_csv="new", pareto_dot_csv="p")
        until(lambda: not copy.complete)
        server.go_on()
        until(lambda: copy.complete)
    assert watched.read("pareto.csv") == b"p"
    assert capfd.readouterr().err == ""
    owner = Lease(watched, folder)
    owner.take()
    with Mirror(watched, folder, owner) as copy:
        until(lambda: copy.complete)
        server.pause()
        put(folder, trials_dot_csv="newer", pareto_dot_csv="pp")
    server.go_on()
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"2 files were not sent to {watched}, because {watched}: the store does not answer.")
    assert f"tune-sparsity resume {folder.name} --storage {watched.parent}" in line
    s3._client.cache_clear()
