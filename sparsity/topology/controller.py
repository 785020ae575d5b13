"""Control the sparsity with gamma, the share of the dropped weights that grows back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from tune_sparsity.sparsity.schedules import Schedule


class Feedback(Protocol):
    """A controller of the sparsity. A checkpoint contains its state.

    Attributes:
        raised: the increase of the drop threshold rho at the next update, >= 0.
    """

    raised: float

    def update(self, sparsity: float, dropped: float, rho: float, progress: float) -> float:
        """Return gamma, the share of the dropped weights that grows back, in [0, 2].

        Args:
            sparsity: the sparsity before this update, in [0, 1].
            dropped: the weights that this update drops, as a fraction of all weights.
            rho: the value of the drop threshold's schedule at this update, without `raised`.
            progress: the share of the training that is done, in [0, 1].
        """

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class PaperFeedback:
    """The published feedback: gamma = (1 - delta) s/S while s < S(1 - rho/2), else (1 + delta) s/S, for the sparsity s
    and the target S (arXiv 2103.16013; published delta .1).

    This controller changes only how many weights grow back. When rho falls to 0, no weights are dropped, and the
    sparsity no longer changes. The exact projection at the end corrects the remaining difference.
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
    """A proportional-integral controller. It follows a sparsity that rises from the initial to the final one.

    With the error e = reference(progress) - s, the sparsity should change by u = kp e + ki (sum of e) in this update.
    The dropped fraction is known, so that gamma = 1 - u/dropped, limited to [0, 2]. kp = 1 corrects the error at once.

    If the network is too dense even without regrowth, the threshold is raised at the next update by twice the missing
    sparsity. In later updates this increase is halved when it is not needed. Unlike the published controller, this one
    can therefore still act when rho falls to 0. The sum of e does not change while gamma is at a limit (anti-windup).
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
