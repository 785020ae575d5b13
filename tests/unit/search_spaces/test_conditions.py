"""Parameters that apply only for certain values of other parameters, and schedules as one parameter."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from optuna.distributions import FloatDistribution

from tune_sparsity.search_spaces import BadFile, Space, load_space
from tune_sparsity.sparsity import METHODS
from tune_sparsity.sparsity.schedules import PiecewiseLinear, Schedule

BASE = """\
method: lpss
parameters:
  p: {type: float, low: 1.1, high: 1.9}
  final_sparsity: target
"""
GAIN = "  feedback_gain: {type: float, low: 0.1, high: 0.3, when: {feedback: pi}}\n"
FEEDBACK = "  feedback: {type: categorical, choices: [pi, published]}\n"


def space_of(folder: Path, text: str) -> Space:
    path = folder / "space.yaml"
    path.write_text(text)
    return load_space(str(path), 0.9)


def test_a_parameter_applies_where_its_condition_holds(tmp_path: Path) -> None:
    space = space_of(tmp_path, BASE + GAIN + FEEDBACK)
    assert list(space.distributions) == ["p", "feedback", "feedback_gain"]  # the condition's parameter comes first
    assert space.applies("p", {})
    assert space.applies("feedback_gain", {"feedback": "pi"})
    assert not space.applies("feedback_gain", {"feedback": "published"})
    assert not space.applies("feedback_gain", {})


def test_a_condition_on_a_parameter_that_does_not_apply_is_not_met(tmp_path: Path) -> None:
    chain = (
        "  feedback: {type: categorical, choices: [pi, published], when: {threshold: [cosine, linear]}}\n"
        "  threshold: {type: categorical, choices: [cosine, linear, cubic]}\n"
        "  momentum: {type: fixed, value: 0.8, when: {feedback: pi}}\n"
        "  initial_sparsity: {type: float, low: 0, high: 0.3, when: {momentum: 0.8}}\n"
    )
    space = space_of(tmp_path, BASE + GAIN + chain)
    assert list(space.distributions) == ["p", "threshold", "feedback", "feedback_gain", "initial_sparsity"]
    for values, expected in (
        ({"threshold": "cosine", "feedback": "pi"}, True),
        ({"threshold": "cosine", "feedback": "published"}, False),
        ({"threshold": "cubic"}, False),
    ):
        assert space.applies("feedback_gain", values) is expected
        assert space.applies("initial_sparsity", values) is expected
        assert ("momentum" in space.fixed_for(values)) is expected


def test_missing_parameters_of_a_first_point_come_from_the_priors(tmp_path: Path) -> None:
    space = space_of(
        tmp_path,
        BASE
        + GAIN.replace("high: 0.3", "high: 0.3, prior: 0.2")
        + FEEDBACK.replace("published]", "published], prior: pi")
        + "  lr: {type: float, low: 0.01, high: 1, prior: {centre: 5, width: 0.1}}\n"
        + "first:\n  - {p: 1.5}\n  - {feedback: published}\n",
    )
    assert space.first == (
        {"p": 1.5, "feedback": "pi", "feedback_gain": 0.2, "lr": 1.0},
        {"feedback": "published", "lr": 1.0},
    )
    assert space.centre() == {"p": 1.5, "feedback": "pi", "feedback_gain": 0.2, "lr": 1.0}


def more(text: str) -> str:
    return f"{BASE}  {text}\n"


# the file, the line that the error must name, a text that the error must contain
MALFORMED: dict[str, tuple[str, int, str]] = {
    "a condition that is text": (more("lr: {type: float, low: 0.1, high: 1, when: pi}"), 5, "mapping of parameters"),
    "an empty condition": (more("lr: {type: float, low: 0.1, high: 1, when: {}}"), 5, "mapping of parameters"),
    "a condition on nothing known": (more("lr: {type: float, low: 0.1, high: 1, when: {drop: x}}"), 5, "'drop'"),
    "a condition on itself": (more("lr: {type: categorical, choices: [1], when: {lr: 1}}"), 5, "'lr' is not another"),
    "a condition on a float": (more("lr: {type: float, low: 0.1, high: 1, when: {p: 1.2}}"), 5, "p is a float"),
    "a condition on no value": (BASE + FEEDBACK + GAIN.replace("pi}", "[]}"), 6, "at least one value"),
    "a condition on an unknown choice": (BASE + FEEDBACK + GAIN.replace("pi}", "[pi, pid]}"), 6, "'pid'"),
    "a condition on a number that cannot be": (
        BASE + "  threshold_interval: {type: int, low: 1, high: 9}\n"
        "  lr: {type: float, low: 0.1, high: 1, when: {threshold_interval: 10}}\n", 6, "10 is not a value of",
    ),
    "a circle": (
        BASE + "  feedback: {type: categorical, choices: [pi], when: {threshold: cosine}}\n"
        "  threshold: {type: categorical, choices: [cosine], when: {feedback: pi}}\n", 5, "depends on itself",
    ),
    "a condition of what must always be there": (
        BASE.replace("high: 1.9", "high: 1.9, when: {feedback: pi}") + FEEDBACK, 3, "always needs p",
    ),
    "a value that only a rare condition brings": (
        BASE + FEEDBACK + GAIN.replace("0.3", "1.3").replace("pi}", "published}"), 6, "feedback_gain = 1.3",
    ),
    "a first point of what does not apply": (
        BASE + FEEDBACK + GAIN + "first:\n  - feedback: published\n    feedback_gain: 0.2\n", 9, "does not apply",
    ),
    "a first point near no target": (BASE + "first:\n  - {near: 1.5, p: 1.5}\n", 6, "must lie in [0, 1), not 1.5"),
    "a first point near a word": (BASE + "first:\n  - {near: high, p: 1.5}\n", 6, "near must be a number"),
    "a prior without a centre": (more("lr: {type: float, low: 0.1, high: 1, prior: {width: 1}}"), 5, "centre"),
    "a prior's centre for no target": (
        more("lr: {type: float, low: 0.1, high: 1, prior: {centre: {0.9: 0.2, 1.5: 0.3}}}"), 5, "must lie in [0, 1)",
    ),
    "a prior's centre for a word": (
        more("lr: {type: float, low: 0.1, high: 1, prior: {centre: {high: 0.2}}}"), 5, "high must be a number",
    ),
    "a prior's centre for several targets, of choices": (
        more("feedback: {type: categorical, choices: [pi], prior: {centre: {0.9: pi}}}"), 5, "only for numbers",
    ),
    "a prior's centre for not one target": (
        more("lr: {type: float, low: 0.1, high: 1, prior: {centre: {}}}"), 5, "centres for several targets",
    ),
    "a prior of another choice": (
        more("feedback: {type: categorical, choices: [pi], prior: published}"), 5, "'published' is not one of pi",
    ),
    "a prior of no width": (more("lr: {type: float, low: 0.1, high: 1, prior: {centre: 1, width: 0}}"), 5, "width"),
    "a prior wider than all": (more("lr: {type: float, low: 0.1, high: 1, prior: {centre: 1, width: 2}}"), 5, "width"),
    "a prior that is a list": (more("lr: {type: float, low: 0.1, high: 1, prior: [0.1]}"), 5, "[0.1]"),
    "a prior of a fixed value": (more("lr: {type: fixed, value: 1, prior: 1}"), 5, "unknown key 'prior'"),
    "a schedule without a shape": (more("threshold: {type: schedule, start: 0.2}"), 5, "shape and start"),
    "a schedule of two kinds": (more("threshold: {type: schedule, start: 1, knots: [[0, 1]]}"), 5, "with knots"),
    "knots that are numbers": (more("threshold: {type: schedule, knots: [0, 1]}"), 5, "list of pairs"),
    "a knot of three": (more("threshold: {type: schedule, knots: [[0, 1, 2]]}"), 5, "list of pairs"),
    "a part of an unknown name": (more("threshold: {type: schedule, shape: a, startt: 1}"), 5, "unknown key 'startt'"),
    "a part of an unknown kind": (
        more("threshold: {type: schedule, shape: cosine, start: {type: schedule}}"), 5, "a schedule's part",
    ),
    "a part with an empty condition": (
        more("threshold: {type: schedule, shape: cosine, start: {low: 0, high: 1, when: {}}}"), 5, "when must",
    ),
    "a part that depends on another": (
        more("threshold: {type: schedule, shape: [cosine], start: {low: 0, high: 1, when: {threshold.shape: cosine}}}"),
        5, "'threshold.shape' is not another parameter",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_refused_with_its_line_number_in_one_line(name: str, tmp_path: Path) -> None:
    text, line, said = MALFORMED[name]
    with pytest.raises(BadFile) as caught:
        space_of(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'space.yaml'}:{line}: "), message
    assert said in message
    assert len(message.splitlines()) == 1


def test_the_parts_of_a_schedule_are_separate_search_parameters(tmp_path: Path) -> None:
    space = space_of(
        tmp_path,
        BASE
        + """\
  threshold:
    type: schedule
    shape: {choices: [cosine, linear], when: {drop: threshold}}
    start: {low: 0.1, high: 0.4, log: true, prior: 0.2}
    end: 0.6
  drop: {type: categorical, choices: [ramp, threshold]}
  learning_rate: {type: schedule, knots: [[0, 0.1], [{low: 0.1, high: 0.4}, 1], [1, 0]], when: {drop: ramp}}
