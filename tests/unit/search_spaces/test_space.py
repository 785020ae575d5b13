"""The built-in spaces at many targets, spaces in files, and the error messages for malformed files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from tests.helpers.examples import examples
from tune_sparsity.search_spaces import BUILT_IN, BadFile, Space, load_space
from tune_sparsity.search_spaces.loading import OVERLAYS
from tune_sparsity.sparsity import METHODS, suggest_p

TARGETS = (0.0, 0.5, 0.9, 0.98, 0.999)
WITH_OVERLAYS = [f"{name}+{overlay}" for name in ("dense", "gmp", "lpss") for overlay in OVERLAYS]
SPARSE = [name for name in BUILT_IN if name not in ("binary", "dense", "lpss-published")]
BASE = """\
method: lpss
parameters:
  p: {type: float, low: 1.1, high: 1.9}
  final_sparsity: target
"""


def inside(space: Space, point: dict[str, Any]) -> bool:
    """Return whether each value of a point is one that the space searches."""
    return all(
        space.distributions[name]._contains(space.distributions[name].to_internal_repr(value))
        for name, value in point.items()
    )


def applying(space: Space, drawn: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the parameters that apply. A trial gets only these values."""
    params: dict[str, Any] = {}
    for name in space.distributions:
        if space.applies(name, params):
            params[name] = drawn[name]
    return {**params, **space.fixed_for(params)}


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("space") / "space.yaml"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", SPARSE)
def test_final_sparsity_lies_in_the_lowest_fifth_between_the_target_and_1(name: str, target: float) -> None:
    searched = load_space(name, target).distributions["final_sparsity"]
    assert isinstance(searched, FloatDistribution)
    assert searched.low == target
    assert searched.high == pytest.approx(target + 0.2 * (1 - target))
    assert target < searched.high < 1


def theorys(target: float) -> dict[str, Any]:
    """Return that first point of the space lpss which has the published threshold adaptation."""
    (point,) = [point for point in load_space("lpss", target).first if point["drop"] == "threshold"]
    return point


@pytest.mark.parametrize("target", TARGETS)
def test_the_first_points_of_lpss_contain_the_p_that_the_theory_suggests(target: float) -> None:
    p = load_space("lpss", target).distributions["p"]
    assert isinstance(p, FloatDistribution)
    assert theorys(target)["p"] == min(max(suggest_p(target), p.low), p.high)
    assert theorys(target)["final_sparsity"] == target
    assert theorys(target)["feedback"] == "published"


def test_the_p_that_the_theory_suggests_falls_as_the_target_rises() -> None:
    suggested = [theorys(target)["p"] for target in TARGETS]
    assert suggested == sorted(suggested, reverse=True)
    assert len(set(suggested)) >= 4


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", [*BUILT_IN, *WITH_OVERLAYS])
def test_every_first_point_is_complete_within_its_space_and_accepted_by_the_method(name: str, target: float) -> None:
    space = load_space(name, target)
    assert space.first
    for point in space.first:
        assert list(point) == [name for name in space.distributions if space.applies(name, point)]
        assert inside(space, point)
        made = METHODS[space.method].configure({**point, **space.fixed_for(point)})
        assert getattr(made, "final_sparsity", target) == target


@pytest.mark.parametrize("name", [*BUILT_IN, "lpss+averaged", "gmp+bits"])
@given(target=st.sampled_from(TARGETS) | st.floats(0, 0.9999), seed=st.integers(0, 2**32 - 1))
@examples(40)
def test_the_method_accepts_every_point_drawn_from_the_space(name: str, target: float, seed: int) -> None:
    space = load_space(name, target)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for _ in range(5):
        made = METHODS[space.method].configure(applying(space, study.ask(space.distributions).params))
        assert target <= getattr(made, "final_sparsity", target) < 1


