"""Systematic bad input: search spaces with one mistake, options with wrong values of each kind, options that contradict
each other, and experiments with one mistake. In each case, the command prints a message of one line, ends with exit
code 2, and writes nothing. The message names the option, or the file and the place in it. test_usage.py contains single
cases of wrong use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import ROOT
from tests.helpers.folders import tree
from tune_sparsity.tuner.cli import main
from tune_sparsity.tuner.commands.search import search_parser
from tune_sparsity.tuner.config.study_config import FLAGS, StudyConfig

SPACES = ROOT / "search_spaces"
Refuse = Callable[..., str]


@pytest.fixture
def refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Return a function that runs the command in a folder with the given files. The function checks that the command
    refuses its arguments in one line that contains the text `names`, and returns this line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)

    def begun(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a study was begun")

    monkeypatch.setattr("tune_sparsity.tuner.driver.run.run_study", begun)

    def run(arguments: list[str], names: str, **files: str) -> str:
        for name, text in files.items():
            (tmp_path / f"{name}.yaml").write_text(text)
        before = tree(tmp_path)
        code = main(arguments)
        printed = capsys.readouterr()
        assert code == 2, (arguments, printed)
        assert printed.out == ""
        assert len(printed.err.splitlines()) == 1, printed.err
        assert printed.err.startswith("tune-sparsity: ")
        assert names in printed.err, (names, printed.err)
        assert "Traceback" not in printed.err
        assert tree(tmp_path) == before
        return printed.err

    return run


# Search spaces: built-in search spaces, changed so that they have one mistake


def built_in(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((SPACES / f"{name}.yaml").read_text()))


RANGE_FAULTS: dict[str, dict[str, Any]] = {
    "type unknown": {"type": "flaot"},
    "type missing": {"type": None},
    "low text": {"low": "little"},
    "low missing": {"low": None},
    "low not a number": {"low": float("nan")},
    "high infinite": {"high": float("inf")},
    "high true": {"high": True},
    "low above high": {"low": 5.0, "high": 0.5},
    "low a list": {"low": [0.1]},
    "log a number": {"log": 3},
    "step negative": {"step": -1},
    "step zero": {"step": 0},
    "key unknown": {"lwo": 0.1},
    "beyond the method": {"low": -1e6, "high": 1e6, "log": False},
}
CHOICE_FAULTS: dict[str, dict[str, Any]] = {
    "none": {"choices": []},
    "no list": {"choices": 5},
    "missing": {"choices": None},
    "nested": {"choices": [["cosine"]]},
    "unknown to the method": {"choices": ["no-such-thing"]},
    "key of a range": {"low": 0.1},
}
WHOLE_FAULTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "empty": lambda space: None,
    "a list": lambda space: [space],
    "text": lambda space: "lpss",
    "no method": lambda space: {**space, "method": None},
    "unknown method": lambda space: {**space, "method": "lpsss"},
    "method a list": lambda space: {**space, "method": ["lpss"]},
    "no parameters": lambda space: {**space, "parameters": {}},
    "parameters a list": lambda space: {**space, "parameters": list(space["parameters"])},
    "unknown key": lambda space: {**space, "paramters": {}},
    "first no list": lambda space: {**space, "first": 5},
    "first of numbers": lambda space: {**space, "first": [5]},
    "first of another's parameter": lambda space: {**space, "first": [{"no_such": 1}]},
    "first of text": lambda space: {**space, "first": [{"momentum": "much"}]},
    "parameter unknown": lambda space: {**space, "parameters": {**space["parameters"], "no_such": 0.5}},
    "parameter a list": lambda space: {**space, "parameters": {**space["parameters"], "momentum": [0.8, 0.9]}},
    "parameter a date": lambda space: {**space, "parameters": {**space["parameters"], "momentum": {"type": "fixed"}}},
}


def faulty_spaces() -> list[Any]:
    """Return test cases (space, parameter, mistake). Every parameter of the space lpss, and one parameter of each type
    of the space gmp, gets every mistake of its type."""
    cases = []
    for space in ("lpss", "gmp"):
        kinds = set()
        for name, spec in built_in(space)["parameters"].items():
            kind = spec.get("type") if isinstance(spec, dict) else None
            if kind not in ("float", "int", "categorical") or (kind in kinds and space != "lpss"):
                continue
            kinds.add(kind)
            for what, change in (CHOICE_FAULTS if kind == "categorical" else RANGE_FAULTS).items():
                cases.append(pytest.param(space, name, change, id=f"{space}-{name}-{what}"))
    return cases


@pytest.mark.parametrize(("space", "parameter", "change"), faulty_spaces())
def test_a_search_space_with_one_wrong_value_is_refused_with_its_line(
    space: str, parameter: str, change: dict[str, Any], refuse: Refuse
) -> None:
    data = built_in(space)
    spec = {**data["parameters"][parameter], **change}
    data["parameters"][parameter] = {key: value for key, value in spec.items() if value is not None}
    text = yaml.safe_dump(data, sort_keys=False)
    said = refuse(["--target", ".9", "--method", data["method"], "--space", "s.yaml"], "s.yaml:", s=text)
    line = int(said.partition("s.yaml:")[2].partition(":")[0])
    lines = text.splitlines()
    last = next((n for n, one in enumerate(lines, 1) if one.startswith("first:")), len(lines) + 1)
    if change == RANGE_FAULTS["beyond the method"]:  # the message may name any parameter that does not fit
        assert lines.index("parameters:") + 1 < line < last
    else:  # the line of the parameter, or a line inside its block
        above = [one for one in lines[:line] if one.startswith("  ") and one[2] not in " -"]
        assert above[-1] == f"  {parameter}:"
        assert line < last


@pytest.mark.parametrize("fault", WHOLE_FAULTS)
def test_a_search_space_with_a_wrong_method_key_or_section_is_refused(fault: str, refuse: Refuse) -> None:
    text = yaml.safe_dump(WHOLE_FAULTS[fault](built_in("lpss")), sort_keys=False)
    refuse(["--target", ".9", "--space", "s.yaml"], "s.yaml:", s=text)


# Options: every one with each kind of wrong value, on the command line and from a file

NUMBERS = ["", "many", "nan", "inf", "-1", "1e400", "9" * 400, "0x10", "1,5"]
WHOLE = [*NUMBERS, "2.5", "1000001"]
WRONG: dict[str, list[str]] = {
    "target": [*NUMBERS, "1", "0.8,", ",", "0.9,0.9", "0.8;0.9", "90%", "0.8,1.0"],
    "front": ["", "0.5", "0.9:0.5", "0.5:0.5", "0.5:1", "-0.1:0.5", "0.5:0.7:0.9", "a:b", "nan:0.9", "0.5-0.9"],
    "max-nonzero": [*NUMBERS, "0", "2.5", "2", "50201"],
    "max-bytes": [*NUMBERS, "0", "10k", "10", "kB", "10 kilobytes"],
    "max-macs": [*WHOLE[:-1], "0"],
    "max-latency": [*NUMBERS, "0ms", "2", "2m", "2 hours", "-1ms"],
    "latency-batch": [*WHOLE, "0"],
    "trials": [*WHOLE, "0"],
    "epochs": [*WHOLE, "0"],
    "patience": [*WHOLE, "0"],
    "pattern": ["", "neuron", "4:2", "block:0x1", "block"],
    "group": ["", "cascades", "Cascade"],
    "ensemble": ["", "resampled"],
    "members": [*WHOLE, "0", "1", "1001"],
    "warm-start": ["", "no-such-study"],
    "seed": [*NUMBERS, "2.5", "4294967296"],
    "final-seeds": WHOLE,
    "concurrency": [*WHOLE, "0"],
    "workers-per-trial": [*WHOLE, "0", "17", "1025"],  # 17: each worker needs 2 of the 32 examples of a batch
    "cpus-per-trial": [*NUMBERS, "0", "1000001"],
    "gpus-per-trial": [*NUMBERS, "1.5", "1000001", "Auto", "1000"],
    "time-budget": ["", "0", "0s", "-5m", "5M", "1w", "1h 30m", "1h30", "nan", "inf", "1e9d", "soon"],
    "sampler": ["", "tpee", "TPE", "tpe,gp"],
    "scheduler": ["", "ashaa", "ASHA", "fifo"],
    "method": ["", ",", "lpss,", "lpsss", "lpss,lpss", "LPSS", "lpss;gmp", "dense"],
    "experiment": ["", " ", "digit", ":", ":x", "x:", "no.py:x", "no_such:x", "a..b:c", "x" * 300, ".py:x", "a\nb"],
    "space": ["", " ", "lpsss", "no.yaml", ".yaml", "x" * 300 + ".yaml", "gmp", "s.json"],
    "storage": ["", "s3://", "s3:bucket", "gs://bucket", "s3://a:b@bucket", "s3://bucket/..", "/proc/no", "x" * 300],
    "data-dir": ["", " "],
    "study": ["..", "a/b", ".hidden", "-x", "x" * 101, "é", "a b"],
    "address": ["", "nowhere", "127.0.0.1:1", "ray://127.0.0.1:1", "host:port", ":", "127.0.0.1:99999"],
    "register": ["", " ", "a/b", "a:b", "x" * 251, "a\nb"],
    "tracking-uri": ["mlruns", "file:///tmp/mlruns", "no-such-scheme://x"],
}  # fmt: skip
GOALS = ("target", "front", "max-nonzero", "max-bytes", "max-macs", "max-latency")
WRONG_VALUES = [(option, value) for option, values in WRONG.items() for value in values]


def names_of(option: str, value: str) -> str:
    """Return the text that the message must contain: the file if --space names a .yaml file that does not exist,
    otherwise the option."""
    return value if option == "space" and value.endswith(".yaml") and value not in (".yaml",) else f"--{option}"


def test_the_table_has_wrong_values_for_every_option() -> None:
    options = {name.replace("_", "-") for name in StudyConfig.model_fields.keys() - {*FLAGS}}
    assert options == WRONG.keys(), "of a new option, add wrong values to WRONG"


def test_every_field_of_the_configuration_is_an_argument_of_the_command() -> None:
    arguments = {action.dest for action in search_parser()._actions}
    assert StudyConfig.model_fields.keys() <= arguments, "of a new option, add the argument to tuner/commands/search.py"


@pytest.mark.parametrize(("option", "value"), WRONG_VALUES, ids=lambda text: text[:20])
def test_the_message_about_a_wrong_value_names_its_option_or_space_file(
    option: str, value: str, refuse: Refuse
) -> None:
    goal = [] if option in GOALS else ["--target", ".9"]
    refuse([*goal, f"--{option}={value}"], names_of(option, value))


@pytest.mark.parametrize("option", WRONG)
def test_the_message_about_a_wrong_value_in_yaml_names_its_option_or_space_file(option: str, refuse: Refuse) -> None:
    for value in WRONG[option]:
        goal = {} if option in GOALS else {"target": 0.9}
        said = refuse(
            ["--config", "c.yaml"],
            "",
            c=yaml.safe_dump({**goal, "seed": 1, option: value}, sort_keys=False, width=10**6),
        )
        assert f"--{option}" in said or names_of(option, value) in said


@pytest.mark.parametrize("option", [name for name in WRONG if name not in ("target", "front", "method")])
@pytest.mark.parametrize("value", ["[1, 2]", "{a: 1}", "true", "2031-01-02", '"a\\0b"', "!!binary YQ=="])
def test_the_message_about_a_value_of_wrong_type_in_a_file_names_its_line(
    option: str, value: str, refuse: Refuse
) -> None:
    goal = "" if option in GOALS else "target: 0.9\n"
    refuse(["--config", "c.yaml"], f"c.yaml:{1 + goal.count(chr(10))}: --{option}", c=f"{goal}{option}: {value}\n")


# Contradictions

TOGETHER: dict[str, tuple[list[str], str]] = {
    "no goal": ([], "--target"),
    "a target and a front": (["--target", ".9", "--front", ".5:.9"], "--target and --front"),
    "a target and a count": (["--target", ".9", "--max-nonzero", "9"], "--target and --max-nonzero"),
    "a front and a count": (["--front", ".5:.9", "--max-nonzero", "9"], "--front and --max-nonzero"),
    "all goals": (["--target", ".9", "--front", ".5:.9", "--max-nonzero", "9"], "--target and --front and --max"),
    "dense at a target": (["--target", ".5", "--method", "dense"], "--method dense"),
    "dense along a front": (["--front", ".5:.9", "--method", "dense"], "--method dense"),
    "dense with few weights": (["--max-nonzero", "100", "--method", "dense"], "--method dense"),
    "more weights than there are": (["--max-nonzero", "60000"], "--max-nonzero 60000"),
    "a count and a size": (["--max-nonzero", "9", "--max-bytes", "9kB"], "--max-nonzero and --max-bytes"),
    "dense with few bytes": (["--max-bytes", "9kB", "--method", "dense"], "--method dense"),
    "fewer bytes than a network of one weight a layer": (["--max-bytes", "90"], "needs at least"),
    "a time and a target": (["--max-latency", "2ms", "--target", ".9"], "--target and --max-latency"),
    "a time without neurons": (["--max-latency", "2ms"], "--max-latency 2ms"),
    "a batch without a time": (["--target", ".9", "--latency-batch", "4"], "--latency-batch 4"),
    "seeds of a timed network": (["--max-latency", "2ms", "--final-seeds", "2"], "--final-seeds 2"),
    "fewer weights than layers": (["--max-nonzero", "2"], "--max-nonzero 2"),
    "a target that leaves no layer whole": (["--target", "0.99999"], "--target 0.99999"),
    "a last target that leaves none": (["--target", "0.9,0.99999"], "--target 0.99999"),
    "a front that leaves none": (["--front", "0.9:0.99999"], "--front 0.99999"),
    "one method's space for another": (["--target", ".9", "--space", "gmp", "--method", "rigl"], "--space gmp"),
    "one space for several methods": (["--target", ".9", "--space", "gmp", "--method", "gmp,rigl"], "--space gmp"),
    "GPUs that are not there": (["--target", ".9", "--gpus-per-trial", "999"], "--gpus-per-trial 999"),
    "a value for a switch": (["--target", ".9", "--json=yes"], "--json"),
    "an abbreviated option": (["--targ", ".9"], "--targ"),
    "an option of resume alone": (["--target", ".9", "--resume", "x"], "--resume"),
    "to resume with another goal": (["resume", "x", "--target", ".9"], "--target"),
    "to resume nothing": (["resume"], "STUDY"),
    "to resume two": (["resume", "a", "b"], "b"),
    "to list nothing": (["list"], "experiments|methods"),
    "to list what is not": (["list", "nothing"], "nothing"),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_contradictory_or_incomplete_options_are_refused(name: str, refuse: Refuse) -> None:
    arguments, names = TOGETHER[name]
    refuse(arguments, names)


@pytest.mark.parametrize("first", ["target: 0.9", "front: '0.5:0.9'", "max_nonzero: 100"])
@pytest.mark.parametrize("second", ["target: 0.8", "front: '0.6:0.9'", "max_nonzero: 200"])
def test_the_message_about_two_goals_in_a_file_names_the_line_of_the_second(
    first: str, second: str, refuse: Refuse
) -> None:
    said = refuse(["--config", "c.yaml"], "c.yaml:3:", c=f"{first}\ntrials: 3\n{second}\n")
    assert "twice" in said or "different goals" in said


@pytest.mark.parametrize(
    "final_sparsity", ["0.5", "{type: float, low: 0.1, high: 0.7}", "{type: categorical, choices: [0.1, 0.2]}"]
)
@pytest.mark.parametrize(
    "goal", [["--target", ".9"], ["--target", ".8,.9"], ["--front", ".8:.9"], ["--max-nonzero", "5000"]]
)
def test_a_search_space_that_cannot_reach_the_goal_is_refused(
    final_sparsity: str, goal: list[str], refuse: Refuse
) -> None:
    space = f"method: lpss\nparameters:\n  p: 1.4\n  final_sparsity: {final_sparsity}\n"
    refuse([*goal, "--space", "s.yaml"], "--space", s=space)


# Experiments: SOUND, changed so that it has one mistake

SOUND = """import torch
from torch import nn
from tune_sparsity.experiments import Data, Experiment, Recipe, Split