first:
  - drop: threshold
    threshold: {shape: linear}
    p: 1.2
  - {drop: ramp, threshold: {start: 7}, learning_rate: {at2: 0.2}}
""",
    )
    assert list(space.distributions) == ["p", "drop", "threshold.shape", "threshold.start", "learning_rate.at2"]
    assert space.distributions["threshold.start"] == FloatDistribution(0.1, 0.4, log=True)
    assert space.first == (
        {"p": 1.2, "drop": "threshold", "threshold.shape": "linear", "threshold.start": 0.2},
        {"drop": "ramp", "threshold.start": 0.4, "learning_rate.at2": 0.2},
    )
    first, second = (METHODS["lpss"].configure({"p": 1.5, **point, **space.fixed_for(point)}) for point in space.first)
    assert first.threshold == Schedule("linear", 0.2, 0.0, 0.1, 0.6)
    assert first.learning_rate == "cosine"
    assert second.threshold == Schedule("cosine", 0.4, 0.0, 0.1, 0.6)
    assert second.learning_rate == PiecewiseLinear(((0.0, 0.1), (0.2, 1.0), (1.0, 0.0)))


def test_the_value_of_the_key_near_is_the_target_of_a_first_point(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(BASE + "first:\n  - {near: 0.95, p: 1.5}\n  - {near: target, p: 1.6}\n  - {p: 1.7}\n")
    space = load_space(str(file), 0.9)
    assert space.near == (0.95, 0.9, None)
    assert [point["p"] for point in space.first] == [1.5, 1.6, 1.7]
    assert all("near" not in point for point in space.first)


def test_a_study_of_one_target_tries_the_first_points_of_the_nearest_targets(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    points = [{"near": 0.7, "p": 1.1}, {"near": 0.95, "p": 1.2}, {"near": 0.5, "p": 1.3}, {"near": 0.985, "p": 1.4}]
    file.write_text(BASE + "first:\n" + "".join(f"  - {json.dumps(point)}\n" for point in [*points, {"p": 1.5}]))
    space = load_space(str(file), 0.9)
    apart = {0: math.log(3), 1: math.log(2), 2: math.log(5), 3: math.log(20 / 3)}
    assert space.apart_from(0.9) == pytest.approx(apart)
    tried = {target: [point["p"] for point in space.first_for(target)] for target in (0.0, 0.9, 0.98)}
    assert tried == {0.0: [1.5, 1.3, 1.1, 1.2], 0.9: [1.5, 1.2, 1.1, 1.3], 0.98: [1.5, 1.4, 1.2, 1.1]}


def test_a_priors_centre_is_interpolated_between_targets(tmp_path: Path) -> None:
    """The centre is interpolated in the logarithm of the density, 1 - target. From target .9 (density .1) to target .98
    (density .02), target .95 (density .05) lies log(.1 / .05) / log(.1 / .02) of the way."""
    file = tmp_path / "space.yaml"
    lr = "  lr: {type: float, low: 0.01, high: 1, log: true, prior: {centre: {0.98: 0.2, 0.9: 0.05}, width: 0.1}}\n"
    file.write_text(BASE + lr + "first:\n  - {p: 1.5}\n")
    expected = 0.05 * 4 ** (math.log(2) / math.log(5))
    for target, centre in {0.0: 0.05, 0.9: 0.05, 0.95: expected, 0.98: 0.2, 0.999: 0.2}.items():
        space = load_space(str(file), target)
        assert space.priors["lr"].centre == pytest.approx(centre)
        assert space.priors["lr"].width == 0.1
        assert space.first[0]["lr"] == pytest.approx(centre)
