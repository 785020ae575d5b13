"""Tests the text that is printed at the end of a study."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from tune_sparsity.sparsity import DeadNeurons, network_size
from tune_sparsity.tuner.commands.search import _exit_code
from tune_sparsity.tuner.reports.summary import (
    best_line,
    final_table,
    layers_line,
    network_line,
    print_result,
    states_line,
    tracking_line,
    trial_columns,
)
from tune_sparsity.tuner.reports.text import command, costly_neurons, dead_text, few_prunable, shown_path, spikes_text
from tune_sparsity.tuner.results.inference_cost import Timing
from tune_sparsity.tuner.results.tables import StudyOutcome, StudySeconds, latencies_in, result_document
from tune_sparsity.tuner.study.goal import Goal, along_front, at_targets
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState


def trial(number: int, state: TrialState = TrialState.COMPLETED, **fields: Any) -> TrialRecord:
    given = {"method": "lpss", "params": {"p": 1.1}, "value": 0.9, "sparsity": 0.9, **fields}
    return TrialRecord.from_dict({"number": number, "state": state, **given})


RECORDS = [
    trial(0, value=0.97, nonzero_weights=1000, params={"p": 1.1, "lr": 0.0123456, "schedule": "[cosine]"}),
    trial(1, value=0.96, sparsity=0.95123, nonzero_weights=487, params={"p": 1.2, "lr": 0.1}),
    trial(2, TrialState.FAILED, reason="loss is\nNaN"),
    trial(3, TrialState.FAILED, reason="loss is\nNaN"),
    trial(4, TrialState.FAILED, reason="a worker was lost"),
    trial(5, TrialState.PRUNED),
]


def outcome(folder: Path, records: list[TrialRecord] = RECORDS, **fields: Any) -> StudyOutcome:
    seconds = StudySeconds(total=41.0, startup=5.0, training=28.0, sampling=1.0, tracking=2.0, finishing=3.0)
    uri = "sqlite:///mlflow.db"
    return StudyOutcome("demo", at_targets(0.9), "digits", "lpss", records, folder, seconds, tracking_uri=uri, **fields)


def printed(found: StudyOutcome) -> str:
    stream = io.StringIO()
    print_result(found, stream)
    return stream.getvalue()


def test_the_result_shows_the_latency_and_names_the_networks_that_are_too_slow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    goal = Goal((0.5,), max_macs=900, max_latency=2.0, latency_batch=8)
    records = [trial(0, macs=1000), trial(1, macs=900)]
    times = {"t0000": Timing(2.25, 2.0, 2.5), "t0001": Timing(1.5, 1.25, 1.75)}
    met = replace(outcome(tmp_path, records), goal=goal, latencies=times)
    line = "1.5 ms (1.25 to 1.75) on one thread, at most 2 ms at batch size 8; too slow: t0000 takes 2.25 ms\n"
    assert line in printed(met)
    document = result_document(met)
    assert (document["max_latency_ms"], document["latency_batch"], document["latency_ms"]) == (2.0, 8, 1.5)
    assert latencies_in(document) == times

    slow = {"t0000": Timing(2.25, 2.0, 2.5), "t0001": Timing(2.125, 2.0, 2.5)}
    none = replace(outcome(tmp_path, records), goal=replace(goal, max_macs=899), latencies=slow)
    said = "o network meets 2 ms at batch size 8: the fastest, t0001, takes 2.12 ms"
    assert printed(none).startswith(f"n{said}\n")
    assert result_document(none)["latency_ms"] is None
    assert _exit_code(SimpleNamespace(interrupted=False, outcome=none), None) == 3
    assert capsys.readouterr().err == f"N{said}: give a longer --max-latency, or try more trials\n"


def test_the_result_describes_the_front_and_the_best_trial_and_names_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "studies" / "demo"
    folder.mkdir(parents=True)
    (folder / "result.json").touch()
    text = printed(outcome(folder, test_values={0: 0.955}, weights=10000))
    header, first, second, *_ = text.splitlines()
    assert header.split() == ["trial", "accuracy", "sparsity", "nonzero", "p", "lr", "schedule"]
    assert first.split() == ["t0000", "97.00%", "90.000%", "1,000", "1.1", "0.01235", "[cosine]"]
    assert second.split() == ["t0001", "96.00%", "95.123%", "487", "1.2", "0.1"]
    assert (
        "best t0000: validation accuracy 97.00%, test accuracy 95.50%, "
        "sparsity 90.0000% (9,000 of 10,000 weights are zero)\n"
    ) in text
    assert "2 completed, 1 stopped early, 3 failed (loss is NaN)\n" in text
    parts = "startup 5.0 s, training 28.0 s, sampling 1.0 s, tracking 2.0 s, finishing 3.0 s, other 2.0 s"
    assert f"41 s: {parts}\n" in text
    assert f"{Path('studies/demo')}/  (result.json)\n" in text
    assert f"{command('mlflow')} ui --backend-store-uri sqlite:///mlflow.db\n" in text
    assert "\x1b" not in text


def test_a_long_line_is_not_broken(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    assert f"files  {folder}/\n" in printed(outcome(folder))


def test_without_a_feasible_trial_the_result_says_so(tmp_path: Path) -> None:
    text = printed(outcome(tmp_path, RECORDS[2:]))
    assert text.startswith("no feasible trial: none completed with a sparsity of 90% or more\n")


def test_unknown_values_are_left_out_of_the_summary(tmp_path: Path) -> None:
    assert best_line(outcome(tmp_path)) == "best t0000: validation accuracy 97.00%, sparsity 90.0000%"
    assert states_line(outcome(tmp_path, RECORDS[:1])) == "1 completed, 0 stopped early, 0 failed"


def test_an_estimate_on_new_data_stands_beside_the_validation_accuracy(tmp_path: Path) -> None:
    line = best_line(outcome(tmp_path, examples=400))
    assert line.startswith("best t0000: validation accuracy 97.00% (on new data about 97.00% ± 0.91 points), ")


class EmbeddingHeavy(nn.Module):
    """Of 1,100 weights in matrices 100 are prunable; 10 more parameters are in no matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.mix = nn.Embedding(100, 10), nn.Linear(10, 10)


