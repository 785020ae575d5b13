"""Trains each method's best again under fresh seeds, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ray

from tune_sparsity.tuner.driver.prepare import Prepared
from tune_sparsity.tuner.errors import one_line
from tune_sparsity.tuner.results.retraining import Retraining, best_of_each, jobs, summarise
from tune_sparsity.tuner.worker.trainable import TrialSetup, train_to_the_end

if TYPE_CHECKING:
    from tune_sparsity.tuner.driver.study_run import StudyRun


def train_best_again(prepared: Prepared, study: StudyRun, setup: TrialSetup, arrays: Any, gpus: float) -> Retraining:
    """Train each method's best side by side under fresh seeds, and measure it on the test data.

    What fails under a seed is counted and told: NaN, an exception of the user's, a lost worker.
    """
    from tune_sparsity.tuner.results.networks import measuring_device, test_value

    config = prepared.config
    chosen = best_of_each(study.records.values(), config.method, prepared.goal)
    worker: Any = ray.remote(num_cpus=config.cpus_per_trial, num_gpus=gpus, max_calls=0)(train_to_the_end)
    shared, data, device = ray.put(setup), ray.put(arrays), measuring_device(config)
    todo = jobs(chosen, config.final_seeds)
    values: list[float | None] = []
    problems: dict[str, None] = {}
    for reference in [worker.remote(shared, data, job) for job in todo]:
        try:
            values.append(test_value(prepared.experiment, prepared.data, ray.get(reference), device))
        except (Exception, SystemExit) as error:
            cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
            problems[f"a training under another seed failed: {one_line(cause)}"] = None
            values.append(None)
    return Retraining(summarise(chosen, values, config.final_seeds), list(problems))
