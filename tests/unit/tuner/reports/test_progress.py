"""Tests the progress display in a terminal: its lines, and when they are printed."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tune_sparsity.tuner.reports.progress import Progress, Summary, work_done
from tune_sparsity.tuner.reports.text import duration, time_left
from tune_sparsity.tuner.study.goal import Goal, along_front, at_most, at_targets
from tune_sparsity.tuner.study.trial import TrialRecord, TrialState


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Untouchable:
    """Replaces the records of trials where the display must not read them."""

    def __iter__(self) -> Iterator[TrialRecord]:
        raise AssertionError("looked at")


def trial(number: int, state: TrialState = TrialState.COMPLETED, **fields: Any) -> TrialRecord:
    given = {"method": "lpss", "params": {"p": 1.1}, "value": 0.9, "sparsity": 0.9, **fields}
    return TrialRecord.from_dict({"number": number, "state": state, **given})


def running(number: int, seconds: float = 0.0) -> TrialRecord:
    return trial(number, TrialState.RUNNING, value=None, sparsity=None, seconds=seconds)


def progress(clock: Clock, total: int = 8, **options: Any) -> tuple[Progress, io.StringIO]:
    stream = io.StringIO()
    return Progress(total, at_targets(0.9), stream=stream, clock=clock, **options), stream


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (-1, "0 s")],
)
def test_a_duration_is_shown_in_seconds_minutes_or_hours(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "a few seconds left"),
        (41.2, "about 40 s left"),
        (100, "about 2 min left"),
        (3590, "about 1 h 00 min left"),
        (7620, "about 2 h 10 min left"),
    ],
)
def test_the_time_left_is_rounded_to_a_coarse_unit(seconds: float, text: str) -> None:
    assert time_left(seconds) == text


def test_the_summary_counts_trials_by_state_and_shows_the_best_trial() -> None:
    records = [
        trial(0),
        trial(1, value=0.95, sparsity=0.91),
        trial(2, TrialState.PRUNED, value=0.99),
        trial(3, TrialState.FAILED),
        running(4),
    ]
    summary = Summary.of(records, at_targets(0.9))
    assert (summary.done, summary.running, summary.pruned, summary.failed) == (4, 1, 1, 1)
    assert summary.counts() == "1 running, 1 stopped early, 1 failed"
    assert summary.best_so_far() == "best 95.00% at 91.00% sparsity (t0001)"


def test_the_summary_shows_the_share_of_epochs_that_early_stopping_saved() -> None:
    def ended(number: int, state: TrialState, epochs: int) -> TrialRecord:
        return TrialRecord(number, "lpss", {}, state, epochs=epochs)

    records = [
        ended(0, TrialState.COMPLETED, 10),
        ended(1, TrialState.PRUNED, 2),
        ended(2, TrialState.PRUNED, 5),
        ended(3, TrialState.FAILED, 1),  # a failed trial was not stopped, so it saves no epochs
        ended(4, TrialState.RUNNING, 3),
    ]
    goal = at_targets(0.9)
    assert Summary.of(records, goal, 10).saved == pytest.approx(13 / 30)
    assert "2 stopped early (43% of the epochs saved), 1 failed" in Summary.of(records, goal, 10).counts()
    assert Summary.of(records, goal).saved == 0.0
    assert "saved" not in Summary.of(records[:1], goal, 10).counts()
    assert Summary().best_so_far() == "no feasible trial yet"


def test_the_work_share_of_a_running_trial_is_its_time_over_the_mean_duration() -> None:
    assert work_done([running(0, 5.0)]) == 0
    assert work_done([trial(0, seconds=10.0), running(1, 5.0), running(2, 99.0)]) == pytest.approx(2.45)


def test_the_first_line_is_printed_at_once_and_later_ones_every_ten_seconds() -> None:
    clock = Clock()
    shown, stream = progress(clock)
    for tick in range(205):  # 20 s, an update every 0.1 s
        clock.now = 1000 + tick / 10
        shown.update([running(0)])
    lines = stream.getvalue().splitlines()
    assert lines[0] == "0/8 trials, 1 running, 0 stopped early; no feasible trial yet; 0 s elapsed"
    assert [line.rsplit("; ", 1)[1] for line in lines] == ["0 s elapsed", "10 s elapsed", "20 s elapsed"]


def test_a_long_study_prints_lines_less_often_than_every_ten_seconds() -> None:
    clock = Clock()
    shown, stream = progress(clock)
    for second in range(0, 8 * 3600, 5):
        clock.now = 1000.0 + second
        shown.update([running(0)])
    assert 100 < len(stream.getvalue().splitlines()) < 300


def test_a_new_best_has_a_line_at_once_and_the_same_best_has_none() -> None:
    clock = Clock()
    shown, stream = progress(clock)
    shown.update([running(0)])
    clock.now += 1
    shown.update([trial(0), running(1)])
    clock.now += 1
    shown.update([trial(0), trial(1, value=0.8)])
    clock.now += 1
    shown.update([trial(0), trial(1, value=0.8), trial(2, value=0.95)])
    assert [line.split("; ")[1] for line in stream.getvalue().splitlines()] == [
        "no feasible trial yet",
        "best 90.00% at 90.00% sparsity (t0000)",
        "best 95.00% at 90.00% sparsity (t0002)",
    ]


def test_the_display_reads_records_at_most_four_times_a_second() -> None:
    clock = Clock()
    shown, _ = progress(clock)
    shown.update([running(0)])
    clock.now += 0.2
    shown.update(Untouchable())
    clock.now += 0.1
    with pytest.raises(AssertionError, match="looked at"):
        shown.update(Untouchable())


def test_updates_that_take_long_are_made_more_seldom() -> None:
    clock = Clock()

    class Many(list[TrialRecord]):
        def __iter__(self) -> Iterator[TrialRecord]:
            clock.now += 0.1
            return super().__iter__()

    shown, _ = progress(clock)
    shown.update(Many([running(0)]))
    clock.now += 4.8
    shown.update(Untouchable())
    clock.now += 0.2
    with pytest.raises(AssertionError, match="looked at"):
        shown.update(Untouchable())


def test_the_last_state_is_shown_even_if_its_update_was_too_early() -> None:
    clock = Clock()
    with progress(clock, total=1)[0] as shown:
        shown.update([running(0)])
        clock.now += 0.01
        shown.update([trial(0)])
    assert shown.line() == "1/1 trials, 0 running, 0 stopped early; best 90.00% at 90.00% sparsity (t0000); 0 s elapsed"


def test_closing_twice_writes_once() -> None:
    shown, stream = progress(Clock())
    shown.close()
    shown.close()
    shown.update([trial(0)])
    assert len(stream.getvalue().splitlines()) == 1


def test_the_time_left_follows_the_pace_and_counts_down_between_results() -> None:
    clock = Clock()
    shown, _ = progress(clock, total=6)
    shown.update([running(0)])
    assert "left" not in shown.line()
    clock.now += 20
    shown.update([trial(0, seconds=20.0), running(1)])
    assert shown.line().endswith("20 s elapsed, about 2 min left")
    clock.now += 20
    shown.update([trial(0, seconds=20.0), running(1)])
    assert shown.line().endswith("about 80 s left")
    shown.update([trial(number, seconds=20.0) for number in range(6)])
    clock.now += 1
    shown.update([trial(number, seconds=20.0) for number in range(6)])
    assert shown.line().endswith("41 s elapsed")


def test_concurrent_trials_are_not_taken_for_consecutive_ones() -> None:
    clock = Clock()
    shown, _ = progress(clock, total=8)
    clock.now += 10
    shown.update([trial(0, seconds=10.0), running(1, 9.5)])
    assert shown.line().endswith("about 30 s left")  # 8 trials of 10 s each, two at a time, take 40 s; 10 s are over


def test_trials_of_an_earlier_run_say_nothing_of_the_pace() -> None:
    clock = Clock()
    shown, _ = progress(clock, total=8, finished_before=4)
    before = [trial(number, seconds=10.0) for number in range(4)]
    shown.update(before)
    assert "left" not in shown.line()
    clock.now += 10
    shown.update([*before, trial(4, seconds=10.0)])
    assert shown.line().endswith("about 30 s left")


def test_the_time_budget_limits_the_time_left() -> None:
    clock = Clock()
    shown, _ = progress(clock, total=100, deadline=clock.now + 60)
    shown.update([running(0)])
    assert shown.line().endswith("at most 60 s left")
    clock.now += 20
    shown.update([trial(0, seconds=20.0)])
    assert shown.line().endswith("about 40 s left")


def test_the_quiet_display_prints_nothing_and_reads_no_records() -> None:
    shown, stream = progress(Clock(), quiet=True, live=True)
    with shown:
        shown.update(Untouchable())
    assert stream.getvalue() == ""


def test_a_broken_stream_ends_the_display_and_not_the_study() -> None:
    clock = Clock()
    shown, stream = progress(clock)
    stream.close()
    shown.update([running(0)])
    clock.now += 60
    shown.update(Untouchable())
    shown.close()


def test_a_terminal_shows_a_progress_bar_and_its_cursor_is_restored() -> None:
    clock = Clock()
    shown, stream = progress(clock, total=4, live=True)
    with shown:
        shown.update([trial(0), running(1)])
    text = stream.getvalue()
    for part in ("1/4 trials", "1 running, 0 stopped early", "best 90.00% at 90.00% sparsity (t0000)"):
        assert part in text
    assert text.rstrip().endswith("\x1b[?25h")


def test_progress_is_printed_to_stderr_and_never_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(1, at_targets(0.9)) as shown:
        shown.update([trial(0)])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "1/1 trials" in captured.err


def test_importing_the_display_imports_nothing_heavy() -> None:
    heavy = {"rich", "plotly", "pandas", "optuna", "ray", "mlflow", "torch", "numpy"}
    loaded = "import sys, tune_sparsity.tuner.reports.progress, tune_sparsity.tuner.reports.plots.front"
    code = f"{loaded}; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


FOUND = [
    trial(0, value=0.97, sparsity=0.8, nonzero_weights=200),
    trial(1, value=0.96, sparsity=0.9, nonzero_weights=100),
    trial(2, value=0.90, sparsity=0.95, nonzero_weights=50),
]


def test_the_best_result_so_far_is_described_according_to_the_goal() -> None:
    def told(goal: Goal, records: list[TrialRecord] = FOUND) -> str:
        return Summary.of(records, goal).best_so_far()

    assert told(at_targets(0.8, 0.9)) == "best 97.00% at 0.8 (t0000), 96.00% at 0.9 (t0001)"
    met = "best 97.00% at 0.8 (t0000), 96.00% at 0.9 (t0001), nothing above 0.95 yet"
    assert told(at_targets(0.8, 0.9, 0.99)) == met
    assert told(along_front(0.8, 0.96), FOUND[:1]) == (
        "front of 1, mean accuracy 0.00% from 0.8 to 0.96, nothing above 0.8 yet"
    )
    assert told(along_front(0.8, 0.9)) == "front of 3, mean accuracy 96.00% from 0.8 to 0.9"
    assert told(at_most(100, 1000)) == "best 96.00% at 90.00% sparsity (t0001)"
    assert told(at_targets(0.8, 0.9), []) == "no feasible trial yet"


def test_the_display_counts_the_trials_of_a_study_that_already_ended() -> None:
    shown, stream = progress(Clock(), total=2)
    shown.open([trial(0), trial(1, value=0.95)])
    shown.close()
    assert stream.getvalue().startswith(
        "2/2 trials, 0 running, 0 stopped early; best 95.00% at 90.00% sparsity (t0001)"
    )
