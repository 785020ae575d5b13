"""The configuration: durations, names, the precedence of options, and one line for any mistake."""

from __future__ import annotations

import string
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from tests.helpers.examples import examples
from tune_sparsity.experiments import Data, Experiment, Recipe, Split
from tune_sparsity.search_spaces import load_space
from tune_sparsity.sparsity import network_size
from tune_sparsity.tuner.config.files import read_config, read_study, write_study_yaml
from tune_sparsity.tuner.config.study_config import StudyConfig, default_study_name, make_config, parse_duration
from tune_sparsity.tuner.driver.prepare import Prepared
from tune_sparsity.tuner.errors import UsageError
from tune_sparsity.tuner.storage.study_storage import LocalStorage

NAME_LETTERS = set(string.ascii_letters + string.digits + "._-")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(options: dict[str, Any]) -> str:
    with pytest.raises(UsageError) as caught:
        read_config(options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


# Durations


@given(days=st.integers(0, 9), hours=st.integers(0, 99), minutes=st.integers(0, 999), seconds=st.integers(0, 9999))
@examples(100)
def test_a_duration_is_the_sum_of_its_parts(days: int, hours: int, minutes: int, seconds: int) -> None:
    total = days * 86400 + hours * 3600 + minutes * 60 + seconds
    assert parse_duration(f"{days}d{hours}h{minutes}m{seconds}s") == total
    assert parse_duration(f"{minutes}m{hours}h") == total - days * 86400 - seconds
    assert parse_duration(str(total)) == total


@pytest.mark.parametrize(
    ("given_", "seconds"),
    [("1h30m", 5400), ("90s", 90), ("90", 90), (90, 90), (0.5, 0.5), ("1.5h", 5400), ("2d", 172800), ("1e3", 1000)],
)
def test_time_budget_accepts_all_forms_of_a_duration(given_: Any, seconds: float) -> None:
    assert make_config({"target": 0.9, "time_budget": given_}).time_budget == seconds


@pytest.mark.parametrize(
    "given_",
    ["", " ", "h", "1h30", "1h 30m", "-5m", "5M", "1w", "half", "nan", "inf", "0", "0s", -1, [90], True, "1" * 400],
)
def test_a_wrong_duration_is_refused(given_: Any) -> None:
    said = refusal({"target": 0.9, "time_budget": given_})
    assert said.startswith("--time-budget ")


# The study's name


@given(experiment=st.text(max_size=300), target=st.floats(0, 1, exclude_max=True))
@example(experiment="", target=0.0)
@example(experiment="../../etc/passwd:..", target=-0.0)
@example(experiment="a/b.py:" + "x" * 500, target=5e-324)
@example(experiment="--_--", target=1e-5)
@example(experiment="C:\\experiments\\mine.py:..\\up", target=0.123456789)
@examples(300)
def test_the_default_name_is_accepted_and_safe_as_a_folder(experiment: str, target: float) -> None:
    name = default_study_name(experiment, f"{target:g}", datetime(2031, 2, 3, 4, 5, 6))
    assert set(name) <= NAME_LETTERS
    assert name[0] not in ".-"
    assert name.endswith("-20310203-040506")
    assert make_config({"target": 0.9, "study": name}).study == name
    storage = Path("/studies")
    assert (storage / name).resolve().parent == storage


def test_the_default_name_contains_the_experiment_the_target_and_the_time() -> None:
    when = datetime(2031, 2, 3, 4, 5, 6)
    assert default_study_name("digits", "0.9", when) == "digits-0.9-20310203-040506"
    assert default_study_name("path/to/my file.py:my_net", "0.95", when) == "my_net-0.95-20310203-040506"


@given(name=st.text(max_size=120))
@examples(200)
def test_every_accepted_study_name_gives_a_direct_subfolder_of_the_storage(name: str) -> None:
    try:
        config = make_config({"target": 0.9, "study": name, "storage": "/studies"})
    except UsageError:
        return
    assert config.study == name
    if name:
        assert config.folder.resolve().parent == Path("/studies")


# Resolving


def test_a_resolved_configuration_does_not_depend_on_the_working_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {
        "target": 0.9,
        "experiment": "own/mine.py:mine",
        "space": "own/space.yaml",
        "storage": "kept/here",
        "data_dir": "data",
        "tracking_uri": "sqlite:///runs/mlflow.db",
    }
    config = make_config(options).resolved()
    assert config.storage == LocalStorage(folder / "kept" / "here")
    assert config.data_dir == folder / "data"
    assert config.tracking_uri == f"sqlite:///{folder}/runs/mlflow.db"
    assert config.experiment == f"{folder}/own/mine.py:mine"
    assert config.space == f"{folder}/own/space.yaml"
    assert config.study.startswith("mine-0.9-2")
    assert config.folder == folder / "kept" / "here" / config.study
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert config.resolved() == config


def test_names_are_not_taken_for_paths(folder: Path) -> None:
    config = make_config({"target": 0.9, "space": "lpss", "experiment": "package.module:mine"}).resolved()
    assert (config.space, config.experiment, config.data_dir) == ("lpss", "package.module:mine", None)
    assert config.storage == LocalStorage(folder / "studies")
    assert config.tracking_uri == f"sqlite:///{folder}/mlflow.db"
    assert not any(folder.iterdir())


@pytest.mark.parametrize(
    "uri",
    [
        "http://host:5000",
        "https://host/mlflow",
        "postgresql+psycopg2://host/db",
        "databricks",
        "sqlite:////abs/mlflow.db",
    ],
)
def test_a_complete_tracking_uri_is_not_changed(uri: str) -> None:
    assert make_config({"target": 0.9, "tracking_uri": uri}).resolved().tracking_uri == uri


def test_the_tracking_uri_option_overrides_the_environment_variable(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://environment:5000")
    assert make_config({"target": 0.9}).resolved().tracking_uri == "http://environment:5000"
    given_ = make_config({"target": 0.9, "tracking_uri": "http://option:5000"})
    assert given_.resolved().tracking_uri == "http://option:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///environment.db")
    assert make_config({"target": 0.9}).resolved().tracking_uri == f"sqlite:///{folder}/environment.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "  ")
    assert make_config({"target": 0.9}).resolved().tracking_uri == f"sqlite:///{folder}/mlflow.db"


# Files


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(folder: Path) -> None:
    Path("c.yaml").write_text("target: 0.8\ntrials: 5\nsampler: random\ntime-budget: 1h30m\ndata_dir: d\nepochs:\n")
    config = read_config({"config": "c.yaml", "trials": "7", "time_budget": "10s"})
    assert (config.target, config.trials, config.sampler, config.time_budget) == (0.8, 7, "random", 10)
    assert (config.data_dir, config.epochs, config.scheduler) == (Path("d"), None, "asha")
    alone = read_config({"config": "c.yaml"})
    assert (alone.trials, alone.time_budget) == (5, 5400)


def test_the_message_names_the_file_and_line_only_for_a_mistake_in_the_file(folder: Path) -> None:
    file = Path("c.yaml")
    file.write_text("target: 0.8\n\ncpus-per-trial: none\nsampler: tpe\n")
    assert refusal({"config": "c.yaml"}).startswith("c.yaml:3: --cpus-per-trial 'none'")
    # A mistake on the command line has no line number. A mistake in the file does not matter if an option overrides it.
    assert refusal({"config": "c.yaml", "cpus_per_trial": "1", "sampler": "x"}).startswith(
        "--sampler: unknown sampler 'x'"
    )
    assert read_config({"config": "c.yaml", "cpus_per_trial": "2"}).cpus_per_trial == 2
    file.write_text("trials: 3\n")
    assert refusal({"config": "c.yaml"}).startswith("--target is missing")


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("target: 0.9\ntrials: true\n", 2, "--trials True"),
        ("target: no\n", 1, "--target False"),
        ("target: 0.9\nseed: yes\n", 2, "--seed True"),
        ("target: 0.9\ntrials: .nan\n", 2, "--trials nan"),
        ("target: .nan\n", 1, "[0, 1)"),
        ("target: [[0.9]]\n", 1, "[0, 1)"),
        ("target: 0.9\ntime_budget: -5\n", 2, "--time-budget -5"),
        ("target: 0.9\nmethod: []\n", 2, "--method []"),
        ("target: 0.9\nmethod: {lpss: 1}\n", 2, "--method"),
        ("target: 0.9\nmethod: [lpss, lpss]\n", 2, "twice"),
        ("target: 0.9\nstudy: 7\n", 2, "--study 7"),
        ("target: 0.9\nstorage: s3://\n", 2, "folder"),
        ("target: 0.9\ngpus_per_trial: .inf\n", 2, "--gpus-per-trial inf"),
        ("target: 0.9\nconfig: other.yaml\n", 2, "unknown option 'config'"),
        ("target: 0.9\njson: true\n", 2, "unknown option 'json'"),
        ("target: 0.9\nsmapler:\n", 2, "unknown option 'smapler' (did you mean sampler"),
        ("target: 0.9\ndata-dir: a\ndata_dir: b\n", 2, "twice"),
        ("target: 0.9\ntracking-uri: mlruns\n", 2, "no longer writes to plain folders"),
    ],
)
def test_the_error_about_a_wrong_option_in_a_file_names_its_line(text: str, line: int, said: str, folder: Path) -> None:
    Path("c.yaml").write_text(text)
    message = refusal({"config": "c.yaml"})
    assert message.startswith(f"c.yaml:{line}: ")
    assert said in message


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def prepared(config: StudyConfig) -> Prepared:
    data = Data(*[Split(torch.zeros(6, 4), torch.arange(6) % 2)] * 3)
    experiment = Experiment("small", lambda data_dir: data, network, Recipe(7, 3))
    config.folder.mkdir(parents=True)
    size = network_size(network())
    return Prepared(config, experiment, data, [load_space("lpss", 0.85)], config.goal(2, 48), size)


