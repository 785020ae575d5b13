"""Make groups of two networks at the end of a study, from the networks that the study has written. A group answers with
its small network. If this network is uncertain about an example, the large network answers (see
tuner.results.cascade)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tune_sparsity.tuner.driver.prepare import Prepared
from tune_sparsity.tuner.errors import disk_error, one_line
from tune_sparsity.tuner.results.cascade import group_metrics, main_group
from tune_sparsity.tuner.results.tables import StudyOutcome
from tune_sparsity.tuner.study.layout import MODEL, REFLECTED, WEIGHTS
from tune_sparsity.tuner.study.trial import TrialRecord
from tune_sparsity.tuner.tracking.model import model_note
from tune_sparsity.tuner.tracking.pyfunc_model import Gated

Networks = dict[str, tuple[TrialRecord, Path]]
"""The written networks: a dict from the name of each network's trial to the pair (trial, file of the network)."""


def with_groups(
    prepared: Prepared, outcome: StudyOutcome, folders: Mapping[str, TrialRecord]
) -> tuple[StudyOutcome, dict[str, TrialRecord], list[str]]:
    """Add groups of two networks to the outcome of a study, if --group is given.

    Args:
        prepared: the prepared study.
        outcome: the outcome of the study so far.
        folders: a dict from the folder of each written network to the network's trial.

    Returns:
        Three values. The first value is the outcome. The second value is a dict from a network's folder to the
        network's trial. It has an entry if `--group reflect` has trained a network again and the study keeps this
        network. The third value is a list with a line for each result that is missing.
    """
    config, best = prepared.config, outcome.best
    if config.group is None or best is None or not folders:
        return outcome, {}, []
    files = {record.name: (record, config.folder / name / MODEL) for name, record in folders.items()}
    networks = {name: kept for name, kept in files.items() if kept[0].number in outcome.test_values}
    failed = "there is no group of networks"
    try:
        outcome = replace(outcome, group=_cascades(prepared, networks, best))
        if config.group == "cascade":
            return outcome, {}, []
        failed = "no network was trained again for a group"
        document, more = _reflected(prepared, outcome.group, networks)
        return replace(outcome, group=document), more, []
    except (Exception, SystemExit) as error:  # the user's network or metric may raise anything
        if disk_error(error):
            raise
        return outcome, {}, [f"{failed}: {one_line(error)}"]


def _cascades(prepared: Prepared, networks: Networks, best: TrialRecord) -> dict[str, Any]:
    """Make groups from the written networks. Return the entry of result.json about them."""
    from tune_sparsity.tuner.results.cascade import group_document
    from tune_sparsity.tuner.results.networks import measuring_device

    numbered = {record.number: (record, file) for record, file in networks.values()}
    device = measuring_device(prepared.config)
    return group_document(prepared.experiment, prepared.data, numbered, best.number, device)


def _reflected(
    prepared: Prepared, document: Mapping[str, Any], networks: Networks
) -> tuple[dict[str, Any], dict[str, TrialRecord]]:
    """Train a large network again as a partner for a small one (--group reflect).

    Args:
        prepared: the prepared study.
        document: the entry of result.json about groups of the written networks.
        networks: the written networks.

    Returns:
        Two values. The first value is the entry, with the group of the new network if this group is better than the
        other groups. The second value is a dict from the folder of the new network to the network's trial. It is empty
        if the group of the new network is not better than the other groups.
    """
    from tune_sparsity.tuner.results.networks import measuring_device, write_best
    from tune_sparsity.tuner.results.reflection import StudyRecipe, with_reflection
    from tune_sparsity.tuner.worker.weights import save_weights

    config, device = prepared.config, measuring_device(prepared.config)
    about = (prepared.epochs, config.seed, device, prepared.uses)
    document, made = with_reflection(StudyRecipe(prepared.experiment, prepared.data, *about), document, networks)
    if made is None:
        return document, {}
    file = config.folder / WEIGHTS / f"{made.record.name}.safetensors"
    save_weights(made.training, file)
    write_best(file, config.folder / REFLECTED, prepared.experiment, prepared.data, made.record, device=device)
    return document, {REFLECTED: made.record}


def group_model(prepared: Prepared, outcome: StudyOutcome, networks: Mapping[str, Path]) -> dict[str, Any] | None:
    """Return the description of an MLflow model whose predictions are those of the recommended group of two networks
    (see `main_group`). Return None if there is no group.

    Args:
        prepared: the prepared study.
        outcome: the outcome of the study.
        networks: a dict from the name of each trial to the folder of the trial's network.
    """
    group = main_group(outcome.group)
    if group is None:
        return None
    return model_note(
        prepared.config.folder,
        Gated(networks[group["small"]], networks[group["large"]], group["theta"]),
        prepared.experiment,
        prepared.config.experiment,
        prepared.data,
        tags={"study": outcome.study, "experiment": outcome.experiment, "kind": outcome.group["kind"]}
        | {name: group[name] for name in ("small", "large", "theta")},
        metrics=group_metrics(group),
        register=None,
    )
