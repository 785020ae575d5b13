"""Test the prefix of a study in an object store, on a real S3 server: URIs, names, errors and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import fs

from tests.helpers.s3_servers import S3Server
from tune_sparsity.tuner.config.study_config import make_config
from tune_sparsity.tuner.errors import UsageError
from tune_sparsity.tuner.storage import s3
from tune_sparsity.tuner.storage.local_copy import CACHE_VARIABLE, belongs, working_folder
from tune_sparsity.tuner.storage.s3 import S3Prefix, StoreError, parse_store
from tune_sparsity.tuner.storage.study_storage import S3Storage
from tune_sparsity.tuner.worker import checkpoints

# URIs and names


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3://", "the bucket is missing"),
        ("s3:///prefix", "the bucket is missing"),
        ("s3:bucket", "give a folder"),
        ("s3://b", "no bucket can have this name"),
        ("gs://bucket/x", "no other object stores"),
        ("https://bucket", "no other object stores"),
        ("s3://key:hunter2@bucket/x", "credentials"),
        ("s3://bucket/x?secret_key=hunter2", "credentials"),
        ("s3://bucket/../other", "'..'"),
        ("s3://bucket/a//b", "''"),
        ("s3://bucket/a\\b", "letters"),
    ],
)
def test_a_wrong_storage_uri_gives_a_one_line_error_without_secrets(uri: str, said: str) -> None:
    with pytest.raises(UsageError, match="--storage") as caught:
        make_config({"target": 0.9, "storage": uri})
    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_endpoint_with_a_password_is_refused_without_printing_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:hunter2@host")
    with pytest.raises(ValueError, match="AWS_ENDPOINT_URL") as caught:
        parse_store("s3://bucket")
    assert "hunter2" not in str(caught.value)


def test_the_stored_uri_of_a_study_has_no_endpoint_and_no_last_slash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://somewhere:9000")
    config = make_config({"target": 0.9, "storage": "s3://bucket/a/b/", "study": "s"}).resolved()
    assert config.model_dump(mode="json")["storage"] == "s3://bucket/a/b"
    assert isinstance(config.storage, S3Storage)
    region = config.storage.prefix.region
    assert config.storage.prefix == S3Prefix("bucket", "a/b", "http://somewhere:9000", region)


@pytest.mark.parametrize("name", ["..", "../x", "a/../../b", "/a", "a/", "a\nb", "a\\b", "", "x" * 201])
def test_no_object_name_or_study_name_leads_out_of_the_prefix(name: str) -> None:
    store = S3Prefix("bucket", "prefix")
    if name:
        with pytest.raises(ValueError, match="is no name in an object store"):
            store / name
    with pytest.raises(UsageError, match="no study's name"):
        S3Storage(store).study(name)
    assert not name or not belongs(name)


def test_each_store_and_prefix_has_its_own_working_folder_in_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    stores = [
        S3Prefix("b"),
        S3Prefix("b", "a"),
        S3Prefix("b", "a/s"),
        S3Prefix("c", "a"),
        S3Prefix("b", "a", "http://x:1"),
    ]
    long = [S3Prefix("b", "/".join(["p" * 100] * n)) for n in (2, 3)]
    folders = [working_folder(store, "s") for store in (*stores, *long)]
    assert len(set(folders)) == len(folders)
    for folder in folders:
        assert folder.parent.parent == tmp_path
        folder.mkdir(parents=True)


# Reading, writing, and what goes wrong


@pytest.mark.parametrize("size", [0, 1, 30_000_000])
def test_an_object_is_read_back_as_it_was_last_written(store: S3Prefix, size: int) -> None:
    content = torch.arange(size, dtype=torch.uint8).numpy().tobytes()
    store.write("a/b", content)
    assert store.read("a/b") == content
    store.write("a/b", b"new")
    assert store.read("a/b") == b"new"


def test_only_the_objects_below_a_prefix_are_listed(store: S3Prefix) -> None:
    for name in ("a", "b/c", "b/d/e", ".f/g"):
        store.write(name, b"")
    (store.parent / "beside").write("x", b"")
    assert store.names() == [".f/g", "a", "b/c", "b/d/e"]
    assert (store / "b").names() == ["c", "d/e"]
    assert store.parent.children() == ["beside", "s"]
    store.remove("b/c")
    store.remove("b/c")
    assert store.names() == [".f/g", "a", "b/d/e"]
    with pytest.raises(FileNotFoundError):
        store.read("b/c")


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The seconds that one request may take with all its retries: a number for each S3 client that the test makes."""
    found, real = list[float](), fs.S3FileSystem

    def noted(**options: Any) -> Any:
        tries = options["retry_strategy"].max_attempts
        found.append(tries * (options["connect_timeout"] + options["request_timeout"]))
        return real(**options)

    monkeypatch.setattr(fs, "S3FileSystem", noted)
    s3._client.cache_clear()
    yield found
    s3._client.cache_clear()


def test_an_unusable_store_gives_its_reason_within_ten_seconds_per_request(
    store: S3Prefix, server: S3Server, patience: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    store.reach()
    with pytest.raises(StoreError, match=r"^s3://nowhere-at-all/x: there is no such bucket$"):
        parse_store("s3://nowhere-at-all/x").reach()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"^s3://studies/x: nothing answers at http://127.0.0.1:9 "):
        parse_store("s3://studies/x").reach()
    server.pause()
    try:
        with pytest.raises(StoreError, match="the store does not answer"):
            store.reach()
    finally:
        server.go_on()
    assert patience
    assert max(patience) <= 10


def test_unknown_or_missing_credentials_give_an_error_that_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded = S3Server(tmp_path, guarded=True)
    try:
        for name, value in guarded.environment.items():
            monkeypatch.setenv(name, value)
        store = parse_store("s3://studies/x")
        for call in (store.reach, store.names, lambda: store.read("a"), lambda: store.write("a", b"")):
            with pytest.raises(StoreError, match="the credentials are missing or not accepted: set AWS_ACCESS_KEY_ID"):
                call()
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        s3._client.cache_clear()
        with pytest.raises(StoreError, match="AWS_ACCESS_KEY_ID"):
            store.reach()
    finally:
        guarded.kill()
        s3._client.cache_clear()


# Checkpoints


def test_a_store_keeps_the_newest_checkpoints_and_damaged_ones_are_removed(store: S3Prefix) -> None:
    def stored(number: int, epoch: int) -> str:
        return checkpoints.write(store, number, epoch, checkpoints.pack({"w": torch.ones(9), "epoch": epoch}))

    names = [stored(7, epoch) for epoch in (1, 2, 3)]
    stored(8, 1)
    assert [state["epoch"] for state in checkpoints.newest(store, 7)] == [3, 2]
    content = bytearray(store.read(names[2]))
    content[-1] ^= 1
    store.write(names[2], bytes(content))
    assert [state["epoch"] for state in checkpoints.newest(store, 7)] == [2]
    assert names[2] not in store.names()
    checkpoints.sweep(store, {8})
    assert [list(checkpoints.newest(store, 7)), len(list(checkpoints.newest(store, 8)))] == [[], 1]


def test_an_unreachable_checkpoint_store_does_not_fail_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    away = S3Prefix("studies", "x", "http://127.0.0.1:9", "us-east-1")
    monkeypatch.setenv(checkpoints.EVERY_VARIABLE, "0")
    writer = checkpoints.Writer(away)
    writer.write(1, 1, {"a": 1})
    writer.finish()
    assert writer.due in (True, False)  # the failed write raises no error, and the trial can go on
    assert writer._error is None
