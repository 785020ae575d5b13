"""Trains each method's best again under fresh seeds, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from tune_sparsity.tuner.driver.prepare import Prepared
from tune_sparsity.tuner.results.retraining import Retrained, best_of_each, jobs, summarise
from tune_sparsity.tuner.worker.trainable import TrialSetup, train_to_the_end

if TYPE_CHECKING:
    from tune_sparsity.tuner.driver.study_run import StudyRun


def train_again(
    setup: TrialSetup,
    arrays: Any,
    jobs: list[dict[str, Any]],
    *,
    cpus: float,
    gpus: float,
) -> list[dict[str, np.ndarray] | None]:
    """Trains the jobs (a trial's number, method and params each) side by side; their networks' tensors, in order, and
    None for a training that failed."""
    worker = ray.remote(num_cpus=cpus, num_gpus=gpus, max_calls=0)(train_to_the_end)
    shared, data = ray.put(setup), ray.put(arrays)
    return [_trained(reference) for reference in [worker.remote(shared, data, job) for job in jobs]]


def _trained(reference: Any) -> dict[str, np.ndarray] | None:
    try:
        return dict(ray.get(reference))
    except ray.exceptions.RayError:  # NaN under this seed, an exception of the user's, a lost worker
        return None


def train_best_again(
    prepared: Prepared, study: StudyRun, setup: TrialSetup, arrays: Any, gpus: float
) -> list[Retrained]:
    """Each method's best under fresh seeds, with its accuracies on the test data."""
    from tune_sparsity.tuner.results.networks import measuring_device, test_accuracy

    config = prepared.config
    chosen = best_of_each(study.records.values(), config.method, prepared.goal)
    networks = train_again(setup, arrays, jobs(chosen, config.final_seeds), cpus=config.cpus_per_trial, gpus=gpus)
    device = measuring_device(config)
    accuracies = [
        None if network is None else test_accuracy(prepared.experiment, prepared.data, network, device)
        for network in networks
    ]
    return summarise(chosen, accuracies, config.final_seeds)
