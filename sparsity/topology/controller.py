"""Feedback of the measured sparsity on the regrowth: gamma, the share of the dropped weights that grows back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from tune_sparsity.sparsity.schedules import Schedule


class Feedback(Protocol):
    """A controller of the sparsity; its state is what must survive a restart.

    Attributes:
        raised: what is added to the drop threshold rho at the next update, >= 0.
    """

    raised: float

    def update(self, sparsity: float, dropped: float, rho: float, progress: float) -> float:
        """gamma, the share of what was dropped that grows back, in [0, 2].

        Args:
            sparsity: before this update's drop, in [0, 1].
            dropped: what it dropped, as a fraction of all weights.
            rho: the scheduled threshold.
            progress: of the training.
        """

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class PaperFeedback:
    """gamma = (1 - delta) s/S while s < S(1 - rho/2), else (1 + delta) s/S (arXiv 2103.16013; published delta .1).

    Its only actuator is the regrowth: as rho falls to 0 nothing is dropped any more and the sparsity stays where it
    is. The exact projection at the end closes what is left.
    """

    target: float
    delta: float = 0.1
    raised: float = field(default=0.0, init=False)

    def update(self, sparsity: float, dropped: float, rho: float, progress: float) -> float:
        ratio = sparsity / self.target if self.target > 0 else 1.0
        short = sparsity < self.target * (1 - rho / 2)
        return min(2.0, (1 - self.delta if short else 1 + self.delta) * ratio)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@dataclass
class ProportionalIntegral:
    """A proportional-integral controller that tracks a sparsity that rises from the initial to the target.

    With the error e = reference(progress) - s, the sparsity should change by u = kp e + ki (sum of e) in this update;
    since what was dropped is known, regrowth is gamma = 1 - u/dropped, in [0, 2]. kp = 1 closes the error at once.
    Where even no regrowth at all leaves the network too dense, the threshold is raised from the next update on by
    twice the sparsity that is missing, and lowered again by half an update when it is not: the controller keeps an
    actuator when rho falls to 0, where the published one loses its own. The sum stops while gamma is at a bound
    (anti-windup).
    """

    reference: Schedule
    kp: float = 1.0
    ki: float = 0.1
    integral: float = field(default=0.0, init=False)
    raised: float = field(default=0.0, init=False)

    def update(self, sparsity: float, dropped: float, rho: float, progress: float) -> float:
        error = self.reference(progress) - sparsity
        change = self.kp * error + self.ki * (self.integral + error)
        missing = change - dropped
        if abs(change) < dropped or change * error < 0:
            self.integral += error
        self.raised = min(1.0, self.raised + 2 * missing) if missing > 0 else self.raised / 2
        if dropped == 0:
            return 0.0
        return min(2.0, max(0.0, 1.0 - change / dropped))

    def state_dict(self) -> dict[str, Any]:
        return {"integral": self.integral, "raised": self.raised}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.integral, self.raised = state["integral"], state["raised"]
