"""Measure how many trials one driver can run at once: a study on simulated slots, with a simulated clock.

    python -m benchmarks.scale [--trials 10000] [--slots 200] [--seconds 60] [--epochs 8]

A slot is a place for one running trial. The driver is the real one: Ray Tune's controller, our searcher, early
stopping, records, journal and tracker, as `tuner.driver.ray_tune` puts them together. Only the workers are simulated:
an epoch takes time on the simulated clock, but no real time. The clock also moves by the processor time of all the
driver's threads. A worker that has sent a report waits until the driver has processed it. The figures are therefore
those of a driver with one core of its own. They contain neither the work of Ray's own processes, which carry messages,
nor the time in which the driver waits for the disk.

"ms a trial" is the driver's mean processor time for a trial, in milliseconds. "Late" is the same mean over only the
last thousand trials. The parameters of the first hundreds of trials are drawn from the priors, and these trials cost
the driver less time. "Over the ideal" compares the study's duration on the simulated clock with the ideal: the seconds
of all epochs, divided by the number of slots.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from ray.air.execution._internal.tracked_actor import TrackedActor
from ray.tune.execution import tune_controller

from benchmarks.driver import Simulated, peak_mib, study_in
from tune_sparsity.experiments import find
from tune_sparsity.tuner.cluster.join import connected
from tune_sparsity.tuner.config.study_config import make_config
from tune_sparsity.tuner.driver import ray_tune
from tune_sparsity.tuner.driver.study_run import Listener, StudyRun
from tune_sparsity.tuner.search.searcher import Asked
from tune_sparsity.tuner.study.trial import Epoch, TrialRecord
from tune_sparsity.tuner.worker.report import Report
from tune_sparsity.tuner.worker.trainable import TrialSetup


class Clock:
    """Counts simulated seconds: the processor time of the driver, and the times in which the driver has nothing to do.
    The clock jumps over these times."""

    def __init__(self) -> None:
        self._offset, self._idle = -time.process_time(), 0.0

    def now(self) -> float:
        return self._offset + time.process_time() + self._idle

    def wait_until(self, moment: float) -> None:
        self._idle += max(0.0, moment - self.now())

    @property
    def busy(self) -> float:
        """Return the processor time of the driver since the clock started."""
        return self.now() - self._idle


class Late(Listener):
    """Measures the processor time of the driver for each thousand of trials."""

    def __init__(self) -> None:
        self._ended, self._busy = 0, 0.0
        self.last = math.nan  # the driver's seconds for the last thousand trials

    def trial_ended(self, study: StudyRun, record: TrialRecord) -> None:
        self._ended += 1
        if self._ended % 1000 == 0:
            busy = SimulatedActors.clock.busy
            self.last, self._busy = busy - self._busy, busy


class SimulatedActors:
    """Takes the place of Ray Tune's actor manager: the same calls and callbacks, without processes behind them."""

    clock: Clock
    seconds: float  # of an epoch
    epochs: int
    training = 0.0  # seconds, of all epochs
    resets = 0.01  # seconds that a worker takes to begin another trial

    def __init__(self, resource_manager: Any) -> None:
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._live: dict[TrackedActor, dict[str, Any]] = {}
        self._live_actors_to_ray_actors_resources = _Handles()

    def add_actor(
        self, cls: Any, kwargs: dict[str, Any], resource_request: Any, on_start: Any, on_stop: Any, on_error: Any
    ) -> TrackedActor:
        actor = TrackedActor(next(self._order), on_start=on_start, on_stop=on_stop, on_error=on_error)
        self._live[actor] = {}
        self._begin(actor, kwargs["config"])
        self._after(self.resets, lambda: on_start(actor))
        return actor

    def _begin(self, actor: TrackedActor, config: dict[str, Any]) -> None:
        asked = Asked(config["number"], config["method"], config["params"])
        self._live[actor] = {"trial": Simulated(asked, self.epochs), "iteration": 0}

    def schedule_actor_task(
        self,
        tracked_actor: TrackedActor,
        method_name: str,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        on_result: Any = None,
        on_error: Any = None,
        _return_future: bool = False,
    ) -> None:
        if method_name == "reset":
            self._begin(tracked_actor, args[0])
            self._after(self.resets, lambda: on_result(tracked_actor, True))
        elif method_name == "train":
            SimulatedActors.training += self.seconds
            self._after(self.seconds, lambda: on_result(tracked_actor, self._epoch(tracked_actor)))

    def _epoch(self, actor: TrackedActor) -> dict[str, Any]:
        """Return the contents of a worker's report."""
        state = self._live[actor]
        trial, state["iteration"] = state["trial"], state["iteration"] + 1
        metrics = {**trial.train(), "epoch_seconds": self.seconds}
        common = {"training_iteration": state["iteration"], "timestamp": 0, "time_total_s": 0.0, "done": False}
        if trial.epoch == trial.fails_at:
            return {**common, **Report(failure="simulated").to_dict()}
        finished = trial.epoch == trial.epochs
        report = Report((Epoch(trial.epoch, metrics),), final_sparsity=trial.final_sparsity, finished=finished)
        return {**common, **report.to_dict()}

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.clock.now() + seconds, next(self._order), act))

    def next(self, timeout: float | None = None) -> bool:
        if not self._events:
            return False
        moment, _, act = heapq.heappop(self._events)
        self.clock.wait_until(moment)
        act()
        return True

    def remove_actor(self, tracked_actor: TrackedActor, kill: bool = False, stop_future: Any = None) -> bool:
        known = self._live.pop(tracked_actor, None) is not None
        if known and tracked_actor._on_stop:
            self._after(self.resets, lambda: tracked_actor._on_stop(tracked_actor))
        return known

    def is_actor_started(self, tracked_actor: TrackedActor) -> bool:
        return tracked_actor in self._live

    def is_actor_failed(self, tracked_actor: TrackedActor) -> bool:
        return False

    def clear_actor_task_futures(self, tracked_actor: TrackedActor) -> None:
        pass

    def cleanup(self) -> None:
        self._live.clear()

    def get_live_actors_resources(self) -> dict[str, float]:
        return {"CPU": float(len(self._live))}

    @property
    def num_live_actors(self) -> int:
        return len(self._live)

    num_total_actors = num_live_actors
    num_pending_actors = 0

    @property
    def num_actor_tasks(self) -> int:
        return len(self._events)


