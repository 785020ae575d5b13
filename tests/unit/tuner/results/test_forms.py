"""Tests layers with sparse matrices: they have the outputs of dense layers, and each weight format is timed."""

from __future__ import annotations

import copy
from functools import partial
from itertools import product

import pytest
import torch
from torch import nn

from tests.helpers.examples import needs_gpu
from tests.helpers.waiting import Clock
from tune_sparsity.sparsity.patterns import Block, NofM
from tune_sparsity.tuner.results import inference_cost
from tune_sparsity.tuner.results.forms import Weights, latencies, passes
from tune_sparsity.tuner.results.inference_cost import timings
from tune_sparsity.tuner.results.sparse_layers import over_sparse


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(12, 5), (7, 12)),
        (nn.Linear(12, 5, bias=False), (2, 3, 12)),
        (nn.Conv2d(3, 5, 3, stride=2, padding=1), (4, 3, 9, 8)),
        (nn.Conv2d(3, 5, (3, 2), dilation=(1, 2), padding=(0, 1), bias=False), (1, 3, 7, 7)),
    ],
)
def test_a_layer_with_a_sparse_matrix_has_the_outputs_of_the_dense_layer(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    with torch.no_grad():
        layer.weight.mul_(torch.rand_like(layer.weight) < 0.3)
        x = torch.randn(shape)
        sparse, left = over_sparse(layer, {"weight"})
        assert not left
        assert torch.allclose(sparse(x), layer(x), atol=1e-5)
        nested, left = over_sparse(nn.Sequential(nn.Identity(), nn.Sequential(layer)), {"1.0.weight"})
        assert not left
        assert torch.allclose(nested(x), layer(x), atol=1e-5)


@pytest.mark.parametrize("block", [Block(2, 2), Block(4, 4)])
def test_a_block_sparse_layer_with_partial_blocks_has_the_dense_outputs(block: Block) -> None:
    layer, x = nn.Linear(11, 6), torch.randn(2, 3, 11)
    with torch.no_grad():
        layer.weight[:4, :8] = 0
        sparse, left = over_sparse(copy.deepcopy(layer), {"weight"}, "bsr", block)
        assert not left
        assert torch.allclose(sparse(x), layer(x), atol=1e-5)


def test_each_weight_format_is_timed_or_a_note_says_why_it_is_missing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    found = passes(
        Weights(partial(copy.deepcopy, model), {"0.weight", "2.weight"}, torch.randn(3, 8)), Block(4, 4), (1, 5)
    )
    counts = sorted({1, torch.get_num_threads()})
    kinds = [(one.dtype, one.threads, one.batch, one.form) for one in found]
    assert kinds == list(product(("float32", "bfloat16"), counts, (1, 5), ("dense", "csr", "bsr")))
    for one in found:
        assert one.low <= one.ms <= one.high if one.ms is not None else one.note
    assert all(one.ms for one in found if one.form == "dense" or one.dtype == "float32")
    slim = passes(Weights(partial(copy.deepcopy, model), {"0.weight"}, torch.randn(3, 8)), Block(4, 1), (1,))
    other = next(one for one in slim if one.form == "bsr")
    assert "square blocks" in other.note


def test_layers_without_a_semi_structured_product_are_listed_with_the_reason() -> None:
    model = nn.Sequential(nn.Conv1d(2, 64, 3), nn.Flatten(), nn.Linear(1024, 64))
    _, left = over_sparse(model, {"0.weight", "2.weight"}, "2:4")
    assert left["0.weight"] == "no sparse product is implemented for its kind of layer"
    assert "Only CUDA tensors" in left["2.weight"]  # in torch's words


@needs_gpu
def test_semi_structured_layers_are_timed_on_a_gpu_and_others_stay_dense() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    for name in ("0", "2", "4"):
        with torch.no_grad():
            weight = model.get_parameter(f"{name}.weight")
            weight.mul_(torch.tensor([1.0, 0.0, 0.0, 1.0]).repeat(weight.shape[1] // 4))
    prunable = {"0.weight", "2.weight", "4.weight"}
    found = passes(Weights(partial(copy.deepcopy, model), prunable, torch.randn(3, 256)), NofM(2, 4), (1, 256))
    sparse = [one for one in found if one.form == "2:4"]
    assert [(one.device, one.dtype, one.batch) for one in sparse] == [("cuda", "bfloat16", n) for n in (1, 256)]
    for one in sparse:
        assert one.ms is not None, one.note
        assert one.note.startswith("1 of 3 prunable layers stay dense; 4.weight: ")
    with torch.no_grad():
        model.get_parameter("0.weight").fill_(1.0)
    _, left = over_sparse(copy.deepcopy(model).to("cuda", torch.bfloat16), prunable, "2:4")
    assert left["0.weight"] == "more than 2 of 4 weights are not zero"


def test_layers_without_a_sparse_product_stay_dense_and_are_counted() -> None:
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Flatten(), nn.Linear(24, 3))
    weights = Weights(partial(copy.deepcopy, model), {"0.weight", "2.weight"}, torch.randn(5, 2, 8))
    one, many = latencies(weights, batches=(1, 7))
    assert (one.batch, many.batch) == (1, 7)
    assert one.sparse is not None
    assert "1 of 2 prunable layers stay dense" in one.note
    alone = partial(copy.deepcopy, nn.Conv1d(2, 4, 3))
    (only,) = latencies(Weights(alone, {"weight"}, torch.randn(5, 2, 8)), batches=(1,))
    assert only.sparse is None
    assert only.dense > 0


def test_the_median_time_comes_from_alternating_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    order, clock = list[str](), Clock()
    monkeypatch.setattr(inference_cost, "time", clock)

    def call(name: str, seconds: float) -> None:
        order.append(name)
        clock.sleep(seconds * len(order))

    found = timings({"a": lambda: call("a", 0.25), "b": lambda: call("b", 0.0)}, seconds=0.0, least=3)
    assert order == ["a", "b"] * 4  # the first round warms up
    assert {name: one.ms for name, one in found.items()} == {"a": 1000 * 0.25 * 5, "b": 0.0}
    assert found["a"] == (1250, 1000, 1500)
