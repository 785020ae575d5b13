"""The private names of Ray: all are listed, Ray has them, and every patch is undone."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.layout import used_names
from tune_sparsity.tuner.cluster import ray_patches
from tune_sparsity.tuner.cluster.ray_patches import (
    PRIVATE,
    in_waiting_processes,
    lost_while_waiting,
    patched,
    why_not,
    without_agents,
    without_dashboard,
    without_mlflow,
)

NAMES = [private.name for private in PRIVATE]
SOURCE = Path(inspect.getfile(ray_patches)).read_text()
PATCHES = (in_waiting_processes, lost_while_waiting, without_agents, without_dashboard, without_mlflow)


def is_private(part: str) -> bool:
    return part.startswith("_") and not part.startswith("__")


def test_all_private_names_are_listed() -> None:
    tree = ast.parse(SOURCE)
    used = {name for name in used_names(tree) if name.startswith("ray.") and any(map(is_private, name.split(".")))}
    assert len(used) > 10
    for name in used:
        assert any(f"{name}.".startswith(f"{one}.") or f"{one}.".startswith(f"{name}.") for one in NAMES), name
    parts = {part for name in NAMES for part in name.split(".")}
    ours = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_private(node.attr)}
    assert attributes - ours <= parts


@pytest.mark.parametrize("name", NAMES)
def test_ray_has_every_listed_private_name_and_the_code_uses_it(name: str) -> None:
    owner, _, last = name.rpartition(".")
    assert SOURCE.count(last) > 1
    try:
        importlib.import_module(name)
    except ImportError:
        found = attribute(owner)
        assert hasattr(found, last) or re.search(rf"self\.{last}\b.* = ", inspect.getsource(found))


def attribute(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        owner, _, last = name.rpartition(".")
        return getattr(attribute(owner), last)


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.__name__)
def test_a_patch_is_undone_at_the_end_of_its_block(patch: Any) -> None:
    from ray._private import node, services
    from ray.air._internal import usage
    from ray.tune.execution import class_cache, tune_controller

    def held() -> list[Any]:
        cache, controller = class_cache._ActorClassCache.get, tune_controller.TuneController._process_trial_failure
        return [usage.tag_callbacks, services.start_ray_process, node.Node.start_api_server, cache, controller]

    before = held()
    with suppress(KeyError), patched(patch):
        assert sum(one is not other for one, other in zip(before, held(), strict=True)) == 1
        raise KeyError
    assert held() == before


def test_a_patch_is_left_out_if_ray_lacks_its_private_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import services
    from ray.air._internal import usage

    monkeypatch.delattr(usage, "tag_callbacks")
    assert "has no attribute 'tag_callbacks'" in why_not(without_mlflow)
    launch = services.start_ray_process
    with patched(without_mlflow, without_agents):
        assert services.start_ray_process is not launch
        assert not hasattr(usage, "tag_callbacks")
    assert services.start_ray_process is launch
    assert why_not(without_agents) == ""
