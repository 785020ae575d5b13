"""An S3 server, and for each test its own prefix (a kind of folder) on this server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.s3_servers import S3Server
from tune_sparsity.tuner.storage import lease
from tune_sparsity.tuner.storage.s3 import S3Prefix, parse_store


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    started = S3Server(tmp_path_factory.mktemp("s3"))
    try:
        yield started
    finally:
        started.kill()


@pytest.fixture
def store(server: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> S3Prefix:
    """A prefix in the object store. No other test writes to it."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return parse_store(f"s3://studies/{abs(hash(request.node.name))}/s")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("BEAT", 0.1), ("TTL", 2.0), ("_LOOK", 0.2), ("_SETTLE", 0.05)):
        monkeypatch.setattr(lease, name, value)