def test_all_kinds_of_parameters_can_be_written_in_a_file(file: Path) -> None:
    file.write_text("""\
method: lpss
parameters:
  p: {type: float, low: 1.1, high: 1.9, step: 0.2}
  sphere_lr: {type: float, low: 0.001, high: 0.1, log: true}
  lr: {type: float, low: 0.01, high: 1}
  threshold_interval: {type: int, low: 8, high: 64, log: true}
  threshold: {type: categorical, choices: [cosine, linear]}
  feedback_gain: {type: categorical, choices: [0.1, 0.2]}
  momentum: {type: fixed, value: 0.85}
  feedback: published
  initial_sparsity: 0
  final_sparsity: {type: fixed, value: above}
first:
  - {p: 1.5, threshold: linear}
""")
    space = load_space(str(file), 0.5)
    assert space.name == str(file)
    assert space.distributions == {
        "p": FloatDistribution(1.1, 1.9, step=0.2),
        "sphere_lr": FloatDistribution(0.001, 0.1, log=True),
        "lr": FloatDistribution(0.01, 1.0),
        "threshold_interval": IntDistribution(8, 64, log=True),
        "threshold": CategoricalDistribution(("cosine", "linear")),
        "feedback_gain": CategoricalDistribution((0.1, 0.2)),
    }
    assert space.fixed == {"momentum": 0.85, "feedback": "published", "initial_sparsity": 0, "final_sparsity": 0.6}
    assert space.first == ({"p": pytest.approx(1.5), "threshold": "linear"},)


def test_integer_parameters_keep_their_type_and_their_step(file: Path) -> None:
    file.write_text(BASE + "  threshold_interval: {type: int, low: 10, high: 50, step: 20}\n")
    assert load_space(str(file), 0.9).distributions["threshold_interval"] == IntDistribution(10, 50, step=20)
    file.write_text(
        BASE + "  threshold_interval: {type: int, low: 10, high: 50}\nfirst: [{threshold_interval: 20.0}]\n"
    )
    assert repr(load_space(str(file), 0.9).first) == "({'threshold_interval': 20},)"


@pytest.mark.filterwarnings("error")
def test_a_range_that_its_step_does_not_divide_ends_on_the_last_step(file: Path) -> None:
    file.write_text(BASE + "  lr: {type: float, low: 0.1, high: 1, step: 0.4}\n")
    assert load_space(str(file), 0.9).distributions["lr"] == FloatDistribution(0.1, 0.9, step=0.4)


def test_a_first_point_moves_to_the_nearest_value_that_is_searched(file: Path) -> None:
    # The theory suggests p = 1.104 for the target .9, and p = 2 for 0. Both lie outside the range.
    file.write_text(BASE.replace("1.1,", "1.2,") + "first:\n  - p: suggest_p\n")
    assert load_space(str(file), 0.9).first == ({"p": 1.2},)
    assert load_space(str(file), 0.0).first == ({"p": 1.9},)
    file.write_text(BASE.replace("1.9}", "1.9, step: 0.2}") + "first:\n  - p: 1.39\n  - p: 7\n  - p: 1.3\n")
    space = load_space(str(file), 0.9)
    assert [point["p"] for point in space.first] == pytest.approx([1.3, 1.9, 1.3])
    assert all(inside(space, point) for point in space.first)


def test_the_choice_true_is_not_equal_to_the_number_1(file: Path) -> None:
    file.write_text(BASE + "  lr: {type: categorical, choices: [0.5, 1]}\nfirst:\n  - lr: true\n")
    with pytest.raises(BadFile, match=r":7: True is not one of"):
        load_space(str(file), 0.9)


def test_very_small_ends_of_logarithmic_ranges_are_accepted(file: Path) -> None:
    file.write_text(BASE + "  lr: {type: float, low: 1.0e-200, high: 1.0e-190, log: true}\n")
    assert load_space(str(file), 0.9).distributions["lr"] == FloatDistribution(1e-200, 1e-190, log=True)


