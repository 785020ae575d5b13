"""Measure spiking networks: kinds of recurrence, methods at a sparsity of .9, and the time of the scan over the steps.

    python -m benchmarks.training.spiking --data-dir DIR [--experiments digits fashion] [--seeds 3] [--workers 2]
    python -m benchmarks.training.spiking --timing

The networks "self", "feed-forward" and "full" have layers of the same sizes. "self" has self-recurrence, skip
connections and trained leaks; "feed-forward" has none of these. In "full", a matrix connects the neurons of each hidden
layer with each other, and leaks are trained. "wide" is like "self", but with wider layers: it has about as many weights
as "full". To compare the networks at equal numbers of weights, gmp prunes each larger one to the number of weights of
"feed-forward", and each one to a tenth of the weights of "self". "perceptron" is a network without spikes or time
steps.

The hyperparameters of each row of the table are chosen among those in `POINTS`, on the validation data under seed 0.
The networks of all seeds are judged on the test data. Each finished training is a line of the file --out, and is not
run again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from itertools import combinations, pairwise
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.training.jobs import Job, Jobs
from tests.helpers.neurons import Spike, step_by_step
from tune_sparsity.experiments import Data, Experiment, Split, find
from tune_sparsity.experiments.base import evaluate
from tune_sparsity.experiments.builtin.mlp import multilayer_perceptron
from tune_sparsity.experiments.spiking import Constants, SpikingLayer, SpikingNetwork, spiking_scan
from tune_sparsity.experiments.spiking.neurons import scan
from tune_sparsity.experiments.spiking.operations import activity
from tune_sparsity.experiments.training import train_whole
from tune_sparsity.sparsity import network_size
from tune_sparsity.sparsity.cost.multiply_adds import count_uses

SIZES = {"digits": (8, 64, 64, 10), "fashion": (28, 128, 128, 10)}
EPOCHS = {"digits": 30, "fashion": 10}
PLAIN = {"self_recurrent": False, "skip": False}
LPSS = {"p": 1.7, "p_early": 1.4, "drop": "ramp", "lr": 0.1}
POINTS: dict[str, list[Job]] = {
    **{method: [{"lr": 0.1}, {"lr": 0.2}] for method in ("dense", "gmp", "rigl")},
    "lpss": [{**LPSS, "sphere_lr": rate} for rate in (0.008, 0.02)],
}


class FullLayer(SpikingLayer):
    """A spiking layer with full recurrence: a matrix turns its traces into currents of the next step."""

    def __init__(self, sources: dict[str, int], neurons: int, network: SpikingNetwork) -> None:
        super().__init__(sources, neurons, network)
        self.recurrent = nn.Linear(neurons, neurons, bias=False)

    def forward(self, seen: Any, steps: int) -> tuple[Tensor, Tensor]:
        currents, constants = self.currents(seen).unflatten(0, (-1, steps)), self.constants()
        u = s = a = torch.zeros_like(currents[:, 0])
        traces, spikes = [], []
        for now in currents.unbind(1):
            u = (1 - constants.membrane) * u * (1 - s) + now + self.recurrent(a)
            s = Spike.apply(u, self.slope)
            a = (1 - constants.synapse) * a + constants.synapse * s
            traces.append(a)
            spikes.append(s)
        return torch.stack(traces, 1), torch.stack(spikes, 1)


class FullNetwork(SpikingNetwork):
    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__(sizes, **PLAIN)
        names = ("input", *(f"hidden_{i}" for i in range(len(sizes))))
        for i, neurons in enumerate(sizes[1:-1]):
            self.hidden[i] = FullLayer({names[i]: sizes[i]}, neurons, self)

    def readers(self) -> list[tuple[SpikingLayer, list[nn.Linear]]]:
        return [(layer, [*found, layer.recurrent]) for layer, found in super().readers()]  # type: ignore[list-item]


def wide(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the layer sizes of the widest self-recurrent network whose hidden layers are of equal size, and which has
    no more weights than a fully recurrent network with the layer sizes `sizes`."""
    most = sum(one * other for one, other in pairwise(sizes)) + sum(size**2 for size in sizes[1:-1])

    def widened(neurons: int) -> tuple[int, ...]:
        return sizes[0], *[neurons] * (len(sizes) - 2), sizes[-1]

    def weights(chosen: tuple[int, ...]) -> int:
        return sum(one * other for one, other in combinations(chosen, 2))  # each layer reads all before it

    return widened(max(neurons for neurons in range(1, most) if weights(widened(neurons)) <= most))


def network(kind: str, sizes: tuple[int, ...]) -> nn.Module:
    if kind == "self":
        return SpikingNetwork(sizes)
    if kind == "wide":
        return SpikingNetwork(wide(sizes))
    if kind == "full":
        return FullNetwork(sizes)
    if kind == "perceptron":
        return multilayer_perceptron(sizes[0] ** 2, *sizes[1:])
    return SpikingNetwork(sizes, **PLAIN, learn_intrinsic=False)


@lru_cache(maxsize=2)
def loaded(name: str, data_dir: str) -> tuple[Experiment, Data]:
    experiment = find(f"{name}-spiking")
    return experiment, experiment.load(Path(data_dir))


