"""Tests signals: the first signal asks a study to stop, and the second signal interrupts it. The interrupt waits until
some operations are finished."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tune_sparsity.tuner.cluster.connection import PrivateRay
from tune_sparsity.tuner.config.study_config import make_config
from tune_sparsity.tuner.search.journal import Journal
from tune_sparsity.tuner.system.signals import handled, interruptible, terminable, undisturbed


def test_a_first_signal_asks_the_study_to_stop_and_a_second_interrupts_it(capsys: pytest.CaptureFixture[str]) -> None:
    class Stop:
        asked = False

    ray = PrivateRay(make_config({"target": 0.9}))
    before = signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGINT, signal.SIGTERM):
        stop = Stop()
        with interruptible(stop, ray):
            signal.raise_signal(number)
            assert stop.asked
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
    assert signal.getsignal(signal.SIGTERM) is before
    assert capsys.readouterr().err.count("Interrupt again to end at once") == 2


def test_a_signal_ends_a_study_at_once_if_its_private_ray_has_died(capsys: pytest.CaptureFixture[str]) -> None:
    class Stop:
        asked = False

    ray = PrivateRay(make_config({"target": 0.9}))
    ray.lost = True
    with interruptible(Stop(), ray), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("turn", ["acquire", "release"])
def test_an_interrupt_leaves_no_line_of_the_journal_half_done(
    turn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray, journal = PrivateRay(make_config({"target": 0.9})), Journal(tmp_path / "j")
    ray.lost, act = True, getattr(journal._turn, turn)

    def interrupted() -> None:
        signal.raise_signal(signal.SIGTERM)
        act()
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(journal._turn, turn, interrupted)
    with interruptible(SimpleNamespace(asked=False), ray):
        with pytest.raises(KeyboardInterrupt):
            journal.append_logs([{"op_code": 0}])
        assert (tmp_path / "j").read_text() == '{"op_code":0}\n'
        assert [path.name for path in tmp_path.iterdir()] == ["j"]
        with pytest.raises(KeyboardInterrupt):  # outside of the write, the signal interrupts at once
            signal.raise_signal(signal.SIGTERM)


def test_an_interrupt_waits_for_the_outermost_undisturbed_block() -> None:
    done = []

    def work() -> None:
        with undisturbed():
            with undisturbed():
                signal.raise_signal(signal.SIGINT)
                done.append("inner")
            done.append("outer")
        done.append("after")

    with terminable(PrivateRay(make_config({"target": 0.9}))), pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["inner", "outer"]


def test_an_interrupt_in_a_finalizer_is_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)
            done.append("finalized")

    def work() -> None:
        Finalized()
        time.sleep(60)

    done = list[str]()
    with terminable(PrivateRay(make_config({"target": 0.9}))), pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["finalized"]
    assert capsys.readouterr().err == ""


def test_another_thread_delays_no_interrupt() -> None:
    within, go_on = threading.Event(), threading.Event()

    def work() -> None:
        with undisturbed():
            within.set()
            go_on.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert within.wait(60)
        with terminable(PrivateRay(make_config({"target": 0.9}))), pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    finally:
        go_on.set()
        thread.join()


def test_handlers_are_put_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="x"), handled(lambda number, frame: None, signal.SIGINT):
        raise ValueError("x")
    assert signal.getsignal(signal.SIGINT) is before
