"""What all tests share: one thread, no deadlines, and the folder of real data sets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# No deadline: the machine may be busy with something else.
settings.register_profile("tests", deadline=None, max_examples=50)
settings.load_profile("tests")


def pytest_sessionstart(session: pytest.Session) -> None:
    torch.set_num_threads(1)  # the tests' tensors are small: more threads only wait for each other


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that run whole studies come first: two processes that share the files then end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder that holds the real data sets (MNIST/raw, ...); the test is skipped where there is none."""
    default = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("TUNE_SPARSITY_DATA") or default)
    if not folder.is_dir():
        pytest.skip("no real data: set TUNE_SPARSITY_DATA to the folder that holds MNIST/raw and FashionMNIST/raw")
    return folder
