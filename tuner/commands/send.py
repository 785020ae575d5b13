"""`tune-sparsity send`: brings to MLflow what a study could not tell it while it ran."""

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
    """As `send`, for a study in a folder or in an object store: then what is noted of it goes back there.

    Raises:
        UsageError: also if the study is running elsewhere, or the store does not answer.
    """
    with config.storage.claim(config.study, resume=True) if config.storage.synced else nullcontext():
        return send_folder(config.folder, config.tracking_uri, chosen=chosen)


def send_folder(study_folder: Path, uri: str, *, chosen: bool = True) -> tuple[str, list[str]]:
    """Sends what waits in a study's outbox, and ends as KILLED the runs of a study that was cut off.

    Args:
        study_folder: the study's.
        uri: the tracking URI; a store that has nothing of the study yet is sent everything.
        chosen: the user asks for this store; else it must be the one that the study wrote to.

    Returns:
        Where the record is, and a line for everything that could not be sent.

    Raises:
        UsageError: if the study is running, or never had anything to tell.
    """
    if not outbox_file(study_folder).is_file():
        raise UsageError(f"{study_folder} has no record to send: {outbox_file(study_folder)} is missing")
    try:
        check_driver(uri)
    except ValueError as error:
        raise UsageError(f"--tracking-uri: {error}") from None
    if not chosen and (before := written_to(study_folder)) not in (None, redact(uri)):
        raise UsageError(f"the record belongs to {before}, whose password is in no file: give --tracking-uri")
    own_environment()
    with only_one(study_folder, wait=False) as alone:
        if not alone:
            raise UsageError(f"study {study_folder.name!r} is running, and sends its record itself")
        end_abandoned(study_folder)
        sent, missing = deliver(study_folder, uri)
    _tell_result(study_folder, sent)
    where = f"{redact(uri)}, experiment {sent.experiment_id}, run {sent.run_id}"
    return where, [*sent.refused, *([missing] if missing else [])]


def _tell_result(study_folder: Path, sent: Sent) -> None:
    """Return where the record is, in the result of a study that ended without knowing."""
    file = study_folder / RESULT_JSON
    if not file.is_file() or sent.run_id is None:
        return
    document = json.loads(file.read_text())
    document["mlflow"] = {"experiment_id": sent.experiment_id, "run_id": sent.run_id}
    write_atomically(file, to_json(document))


def send(arguments: list[str]) -> int:
    """Run the subcommand. Return the exit code."""
    parser = Parser("tune-sparsity send", description="Brings to MLflow what a study could not tell it.")
    parser.add_argument("study", metavar="STUDY", help="its name, or its folder")
    parser.add_argument("--storage", metavar="DIR", default="studies", help=STORAGE_HELP)
    parser.add_argument("--tracking-uri", metavar="URI", default=argparse.SUPPRESS, help="another store than before")
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
