"""Test studies with --max-latency: the best network is measured. If it is too slow, a smaller network replaces it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.helpers.command import run_command
from tests.helpers.in_process import run_in_process
from tests.helpers.outcome import mlflow_runs
from tune_sparsity.experiments import Data, Experiment
from tune_sparsity.tuner.cli import main
from tune_sparsity.tuner.config.files import read_study
from tune_sparsity.tuner.config.study_config import storage_of
from tune_sparsity.tuner.driver import latency
from tune_sparsity.tuner.driver.prepare import prepare
from tune_sparsity.tuner.results.finished_study import read_ended
from tune_sparsity.tuner.results.inference_cost import Timing

pytest.importorskip("torch_pruning")
DENSE = 50_200  # multiply-adds of the digits' network


@pytest.mark.slow
def test_a_study_with_max_latency_measures_and_reports_its_best_network(tmp_path: Path) -> None:
    options = ["--pattern", "neurons", "--epochs", "2", "--trials", "4", "--study", "quick"]
    ran = run_command(["--max-latency", "10s", "--latency-batch", "8", *options], tmp_path)
    assert ran.code == 0, ran.stderr
    folder = tmp_path / "studies" / "quick"
    result = json.loads((folder / "result.json").read_text())
    assert (result["max_latency_ms"], result["latency_batch"]) == (10_000, 8)
    assert f"latency: 10000 ms at batch size 8 allows about {DENSE:,} of {DENSE:,} multiply-adds (dense: " in ran.stderr
    (measured,) = result["latencies"]
    assert measured["trial"] == result["best"]["trial"]
    assert 0 < measured["low"] <= measured["ms"] <= measured["high"] <= 10_000
    assert result["latency_ms"] == measured["ms"]
    assert result["best"]["macs"] == result["max_macs"] <= DENSE
    told = f"{measured['ms']:.3g} ms ({measured['low']:.3g} to {measured['high']:.3g}) on one thread"
    assert any(line.startswith("latency") and told in line for line in ran.stdout.splitlines())
    assert f"max_macs: {DENSE}\n" in (folder / "study.yaml").read_text()
    parents, _ = mlflow_runs(tmp_path, result)
    assert parents[0].data.metrics["best_latency_ms"] == result["latency_ms"]
    assert parents[0].data.params["max_latency"] == "10000.0ms"
    assert parents[0].data.params["latency_batch"] == "8"
    again = run_command(["resume", "quick", "--trials", "5", "--json"], tmp_path)
    assert again.code == 0, again.stderr
    assert "latency: " not in again.stderr
    assert again.result()["max_latency_ms"] == 10_000


def test_a_network_above_max_latency_is_replaced_by_a_smaller_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: list[Path] = []

    def slow_at_first(file: Path, experiment: Experiment, data: Data, batch: int) -> Timing:
        files.append(file)
        assert latency_of(file, experiment, data, batch).ms > 0
        return Timing(*3 * [9e6 if len(files) == 1 else 1.5])

    latency_of = latency.exported_latency
    monkeypatch.setattr(latency, "exported_latency", slow_at_first)
    storage = tmp_path / "studies"
    options = {"pattern": "neurons", "trials": 6, "epochs": 2, "scheduler": "none"}
    folder = run_in_process(storage, "quick", max_latency="1000s", **options)
    result = json.loads((folder / "result.json").read_text())
    slow, best = result["latencies"]
    assert [f"t000{path.stem}" for path in files] == [slow["trial"], best["trial"]]
    assert (slow["ms"], best["ms"], result["latency_ms"], best["trial"]) == (9e6, 1.5, 1.5, result["best"]["trial"])
    rows = {f"t{int(row['number']):04d}": row for row in csv.DictReader((folder / "trials.csv").open())}
    assert int(rows[best["trial"]]["macs"]) < int(rows[slow["trial"]]["macs"])
    assert json.loads((folder / "best" / "model.json").read_text())["trial"] == best["trial"]
    assert slow["trial"] not in {one["trial"] for one in result["pareto"]}

    study = read_ended("quick", storage_of(str(storage)))
    assert study.goal.best(study.records()).name == best["trial"]
    assert main(["report", "quick", "--storage", str(storage), "--no-times"]) == 0
    page = (folder / "report.html").read_text()
    assert "the most accurate network of at most 1e+06 ms at batch size 1" in page
    assert (
        "Its latency was 1.5 ms (1.5 to 1.5) on one thread, at most 1e+06 ms at batch size 1; "
        f"too slow: {slow['trial']}" in page
    )

    prepared = prepare(read_study("quick", storage_of(str(storage)), {}).resolved(), resume=True)
    assert (prepared.latency, prepared.goal.max_macs) == ("", DENSE)
    given = (folder, prepared.experiment, prepared.data)
    decision = latency.decide(prepared.goal, study.records(), *given, measure=True)
    assert len(files) == 2  # a resumed study does not measure the same networks again
    assert (decision.goal, list(decision.latencies)) == (study.goal, [slow["trial"], best["trial"]])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--max-latency", "2ms"], "--max-latency 2ms: only whole neurons save multiply-adds on all hardware: add"),
        (["--max-latency", "2ms", "--pattern", "2:4"], "--max-latency 2ms: only whole neurons save multiply-adds"),
        (
            ["--max-latency", "1us", "--pattern", "neurons"],
            "even with the fewest neurons in each layer this network needs 0.",
        ),
        (["--max-latency", "2", "--pattern", "neurons"], "a latency is a time with its unit, e.g. 2ms"),
        (["--max-latency", "2ms", "--max-macs", "9"], "--max-macs and --max-latency are different goals"),
        (["--target", "0.9", "--latency-batch", "4"], "--latency-batch 4: this option needs --max-latency: give both"),
        (["--max-latency", "2ms", "--final-seeds", "2"], "--final-seeds 2: networks that are trained again are"),
    ],
)
def test_invalid_latency_options_print_one_line_and_write_nothing(
    arguments: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert line in error
    assert "\n" not in error
    assert not list(tmp_path.iterdir())