def test_the_summary_lists_dense_layers_and_the_sparsity_of_all_matrices(tmp_path: Path) -> None:
    size = network_size(EmbeddingHeavy())
    assert (size.layers, size.prunable, size.matrices, size.parameters) == (1, 100, 1100, 1110)
    records = [trial(0, nonzero_weights=10, sparsity_total=90 / 1110)]
    found = outcome(tmp_path, records, size=size)
    assert found.sparsity_matrices(records[0]) == 90 / 1100
    dense = "embedding.weight 90.9% (an embedding)"
    assert (
        network_line(found) == f"8.1818% of all weight matrices and 8.1081% of all parameters are zero; dense: {dense}"
    )
    assert f"network {network_line(found)}\n" in printed(found)
    document = result_document(found)
    assert document["dense_weights"] == {"embedding.weight": 1000}
    assert document["best"]["sparsity_matrices"] == 90 / 1100
    assert few_prunable(size) == (
        f"Only 9.1% of the network's weights in matrices are pruned. These stay dense: {dense}"
    )


def test_a_network_whose_matrices_are_all_prunable_has_nothing_to_warn_of(tmp_path: Path) -> None:
    size = network_size(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)))
    assert few_prunable(size) == ""
    records = [trial(0, nonzero_weights=4, sparsity_total=36 / 46)]
    line = network_line(outcome(tmp_path, records, size=size))
    assert line == "90.0000% of all weight matrices and 78.2609% of all parameters are zero"


def test_the_warning_of_costly_neurons_gives_their_bytes_and_the_limit() -> None:
    start = "The scales and biases of this network's neurons alone take 1,640 bytes, and --max-bytes is 1,500"
    searched = costly_neurons(1640, 1500, searched=True)
    assert searched == f"{start}: the trials begin with fewer neurons (parameter width)"
    assert costly_neurons(1640, 1500, searched=False).startswith(f"{start}. At this size a network with fewer neurons")


def test_the_sparsity_is_shown_layer_by_layer_or_as_a_range(tmp_path: Path) -> None:
    few = {"0.weight": 0.91234, "2.weight": 0.8, "4.weight": 0.25}
    assert layers_line(outcome(tmp_path, sparsity_by_layer=few)) == "0.weight 91.2%, 2.weight 80.0%, 4.weight 25.0%"
    assert "layers 0.weight 91.2%, " in printed(outcome(tmp_path, sparsity_by_layer=few))
    many = {f"{k}.weight": 0.5 + k / 100 for k in range(7)}
    line = layers_line(outcome(tmp_path, sparsity_by_layer=many))
    assert line == "50.0% (0.weight) to 56.0% (6.weight) in 7 layers, each in model.json"
    assert "layers" not in printed(outcome(tmp_path))


def test_layers_are_listed_in_order_of_their_number_of_dead_neurons(tmp_path: Path) -> None:
    dead = {"3.weight": DeadNeurons(1, 64), "9.weight": DeadNeurons(120, 128)}
    line = "dead   neurons without a connection: 120 of 128 in 9.weight, 1 of 64 in 3.weight"
    assert line in printed(outcome(tmp_path, dead_neurons=dead)).splitlines()
    assert "without a connection" not in printed(outcome(tmp_path))
    many = {f"{k}.weight": DeadNeurons(k, 40) for k in range(1, 9)}
    assert dead_text(many, "neurons").startswith("removed neurons: ")
    assert dead_text(many).endswith(" 3 of 40 in 3.weight and in 2 more layers")


