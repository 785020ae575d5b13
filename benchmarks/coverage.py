"""Measure how large a share of the weights of torchvision's networks is prunable.

    python -m benchmarks.coverage [--write docs/layers.md]

The command prints a table in Markdown. It has a row for each network of the classification, segmentation and video
families: the number of weight matrices, the share of their weights that is prunable, and the matrices that stay dense.
The parameters of the networks have shapes but no values, so they need no memory. With `--write FILE`, the table is not
printed: it replaces the table at the end of FILE.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torchvision
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torchvision.models import get_model, list_models

from tune_sparsity.sparsity import network_size

FAMILIES = {
    "classification": torchvision.models,
    "segmentation": torchvision.models.segmentation,
    "video": torchvision.models.video,
}
_HEADER = ["| network | matrices | weights in them | prunable | stay dense |", "| --- | --- | --- | --- | --- |"]


@dataclass(frozen=True)
class Coverage:
    """The weight matrices of a network. `dense` counts the dense ones, by the end of their name and the reason."""

    name: str
    matrices: int
    weights: int
    prunable: int
    dense: dict[str, int]

    @property
    def share(self) -> float:
        return self.prunable / self.weights

    def row(self) -> str:
        dense = "; ".join(f"{count} x {what}" for what, count in self.dense.items())
        return f"| {self.name} | {self.matrices} | {self.weights:,} | {self.share:.2%} | {dense} |"


@contextmanager
def without_memory() -> Iterator[None]:
    """In this context, the parameters of new modules have shapes but no values."""
    hook = register_module_parameter_registration_hook(
        lambda module, name, param: nn.Parameter(param.detach().to("meta"), param.requires_grad)
    )
    try:
        yield
    finally:
        hook.remove()


def networks() -> list[str]:
    return [name for family in FAMILIES.values() for name in list_models(module=family)]


def coverage(name: str) -> Coverage:
    options = {"weights_backbone": None} if name in list_models(module=FAMILIES["segmentation"]) else {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # the initial weights of these two networks take a minute to draw
    with without_memory():
        model = get_model(name, weights=None, **options)
    size = network_size(model)
    kinds = Counter(f"{one.name.rpartition('.')[2]} ({one.reason})" for one in size.dense)
    return Coverage(name, size.layers + len(size.dense), size.matrices, size.prunable, dict(kinds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="a file whose table is replaced")
    options = parser.parse_args()
    rows = [*_HEADER, *(coverage(name).row() for name in networks())]
    if options.write is None:
        print("\n".join(rows))
        return
    before, found, _ = options.write.read_text().partition(_HEADER[0])
    if not found:
        parser.error(f"{options.write} has no such table: {_HEADER[0]}")
    options.write.write_text("\n".join([before.rstrip("\n"), "", *rows]) + "\n")


if __name__ == "__main__":
    main()
