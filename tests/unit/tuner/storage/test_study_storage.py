"""Tests where studies are stored: the values of --storage, and how a study is found, claimed and read."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tune_sparsity.tuner.errors import UsageError
from tune_sparsity.tuner.storage.places import Folder
from tune_sparsity.tuner.storage.s3 import S3Prefix
from tune_sparsity.tuner.storage.study_storage import LocalStorage, S3Storage, parse_storage


def test_the_storage_option_accepts_a_folder_or_an_s3_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    assert parse_storage("kept/here") == parse_storage(Path("kept/here")) == LocalStorage(Path("kept/here"))
    assert parse_storage("s3://bucket/a/") == S3Storage(S3Prefix("bucket", "a"))
    assert [str(parse_storage(text)) for text in ("kept/here", "s3://bucket/a/")] == ["kept/here", "s3://bucket/a"]


@pytest.mark.parametrize("value", ["", "a\0", 5, None, ["a"], "gs://bucket", "s3:bucket"])
def test_an_invalid_value_of_the_storage_option_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="give a folder, or s3://BUCKET/PREFIX"):
        parse_storage(value)


def test_a_study_is_found_by_its_name_or_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("here/a", "here/b", "there/c"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "study.yaml").write_text("")
    here, there = LocalStorage(tmp_path / "here"), LocalStorage(tmp_path / "there")
    monkeypatch.chdir(tmp_path)
    assert here.find("a") == (here, "a")
    assert here.find("there/c") == here.find(str(tmp_path / "there" / "c")) == (there, "c")
    with pytest.raises(UsageError, match=r"^there is no study 'c' in .*; the studies there are: a, b$"):
        here.find("c")
    with pytest.raises(UsageError, match=r"there are no studies$"):
        LocalStorage(tmp_path / "nowhere").find("x" * 300)
    assert here.folder_with("a", "study.yaml") == tmp_path / "here" / "a"
    assert here.folder_with("a", "optuna.journal") is None
    monkeypatch.chdir(tmp_path / "there")
    away = S3Storage(S3Prefix("studies", "x", "http://127.0.0.1:9", "us-east-1"))
    assert away.folder_with("c", "study.yaml") == Path("c")  # a local folder is tried before the object store


def test_one_process_claims_a_study_and_a_resume_removes_temporary_files(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "new" / "studies")
    assert not storage.exists("s")
    with storage.claim("s", resume=False) as mirror:
        assert mirror is None
        assert storage.exists("s")
        storage.checkpoints("s").write("a", b"x")
        (storage.folder("s") / ".half.tmp").write_text("")
        with pytest.raises(UsageError, match="is being run by another process"), storage.claim("s", resume=True):
            pytest.fail("two processes have it")
    with storage.claim("s", resume=True):
        assert [path.name for path in storage.folder("s").iterdir()] == [".checkpoints"]


def test_a_check_of_a_folder_leaves_no_trace(tmp_path: Path) -> None:
    LocalStorage(tmp_path / "new" / "studies").check()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write there"):
        LocalStorage(tmp_path / "file" / "studies").check()


def test_a_pickled_folder_contains_its_path_as_text() -> None:
    """Versions of Python pickle a path differently. A node with another version must unpickle the folder, so that it
    can report its version."""
    sent = pickle.dumps(Folder(Path("/studies/s")))
    assert b"pathlib" not in sent
    assert pickle.loads(sent) == Folder(Path("/studies/s"))


def test_studies_that_begin_at_once_take_names_of_their_own(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "new" / "studies")
    met = threading.Barrier(8)

    def begin(_: int) -> str:
        met.wait()
        with storage.new_name("digits-0.9") as name, storage.claim(name, resume=False):
            (storage.folder(name) / "study.yaml").write_text("")
            met.wait()
            return name

    with ThreadPoolExecutor(8) as pool:
        names = sorted(pool.map(begin, range(8)))
    assert names == ["digits-0.9", *(f"digits-0.9-{number}" for number in range(2, 9))]
    assert storage.studies() == names


def test_a_name_that_was_not_used_leaves_no_trace(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "new" / "studies")
    with storage.new_name("a") as name:
        assert name == "a"
        assert storage.exists("a")
    assert list(tmp_path.iterdir()) == []
    storage.folder("a").mkdir(parents=True)
    with storage.new_name("a") as name:
        assert name == "a-2"
    assert [path.name for path in storage.path.iterdir()] == ["a"]