def test_layers_that_never_spike_or_nearly_always_are_named(tmp_path: Path) -> None:
    assert spikes_text({}) == spikes_text({"hidden.0": 0.001, "hidden.1": 0.9}) == ""
    metrics = {"spike_rate_hidden.0": 0.0, "spike_rate_hidden.1": 0.2, "spike_rate_hidden.2": 0.95, "macs": 7.0}
    found = outcome(tmp_path, [replace(record, metrics=metrics) for record in RECORDS])
    line = "spikes hidden.0 spikes at 0.0% of the steps, hidden.2 spikes at 95.0% of the steps: such a layer passes"
    assert f"{line} almost no information on" in printed(found).splitlines()
    assert result_document(found)["spike_rates"] == {"hidden.0": 0.0, "hidden.1": 0.2, "hidden.2": 0.95}


def test_the_table_omits_and_counts_parameters_beyond_the_terminal_width(tmp_path: Path) -> None:
    from rich.console import Console

    params = {f"a_long_parameter_{k}": 0.123 for k in range(9)}
    front = [trial(0, params=params)]
    for width, fitting in ((40, 0), (80, 2), (200, 8), (400, 9)):
        columns, left_out = trial_columns(front, width)
        assert (len(columns) - 4, left_out) == (fitting, 9 - fitting)
        stream = io.StringIO()
        Console(file=stream, width=width).print(final_table(outcome(tmp_path, front), width), crop=False)
        header, *_ = stream.getvalue().splitlines()
        assert len(header.rstrip()) <= width
        assert ("and" in stream.getvalue().splitlines()[2]) == (left_out > 0)


def test_the_method_is_shown_where_there_are_several() -> None:
    columns, _ = trial_columns([trial(0), trial(1, method="rigl", sparsity=0.95)], 120)
    assert ["method", "lpss", "rigl"] in columns


def test_paths_are_as_short_as_they_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "here"
    inside.mkdir()
    monkeypatch.chdir(inside)
    assert shown_path(inside / "studies") == "studies"
    assert shown_path(Path("studies/demo")) == str(Path("studies/demo"))
    assert shown_path(tmp_path / "elsewhere") == str(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("uri", "line"),
    [
        ("sqlite:///my runs/mlflow.db", "mlflow ui --backend-store-uri 'sqlite:///my runs/mlflow.db'"),
        ("postgresql://ada:secret@host/db", "mlflow ui --backend-store-uri 'postgresql://***@host/db'"),
        ("https://mlflow.example.org", "https://mlflow.example.org"),
    ],
)
def test_the_printed_line_opens_the_mlflow_store(uri: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert tracking_line(uri) == line


def test_a_command_that_the_shell_does_not_find_is_named_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "a venv" / "bin"
    here.mkdir(parents=True)
    for name in ("python", "mlflow"):
        (here / name).touch(mode=0o755)
    monkeypatch.setattr("sys.executable", str(here / "python"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    assert command("mlflow") == "'a venv/bin/mlflow'"
    assert command("no-such-command") == "no-such-command"
    monkeypatch.setenv("PATH", str(here))
    assert command("mlflow") == "mlflow"


# Goals other than one target

FOUND = [
    trial(0, value=0.97, sparsity=0.8, nonzero_weights=200),
    trial(1, value=0.96, sparsity=0.9, nonzero_weights=100),
    trial(2, value=0.90, sparsity=0.95, nonzero_weights=50),
]


def with_goal(goal: Goal, folder: Path) -> StudyOutcome:
    return replace(outcome(folder, FOUND, test_values={0: 0.955, 1: 0.945}), goal=goal)


def test_several_targets_have_a_row_each(tmp_path: Path) -> None:
    lines = printed(with_goal(at_targets(0.8, 0.85, 0.99), tmp_path)).splitlines()
    assert lines[0].split()[:4] == ["target", "trial", "accuracy", "sparsity"]
    assert [line.split()[:3] for line in lines[1:3]] == [["0.8", "t0000", "97.00%"], ["0.85", "t0001", "96.00%"]]
    assert any("at 0.85: t0001: validation accuracy 96.00%, test accuracy 94.50%" in line for line in lines)
    assert any("at 0.99: no trial reached this sparsity" in line for line in lines)


def test_a_front_ends_with_its_hypervolume(tmp_path: Path) -> None:
    lines = printed(with_goal(along_front(0.8, 0.9), tmp_path)).splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["trial", "t0000", "t0001", "t0002"]
    assert any(
        "hypervolume 0.09600 above (sparsity 0.8, accuracy 0): a mean accuracy of 96.00%" in line for line in lines
    )
    assert "nothing above" not in "\n".join(lines)
    short = printed(with_goal(along_front(0.8, 0.97), tmp_path))
    assert "over the sparsities from 0.8 to 0.97, nothing above 0.95" in short
