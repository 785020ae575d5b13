"""Test that each check finds its kind of fault, describes it in one line, and accepts experiments without faults."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

from tune_sparsity.experiments import Data, Experiment, Recipe, Split
from tune_sparsity.experiments.checks import CHECKS, Finding, Level, assert_sound, first_fault, inspect
from tune_sparsity.experiments.metrics import Metric
from tune_sparsity.sparsity import LayerRules


def example_split(n: int, seed: int) -> Split:
    g = Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return Split(F.one_hot(y, 6) * 2.0 + torch.randn(n, 6, generator=g), y)


DATA = Data(example_split(60, 0), example_split(30, 1), example_split(33, 2), classes=("a", "b", "c"))


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 3))


SOUND = Experiment("sound", lambda data_dir: DATA, network, Recipe(epochs=2, batch_size=10))


def with_data(**parts: object) -> Experiment:
    return replace(SOUND, load=lambda data_dir: replace(DATA, **parts))


def with_forward(change: Callable[[nn.Module, Tensor], object]) -> Experiment:
    """Return an experiment whose forward pass is `change`. Its module has the sound network as attribute `net`."""

    class Changed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.register_buffer("seen", torch.zeros(()))
            self.calls, self.luck, self.layers = 0, torch.rand(()).item(), [nn.Linear(6, 6)]

        def forward(self, x: Tensor) -> object:
            return change(self, x)

    return replace(SOUND, model=Changed)


def counts_calls(module: nn.Module, x: Tensor) -> Tensor:
    module.calls += module.training
    return module.net(x) * (1 + 0.1 * module.calls)


def counts_in_a_buffer(module: nn.Module, x: Tensor) -> Tensor:
    module.seen += 1
    return module.net(x)


def makes_a_layer(module: nn.Module, x: Tensor) -> Tensor:
    if not hasattr(module, "late"):
        module.late = nn.Linear(6, 6)
    return module.net(module.late(x))


def changes_its_weights(module: nn.Module, x: Tensor) -> Tensor:
    if module.training:
        with torch.no_grad():
            module.net[0].weight.add_(1e-3)
    return module.net(x)


def drawn_by_numpy() -> nn.Module:
    model = network()
    with torch.no_grad():
        model[0].weight.copy_(torch.from_numpy(np.random.randn(12, 6)))
    return model


def constant() -> nn.Module:
    model = network()
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.linspace(-1, 1, param.numel()).view_as(param))
    return model


def frozen(*layers: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = network()
        for layer in layers:
            model[layer].weight.requires_grad_(False)
        return model

    return make


def with_buffer(name: str) -> nn.Module:
    model = network()
    model[0].register_buffer(name, torch.zeros(()))
    return model


def in_place(x: Tensor) -> Tensor:
    return x.mul_(0.5)


class Table(nn.Module):
    """A module with many parameters that are not prunable."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(100, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table(x.argmax(1))


def one_in_thirty(name: str) -> Split:
    """Return the split with other labels: of each thirty labels, one is 1, one is 2, and the others are 0."""
    x = getattr(DATA, name).x
    return Split(x, torch.where(torch.arange(len(x)) % 30 < 3, torch.arange(len(x)) % 30, 0))


def unprunable() -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(6), nn.Unflatten(1, (3, 2)), nn.MaxPool1d(2), nn.Flatten())


def raises(*arguments: object) -> object:
    raise RuntimeError("broken on purpose")


ONE = network()
SHORT = Split(DATA.train.x, DATA.train.y[:-1])
NAN = DATA.val.x.clone()
NAN[3, 2] = torch.nan
REPEATED = Split(DATA.train.x[:10].repeat(6, 1), DATA.train.y[:10].repeat(6))
ORDER = Generator().manual_seed(9)

