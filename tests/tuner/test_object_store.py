"""A place in an object store, against a real S3 server: names, errors, checkpoints, a study's driver and its mirror."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tuner.s3_servers import S3Server
from tune_sparsity.tuner.config.study_config import make_config, study_in
from tune_sparsity.tuner.errors import UsageError
from tune_sparsity.tuner.storage import lease, s3, sync
from tune_sparsity.tuner.storage.lease import OWNER, Owner, TakenOver
from tune_sparsity.tuner.storage.local_copy import CACHE_VARIABLE, belongs, bring, working_folder
from tune_sparsity.tuner.storage.s3 import Store, StoreError, parse_store
from tune_sparsity.tuner.storage.sync import Mirror
from tune_sparsity.tuner.worker import checkpoints


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    started = S3Server(tmp_path_factory.mktemp("s3"))
    try:
        yield started
    finally:
        started.kill()


@pytest.fixture
def store(server: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Store:
    """A prefix that no other test writes to."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return parse_store(f"s3://studies/{abs(hash(request.node.name))}/s")


# URIs and names


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3://", "the bucket is missing"),
        ("s3:///prefix", "the bucket is missing"),
        ("s3:bucket", "give a folder"),
        ("s3://b", "that is no bucket"),
        ("gs://bucket/x", "no other object stores"),
        ("https://bucket", "no other object stores"),
        ("s3://key:hunter2@bucket/x", "credentials"),
        ("s3://bucket/x?secret_key=hunter2", "credentials"),
        ("s3://bucket/../other", "'..'"),
        ("s3://bucket/a//b", "''"),
        ("s3://bucket/a\\b", "letters"),
    ],
)
def test_a_wrong_uri_is_one_line_without_secrets(uri: str, said: str) -> None:
    with pytest.raises(UsageError, match="--storage") as caught:
        make_config({"target": 0.9, "storage": uri})
    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_endpoint_with_a_password_is_refused_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:hunter2@host")
    with pytest.raises(ValueError, match="AWS_ENDPOINT_URL") as caught:
        parse_store("s3://bucket")
    assert "hunter2" not in str(caught.value)


def test_a_uri_is_written_down_as_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://somewhere:9000")
    config = make_config({"target": 0.9, "storage": "s3://bucket/a/b/", "study": "s"}).resolved()
    assert config.model_dump(mode="json")["storage"] == "s3://bucket/a/b"
    assert config.storage == Store("bucket", "a/b", "http://somewhere:9000", config.storage.region)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["..", "../x", "a/../../b", "/a", "a/", "a\nb", "a\\b", "", "x" * 201])
def test_no_name_leads_out_of_the_prefix(name: str) -> None:
    store = Store("bucket", "prefix")
    if name:
        with pytest.raises(ValueError, match="a name in an object store"):
            store / name
    with pytest.raises(UsageError, match="no study's name"):
        study_in(store, name)
    assert not name or not belongs(name)


def test_working_folders_are_apart_and_below_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    stores = [Store("b"), Store("b", "a"), Store("b", "a/s"), Store("c", "a"), Store("b", "a", "http://x:1")]
    long = [Store("b", "/".join(["p" * 100] * n)) for n in (2, 3)]
    folders = [working_folder(store, "s") for store in (*stores, *long)]
    assert len(set(folders)) == len(folders)
    for folder in folders:
        assert folder.parent.parent == tmp_path
        folder.mkdir(parents=True)


# Reading, writing, and what goes wrong


@pytest.mark.parametrize("size", [0, 1, 30_000_000])
def test_what_is_read_is_what_was_written(store: Store, size: int) -> None:
    content = torch.arange(size, dtype=torch.uint8).numpy().tobytes()
    store.write("a/b", content)
    assert store.read("a/b") == content
    store.write("a/b", b"new")
    assert store.read("a/b") == b"new"


def test_names_are_those_below_the_prefix(store: Store) -> None:
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


