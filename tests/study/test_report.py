"""Test the report of a study and the comparison of studies: they show the numbers of the studies' files."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.helpers.in_process import run_in_process
from tune_sparsity.tuner.cli import main


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory, experiment_file: Path) -> Path:
    """Five ended studies: with one target, with two targets, with dead neurons, with a dense layer, and of another
    experiment."""
    storage = tmp_path_factory.mktemp("report") / "studies"
    steady = f"{experiment_file}:steady"
    run_in_process(storage, "one", experiment=steady, trials=5, seed=1)
    run_in_process(storage, "two", experiment=steady, trials=4, target=(0.7, 0.9), method="lpss,gmp")
    run_in_process(storage, "dead", experiment=steady, trials=1, target=0.97, method="static")
    run_in_process(storage, "headed", experiment=f"{experiment_file}:dense_head", trials=1, target=0.5)
    run_in_process(storage, "other", experiment=f"{experiment_file}:sometimes_nan", trials=1, seed=3, method="static")
    return storage


class Page(HTMLParser):
    """The text of a page, the cells of its tables, and the addresses that a browser would load for the page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.text = ""
        self.fetched: list[str] = []
        self._skip = self._cell = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._skip = tag in ("script", "style")
        self._cell = tag in ("td", "th")
        if self._cell:
            self.cells.append("")
        self.fetched += [f"{tag} {name}={value}" for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_endtag(self, tag: str) -> None:
        self._skip = self._cell = False

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.cells[-1] += data
        if not self._skip:
            self.text += data


def test_a_report_has_the_goal_and_the_results_and_loads_no_external_files(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "one", "--storage", str(storage)]) == 0
    path = storage / "one" / "report.html"
    assert str(path) in capsys.readouterr().out
    page, result = Page(path), json.loads((storage / "one" / "result.json").read_text())
    best = result["best"]
    assert page.fetched == []
    assert "steady: the most accurate network at least 80% sparse" in page.text
    assert f"{best['test_accuracy']:.2%}" in page.text
    assert f"expect about {best['estimated_accuracy']:.2%} ± " in page.text
    assert f"{best['nonzero_weights']:,} of {best['weights']:,} are left" in page.text
    for one in result["pareto"]:
        assert {one["trial"], f"{one['val_accuracy']:.2%}", f"{one['sparsity']:.3%}"} <= set(page.cells)
    assert "target 0.8" in page.cells
    assert f"{result['states']['completed']} completed" in page.text
    assert "tune-sparsity export one --format onnx" in page.text
    assert path.read_text().count("plotly.js v") == 1
    assert path.read_text().count("<figure id=") >= 7


