"""The guide to extensions: all its changes can be made in one copy of the code, and the changed code works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.layout import OURS

GUIDE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
USE = """
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from tune_sparsity.search_spaces import load_space
from tune_sparsity.sparsity import METHODS, zeros_for
from tune_sparsity.tuner.commands.search import search_parser
from tune_sparsity.tuner.config.study_config import make_config
from tune_sparsity.tuner.driver.study_run import StudyRun
from tune_sparsity.tuner.results.export import SUFFIXES, reader_of, write_as
from tune_sparsity.tuner.results.tables import trials_csv
from tune_sparsity.tuner.search.searcher import OptunaSearcher
from tune_sparsity.tuner.study.goal import at_targets
from tune_sparsity.tuner.study.trial import Epoch, TrialState

assert Path(sys.modules["tune_sparsity"].__file__).is_relative_to(Path.cwd())

torch.manual_seed(0)
x, y = torch.randn(32, 16), torch.randint(0, 4, (32,))
for name in ("linear-gmp", "regrow"):
    model = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 4))
    sparse = METHODS[name].build(model, {"final_sparsity": 0.9}, total_steps=40, generator=torch.Generator())
    changes = 0
    for _ in range(40):
        before = [mask.clone() for mask in sparse.masks]
        sparse.zero_grad()
        F.cross_entropy(model(x), y).backward()
        sparse.step()
        changes += any(not torch.equal(a, b) for a, b in zip(before, sparse.masks))
    assert sparse.zeros()[0] == zeros_for(0.9, sparse.zeros()[1]), name
    assert changes == 1 if name == "regrow" else changes > 3, (name, changes)

options = vars(search_parser().parse_args(["--target", "0.9", "--max-failures", "1", "--sampler", "nsgaiii"]))
config = make_config(options)
searcher = OptunaSearcher([load_space("linear-gmp", 0.9)], 0.9, sampler=config.sampler)
study = StudyRun(config, at_targets(0.9), searcher)
number = study.ask().number
measured = {"sparsity": 0.9, "sparsity_total": 0.8, "hoyer": 0.5, "nonzero_weights": 9.0, "epoch_seconds": 1.0}
study.epoch(number, Epoch(1, {**measured, "val_accuracy": 0.5, "train_loss": 0.25}))
study.end(number, TrialState.FAILED, "no reason")
assert study.ask() is None
assert "--max-failures" in study.why_ended
heading, row = (line.split(",") for line in trials_csv(list(study.records.values())).splitlines())
assert row[heading.index("train_loss")] == "0.25"

network = type("Network", (), {"tensors": {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}})
write_as(network, "numpy", Path("file" + SUFFIXES["numpy"]))
network.experiment = type("Experiment", (), {"outputs": lambda read, x: read, "network_with": lambda tensors: tensors})
read = reader_of(network, "numpy", Path("file.npz"))(x)
assert all(torch.equal(read[name].bfloat16(), tensor) for name, tensor in network.tensors.items())
"""


def changes() -> list[tuple[str, list[str]]]:
    """Return (file, lines) for every change that the guide shows. The line before a change names its file, for example
    ` # tuner/cli.py`."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```diff\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if named := re.fullmatch(r" # ([\w/]+\.py)", line):
                found.append((named[1], []))
            else:
                found[-1][1].append(line)
    return found


def changed(text: str, change: list[str], file: str) -> str:
    """Return the text with a change applied. Lines after a line ` ...`, and all lines of a new file, are added at the
    end."""
    lines, place, end = text.splitlines(), 0, not text
    for line in change:
        sign, content = line[:1], line[1:]
        if line == " ...":
            end = True
        elif sign == "+":
            place = len(lines) if end else place
            lines.insert(place, content)
            place, end = place + 1, False
        else:
            assert content in lines[place:], f"docs/extending.md shows a line that is not in {file}: {content}"
            place, end = lines.index(content, place), False
            if sign == "-":
                del lines[place]
            else:
                place += 1
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def copy_of_the_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("code")
    for folder in (*OURS, "src"):
        shutil.copytree(ROOT / folder, root / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for file, change in changes():
        path = root / file
        path.write_text(changed(path.read_text() if path.exists() else "", change, file))
    gmp = (root / "search_spaces" / "gmp.yaml").read_text()
    (root / "search_spaces" / "linear-gmp.yaml").write_text(gmp.replace("method: gmp", "method: linear-gmp"))
    return root


def test_the_diffs_in_the_extension_guide_change_the_expected_files() -> None:
    files = {file for file, _ in changes()}
    assert {"sparsity/methods/registry.py", "tuner/search/samplers.py", "tuner/study/trial.py"} <= files
    assert {"tuner/results/export.py", "tuner/commands/search.py"} <= files


def test_the_code_works_after_the_changes_of_the_extension_guide(copy_of_the_code: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=copy_of_the_code,
        env={**os.environ, "PYTHONPATH": str(copy_of_the_code / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
