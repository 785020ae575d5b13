"""Measure what a training step costs on a GPU, with plain SGD and in a sparse training: forward, backward and the
optimizer's step.

    python -m benchmarks.gpu_step

Times are wall clock times. Each side trains its own network. The sides take turns of 40 steps, on the same batches.
Before the clock is read at the start and at the end of a turn, the CPU waits until the GPU has finished its work. The
sides "LpSGD, ours" are trainings to 90 % sparsity. Their times include the updates of the masks: an update every 40
steps, between .1 and .7 of all steps. The table shows the mean over all turns except the first two, in which CUDA
graphs are recorded for the first time. It also shows the ratio to "SGD", torch's SGD in its default implementation.

"Kernel by kernel" starts each kernel of the step by itself. "Alone" starts the kernels of the optimizer's step
together, as one recorded CUDA graph: users have this if they write the training loop themselves. "Recorded" starts the
kernels of the forward and backward pass in the same way, as the built-in experiments do.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.step import LR, SETTINGS, Direct, P
from tune_sparsity.experiments import find
from tune_sparsity.sparsity import METHODS, SparseTraining, lpss
from tune_sparsity.sparsity.optim.cuda_graph import RecordedPasses

TURNS, STEPS, WARM = 22, 40, 2
NETWORKS = {"fashion-mnist": ((784,), 128), "fashion-mnist-wrn": ((1, 28, 28), 256)}

Step = Callable[[Tensor, Tensor], object]


def plain(model: nn.Module, optimizer: torch.optim.Optimizer | Direct) -> Step:
    def step(x: Tensor, y: Tensor) -> None:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def sparse(training: SparseTraining, *, kind: str) -> Step:
    """Return a function that trains a step. `kind` is "kernel by kernel", "alone" or "recorded".

    With "kernel by kernel", each kernel starts by itself. With "alone", only the kernels of the optimizer's step start
    together, in a CUDA graph. With "recorded", the kernels of the forward and backward passes do this, too.
    """
    held, recorded = list[Tensor](), RecordedPasses(training.model.parameters())
    if kind == "kernel by kernel":
        training._recorded._can_record = lambda: False

    def passes() -> Tensor:
        x, y = held
        loss = F.cross_entropy(training.model(x), y)
        training.zero_grad()
        loss.backward()
        return loss

    def step(x: Tensor, y: Tensor) -> None:
        if not held:
            held.extend((x.clone(), y.clone()))
        if kind == "recorded":
            held[0].copy_(x)
            held[1].copy_(y)
            recorded(passes)
        else:
            held[:] = x, y
            passes()
        training.step()

    return step


def sides(make: Callable[[], nn.Module]) -> dict[str, Step]:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return make().cuda()

    def sgd(**options: bool) -> Step:
        model = network()
        return plain(model, torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, **options))

    def ours(kind: str) -> Step:
        return sparse(lpss(network(), SETTINGS, total_steps=TURNS * STEPS), kind=kind)

    dense = METHODS["dense"].build(
        network(), {"lr": 1e-3}, total_steps=TURNS * STEPS, generator=torch.Generator().manual_seed(0)
    )
    direct = network()
    return {
        "SGD": sgd(),
        "SGD, fused": sgd(fused=True),
        "SGD, recorded": sparse(dense, kind="recorded"),
        "LpSGD, direct": plain(direct, Direct(direct, P, LR)),
        "LpSGD, ours, kernel by kernel": ours("kernel by kernel"),
        "LpSGD, ours, alone": ours("alone"),
        "LpSGD, ours, recorded": ours("recorded"),
    }


def measure(steps: dict[str, Step], batches: Sequence[tuple[Tensor, Tensor]]) -> dict[str, list[float]]:
    """Return a dict from sides to the milliseconds of a step in each turn after the first `WARM` turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(TURNS):
        for name, step in steps.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            for x, y in batches:
                step(x, y)
            torch.cuda.synchronize()
            if turn >= WARM:
                times[name].append(1e3 * (time.perf_counter() - start) / len(batches))
    return times


def main() -> None:
    torch.set_num_threads(1)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    print("| network | side | ms | of SGD's |\n| --- | --- | --- | --- |")
    for name, (shape, size) in NETWORKS.items():
        experiment = find(name)
        generator = torch.Generator().manual_seed(0)
        batches = [
            (
                torch.randn(size, *shape, generator=generator).cuda(),
                torch.randint(0, 10, (size,), generator=generator).cuda(),
            )
            for _ in range(STEPS)
        ]
        times = measure(sides(experiment.model), batches)
        for side, each in times.items():
            ratio = statistics.mean(each) / statistics.mean(times["SGD"])
            print(f"| {name} | {side} | {statistics.mean(each):.3f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
