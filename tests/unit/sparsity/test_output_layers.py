"""The last layers of a network, and the layers before a normalisation. The order of registration has no effect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.layers import Conv1D
from tune_sparsity.sparsity import LayerRules, LpSGD, lpss, prunable_layers, with_last_layer


class HeadFirst(nn.Module):
    """A network that registers its head first, although the head is called last."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3, **options)
        self.norm = nn.BatchNorm1d(8)
        self.one, self.two = nn.Linear(6, 8, **options), nn.Linear(8, 8, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(torch.relu(self.two(torch.dropout(self.one(x).relu(), 0.5, self.training)))))


class InPlace(HeadFirst):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2).sub_(1))


class Shortcut(HeadFirst):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x)).relu()) + self.one(x)[:, :3]


class TwoHeads(HeadFirst):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Sequential(nn.Linear(8, 5), nn.LogSoftmax(1))

    def forward(self, x: Tensor) -> dict[str, Any]:
        features = self.two(self.one(x))
        return {"labels": self.head(features), "others": [self.other(features)]}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.middle, self.head = nn.Embedding(9, 6), Conv1D(6, 6), nn.Linear(6, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.embedding(x)))


def normed() -> nn.Module:
    model = HeadFirst()
    nn.utils.parametrizations.weight_norm(model.head)
    nn.utils.weight_norm(model.two)
    return model


def frozen_head() -> nn.Module:
    model = HeadFirst()
    model.head.requires_grad_(False)
    return model


def tagger() -> nn.Module:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells, self.before = nn.LSTM(8, 4, num_layers=2, batch_first=True), nn.Linear(6, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.cells(self.before(x[:, None, :]))[0]

    return Tagger()


CASES: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "in order": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), {"2.weight"}),
    "no bias": (lambda: nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 3, bias=False)), {"1.weight"}),
    "head first": (HeadFirst, {"head.weight"}),
    "head first, no bias": (lambda: HeadFirst(bias=False), {"head.weight"}),
    "inputs changed in place": (InPlace, {"head.weight"}),
    "shortcut": (Shortcut, {"head.weight", "one.weight"}),
    "two heads": (TwoHeads, {"head.weight", "other.0.weight"}),
    "weight norm": (normed, {"head.weight"}),
    "frozen": (frozen_head, {"head.weight"}),
    "recurrent": (tagger, {"cells.weight_ih_l1", "cells.weight_hh_l1"}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_last_layers_are_found_in_the_autograd_graph(name: str) -> None:
    make, last = CASES[name]
    model = make().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    flags = [(param.requires_grad, param.grad) for param in model.parameters()]
    generator = torch.get_rng_state()
    found = with_last_layer(LayerRules(), model, torch.randn(4, 6, generator=torch.Generator()))
    assert set(found.last or ()) == last
    off = {layer.name for layer in prunable_layers(model, found) if not layer.sphere}
    assert off == last & {layer.name for layer in prunable_layers(model)}
    assert all(module.training for module in model.modules())
    assert flags == [(param.requires_grad, param.grad) for param in model.parameters()]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state())


def test_the_last_layer_is_found_if_inputs_are_integers_and_weights_are_tied() -> None:
    model = Tied()
    assert with_last_layer(LayerRules(), model, torch.tensor([[1, 2], [3, 4]])).last == ("head.weight",)


def test_the_last_layer_is_found_if_the_example_is_a_dict_of_keyword_inputs() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.first = nn.Linear(8, 2), nn.Linear(6, 8)

        def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
            return self.head(self.first(ids) * mask)

    example = {"ids": torch.ones(2, 6), "mask": torch.ones(2, 8)}
    assert with_last_layer(LayerRules(), Named(), example).last == ("head.weight",)


def test_without_an_autograd_graph_the_layer_registered_last_is_the_last() -> None:
    class Detached(HeadFirst):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    rules = with_last_layer(LayerRules(), Detached(), torch.randn(4, 6))
    assert rules.last is None
    assert rules.normalised is None
    layers = prunable_layers(Detached(), example=torch.randn(4, 6))
    assert [layer.name for layer in layers if not layer.sphere] == ["two.weight"]


