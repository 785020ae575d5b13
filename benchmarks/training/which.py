"""Train networks of every kind on MNIST, and show how many bytes and operations they need for their accuracy.

    python -m benchmarks.training.which --data-dir DIR --out benchmarks/training/done/which.jsonl [--kinds lpss gmp ...]
    python -m benchmarks.training.which --out benchmarks/training/done/which.jsonl --picture docs/which.png

All networks are trained for `EPOCHS` epochs under three seeds. Spiking networks are trained on 10,000 images, all
others on 55,000. Dense networks, gmp and lpss use the hyperparameters that `benchmarks.methods` chose for them. Spiking
networks use those that `benchmarks.training.spiking` chose on Fashion-MNIST, and binary networks use the defaults. Two
of the lpss networks of each seed also form a group, which is chosen on the validation data. Nothing is chosen on the
test data. The networks of one kind and one seed are one line of the file --out, and are not trained again. Both
commands print a table in Markdown. The second command trains nothing, and draws the table as a picture, with Chromium.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.curves.pictures import save_picture
from benchmarks.training.jobs import Job, Jobs
from benchmarks.training.spiking import LPSS
from tune_sparsity.experiments import Data, Experiment, Recipe, Training, find
from tune_sparsity.experiments.base import evaluate
from tune_sparsity.experiments.builtin.mlp import multilayer_perceptron
from tune_sparsity.experiments.training import train_whole
from tune_sparsity.sparsity import prunable_layers
from tune_sparsity.sparsity.cost.multiply_adds import count_uses
from tune_sparsity.sparsity.patterns import Neurons
from tune_sparsity.tuner.reports.plots.theme import GREY, OKABE_ITO, THEME
from tune_sparsity.tuner.results.cascade import as_good_as_best, group_document
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState
from tune_sparsity.tuner.worker.sizes import network_cost, spiking_cost
from tune_sparsity.tuner.worker.weights import save_weights

if TYPE_CHECKING:
    import plotly.graph_objects as go

EPOCHS = 8
SPARSITIES = (0.9, 0.95, 0.98, 0.99)
LEFT_OUT = (0.5, 0.8, 0.9, 0.95, 0.98)  # removing whole neurons saves these shares of the multiply-adds
TUNED = Path(__file__).parents[1] / "methods_done"
DEEP = (784, 256, 256, 256, 256, 10)
KINDS = ("dense", "gmp", "lpss", "lpss-4-bits", "gmp-neurons", "lpss-neurons", "binary", "spiking")


class Wanted(NamedTuple):
    """A network to train: its label in the table, the experiment's name, the method and its parameters."""

    label: str
    experiment: str
    method: str
    params: dict[str, Any]


def wanted(kind: str) -> list[Wanted]:
    """Return the networks of a kind."""
    if kind == "dense":
        return [Wanted("dense", "lenet", "dense", tuned("dense", 0.0))]
    if kind == "binary":
        return [Wanted("300-100", "lenet", "binary", {}), Wanted("256 x 4", "deep", "binary", {})]
    if kind == "spiking":
        pruned = {**LPSS, "sphere_lr": 0.008, "final_sparsity": 0.9}
        return [Wanted("dense", "rows", "dense", {"lr": 0.2}), Wanted("lpss 0.9", "rows", "lpss", pruned)]
    method, *bits = kind.split("-", 1)
    if bits == ["neurons"]:
        params = tuned(method, 0.9)
        return [Wanted(f"{at}", "neurons", method, {**params, "final_sparsity": at}) for at in LEFT_OUT]
    few = {"weight_bits": 4, "bits_share": 0.2} if bits else {}
    return [Wanted(f"{at}", "lenet", method, {**tuned(method, at), **few}) for at in SPARSITIES]


def tuned(method: str, at: float) -> dict[str, Any]:
    """Return the parameters that `benchmarks.methods` chose for a sparsity."""
    lines = map(json.loads, (TUNED / f"mnist-{method}.jsonl").read_text().splitlines())
    return next(dict(line["params"]) for line in lines if line["stage"] == "final" and line["at"] == at)