# name -> experiment, the check that must fail, a part of its text. Other checks may fail only if FOLLOWS names them.
BROKEN: dict[str, tuple[Experiment, str, str]] = {
    "a network for a function": (replace(SOUND, model=ONE), "experiment", "function that makes one"),
    "a text for a loss": (replace(SOUND, loss="mse"), "experiment", "its loss is a str"),
    "no recipe": (replace(SOUND, recipe=None), "experiment", "Recipe(epochs"),
    "augment no function": (replace(SOUND, augment=3), "experiment", "augment is a int"),
    "layers in a tuple": (replace(SOUND, layers=("0.*",)), "experiment", "LayerRules"),
    "a rule that fits no layer": (replace(SOUND, layers=LayerRules(dense=("7.*",))), "prunable", "'7.*'"),
    "no name": (replace(SOUND, name=""), "experiment", "give a text"),
    "load raises": (replace(SOUND, load=raises), "data", "broken on purpose"),
    "a tuple for Data": (replace(SOUND, load=lambda d: tuple(DATA.train)), "data", "returns a tuple"),
    "arrays for tensors": (with_data(val=Split(DATA.val.x.numpy(), DATA.val.y.numpy())), "data", "torch.from_numpy"),
    "an empty split": (with_data(test=Split(DATA.test.x[:0], DATA.test.y[:0])), "data", "test split is empty"),
    "a target too few": (with_data(train=SHORT), "data", "60 inputs and 59 targets"),
    "a list of classes": (with_data(classes=["a", "b", "c"]), "data", "tuple"),
    "preprocessing no JSON": (with_data(preprocessing={"mean": torch.ones(2)}), "data", "JSON"),
    "inputs with a gradient": (with_data(val=Split(DATA.val.x.clone().requires_grad_(), DATA.val.y)), "data", "plain"),
    "bfloat16 inputs": (with_data(val=Split(DATA.val.x.bfloat16(), DATA.val.y)), "data", "plain tensor on the CPU"),
    "a lazy layer": (replace(SOUND, model=lambda: nn.LazyLinear(3)), "network", "weight belongs to a lazy layer"),
    "no network": (replace(SOUND, model=lambda: [network()]), "network", "returns a list"),
    "model raises": (replace(SOUND, model=raises), "network", "broken on purpose"),
    "a buffer named mask": (replace(SOUND, model=partial(with_buffer, "mask")), "network", "0.mask"),
    "nothing to prune": (replace(SOUND, model=unprunable), "prunable", "nothing to prune"),
    "other input size": (replace(SOUND, model=lambda: nn.Linear(5, 3)), "outputs", "float32 (4, 6)"),
    "float64 inputs": (replace(SOUND, prepare=Tensor.double), "outputs", "most networks take float32"),
    "outputs in a tuple": (with_forward(lambda m, x: (m.net(x), x)), "outputs", "returns a tuple"),
    "flattened outputs": (with_forward(lambda m, x: m.net(x).flatten()), "outputs", "the first dimension must stay"),
    "NaN outputs": (with_forward(lambda m, x: m.net(x) / 0), "outputs", "NaN or infinite"),
    "prepare drops examples": (replace(SOUND, prepare=lambda x: x[1:]), "outputs", "number of examples"),
    "a loss each": (replace(SOUND, loss=partial(F.cross_entropy, reduction="none")), "loss", "one number"),
    "a detached loss": (replace(SOUND, loss=lambda o, t: F.cross_entropy(o.detach(), t)), "loss", "no gradient"),
    "a loss for other targets": (replace(SOUND, loss=F.binary_cross_entropy), "loss", "cannot take outputs of"),
    "a loss of NaN": (replace(SOUND, loss=lambda o, t: F.cross_entropy(o, t) * torch.nan), "loss", "loss is nan"),
    "the metric's mean": (replace(SOUND, metric=lambda o, t: (o.argmax(1) == t).float().mean()), "metric", "not their"),
    "a metric in per cent": (replace(SOUND, metric=lambda o, t: torch.full((len(t),), 50.0)), "metric", "score of 50"),
    "metric raises": (replace(SOUND, metric=raises), "metric", "broken on purpose"),
    "labels from 1": (with_data(test=Split(DATA.test.x, DATA.test.y + 1)), "labels", "0..2"),
    "an output too few": (replace(SOUND, model=lambda: nn.Linear(6, 2)), "labels", "the network 2 outputs"),
    "one output": (
        replace(SOUND, model=lambda: nn.Linear(6, 1), load=lambda d: replace(
            DATA, **{n: Split(getattr(DATA, n).x, getattr(DATA, n).y * 0) for n in ("train", "val", "test")}
        )), "labels", "always 1",
    ),
    "a class too many": (with_data(classes=("a", "b", "c", "d")), "labels", "4 names"),
    "NaN in the data": (with_data(val=Split(NAN, DATA.val.y)), "values", "in 1 example of 30"),
    "constant inputs": (with_data(train=Split(torch.ones(60, 6), DATA.train.y)), "inputs", "equal"),
    "random data": (
        replace(SOUND, load=lambda d: replace(DATA, train=Split(torch.rand(60, 6), DATA.train.y))),
        "loading", "different x of the train split",
    ),
    "validated on training data": (with_data(val=Split(*(part[:30] for part in DATA.train))), "leaks", "30 of the 30"),
    "tested on training data": (with_data(test=DATA.train), "leaks", "test split also occur in the training split"),
    "weights drawn by NumPy": (replace(SOUND, model=drawn_by_numpy), "seeds", "0.weight"),
    "one network for all": (replace(SOUND, model=lambda: ONE), "seeds", "make a new one"),
    "augmented by torch": (
        replace(SOUND, augment=lambda x, g: x + torch.randn_like(x)), "augmentation", "from the generator"
    ),
    "augmented by NumPy": (
        replace(SOUND, augment=lambda x, g: x * np.random.rand()), "augmentation", "from the generator"
    ),
    "augmented to another shape": (replace(SOUND, augment=lambda x, g: x[:, :5]), "augmentation", "(8, 5)"),
    "prepared in place": (replace(SOUND, prepare=in_place), "preparation", "in place"),
    "prepared at random": (replace(SOUND, prepare=lambda x: x * random.random()), "preparation", "augment"),
    "evaluation that counts": (with_forward(counts_in_a_buffer), "evaluation", "changes seen"),
    "evaluation with dropout": (with_forward(lambda m, x: F.dropout(m.net(x))), "evaluation", "other outputs"),
    "statistics of the batch": (with_forward(lambda m, x: m.net(x - x.mean(0))), "batches", "has other examples"),
    "squeezed outputs": (with_forward(lambda m, x: m.net(x.squeeze(0))), "batches", "batch of one"),
    "a tensor on the CPU": (with_forward(lambda m, x: m.net(x + torch.ones(6))), "devices", "the network would mix"),
    "layers in a list": (with_forward(lambda m, x: m.net(m.layers[0](x))), "devices", "ModuleList"),
    "a layer made late": (with_forward(makes_a_layer), "evaluation", "late.weight is made in the first forward pass"),
    "a loss with weights on the CPU": (
        replace(SOUND, loss=partial(F.cross_entropy, weight=torch.ones(3))), "devices", "loss would mix"
    ),
    "all frozen": (replace(SOUND, model=frozen(0, 4)), "prunable", "0.weight stays dense, frozen"),
    "a last batch of one": (replace(SOUND, recipe=Recipe(2, 59)), "remainder", "1 example (60 examples in batches"),
    "drop_last of all": (replace(SOUND, recipe=Recipe(2, 61, drop_last=True)), "remainder", "batch_size of at most 60"),
    "training raises": (with_forward(lambda m, x: raises() if m.training and m.calls else counts_calls(m, x)), "steps",
                        "broken on purpose"),
    "weights that change": (with_forward(changes_its_weights), "gradients", "changes net.0.weight"),
    "noise from NumPy": (
        with_forward(lambda m, x: m.net(x + np.random.rand() * m.training)), "repetition", "same seed"
    ),
    "noise from a generator of its own": (
        with_forward(lambda m, x: m.net(x + torch.rand((), generator=ORDER) * m.training)), "repetition", "same seed"
    ),
    "a counter": (with_forward(counts_calls), "resumption", "register_buffer"),
    "luck outside the state": (with_forward(lambda m, x: m.net(x * (1 + m.luck))), "export", "register_buffer"),
}  # fmt: skip
FOLLOWS = {  # other checks that fail for some of these experiments
    "layers in a list": {"export"},
}

