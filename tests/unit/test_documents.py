"""The documents agree with the code: their examples run, their options and messages exist, and no link is broken."""

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
from tune_sparsity.tuner.config.study_config import GOALS
from tune_sparsity.tuner.results.export import SUFFIXES
from tune_sparsity.tuner.results.tables import LEADING_COLUMNS, TRAILING_COLUMNS
from tune_sparsity.tuner.search.searcher import OptunaSearcher

PAGES = {
    page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8")
    for page in sorted(
        [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md"), *ROOT.glob("benchmarks/*.md")]
    )
}
README, OWN_NETWORK = PAGES["README.md"], PAGES["docs/own-network.md"]


def example(page: str, language: str = "python") -> str:
    """Return the first block of code in the given language on a page."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)
    assert blocks, f"{page} has no example"
    return str(blocks[0])


def commands() -> list[tuple[str, list[str]]]:
    """Return (page, arguments) for every `tune-sparsity` command, in blocks of code and in the text."""
    return [
        (page, shlex.split(arguments.rstrip(" .,:*")))
        for page, text in PAGES.items()
        for arguments in re.findall(r"tune-sparsity( +(?:[a-z]+ +[A-Zm]|doctor|list |--)[^`#\n|]*)", text)
        if "..." not in arguments and "STUDY/" not in arguments
    ]


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200


def test_the_example_of_a_space_can_be_searched(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(example("docs/search-spaces.md", "yaml"), encoding="utf-8")
    searcher = OptunaSearcher([load_space(str(file), 0.9)], 0.9, sampler="random")
    for _ in range(10):
        METHODS["lpss"].configure(searcher.ask().params)


def test_the_example_of_a_training_loop_reaches_its_exact_sparsity(tmp_path: Path) -> None:
    code = example("README.md")
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
    """Return a folder with the example of a user's own experiment and with the arrays that the example loads."""
    y = np.arange(150) % 3
    x = np.random.default_rng(0).integers(0, 100, (150, 3, 8, 8), dtype=np.uint8)
    x[np.arange(150), y] += 100
    np.save(tmp_path / "images.npy", x)
    np.save(tmp_path / "labels.npy", y)
    (tmp_path / "mine.py").write_text(example("docs/own-network.md"), encoding="utf-8")
    return tmp_path


def test_the_example_of_an_own_experiment_is_short_and_has_no_fault(mine: Path) -> None:
    assert len(example("docs/own-network.md").splitlines()) < 40
    experiment = find(f"{mine}/mine.py:mine")
    assert first_fault(experiment, experiment.load(None)) is None
    assert "--experiment mine.py:mine" in OWN_NETWORK


@pytest.mark.slow
@pytest.mark.long
def test_the_check_command_accepts_the_example_of_an_own_experiment(
    mine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(mine)
    assert main(["check", "mine.py:mine"]) == 0
    assert "mine.py:mine is valid" in capsys.readouterr().err


@pytest.mark.slow
def test_the_example_of_an_own_experiment_can_be_searched(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mine)
    folder = run_in_process(mine / "studies", "mine", experiment="mine.py:mine", target=0.9, trials=1, epochs=1)
    assert json.loads((folder / "result.json").read_text())["best"]["sparsity"] >= 0.9
    assert (folder / "best" / "model.safetensors").is_file()


def test_the_page_of_the_command_names_all_methods_columns_and_formats() -> None:
    page = PAGES["docs/command.md"]
    columns = {*LEADING_COLUMNS, *TRAILING_COLUMNS}
    missing = [name for name in (*METHODS, *columns, *SUFFIXES) if f"`{name}`" not in page]
    assert not missing, f"docs/command.md does not describe {', '.join(missing)}"


OTHERS_OPTIONS = {
    *("--resolution", "--only-binary", "--all-extras", "--no-annotate", "--no-header"),  # uv's
    *("--head", "--port", "--working-dir"),  # Ray's
    *("--build-arg", "--detach", "--scale", "--generate"),  # Docker's and Ray's
    *("--show", "--format", "--network", "--out", "--no-times"),  # of tune-sparsity's subcommands
}


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith("benchmarks/")])
def test_every_option_that_is_named_exists(page: str) -> None:
    text = re.sub(r"^.*python -m benchmarks.*$", "", PAGES[page], flags=re.MULTILINE)
    text = re.sub(r"```diff.*?```", "", text, flags=re.DOTALL)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
    assert named <= {*search_parser()._option_string_actions, *OTHERS_OPTIONS}


def test_the_search_for_options_finds_known_options() -> None:
    assert {"--target", "--max-bytes", "--method"} <= set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", README))


@pytest.mark.parametrize(("page", "arguments"), commands())
def test_every_command_that_is_shown_would_be_understood(
    page: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    if not arguments[0].startswith("--"):
        with pytest.raises(SystemExit) as ended:
            main([arguments[0], "--help"])
        assert ended.value.code == 0
    elif "--help" not in arguments:
        given = vars(search_parser().parse_args(arguments))
        assert {*GOALS, "config", "space", "address"} & set(given)


def test_the_search_for_commands_finds_many_commands() -> None:
    assert len(commands()) > 40


def tables() -> list[tuple[str, str]]:
    """Return (page, table) for each table in Markdown outside code blocks. A row begins with a bar."""
    texts = {page: re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL) for page, text in PAGES.items()}
    return [(page, table) for page, text in texts.items() for table in re.findall(r"^(?:\|.*\n)+", text, re.MULTILINE)]


def test_every_table_has_the_same_number_of_columns_in_all_rows() -> None:
    assert len(tables()) > 40
    for page, table in tables():
        header, separator, *_ = rows = re.sub(r"`[^`]*`|\\\|", "", table).splitlines()
        assert re.fullmatch(r"\|( :?-+:? \|)+", separator), (page, header)
        assert {row.count("|") for row in rows} == {header.count("|")}, (page, header)


def test_every_make_target_that_is_named_exists() -> None:
    rules = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {
        name for text in PAGES.values() for name in re.findall(r"(?:`|^)make ([a-z]+)(?=`|$| +#)", text, re.MULTILINE)
    }
    assert {"tune", "test", "wheel", "docs"} <= named
    assert named <= rules


def anchors(page: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and similar sites make them."""
    headings = re.findall(r"^#+ (.*)$", PAGES[page], re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


LINKS = sorted(
    {(page, link) for page, text in PAGES.items() for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link}
)


def test_the_search_for_links_finds_known_links() -> None:
    assert ("README.md", "docs/front.png") in LINKS
    assert ("docs/index.md", "../CONTRIBUTING.md") in LINKS


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_every_link_leads_to_a_file_and_a_heading(page: str, link: str) -> None:
    name, _, anchor = link.partition("#")
    file = (ROOT / page).parent.joinpath(name).resolve() if name else ROOT / page
    assert file.is_file()
    if anchor:
        assert anchor in anchors(file.relative_to(ROOT).as_posix())


def test_the_guide_to_own_training_loops_adds_few_lines_to_a_script() -> None:
    diffs = re.findall(r"^```diff\n(.*?)^```", PAGES["docs/own-loop.md"], re.MULTILINE | re.DOTALL)
    # The page names these numbers of lines.
    assert [len(re.findall(r"^\+", diff, re.MULTILINE)) for diff in diffs] == [7, 3, 5]
    example = (ROOT / "examples" / "searched_loop.py").read_text(encoding="utf-8")
    for line in diffs[0].splitlines():
        assert line.startswith("-") or line[1:].removesuffix(":") in example
    for diff in diffs:
        for other in "+-":
            kept = [line[1:] for line in diff.splitlines() if not line.startswith(other)]
            compile("\n".join(kept), "script", "exec")


def test_the_index_page_links_every_page_of_docs() -> None:
    linked = {(ROOT / "docs" / link).resolve() for page, link in LINKS if page == "docs/index.md"}
    assert {ROOT / page for page in PAGES if page.startswith("docs/")} - linked == {ROOT / "docs/index.md"}


def code() -> str:
    """Return all code of the package. String literals that are continued on the next line are joined."""
    folders = ("tuner", "experiments", "search_spaces", "sparsity")
    texts = [file.read_text(encoding="utf-8") for folder in folders for file in (ROOT / folder).rglob("*.py")]
    return re.sub(r'"\s+f?"', "", "\n".join(texts))


def test_the_messages_that_are_explained_are_in_the_code() -> None:
    """In a message in docs/troubleshooting.md, `...` or N stands for a part that differs from case to case."""
    written = code()
    messages = re.findall(r"^\| `([^`]+)` ", PAGES["docs/troubleshooting.md"], re.MULTILINE)
    assert len(messages) >= 10
    for message in messages:
        parts = [part for part in re.split(r"\.\.\.|\bN\b", message) if part.strip(" :")]
        for part in parts:
            assert part.strip(" :") in written, message


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/extending.md", "docs/upgrading.md", "CONTRIBUTING.md"])
def test_the_files_that_are_named_exist(page: str) -> None:
    text = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    names = set(re.findall(r"`((?:tuner|sparsity|experiments|search_spaces|tests|src)/[\w/.]+)`", text))
    assert page == "CONTRIBUTING.md" or names
    to_be_written = {"search_spaces/linear-gmp.yaml", "sparsity/methods/regrow.py", "tests/screenshots"}
    assert not [name for name in names - to_be_written if not (ROOT / name).exists()]