def work(job: Job, data_dir: str) -> Job:
    """Train one network, and measure it."""
    experiment, data = loaded(job["experiment"], data_dir)
    kind = job["kind"]
    if kind == "perceptron":
        splits = {name: getattr(data, name) for name in ("train", "val", "test")}
        data = replace(data, **{name: Split(split.x.flatten(1), split.y) for name, split in splits.items()})
    experiment = replace(experiment, model=partial(network, kind, SIZES[job["experiment"]]))
    options = {"epochs": job["epochs"], "seed": job["seed"]}
    training = train_whole(experiment, data, job["method"], job["params"], **options)
    masks = zip(training.sparse.layers, training.sparse.masks, strict=True)
    nonzero = {layer.name: int(mask.count_nonzero()) for layer, mask in masks}
    uses = count_uses(training.model, training.sparse.layers, data.val.x[:2])
    assert uses is not None
    macs, found = uses.macs(nonzero), activity(experiment, training.model, data.val)
    return {
        **{name: evaluate(experiment, training.model, getattr(data, name)) for name in ("val", "test")},
        **{"nonzero": sum(nonzero.values()), "macs": macs},
        "syn_ops": None if found is None else found.synaptic_operations(macs),
        "rates": None if found is None else found.rates,
    }


class Row(NamedTuple):
    """A line of the table: a kind of network, and how it is pruned."""

    kind: str
    method: str
    sparsity: float


def rows_of(experiment: str) -> list[Row]:
    spiking = ("self", "feed-forward", "full", "wide")
    kinds = (*spiking, "perceptron")
    weights = {kind: network_size(network(kind, SIZES[experiment])).prunable for kind in kinds}
    rows = [Row(kind, "dense", 0.0) for kind in ("self", "feed-forward", "perceptron")]
    for left in (weights["feed-forward"], round(0.1 * weights["self"])):
        pruned = [Row(kind, "gmp", 1 - left / weights[kind]) for kind in spiking if weights[kind] > left]
        rows += pruned
    rows += [Row("self", method, 0.9) for method in ("lpss", "rigl")]
    return [*rows, Row("perceptron", "gmp", 0.9)]


def measured(jobs: Jobs, experiment: str, row: Row, seeds: int) -> list[Job]:
    """Choose the hyperparameters with the highest validation accuracy under seed 0. Return the measurements with these
    hyperparameters under each seed."""
    common = {"experiment": experiment, "kind": row.kind, "method": row.method, "epochs": EPOCHS[experiment]}
    goal = {} if row.method == "dense" else {"final_sparsity": row.sparsity}
    tried = [{**common, "params": {**point, **goal}, "seed": 0} for point in POINTS[row.method]]
    done = jobs.run(tried)
    best = max(range(len(tried)), key=lambda i: (done[i]["val"], -i))
    return jobs.run([{**tried[best], "seed": seed} for seed in range(seeds)])


def line(experiment: str, row: Row, found: list[Job]) -> str:
    tests = [100 * one["test"] for one in found]
    spread = f"{mean(tests):.2f} ({min(tests):.2f} to {max(tests):.2f})"
    operations = "" if found[0]["syn_ops"] is None else f"{mean(one['syn_ops'] for one in found):,.0f}"
    rates = "" if found[0]["rates"] is None else f"{mean(mean(one['rates'].values()) for one in found):.3f}"
    counts = f"{found[0]['nonzero']:,} | {mean(one['macs'] for one in found):,.0f} | {operations} | {rates}"
    return f"| {experiment} | {row.kind} | {row.method} | {row.sparsity:.3f} | {spread} | {counts} |"


def timing(shape: tuple[int, int, int], repeats: int = 30) -> str:
    """Measure forward and backward passes of a layer's neurons. Return a row of the table with the shortest times."""
    neurons = shape[2]
    currents = torch.randn(shape, requires_grad=True)
    values = (torch.full((neurons,), value, requires_grad=True) for value in (0.1, 0.2, 0.33))
    constants = Constants(*values)

    def quickest(traces: Callable[[], Tensor]) -> float:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            traces().square().mean().backward()
            times.append(time.perf_counter() - start)
        return 1e3 * min(times)

    stepped = quickest(lambda: step_by_step(currents, *constants)[2])
    compiled = quickest(lambda: spiking_scan(currents, constants)[0])
    kernel, scan.compiled = scan.compiled, None  # type: ignore[assignment]
    in_torch = quickest(lambda: spiking_scan(currents, constants)[0])
    scan.compiled = kernel
    shown = " x ".join(map(str, shape))
    return f"| {shown} | {stepped:.2f} | {in_torch:.2f} | {compiled:.2f} | {stepped / compiled:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=".", help="where Fashion-MNIST is; the digits need no files")
    parser.add_argument("--experiments", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/spiking.jsonl"))
    parser.add_argument("--timing", action="store_true", help="time the scan, and train nothing")
    options = parser.parse_args()
    if options.timing:
        torch.set_num_threads(1)
        print("| examples x steps x neurons | steps ms | scan in torch ms | compiled ms | steps / compiled |")
        print("| --- | --- | --- | --- | --- |")
        for shape in ((32, 8, 64), (64, 28, 128), (32, 60, 64)):
            print(timing(shape), flush=True)
        return
    jobs = Jobs(partial(work, data_dir=options.data_dir), options.out, options.workers)
    print("| data | network | method | sparsity | test accuracy % | weights | macs | syn_ops | spikes a step |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for experiment in options.experiments:
        for row in rows_of(experiment):
            print(line(experiment, row, measured(jobs, experiment, row, options.seeds)), flush=True)


if __name__ == "__main__":
    main()
