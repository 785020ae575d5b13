"""Test the lease, which gives a study in an object store to one driver at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.waiting import Clock
from tune_sparsity.tuner.errors import UsageError
from tune_sparsity.tuner.storage import lease
from tune_sparsity.tuner.storage.lease import OWNER, Lease, TakenOver
from tune_sparsity.tuner.storage.local_copy import CACHE_VARIABLE
from tune_sparsity.tuner.storage.s3 import S3Prefix
from tune_sparsity.tuner.storage.study_storage import STUDY_NAME, S3Storage


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of all drivers in this process. It moves on only while they sleep."""
    one = Clock()
    monkeypatch.setattr(lease, "time", one)
    return one


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the drivers of this process look like drivers on other machines: none can see whether another has ended."""
    monkeypatch.setattr(lease, "_is_gone", lambda owner: False)


@pytest.mark.usefixtures("elsewhere")
def test_a_second_driver_is_refused_while_the_first_lives(store: S3Prefix, tmp_path: Path, clock: Clock) -> None:
    first = Lease(store, tmp_path)
    assert first.take() is False
    clock.meanwhile = first.renew
    with pytest.raises(UsageError, match=r"study 's' is being run by another process, on \S+: wait for it, or end it"):
        Lease(store, tmp_path).take()
    first.renew()
    clock.meanwhile = lambda: None
    first.release()
    before = clock.now
    assert Lease(store, tmp_path).take() is True
    assert clock.now - before == lease._SETTLE  # there was nobody to wait for


@pytest.mark.usefixtures("elsewhere")
def test_studies_begun_simultaneously_on_two_machines_get_different_names(
    store: S3Prefix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = S3Storage(store)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "one"))
    with storage.new_name("digits-0.9-20260101-000000") as one:
        monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "other"))
        with storage.new_name("digits-0.9-20260101-000000") as other:
            assert one != other
            assert all(name.startswith("digits-0.9-20260101-000000-") for name in (one, other))
            assert all(STUDY_NAME.fullmatch(name) for name in (one, other))


def test_a_driver_replaces_a_silent_driver_which_cannot_renew_its_lease(
    store: S3Prefix, tmp_path: Path, clock: Clock
) -> None:
    first, second = Lease(store, tmp_path / "a"), Lease(store, tmp_path / "b")
    first.take()
    before = clock.now
    assert second.take() is True
    assert clock.now - before >= lease.TTL
    with pytest.raises(TakenOver, match="is being run by another process"):
        first.renew()
    second.renew()


def test_a_driver_does_not_wait_for_a_killed_driver_of_the_same_machine(
    store: S3Prefix, tmp_path: Path, clock: Clock
) -> None:
    script = "from tune_sparsity.tuner.storage.lease import *; import os; "
    script += f"Lease({store!r}, Path({str(tmp_path)!r})).take(); os._exit(9)"
    script = f"from tune_sparsity.tuner.storage.s3 import S3Prefix; {script}"
    assert subprocess.run([sys.executable, "-c", script], timeout=120, check=False).returncode == 9
    assert json.loads(store.read(OWNER))["ended"] is False
    Lease(store, tmp_path).take()
    assert clock.now == lease._SETTLE


def test_a_damaged_owner_object_counts_as_a_driver_that_may_be_alive(
    store: S3Prefix, tmp_path: Path, clock: Clock
) -> None:
    store.write(OWNER, b"not JSON")
    Lease(store, tmp_path).take()
    assert lease.TTL <= clock.now - lease._SETTLE < lease.TTL + lease._LOOK  # take() waited until the lease had expired


@pytest.mark.usefixtures("clock")
def test_taking_a_lease_tells_whether_the_store_may_be_newer_than_the_folder(store: S3Prefix, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()

    def run(folder: Path) -> bool:
        owner = Lease(store, folder)
        newer = owner.take()
        owner.mark()
        owner.release()
        return newer

    assert [run(folder) for folder in (one, one, two, two, one)] == [False, False, True, False, True]
