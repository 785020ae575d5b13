"""The weights of a network that are prunable, and the prunable weights that lie on the sphere."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter

import pytest
import torch
from torch import nn

from tests.helpers.layers import kept_in_evaluation
from tests.helpers.problems import mlp
from tests.helpers.trainings import MASKED
from tune_sparsity.sparsity import METHODS, LayerRules
from tune_sparsity.sparsity.layers import dead_neurons, left_dense, prunable_layers


def on_sphere(model: nn.Module) -> dict[str, bool]:
    return {layer.name: layer.sphere for layer in prunable_layers(model)}


def test_all_but_the_last_linear_layer_lie_on_the_sphere() -> None:
    model = mlp(20, 16, 8, 4)
    assert on_sphere(model) == {"0.weight": True, "2.weight": True, "4.weight": False}
    assert not any(layer.sphere for layer in prunable_layers(model, sphere=False))


def test_names_are_those_of_the_state_dict() -> None:
    model = nn.Sequential(mlp(6, 5, 4), nn.Linear(4, 3))
    for layer in prunable_layers(model):
        assert model.state_dict()[layer.name].data_ptr() == layer.weight.data_ptr()


def test_convolutions_of_one_channel_stay_off_the_sphere() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3),
        nn.Conv1d(8, 4, 3),
        nn.Conv3d(4, 4, 1),
        nn.Linear(4, 2),
    )
    assert on_sphere(model) == {
        "0.weight": False,
        "2.weight": True,
        "3.weight": True,
        "4.weight": True,
        "5.weight": False,
    }


def test_biases_and_other_layers_are_not_prunable() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.PReLU(), nn.Linear(4, 2))
    assert list(on_sphere(model)) == ["1.weight", "4.weight"]


def test_shared_weight_is_listed_once() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(4, 2))
    assert on_sphere(model) == {"0.weight": True, "3.weight": False}
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    tied[1].weight = tied[0].weight
    assert on_sphere(tied) == {"0.weight": True, "2.weight": False}


def test_the_only_layer_of_a_network_counts_as_its_last_layer() -> None:
    assert on_sphere(nn.Linear(4, 2)) == {"weight": False}


def test_networks_without_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="no linear layer, convolution or other weight"):
        prunable_layers(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)))


class Halved(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2


COMPUTED = {
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "weight_norm of old": nn.utils.weight_norm,
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "spectral_norm of old": nn.utils.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
    "a user's": lambda layer: nn.utils.parametrize.register_parametrization(layer, "weight", Halved()) or layer,
}


@pytest.mark.parametrize("computed", COMPUTED.values(), ids=list(COMPUTED))
def test_computed_weights_stay_dense_and_are_reported_as_left_dense(computed: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(computed(nn.Linear(5, 4)), nn.Linear(4, 4), nn.Linear(4, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert on_sphere(model) == {"1.weight": True, "2.weight": False}
    assert left_dense(model) == [("0.weight", "computed from other parameters", 20)]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for rules in (LayerRules(dense=("0.weight",)), LayerRules(off_sphere=("0.*", "2.*"))):
        assert [layer.name for layer in prunable_layers(model, rules)] == ["1.weight", "2.weight"]
    # A layer with a computed weight also counts as the last layer, so the layer before it is on the sphere.
    for layer in (model[0], computed(nn.Linear(4, 2))):
        assert on_sphere(nn.Sequential(nn.Linear(3, 4), layer)) == {"0.weight": True}


def test_a_rule_can_prune_the_parameter_that_a_weight_is_computed_from() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 4)), nn.Linear(4, 2))
    name = "0.parametrizations.weight.original1"
    assert list(map(attrgetter("name"), prunable_layers(model, LayerRules(prune={name: 1})))) == [name, "1.weight"]
    assert left_dense(model, LayerRules(prune={name: 1})) == []
    backwards = nn.Sequential(nn.Linear(2, 5), model[0])
    name = name.replace("0", "1", 1)
    for example in (None, torch.ones(3, 2)):
        layers = prunable_layers(backwards, LayerRules(prune={name: 1}), example=example)
        assert [(layer.name, layer.sphere) for layer in layers] == [("0.weight", True), (name, False)]
    with pytest.raises(
        ValueError, match=r"^prune: no parameter .* fits '0\.weight': the matrices are 0\.weight, 1\.weight$"
    ):
        prunable_layers(model, LayerRules(prune={"0.weight": 1}))


def test_frozen_weights_stay_dense_unless_a_rule_names_them() -> None:
    model = perceptron()
    model[0].weight.requires_grad_(False)
    assert left_dense(model) == [("0.weight", "frozen", 20)]
    assert on_sphere(model) == {"2.weight": True, "4.weight": False}
    named = prunable_layers(model, LayerRules(prune={"0.weight": 1}))
    assert [(layer.name, layer.sphere) for layer in named] == [
        ("0.weight", False),  # a projection onto the sphere would change the function of a frozen layer
        ("2.weight", True),
        ("4.weight", False),
    ]


def test_a_rule_prunes_a_parameter_of_a_network_without_layers() -> None:
    model = nn.ParameterDict({"mine": torch.ones(4, 3)})
    (layer,) = prunable_layers(model, LayerRules(prune={"mine": 0}))
    assert (layer.name, layer.sphere, layer.rows().shape) == ("mine", True, (3, 4))


def test_embeddings_and_parameters_are_pruned_if_a_rule_names_them() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 6), nn.Linear(6, 2))
    model.mine = nn.Parameter(torch.ones(3, 5, 7))
    assert left_dense(model) == [("mine", "of an unknown layer class", 105), ("0.weight", "an embedding", 36)]
    rules = LayerRules(prune={nn.Embedding: 0, "mi*": (1, -1)})
    layers = {layer.name: layer for layer in prunable_layers(model, rules)}
    assert list(layers) == ["mine", "0.weight", "1.weight", "2.weight"]
    assert [tuple(layer.rows().shape) for layer in layers.values()] == [(3, 35), (4, 9), (6, 4), (2, 6)]
    assert [layer.sphere for layer in layers.values()] == [True, True, True, False]
    assert left_dense(model, rules) == []


@pytest.mark.parametrize("fan_in", [(), 2, -3, (0, 1), (0, 5)])
def test_a_rule_with_wrong_fan_in_dimensions_is_refused(fan_in: int | tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 6))
    with pytest.raises(ValueError, match=r"^prune: 0\.weight has the shape \(9, 4\): fan-in dimensions .*: give at"):
        prunable_layers(model, LayerRules(prune={"0.weight": fan_in}))


def test_a_weight_that_an_embedding_shares_with_a_linear_layer_is_prunable() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9))
    model[2].weight = model[0].weight
    assert on_sphere(model) == {"1.weight": True, "2.weight": False}
    assert left_dense(model) == []


def test_neurons_with_one_weight_stay_off_the_sphere() -> None:
    assert on_sphere(nn.Sequential(nn.Linear(1, 8), nn.Linear(8, 8), nn.Linear(8, 2))) == {
        "0.weight": False,
        "1.weight": True,
        "2.weight": False,
    }


@pytest.mark.parametrize(
    ("layer", "normalises"),
    [
        (nn.BatchNorm1d(3), True),
        (nn.InstanceNorm1d(3), True),
        (nn.SyncBatchNorm(3), True),
        (nn.BatchNorm1d(4), False),
        (kept_in_evaluation(nn.BatchNorm1d(3)), False),
        (kept_in_evaluation(nn.BatchNorm1d(3, track_running_stats=False)), True),
        (kept_in_evaluation(nn.InstanceNorm1d(3)), True),
        (kept_in_evaluation(nn.InstanceNorm1d(3, track_running_stats=True)), False),
        (nn.LayerNorm(3), False),
        (nn.GroupNorm(1, 3), False),
        (nn.RMSNorm(3), False),
        (nn.Dropout(), False),
    ],
)
def test_a_layer_is_normalised_if_the_next_module_normalises_its_channels(layer: nn.Module, normalises: bool) -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(5, 3)), nn.Sequential(nn.Sequential(layer)), nn.Linear(3, 2))
    assert [one.normalised for one in prunable_layers(model)] == [normalises, False]
    rules = LayerRules(normalised=("2.weight",))
    assert [one.normalised for one in prunable_layers(model, rules)] == [False, True]


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))


def small_convolutional() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 2))


def test_rules_with_name_patterns_keep_weights_dense_or_off_the_sphere() -> None:
    layers = prunable_layers(perceptron(), LayerRules(dense=("0.*",), off_sphere=("2.weight",)))
    assert [(layer.name, layer.sphere) for layer in layers] == [("2.weight", False), ("4.weight", True)]
    assert [layer.sphere for layer in prunable_layers(perceptron(), LayerRules(off_sphere=()))] == [True, True, True]


def test_a_rule_can_name_a_class_of_layers() -> None:
    layers = prunable_layers(small_convolutional(), LayerRules(dense=(nn.Conv2d,)))
    assert [(layer.name, layer.sphere) for layer in layers] == [("3.weight", True), ("4.weight", False)]
    layers = prunable_layers(small_convolutional(), LayerRules(dense=("1.*",), off_sphere=(nn.Linear,)))
    assert [(layer.name, layer.sphere) for layer in layers] == [
        ("0.weight", True),
        ("3.weight", False),
        ("4.weight", False),
    ]


def test_no_other_layer_becomes_the_last_one_if_the_last_layer_stays_dense() -> None:
    layers = prunable_layers(perceptron(), LayerRules(dense=("4.*",)))
    assert [(layer.name, layer.sphere) for layer in layers] == [("0.weight", True), ("2.weight", True)]


@pytest.mark.parametrize("rules", [LayerRules(dense=("head.*",)), LayerRules(off_sphere=("0.bias",))])
def test_the_error_about_a_rule_that_matches_no_weight_lists_all_weights(rules: LayerRules) -> None:
    with pytest.raises(
        ValueError, match=r"'(head\.\*|0\.bias)': the weights are 0\.weight \(Linear\), 2\.weight \(Linear\)"
    ):
        prunable_layers(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), rules)


def test_the_error_about_a_layer_class_that_matches_no_weight_names_the_class() -> None:
    with pytest.raises(ValueError, match=r"^no weight fits the rule 'Conv2d': the weights are 0\.weight \(Linear\)"):
        prunable_layers(perceptron(), LayerRules(off_sphere=(nn.Conv2d,)))


def test_rules_that_leave_no_layer_to_prune_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to prune"):
        prunable_layers(nn.Sequential(nn.Linear(4, 5)), LayerRules(dense=("*",)))


@pytest.mark.parametrize("name", MASKED)
def test_no_method_prunes_weights_that_a_rule_keeps_dense(name: str) -> None:
    rules = LayerRules(dense=("2.*",))
    model, params = perceptron(), {"p": 1.3} if name == "lpss" else {}
    if name != "dense":
        params["final_sparsity"] = 0.5
    sparse = METHODS[name].build(model, params, total_steps=4, generator=torch.Generator(), rules=rules)
    for _ in range(4):
        sparse.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(8, 4)), torch.randint(2, (8,))).backward()
        sparse.step()
    assert sparse.zeros() == (0 if name == "dense" else 16, 32)  # the pruned layers have 4 x 5 + 6 x 2 = 32 weights
    assert list(sparse.by_layer()) == ["0.weight", "4.weight"]
    assert bool((model[2].weight != 0).all())


def test_dead_neurons_are_counted_along_the_output_channels_of_each_layer_class() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.ConvTranspose2d(4, 6, 2, groups=2), nn.Linear(8, 3))
    layers = prunable_layers(model)
    masks = [torch.ones_like(layer.weight) for layer in layers]
    assert dead_neurons(layers, masks) == {}
    masks[0][1:3] = 0
    masks[1][2:, 1] = 0  # the second output channel of the second group
    masks[1][0] = 0  # an input without connections does not count as a dead neuron
    masks[2][0, 1:] = 0
    assert dead_neurons(layers, [mask.bool() for mask in masks]) == {"0.weight": (2, 4), "1.weight": (1, 6)}
