"""Run the command as a user does, and define experiments for the studies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

BLOBS = """
def load(data_dir):
    g = torch.Generator().manual_seed(0)
    means = 2 * torch.randn(3, 12, generator=g)
    def split(n):
        y = torch.randint(0, 3, (n,), generator=g)
        return Split(means[y] + torch.randn(n, 12, generator=g), y)
    return Data(split(300), split(120), split(120), classes=("a", "b", "c"))
"""
"""The data of experiments that tests write: three classes, which a small network tells apart."""

EXPERIMENT = (
    """
import time
import torch
from torch import nn
from tune_sparsity.experiments import Data, Experiment, Recipe, Split
from tune_sparsity.sparsity import LayerRules

class Sometimes(nn.Module):
    '''Its weights decide whether it diverges: a third of all seeds do, in the first epoch.'''
    def __init__(self, share=1 / 3):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 3))
        self.register_buffer("diverges", torch.rand(()) < share)
        self.register_buffer("seen", torch.zeros(()))
    def forward(self, x):
        self.seen += self.training
        return self.net(x) * torch.where(self.diverges & (self.seen > 5), torch.nan, 1.0)

"""
    + BLOBS
    + """
sometimes_nan = Experiment("sometimes-nan", load, Sometimes, Recipe(epochs=6, batch_size=30))
steady = Experiment("steady", load, lambda: Sometimes(share=0.0), Recipe(epochs=6, batch_size=30))
class Slow(Sometimes):
    def forward(self, x):
        time.sleep(0.004 * self.training)
        return super().forward(x)

slow = Experiment("slow", load, lambda: Slow(share=0.0), Recipe(epochs=6, batch_size=30))
dense_head = Experiment("dense-head", load, steady.model, Recipe(6, 30), layers=LayerRules(dense=("net.2.*",)))
"""
)


@dataclass
class Ran:
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str
    cwd: Path

    def result(self) -> dict:
        return json.loads(self.stdout)


Command = Callable[..., Ran]


def run_command(arguments: Sequence[str], cwd: Path, *, timeout: float = 300, **environment: str) -> Ran:
    """Run `tune-sparsity` in a process of its own, in the folder `cwd`."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    done = subprocess.run(
        [sys.executable, "-m", "tune_sparsity", *arguments],
        cwd=cwd,
        env={**env, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr, cwd)
