"""Control the sparsity during threshold adaptation, a rule that drops small weights and grows others.

A controller returns gamma, the number of weights to grow divided by the number of weights dropped in the same update.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from tune_sparsity.sparsity.schedules import Schedule


class Feedback(Protocol):
    """Defines the methods that every controller of the sparsity has.

    Attributes:
        raised: a number >= 0 that the next update of the masks adds to the drop threshold rho. A neuron drops the
            weights whose magnitude is less than the threshold x the mean magnitude of its active weights.
    """

    raised: float

    def update(self, sparsity: float, dropped: float, rho: float, progress: float) -> float:
        """Return gamma in [0, 2]: the number of weights to grow, divided by the number of dropped weights.

        Args:
            sparsity: the sparsity before this update, in [0, 1].
            dropped: the weights that this update drops, as a fraction of all weights.
            rho: the scheduled drop threshold at this update. The attribute `raised` has not been added to it.
            progress: the fraction of the training steps that are done, in [0, 1].
        """

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class PaperFeedback:
    """Implements the controller of arXiv 2103.16013.

    For the sparsity s, the target S and the drop threshold rho, gamma = (1 - delta) s/S if s < S(1 - rho/2), otherwise
    gamma = (1 + delta) s/S. The published delta is .1.

    When rho falls to 0, no weights are dropped, and the sparsity no longer changes. The sparsity may then differ from
    S. The training corrects this difference at the end, in `SparseTraining.project`.
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
    """Implements a proportional-integral controller. The sparsity s follows the schedule `reference`.

    With the error e = reference(progress) - s, this update should change the sparsity by u = kp e + ki (sum of e).
    Therefore gamma = 1 - u/dropped, limited to [0, 2]. With kp = 1, one update corrects the whole error.

    If dropped < u, this update drops too few weights, even though no weights grow (gamma = 0). The controller then adds
    2 (u - dropped) to `raised`, up to `raised` = 1, so that the next update has a higher drop threshold. Otherwise the
    controller halves `raised`. This controller can therefore drop weights after rho has fallen to 0, which
    PaperFeedback cannot. The sum of e does not grow while gamma is at a limit (anti-windup).
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
