"""Format numbers, times, paths and commands as text."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from tune_sparsity.sparsity import DeadNeurons, NetworkSize
    from tune_sparsity.tuner.results.inference_cost import Timing
    from tune_sparsity.tuner.study.goal import Goal
    from tune_sparsity.tuner.study.objective import Objective

_DEAD_NAMED = 6  # layers with dead neurons that a text names
_SATURATED = 0.9  # a layer is reported if its neurons have more spikes than this in a time step, on average


def duration(seconds: float) -> str:
    """Return a duration as text with its two largest units: "41 s", "3 min 20 s", "2 h 05 min"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def time_left(seconds: float, word: str = "about") -> str:
    """Return a rough estimate of the time left as text: "about 40 s left", "a few seconds left".

    Args:
        seconds: the time left.
        word: the text before the time, for example "at most".
    """
    if seconds < 7.5:
        return "a few seconds left"
    if seconds < 90:
        return f"{word} {5 * round(seconds / 5)} s left"
    if seconds < 3600 - 30:
        return f"{word} {round(seconds / 60)} min left"
    return f"{word} {duration(600 * round(seconds / 600))} left"


def estimate_text(objective: Objective, value: float, error: float) -> str:
    """Return an estimate of a metric and its standard error as text, for example "97.10% ± 0.32 points"."""
    return f"{objective.text(value)} ± {objective.difference(error)}"


def dead_text(dead: Mapping[str, DeadNeurons], pattern: str | None = None) -> str:
    """Return a text that names the layers with dead neurons, which have no connection. Return "" if there are none.

    The layers with the most dead neurons come first.

    Args:
        dead: the number of dead neurons in each layer, by the layer's name.
        pattern: the name of the pattern of zeros; None if it is not known. If it begins with "neurons", the text calls
            the dead neurons "removed", because the pattern removes neurons on purpose.
    """
    most = sorted(dead.items(), key=lambda item: -item[1].dead)
    named = ", ".join(f"{one.dead} of {one.neurons} in {name}" for name, one in most[:_DEAD_NAMED])
    more = f" and in {len(most) - _DEAD_NAMED} more layers" if len(most) > _DEAD_NAMED else ""
    words = "removed neurons" if (pattern or "").startswith("neurons") else "neurons without a connection"
    return f"{words}: {named}{more}" if most else ""


def spikes_text(rates: Mapping[str, float]) -> str:
    """Return a warning about spiking layers that never spike or nearly always spike. Return "" if there are none.

    Args:
        rates: the mean number of spikes of a neuron in a time step, in [0, 1], by the layer's name.
    """
    odd = [
        f"{name} spikes at {rate:.1%} of the steps" for name, rate in rates.items() if rate == 0 or rate > _SATURATED
    ]
    return f"{', '.join(odd)}: such a layer passes almost no information on" if odd else ""


def few_prunable(size: NetworkSize) -> str:
    """Return a warning if less than half of the weights in a network's matrices can be pruned, or "" otherwise."""
    if 2 * size.prunable >= size.matrices:
        return ""
    share = size.prunable / size.matrices
    return f"Only {share:.1%} of the network's weights in matrices are pruned. These stay dense: {size.dense_text()}"


def costly_neurons(taken: int, most: int, *, searched: bool) -> str:
    """Return a warning for a network whose scales and biases take a large share of the allowed bytes.

    Args:
        taken: the bytes of the scales and biases of all neurons.
        most: the largest allowed size of the network's packed file in bytes (option --max-bytes).
        searched: whether trials may begin with fewer neurons (parameter `width`).
    """
    start = f"The scales and biases of this network's neurons alone take {taken:,} bytes, and --max-bytes is {most:,}"
    if searched:
        return f"{start}: the trials begin with fewer neurons (parameter width)"
    return (
        f"{start}. At this size a network with fewer neurons is probably more accurate. Built-in spaces search the "
        "number of neurons if torch-pruning is installed (pip install 'tune-sparsity[neurons]') and can remove some"
    )


def is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def shown_path(path: Path) -> str:
    """Return a path as text. A path in the current folder or below is given relative to the current folder."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (OSError, ValueError):
        return str(path)


def short_number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def command(name: str) -> str:
    """Return the text that users can type in a shell to call a command of this Python installation.

    This is the command's name if the shell finds a command with this name. Otherwise, for example in a virtual
    environment that is not activated, this is the path of the command. If there is no such file, it is the name.

    Args:
        name: the command's name.
    """
    beside = Path(sys.executable).with_name(name)
    return name if shutil.which(name) or not beside.is_file() else shlex.quote(shown_path(beside))


def latency_text(goal: Goal, latencies: Mapping[str, Timing], best: str | None) -> str:
    """Return a text about the latency of the best network and of networks that take too long. Return "" if nothing was
    measured.

    Args:
        goal: the study's target sparsities and limits, as a `Goal`.
        latencies: a dict from the names of trials to the measured times of the trials' networks.
        best: the name of the best trial; None if no network meets the goal.
    """
    limit = goal.max_latency
    if limit is None or not latencies:
        return ""
    slow = {name: one.ms for name, one in latencies.items() if one.ms > limit}
    if best is None:
        fastest = min(slow, key=slow.__getitem__, default=None)
        took = "" if fastest is None else f": the fastest, {fastest}, takes {slow[fastest]:.3g} ms"
        return f"no network meets {goal.latency}{took}"
    if best not in latencies:
        return ""
    ms, low, high = latencies[best]
    others = ", ".join(f"{name} takes {ms:.3g} ms" for name, ms in slow.items())
    return (
        f"{ms:.3g} ms ({low:.3g} to {high:.3g}) on one thread, at most {goal.latency}"
        f"{f'; too slow: {others}' if others else ''}"
    )


def corner_text(goal: Goal, sparsity: str) -> str:
    """Return a text about the area that the hypervolume measures, such as "above (sparsity 0.5, accuracy 0)".

    The numbers are the hypervolume's reference point. "above" means that the area lies above this point in a plot with
    the metric on the vertical axis. For a metric that is minimised, the text says "below".

    Args:
        goal: the study's target sparsities and limits, as a `Goal`.
        sparsity: the sparsity of the reference point, as text.
    """
    side = "above" if goal.objective.maximize else "below"
    return f"{side} (sparsity {sparsity}, {goal.objective.name} {goal.baseline:.4g})"


def percent(fraction: float) -> str:
    """Return a fraction as a percentage: 0.9 as "90%", 0.985 as "98.5%"."""
    return f"{100 * fraction:.6g}%"


def trials_text(count: int) -> str:
    """Return a number of trials in words: "1 trial" or "2 trials"."""
    return f"{count} trial{'s' * (count != 1)}"
