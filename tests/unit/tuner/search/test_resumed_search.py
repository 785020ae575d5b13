"""Tests that a search proposes the same trials after a restart of the process as without one, also if the trials end in
another order than they begin."""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tune_sparsity.tuner.search.planner import planner_for
from tune_sparsity.tuner.search.samplers import SAMPLERS
from tune_sparsity.tuner.search.searcher import Asked, OptunaSearcher
from tune_sparsity.tuner.search.spaces import space_for
from tune_sparsity.tuner.study.goal import Goal, along_front, at_targets
from tune_sparsity.tuner.study.trial import FINAL_SPARSITY, TrialRecord, TrialState

TRIALS, SLOTS = 40, 6


def proposals(journal: Path, goal: Goal, methods: Collection[str], restarts: Collection[int]) -> dict[int, Any]:
    """Run a search and return the parameters of its trials. SLOTS trials run at a time. Their durations, merits and
    states depend only on their numbers and parameters. The search is opened again whenever this many trials have
    ended."""

    def opened() -> OptunaSearcher:
        spaces = [space_for(method, goal) for method in methods]
        single = goal == at_targets(goal.lowest)
        planner = None if single else planner_for(spaces, goal, TRIALS)
        return OptunaSearcher(spaces, goal.lowest, seed=1, journal=journal, planner=planner)

    searcher, now, ended = opened(), 0.0, 0
    running: list[tuple[float, int, Asked]] = []
    found: dict[int, Any] = {}
    while ended < TRIALS:
        while len(running) < SLOTS and len(found) < TRIALS:
            asked = searcher.ask()
            found[asked.number] = asked.params
            lasts = 0.1 + np.random.default_rng(asked.number).exponential()
            heapq.heappush(running, (now + lasts, asked.number, asked))
        now, number, asked = heapq.heappop(running)
        stopped = np.random.default_rng([number, 1]).random() < 0.5
        record = TrialRecord(number, asked.method, asked.params, TrialState.PRUNED if stopped else TrialState.COMPLETED)
        record.value = 0.9 + 0.01 * math.sin(sum(37 * v for v in asked.params.values() if isinstance(v, float)))
        record.sparsity, record.elapsed = asked.params[FINAL_SPARSITY], now
        searcher.tell(record)
        ended += 1
        if ended in restarts:
            searcher = opened()
            again = {asked.number: asked for asked in (searcher.ask() for _ in running)}
            assert {number: asked.params for _, number, asked in running} == {n: a.params for n, a in again.items()}
    return found


@pytest.mark.parametrize("most", [128, 20], ids=["short", "some trials forgotten"])
@pytest.mark.parametrize("methods", [("lpss",), ("lpss", "gmp")], ids=" and ".join)
@pytest.mark.parametrize(
    "goal", [at_targets(0.9), at_targets(0.9, 0.95), along_front(0.5, 0.99)], ids=["target", "targets", "front"]
)
def test_a_restarted_search_with_parallel_trials_proposes_those_of_an_unbroken_one(
    goal: Goal, methods: Collection[str], most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SAMPLERS, "tpe", replace(SAMPLERS["tpe"], most=most))
    whole = proposals(tmp_path / "whole", goal, methods, ())
    assert proposals(tmp_path / "restarted", goal, methods, (14, 27, 33)) == whole
