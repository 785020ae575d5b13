"""The names of all files and folders in a study's folder."""

from __future__ import annotations

from pathlib import Path

CHECKPOINTS = ".checkpoints"  # the folder of running trials' checkpoints in a study's folder
TRIALS_CSV = "trials.csv"
PARETO_CSV = "pareto.csv"
RESULT_JSON = "result.json"
JOURNAL = "optuna.journal"
STUDY_YAML = "study.yaml"
EPOCHS_CSV = "epochs.csv"
PACKED_CSV = "packed.csv"  # what goes to the workers and into the logged model of a user's own code
PARETO_HTML = "pareto.html"
PICTURES_HTML = "pictures.html"
WEIGHTS = ".weights"  # the one hidden folder that belongs to a study: the networks that would be reported
BEST = "best"  # the folder of the best network
REFLECTED = "best-reflected"  # the folder of a network that was trained again for a group
MODEL, DESCRIPTION = "model.safetensors", "model.json"
SPREAD = ".spread"  # how the name of a tensor ends that is the spread of another, over the samples of an average
ORIENTATIONS = "orientations"  # in the metadata of a network's file: as sparsity.orientation has them, in JSON
PRECISION = "precision"  # in the same metadata: as sparsity.few_bits has it, in JSON, where weights have few bits


def weights_file(folder: Path, number: int) -> Path:
    """Return where trial `number` leaves its trained network until the driver has judged it."""
    return folder / f"{number}.safetensors"
