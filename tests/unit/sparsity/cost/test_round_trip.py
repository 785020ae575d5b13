"""Tensors are read back from a packed file bit for bit, and the file has the size that is computed from the masks."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Generator, Tensor

from tune_sparsity.sparsity.cost import read_packed
from tune_sparsity.sparsity.cost.forms import best_form, flat_form
from tune_sparsity.sparsity.cost.layout import Layout, Prunable
from tune_sparsity.sparsity.cost.read_packed import BITMAP, COMPACT, DENSE, RICE, decode
from tune_sparsity.sparsity.cost.writer import encode, load
from tune_sparsity.sparsity.few_bits import Codes, Precision, Signs

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
OTHERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.uint16)
shapes = st.lists(st.integers(0, 12), max_size=4).map(tuple)
densities = st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.9, 1.0])


def numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Return a tensor of numbers whose bits are random."""
    generator = Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    flat = torch.randint(0, 256, (math.prod(shape) * dtype.itemsize,), generator=generator, dtype=torch.uint8)
    return flat.view(dtype).reshape(shape)


def same_bits(one: Tensor, other: Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return not one.numel() or torch.equal(*(x.contiguous().reshape(-1).view(torch.uint8) for x in (one, other)))


def sparse(shape: tuple[int, ...], density: float, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = Generator().manual_seed(seed)
    kept = torch.rand(shape, generator=generator) < density
    weights = torch.randn(shape, generator=generator).abs().clamp(min=0.01).to(dtype)
    return torch.where(kept, weights * (torch.rand(shape, generator=generator) - 0.5).sign(), torch.zeros(())).to(dtype)


def codes(shape: tuple[int, ...], density: float, bits: int, seed: int) -> Codes:
    """Return random integer codes of weights. The codes have all magnitudes that the bits allow. Each row has a random
    scale, or the scale 0 if all its codes are 0."""
    generator = Generator().manual_seed(seed)
    size = torch.randint(1, min(127, 1 << (bits - 1)) + 1, shape, generator=generator)
    sign = 2 * torch.randint(0, 2, shape, generator=generator) - 1
    found = (size * sign * (torch.rand(shape, generator=generator) < density)).to(torch.int8)
    rows = found.reshape(shape[0], -1) if found.numel() else torch.zeros(shape[0] if shape else 1, 1)
    return Codes(found, torch.rand(len(rows), generator=generator).half() * (rows != 0).any(1), bits)


@given(st.lists(st.tuples(shapes, st.sampled_from(FLOATS + OTHERS)), max_size=4), st.integers(0, 2**31))
def test_dense_tensors_keep_every_bit(those: list[tuple[tuple[int, ...], torch.dtype]], seed: int) -> None:
    tensors = {f"{place}.ü": numbers(shape, dtype, seed + place) for place, (shape, dtype) in enumerate(those)}
    data = encode(tensors, ())
    found = load(data)
    assert list(found) == list(tensors)
    assert all(same_bits(tensor, found[name]) for name, tensor in tensors.items())
    assert len(data) == Layout.of(tensors, ()).size({})


@given(shapes, densities, st.sampled_from(FLOATS), st.integers(0, 2**31))
@example((), 1.0, torch.float32, 0)
@example((1,), 0.0, torch.float32, 0)
@example((3, 7), 1.0, torch.float16, 0)
@example((40, 5000), 0.001, torch.float32, 0)
def test_sparse_tensors_round_trip_exactly_with_the_computed_size(
    shape: tuple[int, ...], density: float, dtype: torch.dtype, seed: int
) -> None:
    tensors = {"w": sparse(shape, density, seed, dtype), "b": torch.arange(3.0)}
    data = encode(tensors, {"w"})
    assert all(same_bits(tensor, load(data)[name]) for name, tensor in tensors.items())
    assert len(data) == Layout.of(tensors, {"w"}).size({"w": tensors["w"] != 0})


@given(shapes.filter(bool), densities, st.sampled_from([8, 4, 2, 1]), st.integers(0, 2**31))
@example((1,), 1.0, 8, 0)
@example((30, 2000), 0.01, 4, 0)
def test_codes_round_trip_exactly_with_the_computed_size(
    shape: tuple[int, ...], density: float, bits: int, seed: int
) -> None:
    one = codes(shape, density, bits, seed)
    data = encode({"w": one}, ())
    found = decode(data)["w"]
    assert np.array_equal(found.codes(), one.codes.numpy())
    assert found.codes().dtype == np.int8
    assert found.scales is not None
    assert np.array_equal(found.scales, one.scales.numpy())
    assert same_bits(load(data)["w"], one.weight() + 0.0)
    assert len(data) == Layout.of({"w": one.weight()}, {"w"}, Precision(bits)).size({"w": one.codes})


@given(shapes, st.integers(0, 2**31))
def test_packed_signs_take_one_bit_each(shape: tuple[int, ...], seed: int) -> None:
    signs = 2 * torch.randint(0, 2, shape, generator=Generator().manual_seed(seed), dtype=torch.int8) - 1
    tensors, precision = {"w": signs, "t": torch.arange(3)}, Precision(1, signs=True)
    data = encode(precision.of(tensors, {"w"}), {"w"})
    assert all(same_bits(tensor, load(data)[name]) for name, tensor in tensors.items())
    assert decode(data)["w"].type == "signs"
    assert len(data) == Layout.of(tensors, {"w"}, precision).size({"w": torch.ones_like(signs)})
    without = len(encode({"w": torch.zeros(0, *shape[1:], dtype=torch.int8), "t": torch.arange(3)}, ()))
    assert len(data) - without <= -(-math.prod(shape) // 8) + len(shape)


@pytest.mark.parametrize(
    "values", [torch.tensor([1, 0]).char(), torch.tensor([1, 2]).char(), torch.tensor([1.0, -1.0])]
)
def test_signs_other_than_int8_with_minus_1_and_1_are_refused(values: Tensor) -> None:
    with pytest.raises(ValueError, match="w cannot be packed: signs must be int8 with"):
        encode({"w": Signs(values)}, {"w"})


def test_the_smallest_storage_form_is_chosen_for_each_mask() -> None:
    n = 10_000
    places = np.arange(n).reshape(10, n // 10)
    assert best_form(places >= 0, 32).form == DENSE
    assert best_form(places % 2 == places // 1000 % 2, 32).form == BITMAP
    assert best_form((places + 7 * (places // 1000)) % 50 == 0, 32)[:2] == (RICE, 5)  # nearly all gaps are 49
    assert best_form((places % 1000 < 500) & (places < 5000), 32).form == COMPACT + DENSE


@pytest.mark.parametrize("sparsity", [0.8, 0.9, 0.95, 0.98, 0.99, 0.999])
@pytest.mark.parametrize("shape", [(300, 784), (64, 32, 3, 3)])
def test_the_index_size_of_a_random_mask_is_near_the_entropy_of_the_mask(
    shape: tuple[int, ...], sparsity: float
) -> None:
    """The size is compared with the logarithm of the number of masks that have the same number of nonzero weights."""
    n = math.prod(shape)
    z = round(n * (1 - sparsity))
    ways = (math.lgamma(n + 1) - math.lgamma(z + 1) - math.lgamma(n - z + 1)) / math.log(2)
    index = torch.randperm(n, generator=Generator().manual_seed(1))[:z].sort().values.numpy()
    bits = flat_form(index, n, 32).bits
    # The 40 bits are for the number of values and for unused bits in the last bytes.
    assert ways <= bits <= 1.05 * ways + 40


@given(st.integers(1, 6), st.sampled_from([32, 8, 4]), st.integers(0, 2**31))
def test_the_estimated_size_is_near_the_size_of_the_file(tenths: int, bits: int, seed: int) -> None:
    weight = sparse((300, 200), tenths / 20, seed)
    layout = Layout.of({"w": weight}, {"w"}, Precision(bits))
    size, guess = layout.size({"w": weight}), layout.estimate(int(weight.count_nonzero()))
    assert 0.96 * size < guess < 1.01 * size


def test_scales_and_biases_are_counted_for_each_neuron() -> None:
    scaled = Layout(0, {"w": Prunable(60_000, 300, 4, scaled=True)}, {"w": Prunable(300, 1, 16)})
    assert (scaled.neuron_bytes(10), scaled.neuron_bytes(10**6)) == (10 * (2 + 2), 300 * (2 + 2))
    assert Layout(0, {"w": Prunable(60_000, 300, 32)}).neuron_bytes(300) == 0


def test_the_precision_decides_the_number_type_of_each_written_tensor() -> None:
    weight, bias = codes((50, 40), 0.2, 4, 0).weight(), torch.arange(50) / 8
    tensors = {"head.weight": weight, "bias": bias, "embedding.weight": weight, "mean": torch.rand(50)}
    precision = Precision(4, ("bias",))
    data = encode(precision.of(tensors, {"embedding.weight"}), {"embedding.weight"})
    types = {name: one.type for name, one in decode(data).items()}
    assert types == {"head.weight": "codes4", "bias": "float16", "embedding.weight": "codes4", "mean": "float32"}
    assert all(torch.equal(load(data)[name].float(), tensor) for name, tensor in tensors.items())
    assert len(data) == Layout.of(tensors, {"embedding.weight"}, precision).size({"embedding.weight": weight})


def test_a_shared_weight_is_written_once() -> None:
    weight = sparse((50, 40), 0.1, 0)
    tensors = {"head.weight": weight, "b": torch.zeros(50, 40), "embedding.weight": weight}
    data = encode(tensors, {"embedding.weight"})
    assert all(same_bits(tensor, load(data)[name]) for name, tensor in tensors.items())
    assert len(data) == Layout.of(tensors, {"embedding.weight"}).size({"embedding.weight": weight})
    alone = len(encode({"b": tensors["b"], "embedding.weight": weight}, {"embedding.weight"}))
    assert len(data) - alone < 30


def test_only_the_sign_of_a_zero_is_lost() -> None:
    for tensor in (torch.tensor([[-0.0, 1.0]]), torch.tensor([-0.0, *[0.0] * 99, -3.0])):
        found = load(encode({"w": tensor}, {"w"}))["w"]
        assert torch.equal(found, tensor)
        assert not found.signbit()[found == 0].any()


def test_a_dtype_that_the_file_format_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"w cannot be packed: it has 1 dimensions .* and the type float8_e5m2"):
        encode({"w": torch.zeros(3).to(torch.float8_e5m2)}, ())


@pytest.mark.parametrize(
    "one",
    [
        Codes(torch.tensor([[5]], dtype=torch.int8), torch.ones(1).half(), 2),
        Codes(torch.tensor([[-128]], dtype=torch.int8), torch.ones(1).half(), 8),
        Codes(torch.tensor([[1]], dtype=torch.int8), torch.ones(2).half(), 8),
        Codes(torch.tensor([[1]], dtype=torch.int8), torch.ones(1), 8),
        Codes(torch.tensor([[1]], dtype=torch.int8), torch.ones(1).half(), 3),
    ],
)
def test_codes_out_of_range_are_refused(one: Codes) -> None:
    with pytest.raises(ValueError, match="w cannot be packed"):
        encode({"w": one}, ())


def test_the_reader_is_one_file_that_needs_numpy_alone(tmp_path: Path) -> None:
    weight = sparse((30, 40), 0.1, 0)
    (tmp_path / "network.packed").write_bytes(encode({"w": weight}, {"w"}))
    (tmp_path / "read_packed.py").write_bytes(Path(read_packed.__file__).read_bytes())
    code = """
import sys
for name in ("torch", "tune_sparsity", "safetensors"):
    sys.modules[name] = None
import read_packed
print(float(read_packed.read("network.packed")["w"].sum(dtype="float64")))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == float(weight.double().sum())