def test_what_is_wrong_with_a_store_is_told_within_seconds(
    store: Store, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.reach()
    start = time.monotonic()
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
    assert time.monotonic() - start < 20


def test_credentials_that_nobody_made_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_checkpoints_are_kept_checked_and_swept_in_a_store(store: Store) -> None:
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


def test_a_checkpoint_that_a_store_does_not_take_ends_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    away = Store("studies", "x", "http://127.0.0.1:9", "us-east-1")
    monkeypatch.setenv(checkpoints.EVERY_VARIABLE, "0")
    writer = checkpoints.Writer(away)
    writer.write(1, 1, {"a": 1})
    writer.finish()
    assert writer.due in (True, False)  # raises nothing, and goes on
    assert writer._error is None


# Whose a study is


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("BEAT", 0.1), ("LAPSE", 2.0), ("_LOOK", 0.2), ("_SETTLE", 0.05)):
        monkeypatch.setattr(lease, name, value)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether another driver lives cannot be seen on this machine."""
    monkeypatch.setattr(lease, "_is_gone", lambda owner: False)


@pytest.mark.usefixtures("quick", "elsewhere")
def test_a_second_driver_is_refused_while_the_first_lives(store: Store, tmp_path: Path) -> None:
    first, over = Owner(store, tmp_path), threading.Event()
    assert first.take() is False

    def live() -> None:
        while not over.wait(0.1):
            first.renew()

    alive = threading.Thread(target=live)
    alive.start()
    try:
        with pytest.raises(UsageError, match=r"study 's' is being run by another process, on \S+: wait, or end it"):
            Owner(store, tmp_path).take()
        first.renew()
    finally:
        over.set()
        alive.join()
    first.release()
    start = time.monotonic()
    assert Owner(store, tmp_path).take() is True
    assert time.monotonic() - start < 1  # nothing to wait for


@pytest.mark.usefixtures("quick", "elsewhere")
def test_a_driver_that_is_silent_is_followed_and_learns_it(store: Store, tmp_path: Path) -> None:
    first, second = Owner(store, tmp_path / "a"), Owner(store, tmp_path / "b")
    first.take()
    assert second.take() is True
    with pytest.raises(TakenOver, match="is being run by another process"):
        first.renew()
    second.renew()


@pytest.mark.usefixtures("quick")
def test_a_driver_that_was_killed_on_this_machine_is_not_waited_for(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "from tune_sparsity.tuner.storage.lease import *; import os; "
    script += f"Owner({store!r}, Path({str(tmp_path)!r})).take(); os._exit(9)"
    script = f"from tune_sparsity.tuner.storage.s3 import Store; {script}"
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 9
    assert json.loads(store.read(OWNER))["ended"] is False
    monkeypatch.setattr(lease, "LAPSE", 60.0)
    start = time.monotonic()
    Owner(store, tmp_path).take()
    assert time.monotonic() - start < 10


@pytest.mark.usefixtures("quick")
def test_a_damaged_mark_is_taken_for_a_driver_that_may_live(store: Store, tmp_path: Path) -> None:
    store.write(OWNER, b"not JSON")
    start = time.monotonic()
    Owner(store, tmp_path).take()
    assert 1.9 < time.monotonic() - start < 10  # it was waited for


@pytest.mark.usefixtures("quick")
def test_the_folder_knows_whether_it_is_the_newest(store: Store, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()

    def run(folder: Path) -> bool:
        owner = Owner(store, folder)
        newer = owner.take()
        owner.mark()
        owner.release()
        return newer

    assert [run(folder) for folder in (one, one, two, two, one)] == [False, False, True, False, True]


# The mirror


class Watched(Store):
    """Notes the order in which objects are put and removed."""

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
def watched(store: Store) -> Watched:
    Watched.told.clear()
    return Watched(store.bucket, store.prefix, store.endpoint, store.region)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study's files, and what is none of them."""
    study = tmp_path / "study"
    put(study, study_dot_yaml="y", optuna_dot_journal="j1", result_dot_json="r", trials_dot_csv="t")
    put(study, _dot_weights__3_dot_safetensors="w3", best__model_dot_json="b", tracking__outbox_dot_jsonl="o")
    put(study, tracking__sent_dot_json="s", tracking__lock="", _dot_ray__x="ray", _dot_trials_dot_tmp="half")
    (study / "outside").symlink_to("/etc/hostname")
    return study


def test_what_arrives_can_be_resumed_at_every_moment(watched: Watched, folder: Path, tmp_path: Path) -> None:
    copy = Mirror(watched, folder, Owner(watched, folder))
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
    bring(watched, tmp_path / "again")
    found = {path.relative_to(tmp_path / "again").as_posix() for path in (tmp_path / "again").rglob("*.*")}
    assert {".weights/5.safetensors", "optuna.journal", "best/model.json", "result.json"} <= found
    assert not {name for name in found if "ray" in name or "tmp" in name or "outside" in name}


def test_the_journal_waits_for_networks_that_were_removed_meanwhile(
    watched: Watched, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Mirror(watched, folder, Owner(watched, folder))
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
def test_a_store_that_is_away_is_tried_again_and_what_is_missing_is_told(
    watched: Watched, server: S3Server, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, value in (
        (sync, "EVERY", 0.2),
        (sync, "PATIENCE", 1.0),
        (s3, "_SILENCE", 1.0),
    ):
        monkeypatch.setattr(module, name, value)
    s3._client.cache_clear()
    owner = Owner(watched, folder)
    owner.take()
    with Mirror(watched, folder, owner) as copy:
        _until(lambda: copy.complete)
        server.pause()
        put(folder, trials_dot_csv="new", pareto_dot_csv="p")
        _until(lambda: not copy.complete)
        server.go_on()
        _until(lambda: copy.complete)
    assert watched.read("pareto.csv") == b"p"
    assert capfd.readouterr().err == ""
    owner = Owner(watched, folder)
    owner.take()
    with Mirror(watched, folder, owner) as copy:
        _until(lambda: copy.complete)
        server.pause()
        put(folder, trials_dot_csv="newer", pareto_dot_csv="pp")
    server.go_on()
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"Not in {watched}: 2 files, since {watched}: the store does not answer.")
    assert f"tune-sparsity resume {folder.name} --storage {watched.parent} brings them" in line
    s3._client.cache_clear()


def _until(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
