"""All steps of a trial: checks, training, a checkpoint, saved files, and networks that are loaded from these files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.strangers.test_gallery import same
from tune_sparsity.experiments import Data, Experiment, Training
from tune_sparsity.experiments.base import in_evaluation
from tune_sparsity.experiments.checks import inspect
from tune_sparsity.experiments.checks.suite import Level
from tune_sparsity.sparsity import zeros_for
from tune_sparsity.tuner.results import export_formats as formats
from tune_sparsity.tuner.results.networks import split_masks, write_best
from tune_sparsity.tuner.storage.places import Folder
from tune_sparsity.tuner.study.layout import MODEL
from tune_sparsity.tuner.study.trial import TrialRecord
from tune_sparsity.tuner.worker import checkpoints
from tune_sparsity.tuner.worker.weights import save_weights


def go_the_whole_way(experiment: Experiment, method: str, params: dict[str, Any], folder: Path) -> Training:
    """Do all steps of a trial with two epochs. Write its files into `folder`. Return the ended training.

    Raises:
        AssertionError: if a step has a wrong result.
    """
    failed = [finding for finding in inspect(experiment) if finding.level is Level.FAILED]
    assert not failed, failed
    data = experiment.load(None)

    def start(seed: int) -> Training:
        return Training(experiment, data.train, data.val, method, params, epochs=2, seed=seed)

    training = start(0)
    before = untouched(training)
    training.epoch()
    checkpoints.write(Folder(folder), 0, 1, checkpoints.pack(training.state_dict()))
    told = training.epoch()
    after = dict(training.model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())

    resumed = start(1)
    resumed.load_state_dict(next(checkpoints.newest(Folder(folder), 0)))
    resumed.epoch()
    assert same(resumed.model.state_dict(), training.model.state_dict())

    save_weights(training, folder / "weights")
    measures = {name: told[name] for name in ("sparsity", "sparsity_total")}
    record = TrialRecord(0, method, params, value=told["val_accuracy"], **measures)
    best = write_best(folder / "weights", folder / "best", experiment, data, record)
    assert not best.problem
    assert best.zeros == zeros_for(params.get("final_sparsity", 0.0), best.weights)
    _all_formats_hold(training, data, folder)
    return training


def untouched(training: Training) -> dict[str, Tensor]:
    """Return copies of the parameters that must not change: they are frozen, and no method prunes them."""
    pruned = {id(layer.weight) for layer in training.sparse.layers}
    kept = {name: param for name, param in training.model.named_parameters() if not param.requires_grad}
    return {name: param.clone() for name, param in kept.items() if id(param) not in pruned}


def _all_formats_hold(training: Training, data: Data, folder: Path) -> None:
    """Fail unless a new network with the weights of an exported file has the same outputs as the trained network."""
    experiment, x = training.experiment, training.experiment.prepare(data.test.x)
    tensors, masks = split_masks(load_file(folder / "best" / MODEL))
    formats.save_safetensors(tensors, folder / "safetensors")
    formats.save_torch(tensors, folder / "torch")
    formats.save_csr(tensors, set(masks), folder / "csr")
    with torch.no_grad():
        wanted = in_evaluation(training.model)(x)
        for read in (
            load_file(folder / "safetensors"),
            torch.load(folder / "torch", weights_only=True),
            formats.load_csr(folder / "csr"),
        ):
            plain = experiment.model()
            plain.load_state_dict(read)
            assert torch.equal(in_evaluation(plain)(x), wanted)