def test_rules_of_the_user_override_the_autograd_graph() -> None:
    example = torch.randn(4, 6)
    for rules in (LayerRules(last=("one.weight",)), LayerRules(off_sphere=("one.*",))):
        layers = prunable_layers(HeadFirst(), rules, example=example)
        assert [layer.name for layer in layers if not layer.sphere] == ["one.weight"]


def test_lpss_uses_an_example_input_to_find_the_last_layer() -> None:
    model = HeadFirst()
    sparse = lpss(model, total_steps=2, example=torch.randn(4, 6))
    assert isinstance(sparse.optimizer, LpSGD)
    assert {layer.name for layer in sparse.layers if layer.sphere} == {"one.weight", "two.weight"}
    assert "v" not in sparse.optimizer.state[model.head.weight]


# ---- normalisations


class Block(nn.Module):
    """A network that registers all its normalisations at the end."""

    def __init__(self, *, reads: str = "nothing else", bias: bool = True) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 4, 3, padding=1, bias=bias), nn.Conv2d(4, 4, 3, padding=1, bias=bias)
        self.three, self.head = nn.ConvTranspose2d(4, 4, 1, bias=bias), nn.Linear(4, 3)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.InstanceNorm2d(4), nn.GroupNorm(2, 4)])
        self.reads = reads

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        y = self.two(self.norms[0](x).relu())
        if self.reads == "a shortcut":
            y = y + x
        z = self.three(self.norms[1](y).relu())
        return self.head(self.norms[2](z).mean((2, 3)))


class Twice(nn.Module):
    """A network that uses one layer twice: before a normalisation, and before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.head = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.one(self.norm(self.one(x)).relu()))


class Bytes(nn.Module):
    """A network that also takes integer inputs. Autograd computes no gradient for integers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.head = nn.Linear(6, 6, bias=False), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.one(x.float())))


class Behind(Bytes):
    """A network with two hidden layers. Only the second hidden layer is followed by a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.two = nn.Linear(6, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.two(self.one(x.float()).relu())))


class Kept(Block):
    """A network whose normalisations stay in evaluation mode. In this mode, BatchNorm multiplies by constants."""

    def train(self, mode: bool = True) -> Kept:
        super().train(mode)
        self.norms.eval()
        return self


@pytest.mark.parametrize(
    ("model", "example", "normalised"),
    [
        (Kept(), torch.randn(2, 2, 5, 5), ("two.weight",)),
        (Block(), torch.randn(2, 2, 5, 5), ("one.weight", "two.weight")),
        (Block(bias=False), torch.randn(2, 2, 5, 5), ("one.weight", "two.weight")),
        (Block(reads="a shortcut"), torch.randn(2, 2, 5, 5), ()),
        (Twice(), torch.randn(2, 6), ()),
        (Bytes(), torch.ones(2, 6, dtype=torch.uint8), ("one.weight",)),
        (Behind(), torch.ones(2, 6, dtype=torch.uint8), ()),
        (Behind(), torch.ones(2, 6), ("two.weight",)),
        (HeadFirst(), torch.randn(2, 6), ()),
    ],
)
def test_a_layer_is_normalised_if_only_a_normalisation_reads_its_outputs(
    model: nn.Module, example: Tensor, normalised: tuple[str, ...]
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    assert with_last_layer(LayerRules(), model, example).normalised == normalised
    layers = prunable_layers(model, example=example)
    assert {layer.name for layer in layers if layer.normalised} == set(normalised)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in model.modules())
    given = LayerRules(last=("head.weight",), normalised=("head.weight",))
    assert with_last_layer(given, model, example) is given


def test_only_layers_before_a_normalisation_have_constant_gains() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    sparse = lpss(model, total_steps=2, example=torch.randn(4, 6))
    groups = [(group["params"], group["gain"], group["weight_decay"] > 0) for group in sparse.optimizer.param_groups]
    (first, *constant), (second, *learnt), (_, *ordinary) = groups
    assert first[0] is model[0].weight
    assert second[0] is model[3].weight
    assert (constant, learnt, ordinary) == ([False, False], [True, True], [False, True])
