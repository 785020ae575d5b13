"""Feedback of the measured sparsity on the regrowth: gamma, the share of the dropped weights that grows back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from sparsity.schedules import Schedule


class Feedback(Protocol):
    """A controller of the sparsity; its state is what must survive a restart."""

    def update(self, sparsity: float, rho: float, progress: float) -> tuple[float, float]:
        """(gamma, boost): the share that grows back, in [0, 2], and a factor >= 1 on the drop threshold rho."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Published:
    """gamma = (1 - delta) s/S while s < S(1 - rho/2), else (1 + delta) s/S (arXiv 2103.16013; delta .1, start .95).

    Its only actuator is the regrowth: as rho falls to 0 nothing is dropped any more and the sparsity stays where it
    is. The exact projection at the end closes what is left.
    """

    target: float
    delta: float = 0.1
    gamma: float = 0.95

    def update(self, sparsity: float, rho: float, progress: float) -> tuple[float, float]:
        ratio = sparsity / self.target if self.target > 0 else 1.0
        short = sparsity < self.target * (1 - rho / 2)
        self.gamma = min(2.0, (1 - self.delta if short else 1 + self.delta) * ratio)
        return self.gamma, 1.0

    def state_dict(self) -> dict[str, Any]:
        return {"gamma": self.gamma}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.gamma = state["gamma"]


@dataclass
class ProportionalIntegral:
    """A proportional-integral controller that tracks a sparsity that rises from the initial to the target.

    With the error e = reference(progress) - s and u = kp e + ki (sum of e), regrowth is gamma = 1 - u in [0, 2], and a
    network that stays too dense with no regrowth at all is dropped from at the threshold (1 + u) rho: the controller
    keeps an actuator where the published one loses its own. The sum stops while gamma is at a bound (anti-windup).
    """

    reference: Schedule
    kp: float = 5.0
    ki: float = 1.0
    integral: float = 0.0

    def update(self, sparsity: float, rho: float, progress: float) -> tuple[float, float]:
        error = self.reference(progress) - sparsity
        control = self.kp * error + self.ki * (self.integral + error)
        if abs(control) < 1.0 or control * error < 0:
            self.integral += error
        return min(2.0, max(0.0, 1.0 - control)), 1.0 + max(0.0, control)

    def state_dict(self) -> dict[str, Any]:
        return {"integral": self.integral}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.integral = state["integral"]