SUSPECT: dict[str, tuple[Experiment, str, str]] = {
    "mostly an embedding": (
        replace(SOUND, model=lambda: nn.Sequential(nn.Linear(6, 3), Table())), "prunable", "only 6%"
    ),
    "large inputs": (with_data(train=Split(DATA.train.x * 1e4, DATA.train.y)), "inputs", "standardise"),
    "a few copies": (with_data(val=Split(torch.cat([DATA.val.x, DATA.train.x[:2]]), torch.arange(32) % 3)), "leaks",
                     "2 of the 32"),
    "copies everywhere": (with_data(train=REPEATED, val=Split(*(part[:10] for part in REPEATED))), "leaks", "10 of"),
    "nearly all of one class": (
        with_data(val=Split(DATA.val.x, (torch.arange(30) > 27).long())), "classes", "'c' has no example"
    ),
    "a class that is not trained": (
        with_data(train=Split(DATA.train.x, DATA.train.y.clamp(max=1))), "classes", "'c' of the val split"
    ),
    "unbalanced": (
        with_data(**{name: one_in_thirty(name) for name in ("train", "val", "test")}), "classes", "balanced"
    ),
    "the same weights always": (replace(SOUND, model=constant), "seeds", "every seed"),
    "partly frozen": (replace(SOUND, model=frozen(0)), "prunable", "0.weight 66.7% (frozen)"),
    "a last layer that hides": (
        with_forward(lambda m, x: checkpoint(m.net, x.clone().requires_grad_(), use_reentrant=True)),
        "gradients", "registered last",
    ),
    "a layer that is not used": (with_forward(lambda m, x: m.net[4](x.repeat(1, 2))), "gradients", "net.0.weight"),
    "nothing to learn": (replace(SOUND, loss=lambda o, t: F.cross_entropy(o * 0, t)), "learning", "did not fall"),
}  # fmt: skip


