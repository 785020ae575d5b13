"""Compare the measured Hoyer sparsity of weights on the Lp sphere with its expected values, for several p.

    python -m benchmarks.hoyer [--out benchmarks/out/hoyer.html]

The digits network is trained on the sphere without any pruning. There are trainings with a short, a middle and a long
travel (the sum of the learning rates), with three seeds each. The measured value is the mean Hoyer sparsity over the
rows of the layer with 300 inputs, before and after the training. The table also shows the expected values of
`tune_sparsity.sparsity.hoyer`: the curve of the LpSS paper, the uniform distribution on the sphere, and weights whose
dual image is Gaussian. The benchmark prints the table in Markdown and draws it as a picture.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch

from tune_sparsity.experiments import Data, find
from tune_sparsity.experiments.training import Training
from tune_sparsity.sparsity.hoyer import expected_gaussian_dual, expected_paper, expected_uniform, hoyer
from tune_sparsity.sparsity.optim.lpsgd import LpSGD

EXPONENTS = (1.05, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0)
RATES = {"short": 0.002, "middle": 0.008, "long": 0.05}
LAYER, FAN_IN = "2.weight", 300
COLUMNS = ("initial", "short", "middle", "long", "paper", "uniform", "Gaussian dual")


def measured(data: Data, p: float, rate: float, seed: int) -> tuple[float, float, float]:
    """Return the mean Hoyer sparsity of the layer's rows before and after a training, and the travel."""
    params = {"p": p, "sphere_lr": rate, "lr": 0.05, "final_sparsity": 0.0, "initial_sparsity": 0.0}
    params["threshold_interval"] = 10**9  # no update of the masks ever
    training = Training(find("digits"), data.train, data.val, "lpss", params, epochs=30, seed=seed)
    (weight,) = (layer.weight for layer in training.sparse.layers if layer.name == LAYER)
    optimizer = training.sparse.optimizer
    assert isinstance(optimizer, LpSGD)
    before = float(hoyer(optimizer.sphere_weights(weight)).mean())
    while not training.finished:
        training.epoch()
    return before, float(hoyer(optimizer.sphere_weights(weight)).mean()), training.sparse.lr_sum


def rows(data: Data) -> list[dict[str, float]]:
    """Return the rows of the table, one for each exponent p, as dicts from columns to values."""
    table = []
    for p in EXPONENTS:
        runs = {name: [measured(data, p, rate, seed) for seed in range(3)] for name, rate in RATES.items()}
        row = {"p": p, "initial": statistics.mean(run[0] for run in runs["short"])}
        row |= {name: statistics.mean(run[1] for run in done) for name, done in runs.items()}
        row |= {f"{name} travel": statistics.mean(run[2] for run in done) for name, done in runs.items()}
        row |= {"paper": expected_paper(p, FAN_IN), "uniform": expected_uniform(p, FAN_IN)}
        table.append({**row, "Gaussian dual": expected_gaussian_dual(p, FAN_IN)})
    return table


def draw(table: list[dict[str, float]], path: Path) -> None:
    """Markers for what was measured, lines for what is expected."""
    import plotly.graph_objects as go

    from tune_sparsity.tuner.reports.page import write_html
    from tune_sparsity.tuner.reports.plots.theme import THEME

    figure = go.Figure(layout={"template": THEME, "title": {"text": "Hoyer sparsity on the sphere, over p"}})
    for name in COLUMNS:
        mode = "markers" if name in ("initial", *RATES) else "lines"
        figure.add_scatter(x=[row["p"] for row in table], y=[row[name] for row in table], mode=mode, name=name)
    figure.update_layout(xaxis_title="p", yaxis_title="Hoyer sparsity")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_html(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/hoyer.html"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = rows(find("digits").load(None))
    print("travel:", ", ".join(f"{name} {table[0][f'{name} travel']:.1f}" for name in RATES))
    print("| p | " + " | ".join(COLUMNS) + " |\n| --- |" + " --- |" * len(COLUMNS))
    for row in table:
        print(f"| {row['p']:g} | " + " | ".join(f"{row[name]:.3f}" for name in COLUMNS) + " |")
    draw(table, options.out)


if __name__ == "__main__":
    main()