@pytest.mark.parametrize("written", ["1e-2", "1E-2", "1.e-2", "1.0e-2", "+1e-02", "0.01"])
def test_a_number_may_have_an_exponent_without_a_point(written: str, file: Path) -> None:
    lr = f"lr: {{type: float, low: {written}, high: 1e+0, log: true}}"
    file.write_text(f"{BASE}  {lr}\n  weight_decay: {{type: categorical, choices: [0, {written}]}}\n")
    space = load_space(str(file), 0.9)
    assert space.distributions["lr"] == FloatDistribution(0.01, 1.0, log=True)
    assert space.distributions["weight_decay"] == CategoricalDistribution([0, 0.01])


def test_the_error_for_an_unknown_space_suggests_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"unknown space 'lpsss'.*did you mean lpss"):
        load_space("lpsss", 0.9)


def parameter(text: str) -> str:
    """Return the text of a space with one more parameter. `text` is its line 5."""
    return f"{BASE}  {text}\n"


def first(text: str) -> str:
    """Return the text of a space with the key `first`. `text` begins on line 6."""
    return f"{BASE}first:\n{text}\n"


# the file, the line that the error must name, a text that the error must contain
MALFORMED: dict[str, tuple[str, int, str]] = {
    "a number that is none": (parameter("lr: {type: float, low: .nan, high: 1}"), 5, "nan"),
    "a number without end": (parameter("lr: {type: float, low: 0.1, high: .inf}"), 5, "inf"),
    "a fixed value without end": (parameter("lr: .inf"), 5, "inf"),
    "a choice that is no number": (parameter("lr: {type: categorical, choices: [0.1, .nan]}"), 5, "nan"),
    "a whole number beyond all floats": (parameter("lr: {type: float, low: 1, high: 1" + "0" * 400 + "}"), 5, "finite"),
    "a fixed number beyond all floats": (parameter("lr: 1" + "0" * 400), 5, "finite"),
    "an end that is true": (parameter("lr: {type: float, low: true, high: 1}"), 5, "low must be a number"),
    "a parameter that is true": (parameter("lr: true"), 5, "lr = True is not accepted"),
    "a choice that is false": (
        parameter("threshold_interval: {type: categorical, choices: [1, no]}"), 5, "interval = False",
    ),
    "an end that is text": (parameter("lr: {type: float, low: '0.1', high: 1}"), 5, "'0.1'"),
    "no end": (parameter("lr: {type: float, low: 0.1}"), 5, "high must be a number or one of target, above"),
    "an end that is a list": (parameter("lr: {type: float, low: [0.1], high: 1}"), 5, "[0.1]"),
    "half a whole number": (parameter("threshold_interval: {type: int, low: 1.5, high: 9}"), 5, "whole number"),
    "logarithm from 0": (parameter("lr: {type: float, low: 0, high: 1, log: true}"), 5, "log"),
    "logarithm of whole numbers from 0": (
        parameter("threshold_interval: {type: int, low: 0, high: 9, log: true}"), 5, "log",
    ),
    "logarithm that is text": (parameter("lr: {type: float, low: 0.1, high: 1, log: ln}"), 5, "true or false"),
    "a step of a logarithm": (parameter("lr: {type: float, low: 0.1, high: 1, log: true, step: 0.1}"), 5, "step"),
    "a step of 0": (parameter("lr: {type: float, low: 0.1, high: 1, step: 0}"), 5, "step"),
    "a step backwards": (parameter("threshold_interval: {type: int, low: 1, high: 9, step: -1}"), 5, "step"),
    "a step of next to nothing": (parameter("lr: {type: float, low: 0.1, high: 1, step: 1.0e-40}"), 5, "step"),
    "a step beyond the range": (parameter("lr: {type: float, low: 0.1, high: 1, step: 2}"), 5, "step = 2 is larger"),
    "a choice twice": (parameter("threshold: {type: categorical, choices: [cosine, linear, cosine]}"), 5, "twice"),
    "a number with an exponent beyond all floats": (parameter("lr: 1e999"), 5, "finite"),
    "no choices": (parameter("threshold: {type: categorical, choices: []}"), 5, "at least one"),
    "choices that are a word": (parameter("threshold: {type: categorical, choices: cosine}"), 5, "list"),
    "a list among the choices": (parameter("threshold: {type: categorical, choices: [cosine, [linear]]}"), 5, "linear"),
    "a choice that the method does not know": (
        parameter("threshold: {type: categorical, choices: [cosine, sine]}"), 5, "'sine'",
    ),
    "a list for a parameter": (parameter("lr: [0.1, 0.2]"), 5, "[0.1, 0.2]"),
    "a date for a parameter": (parameter("lr: 2020-01-02"), 5, "must be a number"),
    "nothing for a parameter": (parameter("lr:"), 5, "None"),
    "a fixed parameter without a value": (parameter("lr: {type: fixed}"), 5, "None"),
    "a type that is a list": (parameter("lr: {type: [float], low: 0.1, high: 1}"), 5, "type must be one of"),
    "no type": (parameter("lr: {low: 0.1, high: 1}"), 5, "type must be one of"),
    "a range in another range's words": (parameter("lr: {type: float, min: 0.1, max: 1}"), 5, "unknown key 'min'"),
    "choices of a range": (parameter("lr: {type: float, low: 0.1, high: 1, choices: [1]}"), 5, "unknown key 'choices'"),
    "a key twice within a parameter": (parameter("lr: {type: float, low: 0.1, high: 1, low: 0.2}"), 5, "'low'"),
    "a key of several lines twice": (parameter("lr:\n    type: fixed\n    value: 1\n    type: fixed"), 8, "twice"),
    "a parameter that is no text": (parameter("1: 0.5"), 2, "no parameter 1"),
    "a whole range outside the method's": (parameter("momentum: {type: float, low: 1, high: 2}"), 5, "momentum"),
    "floats for whole numbers": (parameter("threshold_interval: {type: float, low: 1, high: 9}"), 5, "interval"),
    "an unknown key of the file": (BASE + "fisrt: []\n", 5, "unknown key 'fisrt': accepted are first"),
    "a method that is a list": (BASE.replace("lpss", "[lpss]"), 1, "method must be one of"),
    "no method": (BASE.replace("method: lpss\n", ""), 1, "None"),
    "parameters that are a list": ("method: lpss\nparameters: [p]\n", 2, "mapping"),
    "no parameters": ("method: lpss\nparameters: {}\n", 2, "at least one"),
    "a first point that is no mapping": (first("  - 1.2"), 5, "list of mappings"),
    "first without a list": (first("  p: 1.2"), 5, "list of mappings"),
    "first without anything": (first(""), 5, "list of mappings"),
    "a first point of an unknown parameter": (first("  - p: 1.2\n    q: 1"), 7, "'q' is not a searched parameter"),
    "a first point of a fixed parameter": (first("  - final_sparsity: 0.9"), 6, "not a searched parameter"),
    "a first point without a value": (first("  - p:"), 6, "None"),
    "a first point that is text": (first("  - p: 1.2\n  - p: high"), 7, "'high'"),
    "a first point that is true": (first("  - p: true"), 6, "True"),
    "a first point that is no number": (first("  - p: .nan"), 6, "nan"),
    "a first point without end": (first("  - p: -.inf"), 6, "inf"),
    "a first point that is a list": (first("  - p: [1.2]"), 6, "[1.2]"),
    "a first choice that is none": (
        parameter("threshold: {type: categorical, choices: [cosine]}") + "first:\n  - threshold: linear\n",
        7, "'linear' is not one of cosine",
    ),
    "half a whole number first": (
        parameter("threshold_interval: {type: int, low: 1, high: 9}") + "first:\n  - threshold_interval: 2.5\n",
        7, "whole number",
    ),
    "an endless whole number first": (
        parameter("threshold_interval: {type: int, low: 1, high: 9}") + "first:\n  - threshold_interval: .nan\n",
        7, "nan",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_refused_with_its_line_number_in_one_line(name: str, file: Path) -> None:
    text, line, said = MALFORMED[name]
    file.write_text(text)
    with pytest.raises(BadFile) as caught:
        load_space(str(file), 0.9)
    message = str(caught.value)
    assert message.startswith(f"{file}:{line}: "), message
    assert said in message
    assert len(message.splitlines()) == 1
    assert len(message) < len(str(file)) + 400


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
NUMBERS = st.floats() | st.integers(-5, 100) | st.sampled_from([0.5, 1.5, 1e-9, 1e308, 10**400, "target", "above"])
RANGE_KEYS = ["type", "low", "high", "log", "step", "choices", "value", "prior", "centre", "width", "when"]
SCHEDULE_KEYS = ["shape", "start", "stop", "begin", "end", "knots"]
KEYS = st.sampled_from([*RANGE_KEYS, *SCHEDULE_KEYS, "p", "lr", "threshold", "first"])
VALUES = st.recursive(
    SCALARS | NUMBERS | st.sampled_from(["cosine", "pi", "suggest_p", "lpss"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=3) | SCALARS, inner, max_size=5)
    ),
    max_leaves=8,
)
RANGES = st.fixed_dictionaries(
    {"type": st.sampled_from(["float", "int"]), "low": NUMBERS, "high": NUMBERS},
    optional={"log": st.booleans() | SCALARS, "step": NUMBERS | SCALARS},
)
CHOICES = st.fixed_dictionaries({"type": st.just("categorical"), "choices": st.lists(NUMBERS | SCALARS, max_size=3)})
SCHEDULES = st.fixed_dictionaries(
    {"type": st.just("schedule")},
    optional={
        "shape": st.sampled_from(["cosine", ["linear", "cubic"]]) | SCALARS,
        "start": RANGES | NUMBERS,
        "end": NUMBERS | RANGES,
        "knots": st.lists(st.tuples(NUMBERS | RANGES, NUMBERS).map(list), max_size=3),
        "when": st.dictionaries(st.sampled_from(["threshold_interval", "lr", "p"]), NUMBERS | VALUES, max_size=2),
    },
)
POINTS = st.lists(st.dictionaries(st.sampled_from(["p", "lr", "threshold_interval"]), NUMBERS | VALUES), max_size=2)


@given(
    key=st.sampled_from(list(METHODS["lpss"].settings.__dataclass_fields__)),
    value=RANGES | CHOICES | SCHEDULES | VALUES,
    points=st.just([]) | POINTS | VALUES,
    target=st.sampled_from(TARGETS),
    both=st.booleans(),
)
@examples(500)
def test_any_data_make_a_usable_space_or_an_error_of_one_line(
    key: str, value: Any, points: Any, target: float, both: bool, file: Path
) -> None:
    parameters = {
        "p": {"type": "float", "low": 1.1, "high": 1.9},
        "lr": {"type": "float", "low": 0.1, "high": 0.9, "step": 0.2},
        "threshold_interval": {"type": "int", "low": 1, "high": 30},
        "final_sparsity": "target",
    }
    if both:
        parameters[key] = value
    data = {"method": "lpss", "parameters": parameters, "first": points}
    file.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")
    try:
        space = load_space(str(file), target)
    except BadFile as error:
        said = str(error)
    else:
        assert all(inside(space, point) for point in space.first)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        made = METHODS["lpss"].configure(applying(space, study.ask(space.distributions).params))
        assert math.isfinite(made.lr)
        return
    assert said.startswith(f"{file}:")
    assert len(said.splitlines()) == 1