def findings(experiment: Experiment) -> dict[str, Finding]:
    found = {finding.check: finding for finding in inspect(experiment)}
    assert list(found) == [check.name for check in CHECKS]
    for finding in found.values():
        assert finding.text
        assert "\n" not in finding.text
        assert len(finding.text) < 400
    return found


def test_a_sound_experiment_passes_all_checks() -> None:
    assert {finding.level for finding in findings(SOUND).values()} == {Level.OK}
    assert_sound(SOUND)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_load_function_that_returns_random_data_fails_under_any_seed(seed: int) -> None:
    torch.manual_seed(seed)
    assert findings(BROKEN["random data"][0])["loading"].level is Level.FAILED


@pytest.mark.parametrize("name", BROKEN)
def test_each_broken_experiment_fails_its_check(name: str) -> None:
    experiment, check, said = BROKEN[name]
    found = findings(experiment)
    assert found[check].level is Level.FAILED, found[check].text
    assert said in found[check].text
    failed = {finding.check for finding in found.values() if finding.level is Level.FAILED}
    told = "\n".join(f"{finding.check}: {finding.text}" for finding in found.values() if finding.check in failed)
    assert failed - FOLLOWS.get(name, set()) == {check}, told
    with pytest.raises(AssertionError, match=check):
        assert_sound(experiment)


@pytest.mark.parametrize("name", SUSPECT)
def test_each_suspect_experiment_gets_a_warning(name: str) -> None:
    experiment, check, said = SUSPECT[name]
    found = findings(experiment)
    assert found[check].level is Level.WARNING, found[check].text
    assert said in found[check].text
    assert not [finding for finding in found.values() if finding.level is Level.FAILED]


def test_every_check_has_a_broken_or_a_suspect_experiment() -> None:
    caught = {check for _, check, _ in (*BROKEN.values(), *SUSPECT.values())}
    # The check "files" needs an experiment from a file. The tests of the command `check` cover this check.
    in_a_file = {"files"}
    assert caught | in_a_file == {check.name for check in CHECKS}


def test_checks_depend_only_on_earlier_checks() -> None:
    seen: set[str] = set()
    for check in CHECKS:
        assert set(check.needs) <= seen, check.name
        assert not check.quick or all(one.quick for one in CHECKS if one.name in check.needs)
        seen.add(check.name)
    assert len(seen) == len(CHECKS)


def test_a_check_that_depends_on_a_failed_check_is_skipped() -> None:
    found = findings(BROKEN["load raises"][0])
    assert found["leaks"].level is Level.SKIPPED
    assert found["leaks"].text == "not checked, since 'data' failed"
    assert found["seeds"].level is Level.OK


def test_a_network_that_branches_on_its_inputs_does_not_fail_the_device_check() -> None:
    chooses = with_forward(lambda m, x: m.net(x) if x.sum().item() > -1e9 else x)
    found = findings(chooses)
    assert found["devices"].level in (Level.SKIPPED, Level.OK)
    assert not [finding for finding in found.values() if finding.level is Level.FAILED]


def test_a_regression_experiment_fails_no_check() -> None:
    def to_regress(split: Split) -> Split:
        return Split(split.x, split.x[:, :2].clone())

    parts = {name: to_regress(getattr(DATA, name)) for name in ("train", "val", "test")}
    regression = replace(
        SOUND,
        load=lambda d: Data(**parts),
        model=lambda: nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 2)),
        loss=F.mse_loss,
        metric=lambda outputs, targets: torch.exp(-(outputs - targets).square().mean(1)),
    )
    assert_sound(regression)


def test_the_checks_restore_the_global_random_generators() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    expected = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    findings(SOUND)
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected


def test_the_quick_checks_find_faults_that_would_fail_every_trial() -> None:
    quick = {check.name for check in CHECKS if check.quick}
    assert {"outputs", "prunable", "labels", "metric", "loss", "data"} <= quick
    for name, (experiment, check, said) in BROKEN.items():
        if name == "load raises":
            continue
        fault = first_fault(experiment, experiment.load(None))
        assert (fault is not None) == (check in quick), name
        if fault is not None:
            assert fault.check == check
            assert said in fault.text
    assert first_fault(SOUND, DATA) is None


def test_unbalanced_classes_give_no_warning_with_the_macro_f1_metric() -> None:
    unbalanced = SUSPECT["unbalanced"][0]
    macro_f1 = Metric("macro_f1", lambda o, t: f1_score(t, o.argmax(1), average="macro", zero_division=0.0))
    assert findings(replace(unbalanced, metric=macro_f1))["classes"].level is Level.OK
