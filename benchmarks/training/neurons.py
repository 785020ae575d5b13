"""Measure what is gained if neurons are removed: milliseconds and accuracy with half the multiply-adds.

    python -m benchmarks.training.neurons --data-dir DIR --out benchmarks/training/done/neurons.jsonl [--only resnet18]

A dense network, the parent, is trained for each seed. Four kinds of training then start from the parent, with the same
number of epochs: lpss and gmp, which prune whole neurons, a training after torch-pruning's magnitude example, and a
training without pruning. torchvision's resnet18 learns the 3,500 images of `cifar10-subset`. The wide residual network
of `fashion-mnist-wrn` learns the first 3,000 training images of that experiment. After pruning, the number of channels
of every layer is a multiple of 8 or of 16.

The settings are chosen by validation accuracy, under one seed. Each final network is tested once on the test images.
The intervals are those of a paired bootstrap over test images and seeds. At the end, single examples are timed on one
thread. The networks of a seed take turns. Then a parent takes turns with copies of itself that have half of its
multiply-adds. The number of channels of every layer of a copy is a multiple of 1, 4, 8 or 16. Every finished job is a
line of OUT, and is not run again. The networks are stored in a folder in benchmarks/out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.training.finetune import predictions, resnet18
from benchmarks.training.jobs import Job, Jobs
from benchmarks.training.paired import accuracies, accuracy, difference
from tune_sparsity.experiments import Data, Experiment, Recipe, Split, find
from tune_sparsity.experiments.training import Training, train_whole
from tune_sparsity.sparsity import prunable_layers
from tune_sparsity.sparsity.cost.multiply_adds import count_uses
from tune_sparsity.sparsity.neurons.removal import smaller
from tune_sparsity.sparsity.neurons.selection import NeuronSelection
from tune_sparsity.sparsity.patterns import Neurons
from tune_sparsity.tuner.results.export_formats import onnx_model
from tune_sparsity.tuner.results.inference_cost import timings

Params = dict[str, Any]
SHARE = 0.5  # the share of the multiply-adds that a network keeps
CLASSES, TUNED, SEEDS = 10, 0, (100, 101, 102)
METHODS = ("dense", *(f"{method}:{multiple}" for multiple in (8, 16) for method in ("torch-pruning", "gmp", "lpss")))
"""Each with the multiple of channels that every layer keeps."""
RUNTIMES = ("torch", "ONNX Runtime")
REPEATS = 2  # how often the networks are timed


@dataclass(frozen=True)
class Network:
    """Holds the data of a network, and how the network is trained.

    Attributes:
        experiment: the name of the experiment that has the data.
        examples: how many training images are used.
        epochs: of the parent, and of the trainings that start from the parent.
        parent: the settings of the parent.
    """

    experiment: str
    examples: int
    epochs: tuple[int, int]
    parent: Params


NETWORKS = {
    "resnet18": Network("cifar10-subset", 3500, (12, 4), {"lr": 0.02, "weight_decay": 5e-4}),
    "wide-resnet": Network("fashion-mnist-wrn", 3000, (12, 4), {"lr": 0.1}),
}
RATES = (0.005, 0.02)
SECOND: dict[str, Sequence[Params]] = {
    "dense": ({},),
    "torch-pruning": ({"global": False}, {"global": True}),
    "gmp": ({"begin": 0.0, "end": 0.25}, {"begin": 0.0, "end": 0.5}),
    "lpss": tuple({"p": p, "threshold.begin": 0.0, "threshold.end": 0.5, "sphere_lr": 0.002} for p in (1.7, 2.0)),
}


def tries(method: str) -> list[Params]:
    return [{"lr": lr, **second} for lr, second in product(RATES, SECOND[method.partition(":")[0]])]


@cache
def loaded(name: str, data_dir: str) -> tuple[Experiment, Data]:
    """Return the experiment of a network, and its data."""
    network = NETWORKS[name]
    experiment = find(network.experiment)
    data = experiment.load(Path(data_dir))
    model = resnet18 if name == "resnet18" else experiment.model
    part = Split(data.train.x[: network.examples], data.train.y[: network.examples])
    return replace(experiment, model=model, recipe=Recipe(1, batch_size=64)), replace(data, train=part)


def work(job: Job, data_dir: str, folder: Path) -> Job:
    """Do a job: time networks, or train one, and measure it."""
    experiment, data = loaded(job["network"], data_dir)
    if "timing" in job or "widths" in job:
        networks = of_widths(job, experiment, data, folder) if "widths" in job else trained_ones(job, folder)
        return timed(networks, experiment.prepare(data.val.first(2).x))
    method, _, multiple = job["method"].partition(":")
    params, network = dict(job["params"]), NETWORKS[job["network"]]
    options = {"epochs": network.epochs[method != "parent"], "seed": job["seed"]}
    if method == "parent":
        done = train_whole(experiment, data, "dense", params, **options)
    else:
        model = partial(torch.load, folder / name_of(job["network"], "parent", job["seed"]), weights_only=False)
        experiment = replace(experiment, model=model, trained=True)
        if method == "torch-pruning":
            model = partial(magnitude_example, experiment, data, int(multiple), everywhere=params.pop("global"))
            experiment = replace(experiment, model=model)
        elif method != "dense":
            experiment = experiment.with_pattern(Neurons(int(multiple), by_macs=True))
            params["final_sparsity"] = 1 - SHARE
        done = train_whole(experiment, data, "dense" if method == "torch-pruning" else method, params, **options)
        if method in ("gmp", "lpss"):
            done.model = without_neurons(done)
    found: Job = {"val": float((predictions(experiment, done, data.val) == data.val.y).float().mean())}
    found["macs"], found["parameters"] = macs(experiment, data, done.model), parameters(done.model)
    if job["final"]:
        found["test"] = "".join(map(str, predictions(experiment, done, data.test).tolist()))
        torch.save(done.model, folder / name_of(job["network"], job["method"], job["seed"]))
    return found


def name_of(network: str, method: str, seed: int) -> str:
    """Return the name of a network's file."""
    return f"{network}-{method.replace(':', '-')}-{seed}.pt"


