"""Simulate whole studies of one target: the surrogate takes the place of the trainings, and the clock is simulated.

    python -m benchmarks.curves.simulate --experiment digits [--target 0.9] [--trials 64] [--seeds 20] [--only NAME ...]
        [--picture FILE]

The file benchmarks/curves/studies.py explains the simulation. A study chooses its best trial so far by the simulated
validation accuracies of the trials, which have noise. The regret of the study is the surrogate's highest expected
accuracy at the target, minus the expected accuracy of the chosen trial. Expected accuracies have no noise, so a search
cannot look better by luck.

The row `Ray` is Ray's OptunaSearch with its AsyncHyperBandScheduler, both called directly.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.curves.pictures import regret_figure, save_picture
from benchmarks.curves.points import SPARSITY
from benchmarks.curves.studies import Make, Ours, Rays, ended_trials, highest, surrogate_of
from benchmarks.search import RULES, without_priors
from tune_sparsity.search_spaces import Space
from tune_sparsity.tuner.search.samplers import DEFAULT_SAMPLER, SAMPLERS
from tune_sparsity.tuner.study.goal import at_targets

UNIMPORTANT = ("momentum", "threshold_interval")  # according to benchmarks.curves.importance
NEAR = 0.001  # the table counts the trials until the regret is at most .1 points


@dataclass(frozen=True)
class State:
    """A study after one more of its trials has ended.

    Attributes:
        regret: the highest expected accuracy, minus the expected accuracy of the study's best trial so far.
        epochs: the epochs of all its trials so far, added up.
        seconds: the simulated time since its start.
    """

    regret: float
    epochs: int
    seconds: float


def searches() -> dict[str, Make]:
    """Return the searches by the names of the table's rows."""

    return {
        "default": Ours,
        "Ray": Rays,
        "no early stopping": partial(Ours, scheduler="none"),
        **{str(rule): partial(Ours, rule=rule) for rule in RULES[1:]},
        "no priors, no first points": partial(Ours, change=without_priors),
        "ramp alone": partial(Ours, change=partial(with_fixed, drop="ramp")),
        "what matters alone": partial(Ours, change=partial(with_fixed, names=UNIMPORTANT, drop="ramp")),
        **{name: partial(Ours, sampler=name) for name in SAMPLERS if name != DEFAULT_SAMPLER},
    }


def with_fixed(space: Space, names: Collection[str] = (), **values: Any) -> Space:
    """Return the space with some parameters fixed. First points that have other values for these are left out.

    Args:
        space: the space.
        names: the parameters that are fixed at the centres of their priors.
        values: more parameters that are fixed, with their values.
    """
    centre = space.centre()
    fixed = {**{name: centre[name] for name in names}, **values}
    searched = {
        name: distribution
        for name, distribution in space.distributions.items()
        if name not in fixed and space.applies(name, {**centre, **fixed})
    }
    agreeing = [
        place
        for place, one in enumerate(space.first)
        if fixed.items() >= {n: one[n] for n in fixed if n in one}.items()
    ]
    return replace(
        space,
        distributions=searched,
        fixed={**space.fixed, **fixed},
        first=tuple({n: value for n, value in space.first[place].items() if n in searched} for place in agreeing),
        near=tuple(space.near[place] for place in agreeing),
        priors={name: prior for name, prior in space.priors.items() if name in searched},
        when={name: when for name, when in space.when.items() if name in searched},
    )


def course(experiment: str, target: float, trials: int, seed: int, make: Make) -> list[State]:
    """Run a simulated study. Return its state after each of its trials."""
    top, named, found = highest(experiment, target), (-1.0, 0.0), list[State]()
    for ended in ended_trials(experiment, at_targets(target), trials, seed, make):
        trial = ended.trial
        if trial.finished and trial.params[SPARSITY] >= target:
            named = max(named, (trial.curve[-1], trial.expected))
        found.append(State(top - named[1], ended.epochs, ended.seconds))
    return found


def _row(name: str, courses: list[list[State]], whole: int) -> Iterator[str]:
    """Yield the cells of a search's row."""
    yield name
    near = [next((k for k, one in enumerate(some, 1) if one.regret <= NEAR), float("inf")) for some in courses]
    yield f"{statistics.median(near):g}"
    for trials in (8, 16, 32, 64, 128):
        if trials <= len(courses[0]):
            regrets = [100 * some[trials - 1].regret for some in courses]
            spread = statistics.stdev(regrets) / len(regrets) ** 0.5 if len(regrets) > 1 else 0.0
            yield f"{statistics.mean(regrets):.2f} ± {spread:.2f}"
    yield f"{1 - statistics.mean(some[-1].epochs for some in courses) / whole:.2f}"
    yield f"{statistics.mean(some[-1].seconds for some in courses):.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--target", type=float, default=0.9)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=list(searches()), default=[])
    parser.add_argument("--picture", type=Path, help="draw the regrets into this .png or .html")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    surrogate = surrogate_of(options.experiment)
    print(f"Highest expected accuracy: {100 * highest(options.experiment, options.target):.2f} %\n")
    at = [f"regret after {trials}" for trials in (8, 16, 32, 64, 128) if trials <= options.trials]
    header = ["search", f"median trials to {100 * NEAR:g} points", *at, "epochs saved", "seconds"]
    print(f"| {' | '.join(header)} |\n|" + " --- |" * len(header))
    found: dict[str, list[list[State]]] = {}
    for name in options.only or searches():
        about = options.experiment, options.target, options.trials
        found[name] = [course(*about, seed, searches()[name]) for seed in range(options.seeds)]
        print(f"| {' | '.join(_row(name, found[name], options.trials * surrogate.epochs))} |", flush=True)
    if options.picture is not None:
        title = f"{options.experiment} at {options.target:g}: regret of simulated studies"
        save_picture(regret_figure(found, title), options.picture)


if __name__ == "__main__":
    main()
