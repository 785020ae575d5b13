"""The Python reader and the C reader refuse a damaged packed file, or they read the same network from it.

Most of the files here have a checksum that fits their damaged content. Otherwise only the checksum would be tested.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.examples import is_long
from tests.unit.sparsity.cost.test_round_trip import FLOATS, OTHERS, codes, sparse
from tune_sparsity.sparsity.cost import read_packed
from tune_sparsity.sparsity.cost.read_packed import Packed, decode
from tune_sparsity.sparsity.cost.writer import encode
from tune_sparsity.sparsity.few_bits import Codes, Signs

FOLDER = Path(__file__).parent
COUNT = 10_000 if is_long() else 1000


def small_matrices() -> list[bytes]:
    """Return the bytes of packed files with all storage forms for tensors that have few used rows and columns."""
    rows, columns = torch.arange(24).view(-1, 1), torch.arange(40)
    few = (rows % 7 < 3) & (columns > 9) & (columns % 8 < 5)
    some = few & ((rows + columns) % 3 == 0)
    weights = {"a": sparse((24, 40), 1.0, 6) * few, "b": sparse((24, 40), 0.2, 7) * few, "c": torch.randn(4)}
    full, other = codes((24, 40), 1.0, 4, 8), codes((24, 40), 1.0, 2, 9)
    few_bits = {
        "a": Codes(full.codes * few, full.scales * few.any(1), 4),
        "b": Codes(other.codes * some, other.scales * some.any(1), 2),
    }
    return [encode(weights, {"a", "b"}), encode(few_bits, ())]


def networks() -> list[bytes]:
    """Return the bytes of packed files with all storage forms and number types."""
    shared = sparse((8, 9), 0.2, 3)
    return [
        encode({"a": sparse((20, 30), 0.1, 0), "b": torch.randn(20)}, {"a"}),
        encode({"a": sparse((6, 8), 0.5, 1), "c": sparse((5, 40), 0.03, 2), "n": torch.tensor(7)}, {"a", "c"}),
        encode({"a": codes((12, 20), 0.1, 4, 0), "b": codes((3, 8), 0.5, 8, 1), "c": codes((4, 5), 1.0, 2, 2)}, ()),
        encode({"k": shared, "x": torch.tensor([True, False]), "z": shared}, {"z"}),
        encode({"a": sparse((9, 9), 0.1, 4, torch.bfloat16), "b": torch.randn(5).half()}, {"a"}),
        *small_matrices(),
        encode({"a": Signs(torch.where(torch.randn(7, 11) < 0, -1, 1).char()), "b": torch.arange(7).short()}, {"a"}),
    ]


def with_checksum(data: bytes) -> bytes:
    return data[:-4] + zlib.crc32(data[:-4]).to_bytes(4, "little")


def damaged(count: int, seed: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """Yield pairs of a file and its damaged copy: bits are flipped, bytes are replaced, or the length is changed."""
    chance, sound = random.Random(seed), networks()
    for _ in range(count):
        before = chance.choice(sound)
        data = bytearray(before)
        kind = chance.randrange(5)
        if kind <= 1:
            for _ in range(chance.choice([1, 1, 2, 8])):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif kind == 2:
            del data[chance.randrange(len(data)) :]
        elif kind == 3:
            data += chance.randbytes(chance.randrange(1, 20))
        else:
            at = chance.randrange(len(data))
            data[at : at + chance.randrange(1, 9)] = chance.randbytes(chance.randrange(9))
        yield before, bytes(data)


def read(data: bytes) -> dict[str, Packed] | None:
    """Return the tensors of a file, or None if the reader refuses the file with an error of one line."""
    try:
        return decode(data)
    except ValueError as error:
        if not str(error) or "\n" in str(error):
            raise
        return None


def equal(one: dict[str, Packed], other: dict[str, Packed]) -> bool:
    return list(one) == list(other) and all(
        (one[name].type, one[name].shape) == (other[name].type, other[name].shape)
        and one[name].array().tobytes() == other[name].array().tobytes()
        for name in one
    )


MALFORMED = [
    b"",
    b"TSP1",
    b"PK\x03\x04 and more bytes",
    with_checksum(b"TSP1\x00\x00\x00\x00\x00\x00"),  # a byte too many
    with_checksum(b"TSP1\x80\x00\x00\x00\x00\x00"),  # 0 in two bytes
    with_checksum(b"TSP1\x01\x01w\x00\x00\x01\xff\xff\xff\xff\xff\xff\x7f\x00\x00\x00\x00"),  # 2^49 values
    with_checksum(b"TSP1\x01\x01w\x0f\x00\x01\xff\xff\xff\xff\xff\xff\x1f\x00\x00\x00\x00"),  # rows without scales
    with_checksum(b"TSP1\x01\x01w\x00\x03\x00\x00\x00\x00\x00\x00"),  # a tensor that refers to itself
    with_checksum(b"TSP1\x02\x01w\x08\x00\x00\x00\x01w\x08\x00\x00\x00\x00\x00\x00\x00"),  # one name twice
    with_checksum(b"TSP1\x01\x01w\x0f\x00\x01\x01\x00\x3c\x7f\x00\x00\x00\x00"),  # the code 128: the largest is 127
    with_checksum(b"TSP1\x01\x01w\x08\x07\x01\x01\x00\x00\x00\x00\x00\x00"),  # an unknown form
    with_checksum(b"TSP1\x01\x01w\x08\x04\x01\x00\x00\x00\x00\x00\x00\x00"),  # rows of an empty tensor
    with_checksum(b"TSP1\x01\x01w\x08\x04\x01\x05\x02\x00\x10\x00\x00\x00\x00"),  # ends within a set of rows
    with_checksum(b"TSP1\x01\x01w\x08\x04\x01\x05\x06\x00\xf0\x00\x00\x00\x00\x00"),  # six runs, but only five rows
    with_checksum(
        b"TSP1\x01\x01w\x08\x04\x01\x05\x01\x00\x41\x00\x01\x01\x01\x01\x01\x01\x00\x00\x00\x00"
    ),  # a run of six rows, but only five rows
    with_checksum(b"TSP1\x01\x01w\x08\x04\x01\xff\xff\xff\xff\xff\xff\x0f\x00\x00\x00\x00\x00\x00"),  # 2^48 - 1 values
]


def test_a_damaged_file_is_refused_or_read_like_the_original() -> None:
    for before, data in damaged(COUNT):
        found = read(data)
        assert found is None or equal(found, decode(before))


def test_a_damaged_file_with_a_fitting_checksum_has_at_most_8_values_per_byte() -> None:
    """The reader accepts some of these files, and refuses the others in one line."""
    accepted = 0
    for _, data in damaged(COUNT):
        if len(data) > 4 and (found := read(with_checksum(data))) is not None:
            accepted += 1
            assert all(one.values.size <= 8 * len(data) for one in found.values())
    assert accepted > COUNT // 20


@pytest.mark.parametrize("data", MALFORMED)
def test_malformed_files_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a packed file|malformed|damaged"):
        decode(data)


def test_a_tensor_that_no_memory_holds_is_refused() -> None:
    data = with_checksum(b"TSP1\x01\x01w\x00\x02\x01\xff\xff\xff\xff\xff\xff\x0f\x00\x00\x00\x00\x00")
    with pytest.raises(ValueError, match="does not fit into memory"):
        decode(data)["w"].array()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled C program with packed.h and the address sanitizer. It reads packed files and prints their content."""
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("a C compiler: cc")
    path = tmp_path_factory.mktemp("c") / "read"
    options = ["-std=c99", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-I", str(Path(read_packed.__file__).parent)]
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    source = FOLDER / "read.c"
    subprocess.run([compiler, *options, *checks, str(source), "-o", str(path), "-lm"], check=True, timeout=120)
    return path


def through_c(program: Path, files: list[bytes]) -> list[list[tuple[str, bytes, bytes]] | None]:
    """Return the tensors of each file as the C program reads them, or None if the program refuses the file. A tensor is
    its name, its numbers as float32, and the product of its rows with the vector 1, 2, 3, ..."""
    given = b"".join(len(data).to_bytes(8, "little") + data for data in files)
    done = subprocess.run([program], input=given, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    out, at = done.stdout, 0

    def taken(size: int) -> bytes:
        nonlocal at
        at += size
        return out[at - size : at]

    def number() -> int:
        return int.from_bytes(taken(8), "little", signed=True)

    results: list[list[tuple[str, bytes, bytes]] | None] = []
    for _ in files:
        tensors = []
        while (length := number()) >= 0:
            name = taken(length).decode("utf-8", errors="replace")
            tensors.append((name, taken(4 * number()), taken(4 * number())))
        results.append(tensors if length == -1 else None)
    assert at == len(out)
    return results


def as_c_has_it(one: Packed) -> tuple[bytes, np.ndarray]:
    """Return what the C program should print for a tensor: its numbers as float32, and the product of its rows with the
    vector 1, 2, 3, ... in double precision."""
    dense = one.array().astype(np.float32)
    rows = dense.reshape(one.shape[0] if one.shape else 1, -1).astype(np.float64)
    return dense.tobytes(), rows @ np.arange(1, rows.shape[1] + 1)


def agrees(tensors: list[tuple[str, bytes, bytes]], expected: dict[str, Packed]) -> bool:
    assert [name for name, _, _ in tensors] == list(expected)
    for (_, dense, products), one in zip(tensors, expected.values(), strict=True):
        numbers, exact = as_c_has_it(one)
        assert np.array_equal(np.frombuffer(dense, "<f4"), np.frombuffer(numbers, "<f4"), equal_nan=True)
        finite = np.isfinite(exact)
        assert np.allclose(np.frombuffer(products, "<f4")[finite], exact[finite], rtol=1e-3, atol=1e-3)
    return True


def test_the_c_reader_reads_the_same_tensors_as_the_python_reader(program: Path) -> None:
    files = [*networks(), encode({"w": sparse((300, 784), 0.02, 5)}, {"w"}), encode({"w": torch.zeros(2, 0)}, {"w"})]
    for data, tensors in zip(files, through_c(program, files), strict=True):
        assert tensors is not None
        assert agrees(tensors, decode(data))


def test_the_c_reader_reads_all_real_types(program: Path) -> None:
    tensors = {
        str(dtype): torch.arange(-3, 9).view(3, 4).to(dtype) for dtype in (*FLOATS, *OTHERS, torch.uint32, torch.uint64)
    }
    del tensors["torch.complex64"]
    data = encode(tensors, ())
    (found,) = through_c(program, [data])
    assert found is not None
    assert agrees(found, decode(data))


def test_the_c_reader_refuses_damaged_files_or_reads_the_original(program: Path) -> None:
    pairs = list(damaged(COUNT))
    for (before, _), found in zip(pairs, through_c(program, [data for _, data in pairs]), strict=True):
        assert found is None or agrees(found, decode(before))


def test_the_c_reader_refuses_malformed_files(program: Path) -> None:
    found = through_c(program, MALFORMED)
    twice = next(place for place, data in enumerate(MALFORMED) if data[4:5] == b"\x02")
    del found[twice]  # the file with one name twice: the C reader does not notice it
    assert found == [None] * len(found)


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
def test_damaged_files_with_fitting_checksums_cause_no_memory_error_in_c(program: Path) -> None:
    files = [with_checksum(data) for _, data in damaged(COUNT) if len(data) > 4]
    for data, found in zip(files, through_c(program, files), strict=True):
        expected = read(data)
        if expected is not None and all(one.values.size <= 10**6 for one in expected.values()):
            assert found is not None