@lru_cache(maxsize=2)
def loaded(name: str, data_dir: str) -> tuple[Experiment, Data]:
    experiment = find("mnist-spiking" if name == "rows" else "mnist")
    if name == "neurons":
        experiment = experiment.with_pattern(Neurons(by_macs=True))
    if name == "deep":
        experiment = replace(experiment, model=partial(multilayer_perceptron, *DEEP), recipe=Recipe(EPOCHS, 250))
    return experiment, experiment.load(Path(data_dir))


def work(job: Job, data_dir: str) -> Job:
    """Train the networks of a kind under a seed, and measure them."""
    points, networks = list[Job](), dict[int, tuple[TrialRecord, Path]]()
    with tempfile.TemporaryDirectory() as folder:
        for number, one in enumerate(wanted(job["kind"])):
            experiment, data = loaded(one.experiment, data_dir)
            training = train_whole(experiment, data, one.method, one.params, epochs=job["epochs"], seed=job["seed"])
            points.append({"label": one.label, **measured(experiment, data, training)})
            file = Path(folder) / f"{number}.safetensors"
            save_weights(training, file)
            cost = {name: points[-1][name] for name in ("size_bytes", "macs")}
            record = TrialRecord(number, one.method, {}, TrialState.COMPLETED, points[-1]["val"], **cost)
            networks[number] = record, file
        if job["kind"] != "lpss":
            return {"points": points}
        best = max(networks, key=lambda number: points[number]["val"])
        return {"points": points, "group": group_document(experiment, data, networks, best)}


def measured(experiment: Experiment, data: Data, training: Training) -> Job:
    fresh = experiment.network()
    uses = count_uses(fresh, prunable_layers(fresh, experiment.layers, sphere=False), data.val.x[:2])
    cost = network_cost(training, uses)
    cost |= spiking_cost(training, cost["macs"])
    values = {name: evaluate(experiment, training.model, getattr(data, name)) for name in ("val", "test")}
    counts = {name: int(cost[name]) for name in ("size_bytes", "macs", "bit_ops", "syn_ops") if name in cost}
    return {**values, **counts}


class Point(NamedTuple):
    """A row of the table: means over seeds, and the range of the test accuracy."""

    series: str
    label: str
    test: float
    least: float
    most: float
    size: float
    operations: float
    bits: float  # the operations on single bits, a part of `operations`
    seeds: int

    def row(self) -> str:
        accuracy = f"{self.test:.2f} ({self.least:.2f} to {self.most:.2f})"
        bits = f"{self.bits:,.0f}" if self.bits else ""
        cells = (self.series, self.label, accuracy, f"{self.size:,.0f}", f"{self.operations:,.0f}", bits, self.seeds)
        return f"| {' | '.join(map(str, cells))} |"


HEADER = """\
| network | variant | test accuracy % | bytes | operations | of them on single bits | seeds |
| --- | --- | --- | --- | --- | --- | --- |"""


def read(file: Path) -> dict[str, list[Job]]:
    """Return the measurements of each kind of network: a list with one dict for each seed."""
    found: dict[str, list[Job]] = {kind: [] for kind in KINDS}
    for line in map(json.loads, file.read_text().splitlines()):
        found[line["job"]["kind"]].append(line["measured"])
    return {kind: documents for kind, documents in found.items() if documents}


def points_of(found: Mapping[str, list[Job]]) -> Iterator[Point]:
    """Yield the rows of the table."""
    for kind, documents in found.items():
        for place, one in enumerate(documents[0]["points"]):
            networks = [document["points"][place] for document in documents]
            operations = [point.get("syn_ops", point["macs"]) for point in networks]
            yield _point(kind, one["label"], networks, operations)
    documents = [document["group"] for document in found.get("lpss", ())]
    groups = [group for document in documents if (group := as_good_as_best(document))]
    if groups:
        networks = [{**group, "test": group["test_accuracy"]} for group in groups]
        operations = [group["expected_macs"] for group in groups]
        yield _point("group of two lpss", "as good as the best", networks, operations)


