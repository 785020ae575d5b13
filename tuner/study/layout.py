"""Defines the names of the files and folders in a study's folder."""

from __future__ import annotations

from pathlib import Path

CHECKPOINTS = ".checkpoints"  # the folder of running trials' checkpoints
TRIALS_CSV = "trials.csv"
PARETO_CSV = "pareto.csv"
RESULT_JSON = "result.json"
JOURNAL = "optuna.journal"
STUDY_YAML = "study.yaml"
EPOCHS_CSV = "epochs.csv"
PACKED_CSV = "packed.csv"  # the names and sizes of the user's files that workers and MLflow's model get
PARETO_HTML = "pareto.html"
PICTURES_HTML = "pictures.html"
WEIGHTS = ".weights"  # the folder of the networks that would be reported if the study ended now
BEST = "best"  # the folder of the best network
REFLECTED = "best-reflected"  # the folder of a network that was trained again for a group of two networks
MODEL, DESCRIPTION = "model.safetensors", "model.json"
SPREAD = ".spread"  # NAME.spread holds the standard deviation of each averaged weight of NAME over training steps
ORIENTATIONS = "orientations"  # a key in the metadata of a network's file: sparsity.orientation.Orientation in JSON
PRECISION = "precision"  # a key in the same metadata: sparsity.few_bits.Precision in JSON, if weights have few bits


def weights_file(folder: Path, number: int) -> Path:
    """Return the path of the temporary file with the trained network of a trial. At the end of the study, the driver
    tests this network, and then writes the network to another folder.

    Args:
        folder: the path of the folder `.weights` in the study's folder.
        number: the trial's number.
    """
    return folder / f"{number}.safetensors"
