"""Check that the options of a study fit together, and that they fit the machine and the experiment."""

from __future__ import annotations

import copy
import socket

import torch
from torch import nn

from tune_sparsity.experiments import Experiment, OwnLoop
from tune_sparsity.experiments.training import check_steps_in_backward
from tune_sparsity.sparsity import METHODS
from tune_sparsity.sparsity.patterns import UNSTRUCTURED
from tune_sparsity.tuner.config.study_config import StudyConfig
from tune_sparsity.tuner.errors import UsageError
from tune_sparsity.tuner.study.trial import BINARY
from tune_sparsity.tuner.worker.sizes import binary_size


def check_address(address: str | None) -> None:
    """Raise UsageError if the form of the address is wrong, or if nothing listens at HOST:PORT. Without this check, Ray
    would try to connect for minutes. Do not check None and "auto"."""
    if address in (None, "auto"):
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise UsageError(f"--address {address!r}: accepted are auto, HOST:PORT and ray://HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"--address {address!r}: nothing answers there ({error})") from None


def check_gpus(config: StudyConfig) -> None:
    """Raise UsageError if a worker needs more GPUs than this machine has. With --address, check nothing, because the
    GPUs of a cluster are not known yet."""
    wanted = config.gpus_per_trial
    if config.address is None and wanted != "auto" and wanted > (have := torch.cuda.device_count()):
        raise UsageError(
            f"--gpus-per-trial {wanted:g}: this machine has {have or 'no'} GPUs that torch can use: give auto or 0, "
            "or use --address with a cluster that has GPUs"
        )


def check_pattern(config: StudyConfig, experiment: Experiment) -> None:
    """Raise UsageError if a method of the study does not support the pattern of the zeros in the experiment's network,
    or if this pattern cannot be combined with --max-bytes."""
    pattern = experiment.layers.pattern
    if pattern == UNSTRUCTURED:
        return
    have = [name for name, method in METHODS.items() if method.patterned]
    if without := [name for name in config.method if name not in have]:
        raise UsageError(
            f"--pattern {pattern}: method {without[0]} does not support patterns: give --method {' or '.join(have)}"
        )
    if config.max_bytes is not None:
        raise UsageError(
            f"--pattern {pattern}: --max-bytes needs unstructured zeros: give --target instead of --max-bytes, or "
            "leave out the pattern"
        )


def check_binary(config: StudyConfig, experiment: Experiment, model: nn.Module) -> None:
    """Check a study with the method binary. Raise UsageError if the experiment's network has no binary form, if its
    training has settings that binary networks do not support, or if binary is the only method and its networks are
    larger than --max-bytes."""
    if BINARY not in config.method:
        return
    if isinstance(experiment, OwnLoop):
        raise UsageError(
            f"--method {BINARY}: {experiment.name} is a loop of your own, and such a loop cannot train binary networks"
        )
    try:
        check_steps_in_backward(experiment.recipe, alone=config.workers_per_trial == 1)
        size = binary_size(copy.deepcopy(model))
    except ValueError as error:
        raise UsageError(f"--method {BINARY}: {error}") from None
    if config.max_bytes is not None and config.method == [BINARY] and config.max_bytes < size:
        raise UsageError(
            f"--max-bytes {config.max_bytes}: a binary network of {experiment.name} has {size:,} bytes: give at least "
            "this number"
        )


def check_workers(config: StudyConfig, experiment: Experiment) -> None:
    """Raise UsageError if a batch has fewer than two examples for each worker of a trial, or if several workers would
    have to run a user's own training loop."""
    workers, examples = config.workers_per_trial, experiment.recipe.batch_size
    if workers > 1 and isinstance(experiment, OwnLoop):
        raise UsageError(
            f"--workers-per-trial {workers}: {experiment.name} is a loop of your own, and such a loop runs in one "
            "process: give 1"
        )
    if workers > 1 and 2 * workers > examples:
        raise UsageError(
            f"--workers-per-trial {workers}: a batch of {experiment.name} has {examples} examples, and each worker "
            f"needs two of them: give at most {max(1, examples // 2)}"
        )
