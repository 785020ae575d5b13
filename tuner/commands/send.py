"""Runs `tune-sparsity send`, which sends a study's records to MLflow if MLflow does not have them yet.

A study writes all its MLflow records (parameters, metrics, artifacts) to a file in its folder first. The records stay
in this file if MLflow does not answer while the study runs.
"""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from pathlib import Path

from tune_sparsity.tuner.commands.arguments import STORAGE_HELP, Parser
from tune_sparsity.tuner.commands.console import say, say_missing
from tune_sparsity.tuner.config.study_config import StudyConfig
from tune_sparsity.tuner.config.tracking_uri import check_driver
from tune_sparsity.tuner.errors import EXIT_DONE, EXIT_FAILED, UsageError, redact
from tune_sparsity.tuner.study.layout import RESULT_JSON
from tune_sparsity.tuner.system.files import to_json, write_atomically
from tune_sparsity.tuner.tracking.client import own_environment
from tune_sparsity.tuner.tracking.delivery import Sent, deliver, only_one, written_to
from tune_sparsity.tuner.tracking.outbox import end_abandoned, outbox_file


def send_study(config: StudyConfig, *, chosen: bool) -> tuple[str, list[str]]:
    """Send the unsent records of a study to MLflow, as `send_folder` does. If the study is in an object store,
    `send_folder` changes files in a local copy. This function then writes these files back to the object store.

    Args:
        config: the study's configuration.
        chosen: whether the user has given the tracking URI.

    Returns:
        The result of `send_folder`.

    Raises:
        UsageError: if `send_folder` fails, if another process runs the study, or if the object store does not answer.
    """
    with config.storage.claim(config.study, resume=True) if config.storage.synced else nullcontext():
        return send_folder(config.folder, config.tracking_uri, chosen=chosen)


def send_folder(study_folder: Path, uri: str, *, chosen: bool = True) -> tuple[str, list[str]]:
    """Send the unsent records of a study to MLflow. If the study was killed, its MLflow runs that have not ended get
    the status KILLED.

    Args:
        study_folder: the study's folder.
        uri: the tracking URI. If the store at this URI does not have the study, all records are sent.
        chosen: whether the user has given the tracking URI. If not, `uri` must be the URI that the study has used.

    Returns:
        Two values: a text that says where the records are in MLflow; and a list with a line for each part that could
        not be sent.

    Raises:
        UsageError: if the study is running or has no records, if the URI needs a database driver that is not installed,
            or if the study has used another URI and the user has given none.
    """
    if not outbox_file(study_folder).is_file():
        raise UsageError(f"{study_folder} has nothing to send: the file {outbox_file(study_folder)} is missing")
    try:
        check_driver(uri)
    except ValueError as error:
        raise UsageError(f"--tracking-uri: {error}") from None
    if not chosen and (before := written_to(study_folder)) not in (None, redact(uri)):
        raise UsageError(
            f"the study's data were last sent to {before}, but the option tracking_uri in study.yaml is not this "
            "URI: give the URI, with its password if it has one, as --tracking-uri"
        )
    own_environment()
    with only_one(study_folder, wait=False) as alone:
        if not alone:
            raise UsageError(f"study {study_folder.name!r} is running, and sends its data to MLflow itself")
        end_abandoned(study_folder)
        sent, missing = deliver(study_folder, uri)
    _tell_result(study_folder, sent)
    where = f"{redact(uri)}, experiment {sent.experiment_id}, run {sent.run_id}"
    return where, [*sent.refused, *([missing] if missing else [])]


def _tell_result(study_folder: Path, sent: Sent) -> None:
    """Write the ids of the study's MLflow experiment and MLflow run into result.json, if the study has ended."""
    file = study_folder / RESULT_JSON
    if not file.is_file() or sent.run_id is None:
        return
    document = json.loads(file.read_text())
    document["mlflow"] = {"experiment_id": sent.experiment_id, "run_id": sent.run_id}
    write_atomically(file, to_json(document))


def send(arguments: list[str]) -> int:
    """Run the subcommand `send`. Return the exit code."""
    parser = Parser("tune-sparsity send", description="Sends the data of a study that MLflow does not have yet.")
    parser.add_argument("study", metavar="STUDY", help="the study's name, or its folder")
    parser.add_argument("--storage", metavar="DIR", default="studies", help=STORAGE_HELP)
    parser.add_argument(
        "--tracking-uri", metavar="URI", default=argparse.SUPPRESS, help="MLflow's store (default: the study's store)"
    )
    options = vars(parser.parse_args(arguments))
    from tune_sparsity.tuner.config.files import read_study
    from tune_sparsity.tuner.config.study_config import storage_of

    config = read_study(options.pop("study"), storage_of(options.pop("storage")), options).resolved()
    where, problems = send_study(config, chosen="tracking_uri" in options)
    say_missing(problems, config)
    if problems:
        return EXIT_FAILED
    say(f"MLflow has all of {config.study}: {where}")
    return EXIT_DONE
