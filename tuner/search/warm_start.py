"""Lets a new study begin with results of earlier studies. An earlier trial is used only if the new study itself could
have run this trial. If the best trial of an earlier study cannot be used, the new study tries the parameters of this
best trial first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from tune_sparsity.search_spaces import Space
from tune_sparsity.search_spaces.priors import nearest, same
from tune_sparsity.tuner.errors import UsageError
from tune_sparsity.tuner.search.journal import records_of
from tune_sparsity.tuner.storage.study_storage import StudyStorage
from tune_sparsity.tuner.study.layout import JOURNAL
from tune_sparsity.tuner.study.objective import ACCURACY, Objective
from tune_sparsity.tuner.study.pareto import best_trial
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState


@dataclass(frozen=True)
class WarmStart:
    """Results of earlier studies with which a new study begins.

    Attributes:
        trials: completed and stopped trials from which the sampler learns. They trained the same experiment as the new
            study, with the same settings (see `alike` in `warm_start`) and with parameters from the search spaces of
            the new study. Each trial keeps the number that it has in its earlier study.
        points: (method, parameters) pairs to try first. If the best trial of an earlier study is not in `trials`, its
            parameters are here.
    """

    trials: tuple[TrialRecord, ...] = ()
    points: tuple[tuple[str, dict[str, Any]], ...] = ()


def warm_start(
    studies: Sequence[str],
    storage: StudyStorage,
    spaces: Sequence[Space],
    target: float,
    alike: dict[str, Any],
    objective: Objective = ACCURACY,
) -> WarmStart:
    """Return results of earlier studies with which a new study begins.

    Args:
        studies: names of studies in `storage`, or paths of studies' folders.
        storage: the folder or object store that contains the new study.
        spaces: the search spaces of the new study, one for each method.
        target: the lowest feasible sparsity in the new study.
        alike: settings of the new study, as a dict from names in study.yaml to values, such as the experiment and the
            number of epochs. If an earlier study has other values in its study.yaml, only its best parameters are used.
        objective: the objective of the new study. If an earlier study has another objective, only its best parameters
            are used.

    Raises:
        UsageError: if a study is unknown, or has no completed trial of the new study's methods.
    """
    by_method = {space.method: space for space in spaces}
    trials: list[TrialRecord] = []
    points: list[tuple[str, dict[str, Any]]] = []
    for study in studies:
        folder = _folder(study, storage)
        config, records = _config(folder), records_of(folder)
        ended = [r for r in records if r.state in (TrialState.COMPLETED, TrialState.PRUNED) and r.method in by_method]
        comparable = all(config.get(name) == value for name, value in alike.items())
        judged_alike = [r for r in ended if comparable and r.objective == objective]
        carried = [r for r in judged_alike if _agrees(r.params, by_method[r.method])]
        best = best_trial(ended, target) or best_trial(ended, 0.0)
        if best is None:
            raise UsageError(
                f"--warm-start {study}: the earlier study has no completed trial of {' or '.join(by_method)}, the "
                f"new study's {'method' if len(by_method) == 1 else 'methods'}"
            )
        trials += carried
        if not any(record is best for record in carried):
            points.append((best.method, _moved(best.params, by_method[best.method])))
    return WarmStart(tuple(trials), tuple(points))


def _folder(study: str, storage: StudyStorage) -> Path:
    """Return the folder of a study. If the study is in an object store, return a copy of its folder on this machine."""
    try:
        folder = storage.folder_with(study, JOURNAL)
        known = storage.known(JOURNAL) if folder is None else ""
    except OSError as error:
        raise UsageError(f"--warm-start {study}: {error}") from None
    if folder is None:
        raise UsageError(f"--warm-start {study}: there is no such folder, and no such study in {storage}; {known}")
    return folder


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load((folder / "study.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        config = None
    return config if isinstance(config, dict) else {}


def _agrees(params: dict[str, Any], space: Space) -> bool:
    """Return whether the search space could have proposed exactly these parameters.

    A parameter may be missing if the space fixes it at the method's default, because earlier versions of this package
    did not have it.
    """
    from tune_sparsity.sparsity import METHODS

    defaults = METHODS[space.method].defaults()
    unsaid = {name: value for name, value in space.fixed_for(params).items() if same(defaults.get(name), value)}
    params = {**unsaid, **params}
    expected = {name for name in (*space.distributions, *space.fixed) if space.applies(name, params)}
    if set(params) != expected:
        return False
    if not all(same(params[name], value) for name, value in space.fixed_for(params).items()):
        return False
    return all(
        distribution._contains(distribution.to_internal_repr(params[name]))
        if not isinstance(distribution, CategoricalDistribution)
        else any(same(params[name], choice) for choice in distribution.choices)
        for name, distribution in space.distributions.items()
        if name in params
    )


def _moved(params: dict[str, Any], space: Space) -> dict[str, Any]:
    """Return the parameters, with values outside of the search space moved into it. A missing parameter gets the centre
    of its prior."""
    point: dict[str, Any] = {}
    centre = space.centre()
    for name, distribution in space.distributions.items():
        if not space.applies(name, point):
            continue
        value = params.get(name, centre[name])
        if isinstance(distribution, FloatDistribution | IntDistribution):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            point[name] = nearest(distribution, value if number else centre[name])
        else:
            assert isinstance(distribution, CategoricalDistribution)
            known = [choice for choice in distribution.choices if same(choice, value)]
            point[name] = known[0] if known else centre[name]
    return point