class _Handles(dict):  # type: ignore[type-arg]
    """Returns (None, None) for the process and the resources of every actor, because a simulated actor has neither."""

    def __missing__(self, actor: TrackedActor) -> tuple[None, None]:
        return (None, None)


def measure(trials: int, slots: int, seconds: float, epochs: int) -> dict[str, float]:
    """Run a study of `trials` trials on `slots` slots. A complete trial has `epochs` epochs, which take `seconds`
    seconds together."""
    SimulatedActors.clock, SimulatedActors.seconds, SimulatedActors.epochs = Clock(), seconds / epochs, epochs
    SimulatedActors.training = 0.0
    with tempfile.TemporaryDirectory() as folder:
        late = Late()
        study, tracker = study_in(Path(folder), trials, epochs, front=False, more=[late])
        setup = TrialSetup(find("digits"), epochs, 0, "cpu", study.config.folder / ".weights")
        config = make_config({"target": 0.9}).resolved()
        with connected(config), mock.patch.object(tune_controller, "RayActorManager", SimulatedActors):
            clock = SimulatedActors.clock = Clock()
            arrays = {"none": np.zeros(1)}
            stop = ray_tune.StopWhen(None)
            ray_tune.run_trials(study, setup, arrays, gpus=0, concurrency=slots, stop=stop)
            took, busy = clock.now(), clock.busy
        tracker.close()
        assert len(study.records) == trials
        assert not study.running()
    ideal = SimulatedActors.training / slots
    return {"took": took, "busy": busy, "late": late.last, "ideal": ideal, "peak": peak_mib()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--slots", type=int, nargs="+", default=[200])
    parser.add_argument("--seconds", type=float, nargs="+", default=[60.0])
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    print("| trials | slots | seconds a trial | ms a trial | late | driver busy | clock, s | over the ideal | MiB |")
    print("|" + " --- |" * 9)
    for slots, seconds in itertools.product(options.slots, options.seconds):
        got = measure(options.trials, slots, seconds, options.epochs)
        print(
            f"| {options.trials:,} | {slots} | {seconds:g} | {1000 * got['busy'] / options.trials:.1f} | "
            f"{got['late']:.1f} | {got['busy'] / got['took']:.0%} | {got['took']:.0f} | "
            f"{got['took'] / got['ideal'] - 1:.1%} | {got['peak']:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