def magnitude_example(experiment: Experiment, data: Data, multiple: int, *, everywhere: bool) -> nn.Module:
    """Return the trained network after pruning by magnitude, as in torch-pruning's README. The pruning ratio is the
    smallest one that leaves at most half of the multiply-adds.

    Args:
        everywhere: whether one threshold is chosen over all layers. Otherwise, every layer loses the same share of its
            channels.
    """
    import torch_pruning

    dense, low, high = experiment.model(), 0.0, 1.0
    most, example = SHARE * macs(experiment, data, dense), experiment.prepare(data.train.first(2).x)
    for _ in range(12):
        ratio, network = (low + high) / 2, deepcopy(dense)
        torch_pruning.pruner.BasePruner(
            network,
            example,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            global_pruning=everywhere,
            pruning_ratio=ratio,
            ignored_layers=[one for one in network.modules() if isinstance(one, nn.Linear)],
            round_to=multiple,
        ).step()
        if macs(experiment, data, network) <= most:
            high, found = ratio, network
        else:
            low = ratio
    return found


def macs(experiment: Experiment, data: Data, model: nn.Module) -> int:
    layers = prunable_layers(model, sphere=False)
    uses = count_uses(model, layers, experiment.prepare(data.val.first(2).x))
    assert uses is not None
    return uses.macs({layer.name: layer.weight.numel() for layer in layers})


def parameters(model: nn.Module) -> int:
    return sum(one.numel() for one in model.parameters())


def trained_ones(job: Job, folder: Path) -> dict[str, nn.Module]:
    """Return the final networks under one seed, as a dict from methods to networks."""
    files = {method: folder / name_of(job["network"], method, job["timing"]) for method in job["methods"]}
    return {method: torch.load(file, weights_only=False) for method, file in files.items()}


def of_widths(job: Job, experiment: Experiment, data: Data, folder: Path) -> dict[str, nn.Module]:
    """Return a dict with a dense parent, "dense", and its copies with half the multiply-adds. The key of a copy is the
    multiple: every layer of the copy "8" has a multiple of 8 channels."""
    model = partial(torch.load, folder / name_of(job["network"], "parent", TUNED), weights_only=False)
    networks = {"dense": model()}
    for multiple in job["widths"]:
        start = replace(experiment, model=model, trained=True).with_pattern(Neurons(multiple, by_macs=True))
        training = Training(start, data.train, data.val, "gmp", {"final_sparsity": 1 - SHARE}, epochs=1, seed=TUNED)
        training.sparse.finish()
        networks[str(multiple)] = without_neurons(training)
    return networks


def without_neurons(training: Training) -> nn.Module:
    assert isinstance(training.sparse.selection, NeuronSelection)
    return smaller(training.model.eval(), training.sparse.selection.groups, training.sparse.masks)


@torch.no_grad()
def timed(networks: dict[str, nn.Module], examples: Tensor) -> Job:
    """Return the median milliseconds of one example on one thread: a dict from runtimes (torch and ONNX Runtime) to
    dicts from names of networks."""
    passes = {
        "torch": {name: partial(one.eval(), examples[:1]) for name, one in networks.items()},
        "ONNX Runtime": {name: onnx_pass(one.eval(), examples) for name, one in networks.items()},
    }
    taken = {runtime: timings(calls, seconds=8, most=2000) for runtime, calls in passes.items()}
    return {runtime: {name: one.ms for name, one in times.items()} for runtime, times in taken.items()}