def test_a_report_has_the_sparsity_of_the_whole_network(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One layer has 480 weights and is pruned. The other has 120 weights and stays dense. There are also 43 biases."""
    assert main(["report", "headed", "--storage", str(storage)]) == 0
    text = " ".join(Page(storage / "headed" / "report.html").text.split())
    assert "50.00% of its weights are zero: 240 of 480 are left" in text
    assert "(40.00% over all weight matrices and 37.33% over all parameters; dense: net.2.weight 20.0%)" in text
    capsys.readouterr()


def test_a_report_names_layers_whose_neurons_have_no_connection(storage: Path) -> None:
    stored = load_file(storage / "dead" / "best" / "model.safetensors")
    rows = {
        name: mask.any(1) for name, mask in ((name, stored.get(f"{name}.mask")) for name in stored) if mask is not None
    }
    dead = {name: {"dead": int((~any_).sum()), "neurons": len(any_)} for name, any_ in rows.items() if not any_.all()}
    assert dead
    assert json.loads((storage / "dead" / "result.json").read_text())["dead_neurons"] == dead
    assert main(["report", "dead", "--storage", str(storage)]) == 0
    text = Page(storage / "dead" / "report.html").text
    assert "The best network has neurons without a connection: " in text
    assert all(f"{one['dead']} of {one['neurons']} in {name}" in text for name, one in dead.items())
    assert main(["report", "one", "--storage", str(storage)]) == 0
    assert "without a connection" not in Page(storage / "one" / "report.html").text


def test_a_report_of_several_targets_has_the_best_network_of_each_target(storage: Path) -> None:
    assert main(["report", "two", "--storage", str(storage)]) == 0
    page = Page(storage / "two" / "report.html")
    for one in json.loads((storage / "two" / "result.json").read_text())["targets"]:
        if one["best"]:
            assert {f"{one['target']:.0%}", one["best"]["trial"], f"{one['best']['test_accuracy']:.2%}"} <= set(
                page.cells
            )


def test_studies_of_one_experiment_are_compared_at_every_target(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "one", "two", "--storage", str(storage), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = {(row["target"], row["study"]): row for row in document["rows"]}
    assert set(rows) == {(target, study) for target in (0.7, 0.8, 0.9) for study in ("one", "two")}
    best = json.loads((storage / "one" / "result.json").read_text())["best"]
    mine, theirs = rows[0.8, "one"], rows[0.8, "two"]
    assert (mine["val_accuracy"], mine["trial"], mine["difference"]) == (best["val_accuracy"], best["trial"], 0.0)
    if theirs["val_accuracy"] is not None:
        assert theirs["difference"] == pytest.approx(theirs["val_accuracy"] - mine["val_accuracy"])
        assert theirs["sparsity"] >= 0.8
    page = Page(Path(document["page"]))
    assert page.fetched == []
    assert {"one", "two", "70%", "80%", "90%"} <= set(page.cells)
    assert "data differ" not in page.text


def test_the_comparison_is_a_table_on_the_terminal(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    assert main(["compare", "two", "one", "--storage", str(storage), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["target", "study", "trial"]
    assert len([line for line in lines if line.split()[:1] in (["70%"], ["80%"], ["90%"])]) == 6
    assert lines[-1].endswith("page.html")
    assert out.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare", "one", "other"], ["different experiments", "one of steady", "other of sometimes-nan"]),
        (["compare", "one"], ["two or more"]),
        (["compare", "one", "one"], ["two or more different"]),
        (["compare", "one", "nope"], ["no study 'nope'"]),
        (["report", "nope"], ["no study 'nope'", "one, other, two"]),
        (["report", "one", "--out", "/proc/nowhere/page.html"], ["--out", "cannot be written"]),
        (["ui", "nope"], ["no study 'nope'"]),
        (["ui", "one"], ["no MLflow store at"]),  # these studies ran without one
        (["ui", "--tracking-uri", "sqlite:////nowhere/at/all.db"], ["no MLflow store at"]),
        (["ui", "--tracking-uri", "folder"], ["--tracking-uri"]),
    ],
)
def test_a_mistake_in_a_report_compare_or_ui_command_prints_one_line(
    storage: Path, arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--storage", str(storage)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert all(word in said.err for word in words), said.err


def test_a_study_without_a_feasible_trial_has_a_report_too(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = storage / "other" / "result.json"
    text = result.read_text()
    document = json.loads(text)
    result.write_text(json.dumps({**document, "best": None, "pareto": []}))
    try:
        assert main(["report", "other", "--storage", str(storage)]) == 0
    finally:
        result.write_text(text)
    assert "No trial completed with a sparsity" in Page(storage / "other" / "report.html").text
    assert capsys.readouterr().err == ""


def test_a_report_compares_bytes_operations_and_times_with_a_dense_network(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = storage / "saved.html"
    assert main(["report", "one", "--storage", str(storage), "--out", str(file)]) == 0
    result = json.loads((storage / "one" / "result.json").read_text())
    cells = Page(file).cells
    named = cells.index("bytes", cells.index("share of dense"))
    weights = 12 * 40 + 40 * 3
    stored = load_file(storage / "one" / "best" / "model.safetensors")
    dense = sum(tensor.nbytes for name, tensor in stored.items() if not name.endswith(".mask"))
    assert cells[named : named + 3] == ["bytes", f"{dense:,}", f"{result['best']['size_bytes']:,}"]
    named = cells.index("multiply-adds of an example")
    assert cells[named + 1 : named + 3] == [f"{weights:,}", f"{result['best']['macs']:,}"]
    for words in ("batch 1, 1 thread, float32", "batch 256, 1 thread, bfloat16"):
        assert float(cells[cells.index(f"milliseconds, {words}") + 1].split()[0]) > 0
    assert main(["report", "one", "--storage", str(storage), "--out", str(file), "--no-times"]) == 0
    assert "multiply-adds of an example" not in Page(file).cells


def test_a_report_says_that_nothing_was_measured_if_the_network_file_is_missing(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_in_process(tmp_path / "studies", "lost", trials=1, target=0.5)
    (tmp_path / "studies" / "lost" / "best" / "model.safetensors").unlink()
    assert main(["report", "lost", "--storage", str(tmp_path / "studies")]) == 0
    text = Page(tmp_path / "studies" / "lost" / "report.html").text
    assert "What the zeros save was not measured: " in text
    assert "does not hold a network of digits" in text
