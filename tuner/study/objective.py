"""Defines the objective of a study: a metric that is to be maximized or minimized.

Records and files contain the metric's values. The search compares merits. The merit is the value itself, or minus the
value if the metric is minimized. A larger merit is therefore always better.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Objective:
    """A metric of networks, with its direction and its unit.

    Attributes:
        name: the metric's name, such as "accuracy" or "rmse".
        maximize: whether a larger value is better.
        percent: whether the metric's values lie in [0, 1]. They are then shown in percent.
    """

    name: str
    maximize: bool
    percent: bool

    @property
    def val(self) -> str:
        """Return the name of the metric on the validation data, such as "val_accuracy"."""
        return f"val_{self.name}"

    @property
    def at_target(self) -> str:
        """Return the name of a second metric on the validation data, such as "val_accuracy_at_target". It is the same
        metric, measured while the network is temporarily pruned to its final sparsity."""
        return f"val_{self.name}_at_target"

    @property
    def test(self) -> str:
        """Return the name of the metric on the test data, such as "test_accuracy"."""
        return f"test_{self.name}"

    @property
    def bounded(self) -> bool:
        """Return whether 0 is known to be the metric's worst value."""
        return self.percent and self.maximize

    def merit(self, value: float) -> float:
        """Return the merit of a value: the value itself, or minus the value if the metric is minimized."""
        return value if self.maximize else -value

    def value(self, merit: float) -> float:
        """Convert a merit into the value of the metric. This method is the inverse of `merit`."""
        return self.merit(merit)

    def shown(self, value: float) -> float:
        """Return the number that pictures show for a value: the percentage if `percent` is true, otherwise the value
        itself."""
        return 100 * value if self.percent else value

    @property
    def suffix(self) -> str:
        """Return the text that pictures show after the number: "%" if `percent` is true, otherwise ""."""
        return "%" if self.percent else ""

    def text(self, value: float) -> str:
        """Return a value as a text for the user, such as "98.33%"."""
        return f"{value:.2%}" if self.percent else f"{value:.4g}"

    def difference(self, values: float, sign: str = "") -> str:
        """Return a difference between two values as a text for the user, such as "0.50 points" (percentage points).

        Args:
            values: the difference.
            sign: "+" to write a plus before a positive difference.
        """
        return f"{100 * values:{sign}.2f} points" if self.percent else f"{values:{sign}.4g}"

    def to_dict(self) -> dict[str, str]:
        """Return the entry in result.json: a dict with the keys "name" and "direction". The direction is "maximize" or
        "minimize"."""
        return {"name": self.name, "direction": "maximize" if self.maximize else "minimize"}

    def __str__(self) -> str:
        return f"{self.name} ({self.to_dict()['direction']})"


ACCURACY = Objective("accuracy", maximize=True, percent=True)
