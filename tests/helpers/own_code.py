"""Write a folder with a user's own experiment, the modules that it imports, and other files."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import tune_sparsity.experiments.registry as registry
from tests import ROOT

FILES = {
    "mine.py": """
import json
from pathlib import Path
import torch
from blocks import SIZE, Block
from tune_sparsity.experiments import Data, Experiment, Recipe, Split

HERE = Path(__file__).parent
MANY = torch.zeros(500_000)  # only the loader reads it

def load(data_dir):
    part = Split(MANY[:60].view(12, 5) + torch.arange(12.0)[:, None], torch.arange(12) % 3)
    return Data(part, part, part)

def model():
    from lazy import kinds
    hidden = json.loads((HERE / "sizes.json").read_text())["hidden"]
    return torch.nn.Sequential(Block(SIZE, hidden), torch.nn.Linear(hidden, kinds()))

mine = Experiment("mine", load, model, Recipe(2, 4), files=("sizes.json",))
""",
    "blocks.py": """
import torch
from deeper.parts import Core
SIZE = 5
class Block(Core):
    def forward(self, x):
        return super().forward(x).relu()
""",
    "deeper/__init__.py": "",
    "deeper/parts.py": "import torch\nclass Core(torch.nn.Linear):\n    pass\n",
    "deeper/unused.py": "raise RuntimeError('nobody imports this')\n",
    "deeper/notes.txt": "not to be sent",
    "README.md": "not to be sent",
    "run.log": "not to be sent",
    "credentials": "not to be sent",
    "optuna.journal": "not to be sent",
    "data.npy": "not to be sent",
    "lazy.py": "def kinds():\n    return 3\n",
    "sizes.json": '{"hidden": 7}',
    "stranger.py": "raise RuntimeError('nobody imports this')\n",
    ".secret": "not to be sent",
    "mlflow.db": "not to be sent",
}


def write_files(files: Mapping[str, str], folder: Path) -> Path:
    """Write files into a folder and return the folder. `files` contains the text of each path."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


@contextmanager
def imports_of_its_own() -> Iterator[None]:
    """Let a test import a user's modules in a `with` block. At its end, these modules are removed from sys.modules."""
    modules, path, added = set(sys.modules), list(sys.path), list(registry._added)
    try:
        yield
    finally:
        for name in set(sys.modules) - modules:
            if not str(getattr(sys.modules[name], "__file__", "") or "").startswith((str(ROOT), sys.prefix)):
                del sys.modules[name]
        sys.path[:], registry._added[:] = path, added
