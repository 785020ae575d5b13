"""The order in which data and code are loaded before a study begins. Mistakes of users are tested in test_usage.py."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tune_sparsity.experiments import find
from tune_sparsity.tuner.config.files import write_study_yaml
from tune_sparsity.tuner.config.study_config import make_config
from tune_sparsity.tuner.driver import prepare as module
from tune_sparsity.tuner.driver.prepare import prepare
from tune_sparsity.tuner.errors import UsageError


def test_built_in_data_are_loaded_and_their_thread_has_ended_before_the_fork(tmp_path: Path) -> None:
    before, alone = threading.active_count(), list[bool]()

    def share(is_alone: Callable[[], bool]) -> None:
        alone.extend([is_alone(), threading.active_count() == before])

    prepared = prepare(make_config({"target": 0.9, "storage": str(tmp_path)}).resolved(), share=share)
    assert alone == [True, True]
    assert prepared.checksum == find("digits").load(None).checksum()


def test_the_wait_for_slowly_loading_data_ends_after_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_A_WHILE", 0.05)
    data, downloaded = find("digits").load(None), threading.Event()
    loading = module._Loading(lambda: data if downloaded.wait(120) else find("digits").load(None))
    assert not loading.over()
    downloaded.set()
    assert loading.data() is data
    assert loading.over()


def test_the_code_of_a_user_runs_after_the_fork_and_in_the_main_thread(tmp_path: Path) -> None:
    source = "import threading\nTHREADS = []\nfrom tune_sparsity.experiments.builtin import digits as ours\n"
    source += "from dataclasses import replace\n"
    source += "def load(folder):\n    THREADS.append(threading.current_thread())\n    return ours.digits.load(folder)\n"
    source += "mine = replace(ours.digits, name='mine', load=load)\n"
    (tmp_path / "mine_of_a_user.py").write_text(source)
    ran: list[bool] = []

    def share(is_alone: Callable[[], bool]) -> None:
        ran.append(any("mine_of_a_user" in name for name in sys.modules))
        assert is_alone()

    config = make_config(
        {"target": 0.9, "storage": str(tmp_path), "experiment": f"{tmp_path}/mine_of_a_user.py:mine"}
    ).resolved()
    prepared = prepare(config, share=share)
    assert ran[0] is False
    threads = prepared.experiment.load.__globals__["THREADS"]  # type: ignore[attr-defined]
    assert set(threads) == {threading.main_thread()}


def test_a_study_does_not_go_on_with_other_data(tmp_path: Path) -> None:
    source = "from dataclasses import replace\nfrom tune_sparsity.experiments.builtin import digits as ours\n"
    source += "def load(folder):\n    data = ours.digits.load(folder)\n    x, y = data.train\n"
    source += "    return replace(data, train=type(data.train)(x[KEPT:], y[KEPT:]))\n"
    source += "mine = replace(ours.digits, name='mine', load=load)\n"
    for number, kept in enumerate((0, 0, 1)):
        (tmp_path / f"mine_{number}.py").write_text(f"KEPT = {kept}\n{source}")
    given = {"target": 0.9, "storage": str(tmp_path), "study": "mine"}
    configs = [make_config({**given, "experiment": f"{tmp_path}/mine_{n}.py:mine"}).resolved() for n in range(3)]
    begun = prepare(configs[0])
    configs[0].folder.mkdir()
    write_study_yaml(configs[0], epochs=1, checksum=begun.checksum, device="cpu", goal=begun.goal)
    assert prepare(configs[1], resume=True).checksum == begun.checksum
    with pytest.raises(UsageError, match="have changed since study 'mine' began"):
        prepare(configs[2], resume=True)


def test_the_error_about_an_existing_study_shows_the_resume_command(tmp_path: Path) -> None:
    config = make_config({"target": 0.9, "storage": f"{tmp_path}/my studies", "study": "there"}).resolved()
    config.folder.mkdir(parents=True)
    (config.folder / "study.yaml").write_text("target: 0.9\n")
    with pytest.raises(UsageError, match=f"tune-sparsity resume there --storage '{tmp_path}/my studies'"):
        prepare(config)
