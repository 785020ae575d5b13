"""Trains the best trial of each method again with other seeds (--final-seeds), several trainings at the same time."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tune_sparsity.tuner.config.study_config import StudyConfig
from tune_sparsity.tuner.driver.prepare import Prepared
from tune_sparsity.tuner.errors import one_line
from tune_sparsity.tuner.results.retraining import Retraining, best_of_each, jobs, summarise
from tune_sparsity.tuner.worker.trainable import TrialSetup, train_to_the_end

if TYPE_CHECKING:
    from tune_sparsity.tuner.driver.study_run import StudyRun


def train_best_again(
    prepared: Prepared, study: StudyRun, setup: TrialSetup, arrays: Any, gpus: float, concurrency: int
) -> Retraining:
    """Train the best trial of each method again with other seeds, and measure the networks on the test data.

    A training may fail, for example because of NaN, an exception in the user's code or a lost worker. The returned
    Retraining contains the number of failed trainings and the reasons.

    Args:
        prepared: the prepared study.
        study: the study, after its search has ended.
        setup: the settings that all trials share.
        arrays: the training and validation data, as tuner.cluster.node_data.for_workers returns them.
        gpus: the number of GPUs of each worker.
        concurrency: the number of trials that the search ran at the same time. This function runs the same number of
            trainings at the same time.
    """
    from tune_sparsity.tuner.results.networks import measuring_device, test_value

    config = prepared.config
    chosen = best_of_each(study.records.values(), config.method, prepared.goal)
    worker: Any = ray.remote(num_cpus=config.cpus_per_trial, num_gpus=gpus, max_calls=0)(train_to_the_end)
    shared, data, device = ray.put(setup), ray.put(arrays), measuring_device(config)
    todo = jobs(chosen, config.final_seeds)
    values: list[float | None] = []
    problems: dict[str, None] = {}
    places = cycle(_places(config, gpus, min(concurrency, len(todo))))
    for reference in [worker.options(**next(places)).remote(shared, data, job) for job in todo]:
        try:
            values.append(test_value(prepared.experiment, prepared.data, ray.get(reference), device))
        except (Exception, SystemExit) as error:
            cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
            problems[f"a training with another seed failed: {one_line(cause)}"] = None
            values.append(None)
    return Retraining(summarise(chosen, values, config.final_seeds), list(problems))


def _places(config: StudyConfig, gpus: float, count: int) -> list[dict[str, Any]]:
    """Return the options of the Ray tasks for `count` trainings that run at the same time. If a training has several
    workers, its task gets a placement group for all of them. Later trainings use these groups again in turn."""
    if config.workers_per_trial == 1:
        return [{}]
    each = {"CPU": config.cpus_per_trial, **({"GPU": gpus} if gpus else {})}
    groups = [ray.util.placement_group([each] * config.workers_per_trial) for _ in range(count)]
    return [{"scheduling_strategy": PlacementGroupSchedulingStrategy(group, 0)} for group in groups]