def _point(series: str, label: str, networks: list[Job], operations: list[float]) -> Point:
    tests = [100 * one["test"] for one in networks]
    size, bits = (mean(one.get(name, 0) for one in networks) for name in ("size_bytes", "bit_ops"))
    return Point(series, label, mean(tests), min(tests), max(tests), size, mean(operations), bits, len(networks))


LOOKS: dict[str, tuple[str, str, str, str]] = {
    "dense": ("dense", OKABE_ITO["black"], "square", "multiply-adds"),
    "gmp": ("gmp", GREY, "circle", "multiply-adds"),
    "lpss": ("lpss", OKABE_ITO["blue"], "circle", "multiply-adds"),
    "lpss-4-bits": ("lpss, 4 bits", OKABE_ITO["sky blue"], "diamond", "multiply-adds, one factor of 4 bits"),
    "gmp-neurons": ("gmp, whole neurons", GREY, "square-open", "multiply-adds"),
    "lpss-neurons": ("lpss, whole neurons", OKABE_ITO["blue"], "square-open", "multiply-adds"),
    "group of two lpss": ("two lpss networks", OKABE_ITO["bluish green"], "star", "multiply-adds, expected"),
    "binary": ("binary", OKABE_ITO["vermillion"], "x", "additions of pixels, and products of single bits"),
    "spiking": (
        "spiking",
        OKABE_ITO["orange"],
        "triangle-up",
        "additions where a neuron spikes, multiply-adds of pixels",
    ),
}
"""Of each kind: its name, colour and mark, and what its operations are."""


def figure(points: list[Point]) -> go.Figure:
    """Return two plots side by side with one legend: accuracy against bytes, and accuracy against operations."""
    from plotly.subplots import make_subplots

    made = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.04)
    for series, (name, colour, symbol, operation) in LOOKS.items():
        own = [point for point in points if point.series == series]
        error = {"type": "data", "symmetric": False, "thickness": 1, "width": 3}
        error |= {"array": [p.most - p.test for p in own], "arrayminus": [p.test - p.least for p in own]}
        drawn = {
            "y": [point.test for point in own],
            "error_y": error,
            "mode": "markers+lines" if name.startswith(("lpss", "gmp")) else "markers",
            "marker": {"color": colour, "symbol": symbol, "size": 10},
            "line": {"color": colour, "width": 1},
            "name": f"{name}: {operation}",
            "legendgroup": series,
        }
        made.add_scatter(x=[point.size for point in own], **drawn, row=1, col=1)
        made.add_scatter(x=[point.operations for point in own], **drawn, showlegend=False, row=1, col=2)
    made.update_yaxes(range=[92, 99.2])
    made.update_xaxes(type="log", dtick=1, minor={"dtick": "D1", "ticks": "outside"})
    made.update_xaxes(title="bytes of the packed file", row=1, col=1)
    made.update_xaxes(title="operations of an image; the legend says which", row=1, col=2)
    made.update_yaxes(title="test accuracy %", row=1, col=1)
    about = f"{EPOCHS} epochs, mean and range over seeds; 55,000 training images, 10,000 for spiking networks"
    title = {"text": "MNIST: what accuracy takes", "subtitle": {"text": about}}
    legend = {"orientation": "h", "y": -0.2, "yanchor": "top", "yref": "paper"}
    made.update_layout(template=THEME, title=title, legend=legend, margin={"t": 80, "b": 170})
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="where MNIST is; to train")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/which.jsonl"))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--picture", type=Path, help="draw what OUT has into this .png or .html, and train nothing")
    options = parser.parse_args()
    if options.picture is None:
        jobs = Jobs(partial(work, data_dir=options.data_dir), options.out, options.workers)
        pairs = product(range(options.seeds), options.kinds)
        todo = [{"kind": kind, "epochs": EPOCHS, "seed": seed} for seed, kind in pairs]
        jobs.run(todo)
    points = list(points_of(read(options.out)))
    print(HEADER, *(point.row() for point in points), sep="\n")
    if options.picture is not None:
        save_picture(figure(points), options.picture)


if __name__ == "__main__":
    main()