def onnx_pass(model: nn.Module, examples: Tensor) -> Any:
    """Return the function that runs the exported network on one example, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    file = onnx_model(model, lambda network, x: network(x), examples).SerializeToString()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return partial(session.run, None, {"inputs": examples[:1].numpy()})


class Benchmark:
    """All trainings of one network."""

    def __init__(self, jobs: Jobs, network: str, methods: Sequence[str]) -> None:
        self.jobs, self.network, self.methods = jobs, network, list(methods)

    def job(self, method: str, params: Params, seed: int, *, final: bool) -> Job:
        return {"network": self.network, "method": method, "params": params, "seed": seed, "final": final}

    def best(self, method: str, points: Sequence[Params]) -> Params:
        """Return the settings with the highest validation accuracy. If several are equal, return the first of them."""
        done = self.jobs.run([self.job(method, point, TUNED, final=False) for point in points])
        chosen = max(range(len(points)), key=lambda index: (done[index]["val"], -index))
        print(f"{self.network} {method}: {done[chosen]['val']:.4f} {points[chosen]}", flush=True)
        return points[chosen]

    def parents(self) -> None:
        params = NETWORKS[self.network].parent
        self.jobs.run([self.job("parent", params, seed, final=True) for seed in (TUNED, *SEEDS)])

    def trained(self, method: str) -> list[Job]:
        chosen = self.best(method, tries(method))
        return self.jobs.run([self.job(method, chosen, seed, final=True) for seed in SEEDS])

    def latency(self, runtime: str) -> dict[str, str]:
        """Return the time of each method's network, divided by the time of the dense network."""
        job = {"network": self.network, "methods": self.methods}
        return self._ratios(
            runtime, [{**job, "timing": seed, "repeat": n} for seed, n in product(SEEDS, range(REPEATS))]
        )

    def widths(self, runtime: str) -> dict[str, str]:
        """Return the time of each pruned parent, divided by the time of the dense parent. The keys are the multiples
        of channels that the layers keep."""
        job = {"network": self.network, "widths": [1, 4, 8, 16]}
        return self._ratios(runtime, [{**job, "repeat": n} for n in range(REPEATS)])

    def _ratios(self, runtime: str, todo: Sequence[Job]) -> dict[str, str]:
        """Run the timing jobs. Return the time of each network divided by the time of the dense network: the median
        over the jobs, with the smallest and the largest value."""
        done = [self.jobs.run([one])[0][runtime] for one in todo]  # never two at a time
        ratios = {name: [one[name] / one["dense"] for one in done] for name in done[0]}
        return {name: f"{median(found):.2f} ({min(found):.2f} to {max(found):.2f})" for name, found in ratios.items()}


HEADER = """\
| network | method | multiply-adds | weights | ms, torch | ms, ONNX Runtime | validation % | test % | minus dense \
| minus torch-pruning |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def rows(benchmark: Benchmark, targets: Tensor) -> list[str]:
    """Return the table's lines. Multiply-adds, weights and milliseconds are divided by those of the dense network. The
    last column is the test accuracy minus that of torch-pruning. There are rows of torch-pruning for several multiples
    of channels. The row with the highest validation accuracy is used for this comparison."""
    found = {method: benchmark.trained(method) for method in benchmark.methods}
    tests = {method: torch.tensor([list(map(int, one["test"])) for one in done]) for method, done in found.items()}
    validated = {method: mean(one["val"] for one in done) for method, done in found.items()}
    example = max((method for method in found if method.startswith("torch-pruning")), key=validated.__getitem__)
    latency, lines = [benchmark.latency(runtime) for runtime in RUNTIMES], []
    for method, done in found.items():
        share = {name: mean(one[name] for one in done) / found["dense"][0][name] for name in ("macs", "parameters")}
        cells = [benchmark.network, method, f"{share['macs']:.3f}", f"{share['parameters']:.3f}"]
        cells += [*(one[method] for one in latency), f"{100 * validated[method]:.2f}"]
        cells.append(accuracies(targets, tests[method]))
        apart = partial(difference, accuracy, targets, tests[method], classes=CLASSES)
        cells.append("" if method == "dense" else str(apart(tests["dense"])))
        cells.append("" if method in ("dense", example) else str(apart(tests[example])))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--only", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="dense among them")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/neurons.jsonl"))
    options = parser.parse_args()
    folder = Path("benchmarks/out") / options.out.stem
    folder.mkdir(parents=True, exist_ok=True)
    jobs = Jobs(partial(work, data_dir=options.data_dir, folder=folder), options.out, options.workers)
    lines = [HEADER]
    for network in options.only:
        benchmark = Benchmark(jobs, network, options.methods)
        benchmark.parents()
        lines += rows(benchmark, loaded(network, options.data_dir)[1].test.y)
        for runtime in RUNTIMES:
            print(f"{network}, {runtime}, milliseconds by multiples: {benchmark.widths(runtime)}", flush=True)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