def split(n):
    return Split(torch.randn(n, 6), torch.arange(n) % 3)

def load(data_dir):
    return Data(split(30), split(12), split(12), classes=("a", "b", "c"))

def model():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

mine = Experiment("mine", load, model, Recipe(epochs=3, batch_size=10))
"""
EXPERIMENTS: dict[str, tuple[str, str]] = {  # (old text in SOUND, new text)
    "no Python": ("def load(data_dir):", "def load(data_dir:"),
    "raises at import": ("import torch\n", "import torch\n1 / 0\n"),
    "exits at import": ("import torch\n", "import torch\nraise SystemExit(3)\n"),
    "imports what is not there": ("import torch\n", "import torch, no_such_module\n"),
    "another name": ("mine = Experiment", "yours = Experiment"),
    "no experiment": ("mine = Experiment", "mine = dict or Experiment"),
    "no recipe": (", Recipe(epochs=3, batch_size=10))", ")"),
    "no epochs": ("epochs=3", "epochs=0"),
    "batches of none": ("batch_size=10", "batch_size=0"),
    "a network for a function": ("load, model,", "load, model(),"),
    "data for a function": ("load, model,", "load(None), model,"),
    "loading raises": ("    return Data(split(30)", "    raise OSError('no disk')\n    return Data(split(30)"),
    "loads nothing": ("return Data(", "return print("),
    "loads a mapping": ("return Data(", "return {'data': 5} or Data("),
    "an empty split": ("split(12), split(12)", "split(0), split(12)"),
    "fewer targets": ("torch.arange(n) % 3", "torch.arange(n - 1) % 3"),
    "targets of another type": ("torch.arange(n) % 3", "torch.randn(n)"),
    "a class too many": ("torch.arange(n) % 3", "torch.arange(n) % 4"),
    "arrays for tensors": ("torch.randn(n, 6)", "torch.randn(n, 6).numpy()"),
    "inputs of another size": ("torch.randn(n, 6)", "torch.randn(n, 7)"),
    "the network raises": ("    return nn.Sequential(", "    1 / 0\n    return nn.Sequential("),
    "no network": ("    return nn.Sequential(", "    return list or (", ),
    "nothing to prune": ("nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)", "nn.Flatten()"),
    "a lazy layer": ("nn.Linear(6, 8)", "nn.LazyLinear(8)"),
    "a loss that raises": ("batch_size=10))", "batch_size=10), loss=lambda o, t: 1 / 0)"),
    "a loss that is no number": ("batch_size=10))", "batch_size=10), loss=lambda o, t: o)"),
    "a metric of another size": ("batch_size=10))", "batch_size=10), metric=lambda o, t: o)"),
    "preparation that raises": ("batch_size=10))", "batch_size=10), prepare=lambda x: x[:, :, 0])"),
    "no augmentation": ("batch_size=10))", "batch_size=10), augment=5)"),
}  # fmt: skip


@pytest.mark.parametrize("fault", EXPERIMENTS)
def test_an_experiment_with_one_mistake_is_refused(fault: str, refuse: Refuse) -> None:
    old, new = EXPERIMENTS[fault]
    assert SOUND.count(old) == 1
    Path("own.py").write_text(SOUND.replace(old, new))
    refuse(["--target", ".8", "--experiment", "own.py:mine"], "--experiment")


def test_the_experiment_without_mistakes_is_accepted(refuse: Refuse) -> None:
    Path("own.py").write_text(SOUND)
    with pytest.raises(AssertionError, match="a study was begun"):
        main(["--target", ".8", "--experiment", "own.py:mine"])


def test_the_tables_contain_more_than_300_cases() -> None:
    assert len(faulty_spaces()) + len(WHOLE_FAULTS) + len(WRONG_VALUES) + len(TOGETHER) + len(EXPERIMENTS) > 300
