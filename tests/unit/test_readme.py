"""What README and CONTRIBUTING say is so: examples run, options exist, links lead somewhere."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import ROOT
from tests.helpers.in_process import run_in_process
from tune_sparsity.experiments import find
from tune_sparsity.experiments.checks import first_fault
from tune_sparsity.search_spaces import load_space
from tune_sparsity.sparsity import METHODS
from tune_sparsity.tuner.cli import main
from tune_sparsity.tuner.commands.search import search_parser
from tune_sparsity.tuner.search.searcher import OptunaSearcher

README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text below a heading of README, up to the next heading of its level."""
    _, found, rest = README.partition(f"\n## {title}\n")
    assert found, f"README has no section {title!r}"
    return rest.partition("\n## ")[0]


def example(title: str) -> str:
    """The first block of Python in that section."""
    blocks = re.findall(r"^```python\n(.*?)^```", section(title), re.MULTILINE | re.DOTALL)
    assert blocks, f"README's section {title!r} has no example"
    return str(blocks[0])


def commands() -> list[list[str]]:
    """The arguments of every `tune-sparsity ...` in README, in blocks and in the text."""
    written = re.findall(r"tune-sparsity( +(?:resume|list|check|export|report|compare|ui|--)[^`#\n]*)", README)
    return [shlex.split(arguments.rstrip(" .,:*")) for arguments in written]


def test_the_example_of_a_space_can_be_searched(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```", section("Your own search space"), re.MULTILINE | re.DOTALL)
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    searcher = OptunaSearcher([load_space(str(file), 0.9)], 0.9, sampler="random")
    for _ in range(10):
        METHODS["lpss"].configure(searcher.ask().params)


def test_the_example_of_an_own_loop_ends_on_its_sparsity_exactly(tmp_path: Path) -> None:
    code = example("In your own training loop")
    assert len([line for line in code.splitlines() if line.strip()]) < 25
    file = tmp_path / "loop.py"
    file.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(file)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # small tensors: more threads wait for each other
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = re.fullmatch(r"(\d+) of (\d+) weights are zero, accuracy (0\.\d+|1\.0+)\n", done.stdout)
    assert said, done.stdout
    zeros, weights = int(said[1]), int(said[2])
    assert weights == 32 * 64 + 64 * 64 + 64 * 4
    assert zeros == math.ceil(0.9 * weights)
    assert float(said[3]) > 0.9


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder with the example of an experiment of one's own, and arrays as it says."""
    y = np.arange(150) % 3
    x = np.random.default_rng(0).integers(0, 100, (150, 3, 8, 8), dtype=np.uint8)
    x[np.arange(150), y] += 100
    np.save(tmp_path / "images.npy", x)
    np.save(tmp_path / "labels.npy", y)
    (tmp_path / "mine.py").write_text(example("Your own experiment"), encoding="utf-8")
    return tmp_path


def test_the_example_of_an_own_experiment_is_short_and_fits_its_data(mine: Path) -> None:
    assert len(example("Your own experiment").splitlines()) < 40
    experiment = find(f"{mine}/mine.py:mine")
    assert first_fault(experiment, experiment.load(None)) is None
    assert "--experiment mine.py:mine" in section("Your own experiment")


@pytest.mark.slow
def test_the_example_of_an_own_experiment_is_sound_and_can_be_searched(
    mine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(mine)
    assert main(["check", "mine.py:mine"]) == 0
    assert "mine.py:mine is sound" in capsys.readouterr().err
    folder = run_in_process(mine / "studies", "mine", experiment="mine.py:mine", target=0.9, trials=1, epochs=1)
    assert json.loads((folder / "result.json").read_text())["best"]["sparsity"] >= 0.9
    assert (folder / "best" / "model.safetensors").is_file()


def test_every_option_that_is_named_exists() -> None:
    known = {*search_parser()._option_string_actions, "--show", "--format", "--network"}  # of subcommands
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", README))
    assert {"--target", "--config", "--json"} <= named
    assert named <= known


def test_every_command_that_is_shown_would_be_understood(capsys: pytest.CaptureFixture[str]) -> None:
    shown = commands()
    assert len(shown) >= 6
    for arguments in shown:
        if arguments[0].startswith("--"):
            if "--help" not in arguments:
                assert {"target", "front", "max_nonzero", "max_bytes"} & set(
                    vars(search_parser().parse_args(arguments))
                )
        else:
            with pytest.raises(SystemExit) as ended:
                main([arguments[0], "--help"])
            assert ended.value.code == 0
    assert "tune-sparsity resume" in capsys.readouterr().out


def test_every_make_target_that_is_named_exists() -> None:
    rules = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z]+)", README + CONTRIBUTING, re.MULTILINE))
    assert {"tune", "test", "wheel"} <= named
    assert named <= rules


LINKS = sorted(
    {
        (name, link)
        for name, text in (("README.md", README), ("CONTRIBUTING.md", CONTRIBUTING))
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
        if "://" not in link
    }
)


def test_links_are_found_at_all() -> None:
    assert ("README.md", "docs/front.png") in LINKS
    assert ("README.md", "CONTRIBUTING.md") in LINKS


@pytest.mark.parametrize(("name", "link"), LINKS)
def test_every_link_leads_to_a_file(name: str, link: str) -> None:
    assert (ROOT / name).parent.joinpath(link).is_file()


@pytest.mark.parametrize(
    "path", ["sparsity/methods/registry.py", "experiments/registry.py", "tests/unit/test_layout.py"]
)
def test_the_files_that_contributing_names_exist(path: str) -> None:
    assert f"`{path}`" in CONTRIBUTING
    assert (ROOT / path).is_file()