def write(study: Prepared) -> None:
    write_study_yaml(study.config, epochs=study.epochs, checksum=study.checksum, device="cpu")


def test_a_study_loads_again_from_its_own_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {
        "target": "0.85", "experiment": "mine.py:mine", "trials": "9", "time_budget": "2m", "seed": "3",
        "sampler": "gp", "scheduler": "none", "concurrency": "1", "cpus_per_trial": "0.5", "gpus_per_trial": "0",
        "workers_per_trial": "2",
        "storage": "s", "study": "first", "tracking_uri": "sqlite:///m.db", "data_dir": "d",
    }  # fmt: skip
    config = make_config(options).resolved()
    write(prepared(config))
    file = config.folder / "study.yaml"
    written = yaml.safe_load(file.read_text())
    assert written["about"]["device"] == "cpu"
    assert len(written["about"]["data_sha256"]) == 64
    assert {"python", "torch", "ray", "optuna", "mlflow"} <= set(written["about"]["versions"])
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    whole = config.model_copy(update={"epochs": 7})  # the experiment's number of epochs, which study.yaml contains
    assert read_config({"config": str(file)}).resolved() == whole
    assert read_study("first", LocalStorage(folder / "s"), {}).resolved() == whole
    assert read_study(str(file.parent), LocalStorage(Path("studies")), {"trials": "20"}).resolved() == whole.model_copy(
        update={"trials": 20}
    )


