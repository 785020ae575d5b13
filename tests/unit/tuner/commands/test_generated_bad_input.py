"""A thousand generated bad command lines and files: no traceback, one line, exit code 2, nothing written.

Each case is a valid command line or file with one mistake. Without the mistake, the case would be valid.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.folders import tree
from tune_sparsity.tuner.cli import main

CASES, PART = 1000, 50
SOUND = {
    "trials": ["3", "32"],
    "epochs": ["1", "12"],
    "seed": ["0", "7"],
    "patience": ["5"],
    "final-seeds": ["0", "2"],
    "sampler": ["tpe", "random"],
    "scheduler": ["asha", "none"],
    "method": ["lpss", "rigl,gmp"],
    "concurrency": ["1"],
    "workers-per-trial": ["1", "2"],
    "cpus-per-trial": ["0.5"],
    "gpus-per-trial": ["0", "auto"],
    "time-budget": ["90s", "1h30m"],
    "storage": ["here"],
    "study": ["mine"],
}
NUMBERS = ("target", "trials", "epochs", "seed", "patience", "final-seeds", "concurrency", "cpus-per-trial")
NUMBERS += ("workers-per-trial", "max-nonzero", "gpus-per-trial", "time-budget", "front")
NAMES = ("sampler", "scheduler", "method", "experiment", "space", "tracking-uri", "address")
SIGNS = string.ascii_letters + " _.,;!?()[]{}<>|&$#@*+'\"\\^~`\t\n" + "äß漢🙂\x01\x7f"


def word(r: random.Random, signs: str = string.ascii_lowercase) -> str:
    return "".join(r.choice(signs) for _ in range(r.randint(5, 12)))


def nonsense(r: random.Random) -> str:
    """Text that is no number, no duration and no name of anything."""
    return "q" + word(r, SIGNS) + "q"


def sound(r: random.Random, without: str = "") -> dict[str, str]:
    names = r.sample(sorted(SOUND), r.randint(0, 5))
    return {"target": "0.9", **{name: r.choice(SOUND[name]) for name in names if name != without}}


def line(options: dict[str, str], r: random.Random) -> list[str]:
    items = list(options.items())
    r.shuffle(items)
    return [part for name, value in items for part in r.choice([[f"--{name}={value}"], [f"--{name}", value]])]


def wrong_number(r: random.Random, file: Path) -> list[str]:
    name = r.choice(NUMBERS)
    return [*line(sound(r, name), r), f"--{name}={r.choice([nonsense(r), '-3', '1e999', '', 'nan', '0x1f', '1..2'])}"]


def wrong_name(r: random.Random, file: Path) -> list[str]:
    name = r.choice(NAMES)
    return [*line(sound(r, name), r), f"--{name}={nonsense(r)}"]


def unknown_option(r: random.Random, file: Path) -> list[str]:
    return [
        *line(sound(r), r),
        *r.choice([[f"--q{word(r)}"], [f"--q{word(r)}", "1"], [f"-q{word(r)}"], ["--tar", "1"]]),
    ]


def stray_argument(r: random.Random, file: Path) -> list[str]:
    return [*line(sound(r), r), r.choice([nonsense(r), "0.9"])]


def missing_value(r: random.Random, file: Path) -> list[str]:
    return [*line(sound(r), r), f"--{r.choice([*NUMBERS, *NAMES, 'config'])}"]


def two_goals(r: random.Random, file: Path) -> list[str]:
    return [*line(sound(r), r), r.choice(["--front=0.5:0.9", "--max-nonzero=500"])]


def unknown_command(r: random.Random, file: Path) -> list[str]:
    return [f"q{word(r)}", *line(sound(r), r)]


def wrong_subcommand(r: random.Random, file: Path) -> list[str]:
    command = r.choice(["resume", "list", "check", "export", "send"])
    return [command, *r.choice([[nonsense(r)], [nonsense(r), nonsense(r)], [f"--q{word(r)}"], []])]


def no_file(r: random.Random, file: Path) -> list[str]:
    return [*line(sound(r), r), f"--config={r.choice(['.', 'no.yaml', 'a' * 300, nonsense(r)])}"]


def written(file: Path, content: Any, r: random.Random) -> list[str]:
    text = content if isinstance(content, str | bytes) else yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return ["--config", file.name, *r.choice([[], ["--json"]])]


def bytes_for_yaml(r: random.Random, file: Path) -> list[str]:
    return written(
        file, r.choice([r.randbytes(r.randint(1, 200)), nonsense(r), "[" * 50, "{a: &x [*x]}", "a: b: c"]), r
    )


def unknown_key(r: random.Random, file: Path) -> list[str]:
    return written(file, {**sound(r), f"q{word(r)}": r.choice([1, "a", None, [], {}])}, r)


def wrong_type(r: random.Random, file: Path) -> list[str]:
    name = r.choice([*SOUND, *NAMES])
    wrong = r.choice([True, {"a": 1}, [[1]], {"a": [1, {"b": None}]}, b"bytes"])
    return written(file, {**sound(r), name: wrong}, r)


def wrong_in_file(r: random.Random, file: Path) -> list[str]:
    name = r.choice([*NUMBERS, *NAMES])
    return written(file, {**sound(r, name), name: nonsense(r)}, r)


def code_in_file(r: random.Random, file: Path) -> list[str]:
    """YAML can name Python objects. The reader of configuration files must not create them."""
    tag = r.choice(["!!python/object/apply:os.system", "!!python/name:os.system", "!!python/object/new:os.mkdir"])
    return written(file, f"target: 0.9\n{r.choice([*SOUND])}: {tag} ['touch evil']\n", r)


KINDS: list[Callable[[random.Random, Path], list[str]]] = [
    *(wrong_number, wrong_name, unknown_option, stray_argument, missing_value, two_goals, unknown_command),
    *(wrong_subcommand, no_file, bytes_for_yaml, unknown_key, wrong_type, wrong_in_file, code_in_file),
]


@pytest.mark.parametrize("part", range(CASES // PART))
def test_generated_bad_input_gives_one_line_and_writes_nothing(
    part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def begun(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a study was begun")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("tune_sparsity.tuner.driver.run.run_study", begun)
    file = tmp_path / "c.yaml"
    file.touch()
    for index in range(part * PART, (part + 1) * PART):
        r = random.Random(index)
        arguments = KINDS[index % len(KINDS)](r, file)
        before = tree(tmp_path)
        code = main(arguments)
        printed = capsys.readouterr()
        case = (index, arguments, file.read_bytes()[:500], printed)
        assert code == 2, case
        assert printed.out == "", case
        assert printed.err.startswith("tune-sparsity: "), case
        assert len(printed.err.splitlines()) == 1, case
        assert "Traceback" not in printed.err, case
        assert tree(tmp_path) == before, case
