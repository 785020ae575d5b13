"""The options that set a study's goal: the accepted values, the rule that exactly one goal is given, and the goal in
study.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.examples import examples
from tune_sparsity.sparsity import zeros_for
from tune_sparsity.sparsity.cost.layout import Layout
from tune_sparsity.tuner.config.files import read_config
from tune_sparsity.tuner.config.study_config import StudyConfig, make_config
from tune_sparsity.tuner.errors import UsageError
from tune_sparsity.tuner.study.goal import along_front, at_most, at_targets


def refusal(**options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        make_config(options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("given_", "parsed"),
    [
        ("0.9", 0.9),
        (0, 0.0),
        ("-0.0", 0.0),
        ("0.8,0.9,0.95", (0.8, 0.9, 0.95)),
        ("0.95, 0.8", (0.8, 0.95)),
        ([0.95, "0.8"], (0.8, 0.95)),
        ("0.9,", None),
        (["0.9"], 0.9),
        ([[0.9]], None),
        ([], None),
        ("", None),
        ("0.9,0.9", None),
        ("0.9,1", None),
        ("0.9;0.95", None),
        (list(range(30)), None),
        ([n / 30 for n in range(30)], None),
        ([True, 0.9], None),
        ({"a": 1}, None),
        (10**400, None),
    ],
)
def test_target_accepts_one_sparsity_or_several(given_: Any, parsed: Any) -> None:
    if parsed is None:
        assert refusal(target=given_).startswith("--target ")
    else:
        assert make_config({"target": given_}).target == parsed


@pytest.mark.parametrize(
    ("given_", "parsed"),
    [
        ("0.5:0.99", (0.5, 0.99)),
        ([0.5, 0.99], (0.5, 0.99)),
        ("0:.5", (0.0, 0.5)),
        ("0.99:0.5", None),
        ("0.5:0.5", None),
        ("0.5:1", None),
        ("0.5", None),
        ("0.5:0.9:0.99", None),
        ("0.5-0.99", None),
        (":", None),
        (0.5, None),
        ("nan:0.9", None),
        ([True, 0.9], None),
    ],
)
def test_front_accepts_two_sparsities_in_rising_order(given_: Any, parsed: Any) -> None:
    if parsed is None:
        assert "e.g. 0.5:0.99" in refusal(front=given_)
    else:
        assert make_config({"front": given_}).front == parsed


@pytest.mark.parametrize("given_", ["0", "-1", "2.5", "many", 0, True, [5]])
def test_a_wrong_number_of_weights_is_refused(given_: Any) -> None:
    assert refusal(max_nonzero=given_).startswith("--max-nonzero ")


@pytest.mark.parametrize(
    ("given_", "parsed"),
    [
        *((10000, 10000), ("10000", 10000), ("10kB", 10_000), ("10 kB", 10_000), ("10KiB", 10_240), ("10kib", 10_240)),
        *(("1.5kB", 1500), ("1.0001kB", 1000), ("2MB", 2_000_000), ("1MiB", 2**20), ("1GB", 10**9), ("7B", 7)),
        *(("0", None), ("-1", None), ("10k", None), ("kB", None), ("1e3", None), ("10 bytes", None), (True, None)),
        *(("0.5B", None), ("9" * 40, None), ([5], None), ("", None), (float("nan"), None), ("\u0663kB", None)),
    ],
)
def test_max_bytes_accepts_a_number_with_or_without_a_unit(given_: Any, parsed: int | None) -> None:
    if parsed is None:
        assert refusal(max_bytes=given_).startswith("--max-bytes ")
    else:
        assert make_config({"max_bytes": given_}).max_bytes == parsed


@pytest.mark.parametrize(
    ("given_", "parsed"),
    [
        *(
            ("2ms", 2.0),
            ("2 ms", 2.0),
            ("500us", 0.5),
            ("0.1s", 100.0),
            ("1us", 0.001),
            ("3600s", 3.6e6),
            ("0.3ms", 0.3),
        ),
        *(("2", None), (2, None), (2.0, None), ("ms", None), ("0ms", None), ("-2ms", None), ("2m", None), ("", None)),
        *(("1e3ms", None), ("2MS", None), ("0.5us", None), ("3601s", None), ("nan ms", None), ("\u0663ms", None)),
        *((True, None), ([2], None), ("1s500ms", None), ("9" * 400 + "ms", None)),
    ],
)
def test_max_latency_accepts_a_number_with_a_unit_of_time(given_: Any, parsed: float | None) -> None:
    if parsed is None:
        assert refusal(max_latency=given_).startswith("--max-latency ")
    else:
        assert make_config({"max_latency": given_}).max_latency == parsed


@given(st.floats(0.001, 3.6e6))
def test_a_latency_is_unchanged_after_it_is_written_and_parsed(milliseconds: float) -> None:
    text = f"{milliseconds:f}ms"
    config = make_config({"max_latency": text})
    assert config.max_latency == float(text.removesuffix("ms"))
    assert make_config(config.model_dump(mode="json")) == config


def test_a_batch_size_needs_a_limit_of_latency(tmp_path: Path) -> None:
    assert refusal(target=0.9, latency_batch=4).startswith("--latency-batch 4: ")
    assert refusal(max_latency="2ms", final_seeds=1).startswith("--final-seeds 1: ")
    assert make_config({"max_latency": "2ms", "tracking_uri": "http://host"}).resolved().latency_batch == 1
    file = tmp_path / "c.yaml"
    file.write_text("max_latency: 2ms\nlatency_batch: 4\n")
    other = read_config({"config": str(file), "target": "0.9"})
    assert (other.max_latency, other.latency_batch) == (None, None)
    shorter = read_config({"config": str(file), "max_latency": "1ms"})
    assert (shorter.max_latency, shorter.latency_batch) == (1.0, 4)


def test_max_bytes_gives_the_lowest_sparsity_that_a_network_needs() -> None:
    weights = torch.nn.Linear(40, 25).state_dict()
    layout = Layout.of(weights, ["weight"])
    goal = make_config({"max_bytes": "1kB"}).goal(1, 1000, layout)
    nonzero = 1000 - zeros_for(goal.lowest, 1000)
    # The goal is computed for a network with some much sparser layers, whose file is smaller. If all layers are equally
    # sparse, the file is larger than 1 kB, and the training prunes more weights.
    assert layout.estimate(nonzero, 0.8) < 1000 < layout.estimate(nonzero)
    assert make_config({"max_bytes": "1MB"}).goal(1, 1000, layout).lowest == 0.0
    least = layout.least()
    assert make_config({"max_bytes": least}).goal(1, 1000, layout).lowest == 0.999
    with pytest.raises(UsageError, match=f"^--max-bytes {least - 1}: this network needs at least {least} bytes$"):
        make_config({"max_bytes": least - 1}).goal(1, 1000, layout)
    with pytest.raises(UsageError, match="a packed file cannot hold"):
        make_config({"max_bytes": 1000}).goal(1, 1000, None)


def test_exactly_one_goal_is_given() -> None:
    assert refusal(trials=3).startswith("--target is missing")
    assert "--target and --front" in refusal(target=0.9, front="0.5:0.9")
    assert "--front and --max-nonzero" in refusal(front="0.5:0.9", max_nonzero=5)
    assert "--target and --front and --max-nonzero" in refusal(target=0.9, front="0.5:0.9", max_nonzero=5)


def test_options_for_sparsity_and_nonzero_weights_are_converted_to_goals() -> None:
    assert make_config({"target": 0.9}).goal(3, 1000) == at_targets(0.9)
    assert make_config({"target": "0.9,0.8"}).goal(3, 1000) == at_targets(0.8, 0.9)
    assert make_config({"front": "0.5:0.9"}).goal(3, 1000) == along_front(0.5, 0.9)
    assert make_config({"max_nonzero": "200"}).goal(3, 1000) == at_most(200, 1000)
    assert make_config({"max_nonzero": 1000}).goal(3, 1000).lowest == 0.0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_nonzero": 1001}, "from 3 to 1000"),
        ({"max_nonzero": 2}, "from 3 to 1000"),
        ({"target": 0.998}, "--target 0.998: only 2 of the 1,000 prunable weights would stay nonzero"),
        ({"target": "0.5,0.9999"}, "--target 0.9999"),
        ({"front": "0.5:0.9999"}, "--front 0.9999"),
    ],
)
def test_a_goal_that_the_network_cannot_have_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match="give") as caught:
        make_config(options).goal(3, 1000)
    assert said in str(caught.value)


@given(layers=st.integers(1, 40), more=st.integers(0, 10**7))
@examples(100)
def test_the_sparsity_that_a_refusal_names_is_accepted(layers: int, more: int) -> None:
    weights = layers + more
    with pytest.raises(UsageError) as caught:
        make_config({"target": 0.9999999999}).goal(layers, weights)
    named = str(caught.value).rpartition(" ")[2]
    assert make_config({"target": named}).goal(layers, weights).lowest == float(named)


@pytest.mark.parametrize(
    "options",
    [
        {"target": 0.9},
        {"target": "0.8,0.9"},
        {"front": "0.5:0.99"},
        {"front": "0:.5"},
        {"max_nonzero": 7},
        {"max_bytes": "7kB"},
        {"max_macs": 9000},
        {"max_latency": "300us", "latency_batch": 8},
    ],
)
def test_a_goal_is_unchanged_after_it_is_written_to_a_file_and_read(options: dict[str, Any], tmp_path: Path) -> None:
    config = make_config({**options, "patience": 4})
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert read_config({"config": str(file)}) == config


def test_a_goal_on_the_command_line_replaces_the_goal_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("target: 0.9\ntrials: 5\n")
    config = read_config({"config": str(file), "front": "0.5:0.9"})
    assert (config.target, config.front, config.trials) == (None, (0.5, 0.9), 5)
    file.write_text("target: 0.9\ntrials: 5\nfront: 0.5:0.9\n")
    with pytest.raises(UsageError, match=r"c\.yaml:3: --target and --front"):
        read_config({"config": str(file)})
    assert read_config({"config": str(file), "max_nonzero": "9"}).max_nonzero == 9


def test_the_default_name_of_a_study_contains_its_goal() -> None:
    def name(**options: Any) -> str:
        return make_config({**options, "tracking_uri": "http://host"}).resolved().study.rsplit("-", 2)[0]

    assert name(target=0.9) == "digits-0.9"
    assert name(target="0.8,0.9,0.95") == "digits-0.8-0.9-0.95"
    assert name(target="0.1,0.2,0.3,0.4") == "digits-4-targets"
    assert name(front="0.5:0.99") == "digits-0.5-to-0.99"
    assert name(max_nonzero=20000) == "digits-20000-weights"
    assert name(max_bytes="10kB") == "digits-10000-bytes"
    assert name(max_macs=9000) == "digits-9000-macs"
    assert name(max_latency="2ms") == "digits-2-ms"
    assert name(max_latency="3600s") == "digits-3600000-ms"


def test_every_goal_is_a_field_of_the_study_configuration() -> None:
    from tune_sparsity.tuner.config.study_config import GOALS

    assert set(GOALS) <= set(StudyConfig.model_fields)
