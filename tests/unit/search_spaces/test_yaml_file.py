"""Every file is read as a mapping with line numbers, or refused in one line that names the mistake."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.helpers.examples import examples
from tune_sparsity.search_spaces import BadFile, load_space, read_mapping

SPACE = """\
# a comment
method: lpss
parameters:
  p: {type: float, low: 1.1, high: 1.9}
  threshold: {type: categorical, choices: [cosine, linear]}
  threshold_interval: {type: int, low: 10, high: 100, log: true}
  lr: 0.1
  final_sparsity: {type: float, low: target, high: above}
first:
  - {p: suggest_p, threshold: cosine}
  - p: 1.4
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reader") / "file.yaml"


@pytest.fixture
def at_once() -> Iterator[None]:
    """Make a test fail if it takes more than two minutes."""

    def late(signum: int, frame: object) -> None:
        raise TimeoutError("a small file took more than two minutes")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refusal(path: Path) -> str:
    with pytest.raises(BadFile) as caught:
        read_mapping(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert len(message.splitlines()) == 1
    assert len(message) < len(str(path)) + 300
    return message.removeprefix(str(path))


def test_values_come_with_the_lines_of_their_keys(file: Path) -> None:
    file.write_text(SPACE)
    data, lines = read_mapping(file)
    assert data["parameters"]["p"] == {"type": "float", "low": 1.1, "high": 1.9}
    places = {
        ("method",): 2,
        ("parameters",): 3,
        ("parameters", "threshold", "choices"): 5,
        ("parameters", "threshold", "choices", 1): 5,
        ("parameters", "final_sparsity", "high"): 8,
        ("first", 0): 10,
        ("first", 1, "p"): 11,
        ("first", 1, "lr"): 11,  # lr is missing: the line of the point without it
        ("nothing", "of", "that", "kind"): 2,
    }
    for place, line in places.items():
        assert str(lines.error(place, "is\n wrong")) == f"{file}:{line}: is wrong"


def test_aliases_and_merges_of_a_small_file_are_read(file: Path) -> None:
    file.write_text("a: &x {type: float, low: 1}\nb: *x\nc: {<<: *x, high: 2}\n")
    data, _ = read_mapping(file)
    assert data["b"] == {"type": "float", "low": 1}
    assert data["c"] == {"type": "float", "low": 1, "high": 2}


LAUGHS = "a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]\n" + "".join(
    f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(9)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i + 1}: &a{i + 1} {{<<: [{', '.join([f'*a{i}'] * 10)}]}}\n" for i in range(9))
BOMBS = {
    "a billion laughs": (LAUGHS, ":1: more than"),
    "a billion merges": (MERGES, "more than"),
    "a mapping in itself": ("a: &a {b: *a}\n", "nested too deeply"),
    "a list in itself": ("x: 1\na: &a\n  - *a\n", ":2: nested too deeply"),
    "a merge with itself": ("a: &a {<<: *a}\n", "nested too deeply"),
    "lists in lists": ("a: " + "[" * 40_000 + "]" * 40_000, "nested too deeply"),
    "mappings in mappings": ("a: " + "{b: " * 10_000 + "1" + "}" * 10_000, "nested too deeply"),
    "dashes": ("a:\n  " + "- " * 5_000 + "1", "nested too deeply"),
    "too many values": ("a: [" + "1, " * 20_000 + "1]", ":1: more than"),
    "a file far too large": ("# " + "x" * 1_000_000 + "\na: 1\n", "has more than"),
    "a number of thousands of digits": ("a: 1\nb: 0x" + "f" * 5_000, ":2: a value of more than"),
    "a text of thousands of letters, often": (f"a: &a {'x' * 10_000}\nb: [{', '.join(['*a'] * 9_000)}]\n", "value"),
}


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("name", BOMBS)
def test_a_file_that_is_too_large_too_deep_or_expands_too_much_is_refused(name: str, file: Path) -> None:
    text, said = BOMBS[name]
    file.write_text(text)
    assert said in refusal(file)


@pytest.mark.usefixtures("at_once")
def test_an_endless_file_is_refused() -> None:
    assert "has more than" in refusal(Path("/dev/zero"))


BROKEN: dict[str, tuple[bytes, str]] = {
    "Latin-1": ("name: Lösung".encode("latin-1"), "not text in UTF-8"),
    "UTF-16": ("a: 1".encode("utf-16"), "not text in UTF-8"),
    "half a character": ("a: é".encode()[:-1], "not text in UTF-8"),
    "a picture": (b"\x89PNG\r\n\x1a\n\x00\x00", "not text in UTF-8"),
    "a null byte": (b"a: 1\nb: \x00\n", "not YAML"),
    "nothing": (b"", ":1: the file must be a mapping of keys to values, not an empty file"),
    "a comment alone": (b"# nothing\n", ":1: the file must be a mapping of keys to values, not an empty file"),
    "a word": (b"lpss\n", ":1: the file must be a mapping of keys to values, not text"),
    "a number": (b"7\n", ":1: the file must be a mapping of keys to values, not a int"),
    "a set": (b"!!set {a, b}\n", ":1: the file must be a mapping of keys to values, not a set"),
    "two documents": (b"a: 1\n---\nb: 2\n", "not YAML"),
    "a tab": (b"a:\n\tb: 1\n", ":2: not YAML"),
    "an anchor of nothing": (b"a: 1\nb: *a\n", ":2: not YAML"),
    "a tag of nothing": (b"a: 1\nb: !thing 2\n", ":2: not YAML"),
    "a truth value that is none": (b"a: !!bool perhaps\n", "not YAML"),
    "a whole number of nothing": (b"a: !!int ''\n", "not YAML"),
    "a number that is none": (b"a: !!float many\n", "not YAML"),
    "a time that is none": (b"a: !!timestamp soon\n", "not YAML"),
    "a day that is none": (b"a: 2020-02-31\n", "not YAML"),
    "a key that is a list": (b"a: 1\n? [b, c]\n: 2\n", ":2: a key must be text"),
    "a key that is a mapping": (b"a: 1\n{b: c}: 2\n", ":2: a key must be text"),
    "a key that is a number": (b"a: 1\n2: 3\n", "the key 2 is not text"),
    "a key that is nothing": (b"~: 3\n", "the key None is not text"),
    "a key twice": (b"a: 1\nb: 2\n\na: 3\n", ":4: 'a' is given twice"),
    "a key twice, deep down": (b"a:\n  - b: 1\n    c: 2\n    b: 3\n", ":4: 'b' is given twice"),
    "a long key twice": (b"? " + b"k" * 2000 + b"\n: 1\n? " + b"k" * 2000 + b"\n: 1\n", ":3: 'kkk"),
}


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("name", BROKEN)
def test_invalid_yaml_and_files_that_are_no_mappings_are_refused_in_one_line(name: str, file: Path) -> None:
    raw, said = BROKEN[name]
    file.write_bytes(raw)
    assert said in refusal(file)


def test_a_path_that_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.yaml")
    assert "directory" in refusal(tmp_path)
    assert "too long" in refusal(tmp_path / ("x" * 300 + ".yaml"))
    with pytest.raises(BadFile, match="cannot be read"):
        read_mapping(Path("null\0byte.yaml"))


def test_nothing_in_a_file_is_run(file: Path, tmp_path: Path) -> None:
    for tag in ("python/object/apply:os.mkdir", "python/object/new:os.mkdir", "python/name:os.mkdir"):
        file.write_text(f"a: !!{tag} [{tmp_path / 'made'}]\n")
        assert ":1: not YAML" in refusal(file)
    assert not (tmp_path / "made").exists()


def loads_or_refuses(file: Path) -> None:
    said = f"{file}: it has loaded"
    try:
        load_space(str(file), 0.9)
    except BadFile as error:
        said = str(error)
    assert said.startswith(str(file))
    assert len(said.splitlines()) == 1


@given(text=st.text(max_size=200))
@example(text="\ufeffmethod: lpss")
@example(text="a: !!int 0b")
@examples(300)
def test_any_text_loads_or_is_refused(text: str, file: Path) -> None:
    file.write_bytes(text.encode())
    loads_or_refuses(file)


@given(raw=st.binary(max_size=100))
@examples(100)
def test_any_bytes_load_or_are_refused(raw: bytes, file: Path) -> None:
    file.write_bytes(raw)
    loads_or_refuses(file)


SNIPPETS = st.sampled_from([
    "", " ", "\n", "\n  ", ":", "- ", "{", "}", "[", "]", ",", "&a ", "*a", "<<: ", "!!int ", "!!set ", "? ", "~", "|",
    ">", "'", '"', "#", "\t", "-1", "0", "1e9", "1.0e+400", ".nan", ".inf", "true", "target", "2020-13-45", "1:2:3",
    "0x", "%",
])  # fmt: skip


@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(SPACE)), st.integers(0, 12), SNIPPETS | st.text(max_size=3)),
        min_size=1,
        max_size=4,
    )
)
@examples(500)
def test_a_valid_file_with_random_edits_loads_or_is_refused(edits: list[tuple[int, int, str]], file: Path) -> None:
    text = SPACE
    for start, length, instead in edits:
        text = text[:start] + instead + text[start + length :]
    file.write_bytes(text.encode())
    loads_or_refuses(file)
