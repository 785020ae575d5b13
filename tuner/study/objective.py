"""What a study makes as good as it can be: a metric, known by its name and its direction.

Records and files hold the metric's own values. All that searches compares merits, of which larger is better.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Objective:
    """A metric of the networks, as the study knows it.

    Attributes:
        name: "accuracy", "rmse", ...
        maximize: whether larger is better.
        percent: whether it lies in [0, 1] and is shown in percent.
    """

    name: str
    maximize: bool
    percent: bool

    @property
    def val(self) -> str:
        """Return the name of its value on the validation data."""
        return f"val_{self.name}"

    @property
    def at_target(self) -> str:
        """Return the name of its value on the validation data, as if the network were at its final sparsity."""
        return f"val_{self.name}_at_target"

    @property
    def test(self) -> str:
        """Return the name of its value on the test data."""
        return f"test_{self.name}"

    @property
    def bounded(self) -> bool:
        """Return whether 0 is its worst value."""
        return self.percent and self.maximize

    def merit(self, value: float) -> float:
        """Return how good a value is: the value itself, or minus the value where smaller is better."""
        return value if self.maximize else -value

    def value(self, merit: float) -> float:
        """Return the value that has this merit."""
        return self.merit(merit)

    def shown(self, value: float) -> float:
        """Return a value as pictures show it: before `suffix`."""
        return 100 * value if self.percent else value

    @property
    def suffix(self) -> str:
        return "%" if self.percent else ""

    def text(self, value: float) -> str:
        """Return a value as people read it."""
        return f"{value:.2%}" if self.percent else f"{value:.4g}"

    def difference(self, values: float, sign: str = "") -> str:
        """Return a difference between two values as people read it.

        Args:
            sign: "+" for one before positive differences.
        """
        return f"{100 * values:{sign}.2f} points" if self.percent else f"{values:{sign}.4g}"

    def to_dict(self) -> dict[str, str]:
        """Return the name and the direction, as result.json has them."""
        return {"name": self.name, "direction": "maximize" if self.maximize else "minimize"}

    def __str__(self) -> str:
        return f"{self.name} ({self.to_dict()['direction']})"


ACCURACY = Objective("accuracy", maximize=True, percent=True)