def test_a_study_is_found_after_its_folder_was_renamed_and_moved(folder: Path) -> None:
    config = make_config({"target": 0.9, "study": "before"}).resolved()
    write(prepared(config))
    config.folder.rename(folder / "after")
    found = read_study("after", LocalStorage(folder), {}).resolved()
    assert found.folder == folder / "after"


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://me:hush-9@host/db",
        "mysql+pymysql://host/db?password=hush-9",
        "http://me:hush-9@host:5000",
        "https://hush-9@host",
        "https://me:pass/hush-9@host",
    ],
)
def test_passwords_are_not_saved_but_read_from_the_environment_on_resume(
    uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config({"target": 0.9, "study": "secret", "tracking_uri": uri}).resolved()
    assert config.tracking_uri == uri
    write(prepared(config))
    assert "hush-9" not in (config.folder / "study.yaml").read_text()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert read_study("secret", LocalStorage(Path("studies")), {}).resolved().tracking_uri == uri


@pytest.mark.parametrize("study", ["none", "", ".", "..", "a/b", "x" * 300, "../" * 50, "null\0byte", "ß*?["])
def test_the_error_about_an_unknown_study_lists_known_studies_in_one_line(study: str, folder: Path) -> None:
    (folder / "studies" / "known").mkdir(parents=True)
    (folder / "studies" / "known" / "study.yaml").write_text("target: 0.9\n")
    with pytest.raises(UsageError) as caught:
        read_study(study, LocalStorage(Path("studies")), {})
    assert len(str(caught.value).splitlines()) == 1
    assert "known" in str(caught.value)


def test_a_mistake_in_study_yaml_is_reported_with_its_line(folder: Path) -> None:
    (folder / "studies" / "known").mkdir(parents=True)
    text = "target: 0.9\ntrials: few\nexperiment: digits\nmethod: [lpss]\nepochs: 3\nseed: 0\n"
    (folder / "studies" / "known" / "study.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"study\.yaml:2: --trials 'few'"):
        read_study("known", LocalStorage(Path("studies")), {})
    assert read_study("known", LocalStorage(Path("studies")), {"trials": "5"}).trials == 5


# Any options at all

FIELDS = sorted(StudyConfig.model_fields)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(min_value=10**300) | st.floats() | st.text(max_size=10)
    | st.sampled_from(["lpss", "tpe", "cmaes", "asha", "none", "auto", "0.9", "1h30m", "s3://b", "sqlite:///", "a:b@c"])
    | st.dates() | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


@given(options=st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=6), VALUES, max_size=4), valid=st.booleans())
@examples(600)
def test_any_options_give_a_configuration_or_an_error_of_one_line(options: dict[str, Any], valid: bool) -> None:
    if valid:
        options = {**options, "target": 0.9}
    try:
        config = make_config(options)
        of_macs = config.max_macs is not None or config.max_latency is not None  # these goals need the network
        goal = None if of_macs else config.goal(1, 10**9)
    except UsageError as error:
        said = str(error)
    else:
        assert goal is None or goal.lowest >= 0
        assert config.trials >= 1
        assert not isinstance(config.trials, bool)
        # The configuration is the same after writing it as YAML and reading it again.
        assert make_config(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config
        return
    assert len(said.splitlines()) == 1
    assert said.startswith(("--", "unknown option "))
