"""Tracks the front of a running study's feasible trials, and counts the trials since the study's result last
improved."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from tune_sparsity.tuner.study.goal import Goal, GoalKind
from tune_sparsity.tuner.study.pareto import known_point, point_of
from tune_sparsity.tuner.study.trial import TrialRecord


class FrontTracker:
    """Keeps the front of a running study's feasible trials up to date. The time to add a trial depends on the size of
    the front, not on the number of trials.

    Args:
        goal: the study's goal.
        records: the trials that have ended already, in the order in which they ended.

    Attributes:
        front: the feasible front, in order of increasing sparsity.
        candidates: the result of `Goal.candidates` if the goal has a limit of milliseconds: a list of trials. At the
            end of the study, the networks of these trials are timed in the order of the list, until a network meets the
            limit. For any other goal, the list is empty.
        since_gain: the number of trials that have ended, in any state, since the last trial that improved the study's
            result (see `Goal.score`).
    """

    def __init__(self, goal: Goal, records: Iterable[TrialRecord] = ()) -> None:
        self.goal = goal
        self.front: list[TrialRecord] = []
        self.candidates: list[TrialRecord] = []
        self.since_gain = 0
        self._score = goal.score(())
        for record in records:
            self.add(record)

    @property
    def best(self) -> TrialRecord | None:
        """Return the best feasible trial. Return None if no trial is feasible."""
        return self.front[0] if self.front else None

    @property
    def reported(self) -> list[TrialRecord]:
        """Return the trials whose networks the study would report if it ended now. For a goal with a limit of
        milliseconds, return all `candidates`, because only a measurement decides which of them is reported."""
        return self.candidates or self.goal.reported(self.front)

    def add(self, record: TrialRecord) -> bool:
        """Add a trial that has ended. Return whether the trial has improved the study's result (see Goal.score)."""
        self.since_gain += 1
        if self.goal.kind is GoalKind.MAX_LATENCY:
            self.candidates = self.goal.candidates([*self.candidates, record])
        if not self._enter(record):
            return False
        score = self.goal.score(self.front)
        gained = any(now > before for now, before in zip(score, self._score, strict=True))
        self._score = score
        if gained:
            self.since_gain = 0
        return gained

    def _enter(self, record: TrialRecord) -> bool:
        """Add the trial to the front, and remove the trials that it dominates. Return True, or False if the trial is
        infeasible or dominated, so that the front does not change."""
        point = point_of(record)
        if point is None or not self.goal.feasible(record):
            return False
        sparsity, merit = point
        place = bisect_left(self.front, sparsity, key=lambda other: known_point(other)[0])
        # On the front, merit falls as sparsity rises. So only the trial at `place` can dominate the new one, and the
        # new one dominates the last trials before `place`.
        if place < len(self.front):
            there = self.front[place]
            twin = (
                known_point(there) == point and record.number < there.number
            )  # of trials at the same point, the one that began first stays
            if known_point(there)[1] >= merit and not twin:
                return False
        first = place
        while first > 0 and known_point(self.front[first - 1])[1] <= merit:
            first -= 1
        last = place + (place < len(self.front) and self.front[place].sparsity == sparsity)
        self.front[first:last] = [record]
        return True
