"""Measure on this machine how many bytes, multiply-adds and milliseconds the zeros of a study's best network save."""

from __future__ import annotations

from contextlib import suppress

from tune_sparsity.experiments.base import Data, Experiment
from tune_sparsity.tuner.errors import UsageError, one_line
from tune_sparsity.tuner.results.export import Network, read_network
from tune_sparsity.tuner.results.finished_study import EndedStudy
from tune_sparsity.tuner.results.forms import Pass, passes
from tune_sparsity.tuner.results.inference_cost import sizes

HEADER = ("best network", "dense", "without the zeros", "storage format", "share of dense")

Rows = list[tuple[str, str, str, str, str]]


def savings(study: EndedStudy, given: tuple[Experiment, Data] | None = None) -> tuple[Rows, str]:
    """Measure the study's best network twice: as a dense network, and in a form that stores or computes less because of
    the zeros.

    If the network cannot be read or run, the other parts of the report are still written.

    Args:
        study: the study.
        given: the study's experiment and its data, if the caller has already loaded them.

    Returns:
        The rows of a table with the columns of HEADER, and a line that says why rows are missing, or "".
    """
    if study.result["best"] is None:
        return [], ""
    rows: Rows = []
    try:
        network = read_network(study, "best", given)
        for part in (_bytes, _multiply_adds, _times):
            rows += part(network)
        return rows, ""
    except UsageError as error:
        return rows, str(error)
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        return rows, f"the best network cannot be run here: {one_line(error)}"


def _bytes(network: Network) -> Rows:
    held = sizes(network.tensors, network.prunable)
    dense = held.pop("dense")
    with suppress(ValueError):  # a packed file cannot hold every type of tensor
        held["packed"] = len(network.packed)
    form = "packed" if "packed" in held else min(held, key=held.__getitem__)
    return [("bytes", f"{dense:,}", f"{held[form]:,}", form.replace("_", " "), f"{held[form] / dense:.1%}")]


def _multiply_adds(network: Network) -> Rows:
    if network.precision.signs:  # a binary network, whose single bits are not multiplied
        return []
    from tune_sparsity.sparsity import prunable_layers
    from tune_sparsity.sparsity.cost.multiply_adds import count_uses

    experiment = network.experiment
    example = experiment.prepare(network.data.val.first(2).x)
    layers = prunable_layers(network.model, experiment.layers, sphere=False)
    uses = count_uses(network.model, layers, example, experiment.forward)
    if uses is None:
        return []
    dense = uses.macs({layer.name: layer.weight.numel() for layer in layers})
    left = uses.macs({layer.name: int(layer.weight.count_nonzero()) for layer in layers})
    return [("multiply-adds of an example", f"{dense:,}", f"{left:,}", "", f"{left / dense:.1%}")]


def _times(network: Network) -> Rows:
    found = passes(network.timed_weights, network.experiment.layers.pattern)
    alike: dict[str, list[Pass]] = {}
    for one in found:
        threads = f"{one.threads} thread{'s' if one.threads > 1 else ''}"
        where = "GPU" if one.device == "cuda" else threads
        alike.setdefault(f"milliseconds, batch {one.batch}, {where}, {one.dtype}", []).append(one)
    rows: Rows = []
    for words, (dense, *others) in alike.items():
        there = [one for one in others if one.ms is not None]
        rows += [(words, _ms(dense), _ms(one), _form(one), _share(one, dense)) for one in there]
        rows += [] if there else [(words, _ms(dense), "", "", "")]
    without = [one for one in found if one.ms is None]
    missing = dict.fromkeys((one.dtype + (", GPU" if one.device == "cuda" else ""), _form(one)) for one in without)
    return [*rows, *((f"milliseconds, {kind}", "", "", form, "") for kind, form in missing)]


def _share(one: Pass, dense: Pass) -> str:
    return "" if one.ms is None or dense.ms is None else f"{one.ms / dense.ms:.0%}"


def _form(one: Pass) -> str:
    form = one.form.upper() if one.form in ("csr", "bsr") else one.form
    return form + (f": {one.note}" if one.note else "")


def _ms(one: Pass) -> str:
    """Return the median in milliseconds, with the quartiles in brackets, as text."""
    return "" if one.ms is None else f"{one.ms:.3g} ({one.low:.3g} to {one.high:.3g})"
