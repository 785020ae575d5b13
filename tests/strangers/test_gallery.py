"""Test every method on networks of many kinds: training, counts of zeros, saved files and checkpoints."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor, nn

from tests.helpers.trainings import MASKED
from tests.strangers.networks import STRANGERS, Stranger
from tests.strangers.torchvision_networks import TORCHVISION
from tune_sparsity.sparsity import METHODS, LpSGD, SparseTraining, prunable_layers, with_last_layer, zeros_for
from tune_sparsity.sparsity.output_layers import called
from tune_sparsity.sparsity.wrappers import load_plain, plain_state, unwrapped
from tune_sparsity.tuner.results.export_formats import load_csr, onnx_function, save_csr, save_onnx
from tune_sparsity.tuner.results.forms import Weights, latencies
from tune_sparsity.tuner.results.networks import count_zeros, split_masks
from tune_sparsity.tuner.results.sparse_layers import over_sparse
from tune_sparsity.tuner.storage.places import Folder
from tune_sparsity.tuner.worker import checkpoints
from tune_sparsity.tuner.worker.trainable import packed_weights

SPARSITY, STEPS = 0.6, 4
SLOW = {"lr": 0.01}
PARAMS: dict[str, dict[str, Any]] = {
    "lpss": {"p": 1.4, "threshold_interval": 1, "threshold.begin": 0.0, "threshold.end": 0.75},
    "gmp": {"begin": 0.0, "end": 0.75, "interval": 1, **SLOW},
    **{name: {"interval": 1, **SLOW} for name in ("rigl", "set", "sparse-momentum")},
    **dict.fromkeys(("dense", "snip", "static"), SLOW),
}
NETWORKS = STRANGERS | TORCHVISION
EACH_NETWORK = [pytest.param(name, marks=pytest.mark.long if name == "resnet18" else ()) for name in NETWORKS]
EACH_METHOD = [pytest.param(name, marks=() if name in ("lpss", "gmp") else pytest.mark.long) for name in MASKED]


def start(
    stranger: Stranger, method: str, seed: int = 0, *, trained: bool = False, **params: Any
) -> tuple[nn.Module, SparseTraining]:
    torch.manual_seed(seed)
    model = stranger.make()
    rules = with_last_layer(stranger.rules, model, stranger.batch())
    target = {} if method == "dense" else {"final_sparsity": SPARSITY}
    generator = torch.Generator().manual_seed(seed)
    settings = {**target, **PARAMS[method], **params}
    return model, METHODS[method].build(
        model, settings, total_steps=STEPS, generator=generator, rules=rules, trained=trained
    )


def train(stranger: Stranger, model: nn.Module, sparse: SparseTraining, steps: int) -> None:
    x = stranger.batch()
    model.train()
    for _ in range(steps):
        torch.manual_seed(sparse.steps)  # for dropout
        sparse.zero_grad()
        (model(x).float() - 1).square().mean().backward()
        sparse.step()


@torch.no_grad()
def outputs(stranger: Stranger, model: nn.Module) -> Tensor:
    return model.eval()(stranger.batch())


def frozen(model: nn.Module, sparse: SparseTraining) -> dict[str, Tensor]:
    pruned = {id(layer.weight) for layer in sparse.layers}
    kept = {name: param for name, param in model.named_parameters() if not param.requires_grad}
    return {name: param.clone() for name, param in kept.items() if id(param) not in pruned}


@pytest.mark.parametrize("method", EACH_METHOD)
@pytest.mark.parametrize("name", EACH_NETWORK)
def test_a_network_is_trained_resumed_and_saved_with_exact_zeros(name: str, method: str, tmp_path: Path) -> None:
    stranger = NETWORKS[name]
    model, sparse = start(stranger, method)
    before = frozen(model, sparse)
    train(stranger, model, sparse, 2)
    state = {"model": plain_state(model), "sparse": sparse.state_dict()}
    checkpoints.write(Folder(tmp_path), 0, 1, checkpoints.pack(state))
    train(stranger, model, sparse, STEPS - 2)

    zeros, total = sparse.zeros()
    assert total == stranger.matrices
    assert zeros == (0 if method == "dense" else zeros_for(SPARSITY, total))
    assert all(torch.equal(dict(model.named_parameters())[key], value) for key, value in before.items())
    assert all(param.isfinite().all() for param in model.parameters())

    (state,) = checkpoints.newest(Folder(tmp_path), 0)
    resumed, other = start(stranger, method, seed=1)
    load_plain(resumed, state["model"])
    other.load_state_dict(state["sparse"])
    train(stranger, resumed, other, STEPS - 2)
    assert same(resumed.state_dict(), model.state_dict())

    tensors, masks = split_masks(load(packed_weights(SimpleNamespace(model=model, sparse=sparse))))  # type: ignore[arg-type]
    assert count_zeros(tensors, masks) == (zeros, total)
    assert all(torch.equal(tensors[key] != 0, mask) for key, mask in masks.items())
    save_csr(tensors, set(masks), tmp_path / "csr")
    assert same(load_csr(tmp_path / "csr"), tensors)
    plain = stranger.plain()
    plain.load_state_dict(tensors)
    assert torch.equal(outputs(stranger, plain), outputs(stranger, model))


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", EACH_NETWORK)
def test_the_lp_norm_of_each_weight_row_on_the_sphere_equals_the_rows_gain(name: str) -> None:
    stranger = NETWORKS[name]
    model, sparse = start(stranger, "lpss", final_sparsity=0.0, initial_sparsity=0.0)
    train(stranger, model, sparse, 2)
    optimizer = sparse.optimizer
    assert isinstance(optimizer, LpSGD)
    for layer in sparse.layers:
        if layer.sphere:
            norms = layer.rows().double().norm(1.4, dim=1, keepdim=True)
            wanted = optimizer.gain(layer.weight).double()
            tolerance = 1e-2 if layer.weight.dtype == torch.bfloat16 else 1e-5
            assert torch.allclose(norms, wanted, rtol=tolerance), layer.name
        elif layer.weight.requires_grad:
            assert "v" not in optimizer.state[layer.weight]
    assert any(layer.sphere for layer in sparse.layers) or len(sparse.layers) == 1


@pytest.mark.parametrize("method", EACH_METHOD)
@pytest.mark.parametrize("name", EACH_NETWORK)
def test_a_method_at_sparsity_0_does_not_change_the_outputs_of_a_network(name: str, method: str) -> None:
    stranger = NETWORKS[name]
    torch.manual_seed(0)
    given = stranger.make()
    before = outputs(stranger, given).double()
    target = {} if method == "dense" else {"final_sparsity": 0.0}
    rates = {"lr": 1e-9, "weight_decay": 0.0} | ({"sphere_lr": 1e-9} if method == "lpss" else {})
    model, sparse = start(stranger, method, trained=True, **target, **rates)
    assert sparse.zeros()[0] == 0
    assert torch.equal(outputs(stranger, model).double(), before)
    (model.eval()(stranger.batch()).float() - 1).square().mean().backward()
    sparse.step()  # a step writes all weights anew, and hardly changes them
    rounding = 100 if next(model.parameters()).dtype == torch.bfloat16 else 1
    moved = (outputs(stranger, model).double() - before).abs().max()
    assert moved <= 1e-4 * rounding * before.abs().max() + 1e-9  # the rates are tiny but not zero
    assert same(dict(model.named_buffers()), dict(given.named_buffers()))


@pytest.mark.parametrize("name", STRANGERS)
def test_only_linear_and_ungrouped_conv_layers_get_sparse_matrix_products(name: str) -> None:
    stranger = STRANGERS[name]
    model = unwrapped(stranger.make())
    prunable = {layer.name for layer in prunable_layers(model, stranger.rules)}
    assert over_sparse(model, prunable)[1].keys() == {one for one in prunable if not is_plain(stranger.plain(), one)}


TIMED = {
    "attention encoder": "2 of 6 prunable layers stay dense",
    "encoder and decoder": "6 of 10 prunable layers stay dense",
    "norms of weights": "",
    "wrapped by a user": "",
    "compiled parts": "",
    "GRU": "2 of 3 prunable layers stay dense",
}


@pytest.mark.parametrize("name", TIMED)
def test_networks_with_sparse_matrix_products_are_timed(name: str) -> None:
    stranger = STRANGERS[name]
    model = unwrapped(stranger.make())

    def make() -> nn.Module:
        twin = unwrapped(stranger.make())
        twin.load_state_dict(model.state_dict())
        return twin

    prunable = {layer.name for layer in prunable_layers(model, stranger.rules)}
    (one,) = latencies(Weights(make, prunable, stranger.batch()), batches=(2,))
    assert one.note == TIMED[name]
    assert one.dense is not None
    assert one.sparse is not None


def is_plain(model: nn.Module, name: str) -> bool:
    path, _, attribute = name.rpartition(".")
    layer = model.get_submodule(path)
    plain = type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.groups == 1)
    return attribute == "weight" and plain


@pytest.mark.long
@pytest.mark.parametrize("name", ["U-Net", "GPT-2-like", "GRU"])
def test_an_onnx_file_computes_the_outputs_of_its_network(name: str, tmp_path: Path) -> None:
    stranger = STRANGERS[name]
    model, sparse = start(stranger, "lpss")
    train(stranger, model, sparse, STEPS)
    save_onnx(model, called, stranger.batch(), tmp_path / "onnx")
    found = onnx_function(tmp_path / "onnx")(stranger.batch())
    torch.testing.assert_close(found, outputs(stranger, model), rtol=1e-4, atol=1e-5)
