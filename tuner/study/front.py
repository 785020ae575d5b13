"""How a study stands while its trials end, one by one: the feasible front so far, and how long nothing was gained."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from tune_sparsity.tuner.study.goal import Goal
from tune_sparsity.tuner.study.pareto import known_point, point_of
from tune_sparsity.tuner.study.trial import TrialRecord


class FrontTracker:
    """The feasible front, kept up to date at a cost that grows with the front and not with the trials.

    Args:
        goal: what the study looks for.
        records: the trials that have ended already, in the order in which they did.
    """

    def __init__(self, goal: Goal, records: Iterable[TrialRecord] = ()) -> None:
        self.goal = goal
        self.front: list[TrialRecord] = []
        self.since_gain = 0
        """Trials that ended, in whatever state, since the goal's merit rose last."""
        self._score = goal.score(())
        for record in records:
            self.add(record)

    @property
    def best(self) -> TrialRecord | None:
        """Return the best feasible trial."""
        return self.front[0] if self.front else None

    @property
    def reported(self) -> list[TrialRecord]:
        """Return the trials whose networks would be reported if the study ended now."""
        return self.goal.reported(self.front)

    def add(self, record: TrialRecord) -> bool:
        """Takes note of a trial that has ended. Returns whether it brought a gain in what the goal judges."""
        self.since_gain += 1
        if not self._enter(record):
            return False
        score = self.goal.score(self.front)
        gained = any(now > before for now, before in zip(score, self._score, strict=True))
        self._score = score
        if gained:
            self.since_gain = 0
        return gained

    def _enter(self, record: TrialRecord) -> bool:
        """Puts the trial on the front, in the place of those that it dominates, unless it is dominated itself."""
        point = point_of(record)
        if point is None or not self.goal.feasible(record):
            return False
        sparsity, merit = point
        place = bisect_left(self.front, sparsity, key=lambda other: known_point(other)[0])
        # By rising sparsity merits fall: of those at least as sparse the first is the best, and of the others the last
        # are the worst.
        if place < len(self.front):
            there = self.front[place]
            twin = (
                known_point(there) == point and record.number < there.number
            )  # of equals the first that was begun stays
            if known_point(there)[1] >= merit and not twin:
                return False
        first = place
        while first > 0 and known_point(self.front[first - 1])[1] <= merit:
            first -= 1
        last = place + (place < len(self.front) and self.front[place].sparsity == sparsity)
        self.front[first:last] = [record]
        return True
