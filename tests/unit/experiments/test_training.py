"""The training loop is reproducible by its seed, resumes bit for bit, and raises an error if the loss is not finite."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from tune_sparsity.experiments.base import Data, Experiment, Recipe, Split, evaluate
from tune_sparsity.experiments.builtin.digits import digits
from tune_sparsity.experiments.data.augment import Augmentation, Normalise
from tune_sparsity.experiments.training import NotFinite, Training, train_whole
from tune_sparsity.sparsity import LayerRules
from tune_sparsity.sparsity.masks import zeros_for

PARAMS = {"final_sparsity": 0.9, "p": 1.3, "threshold_interval": 3}


def unused(_: object) -> Data:
    raise AssertionError("the data is not needed here")


def small_data(n: int = 100) -> Data:
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(3, 12, generator=generator)

    def split(count: int) -> Split:
        y = torch.arange(count) % 3
        return Split(centres[y] + torch.randn(count, 12, generator=generator), y)

    return Data(split(n), split(60), split(60))


def noisy() -> nn.Module:
    """A network that draws random numbers (dropout) and has buffers (batch normalisation)."""
    return nn.Sequential(
        nn.Linear(12, 20),
        nn.BatchNorm1d(20),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(20, 10),
        nn.ReLU(),
        nn.Linear(10, 3),
    )


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3))


def experiment(model: Any = plain, **options: Any) -> Experiment:
    return Experiment("small", lambda folder: small_data(), model, Recipe(epochs=4, batch_size=16), **options)


def start(which: Experiment, *, seed: int = 0, epochs: int = 4, **params: Any) -> Training:
    data = small_data()
    return Training(which, data.train, data.val, "lpss", {**PARAMS, **params}, epochs=epochs, seed=seed)


def weights(training: Training) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in training.model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---- randomness


@pytest.mark.parametrize("model", [plain, noisy])
def test_the_seed_decides_everything(model: Any) -> None:
    ends = []
    for seed, disturbance in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(disturbance)  # draws of other code from the global generator do not matter
        training = start(experiment(model), seed=seed)
        for _ in range(2):
            training.epoch()
            torch.rand(disturbance)
        ends.append(weights(training))
    assert equal(ends[0], ends[1])
    assert not equal(ends[0], ends[2])


def test_initial_weights_masks_and_example_order_depend_on_the_seed() -> None:
    one, other = start(experiment(), seed=0), start(experiment(), seed=1)
    assert not torch.equal(one.model[0].weight, other.model[0].weight)
    assert not torch.equal(one.sparse.masks[0], other.sparse.masks[0])
    assert not torch.equal(torch.randperm(50, generator=one.order), torch.randperm(50, generator=other.order))


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    start(experiment(noisy)).epoch()
    assert torch.equal(torch.rand(3), expected)


def test_dropout_and_the_like_differ_from_step_to_step_and_epoch_to_epoch() -> None:
    drawn: list[float] = []

    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                drawn.append(torch.rand(()).item())
            return x

    training = start(experiment(lambda: nn.Sequential(plain(), Noise())))
    training.epoch()
    training.epoch()
    assert len(drawn) == len(set(drawn)) == 14


# ---- one epoch


def test_every_example_is_seen_once_an_epoch_in_a_fresh_order() -> None:
    seen: list[int] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.extend(targets.tolist())
        return F.cross_entropy(outputs, targets % 3)

    data = small_data()
    train = Split(data.train.x, torch.arange(100))
    training = Training(experiment(loss=loss), train, data.val, "lpss", PARAMS, epochs=2, seed=0)
    training.epoch()
    training.epoch()
    first, second = seen[:100], seen[100:]
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second
    assert first != list(range(100))


def test_train_loss_is_the_mean_over_examples() -> None:
    losses: list[Tensor] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        each = F.cross_entropy(outputs, targets, reduction="none")
        losses.append(each.detach())
        return each.mean()

    measured = start(experiment(loss=loss)).epoch()
    assert [len(each) for each in losses] == [16] * 6 + [4]  # the last batch is smaller and counts less
    assert measured["train_loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)


def test_measurements_of_an_epoch_describe_the_network_at_its_end() -> None:
    training = start(experiment())
    data = small_data()
    for epoch in range(1, 5):
        assert not training.finished
        measured = training.epoch()
        assert training.epochs_done == epoch
        zeros = sum(int((training.model[k].weight == 0).sum()) for k in (0, 2))
        assert measured["sparsity"] == training.sparse.sparsity()
        assert zeros >= measured["sparsity"] * 300
        assert measured["nonzero_weights"] == 300 - training.sparse.zeros()[0]
        assert measured["sparsity_total"] == pytest.approx(training.sparse.zeros()[0] / 323)
        assert measured["val_accuracy"] == evaluate(training.experiment, training.model, data.val)
        assert measured["travel"] == training.sparse.lr_sum > 0
        assert 0 < measured["hoyer"] <= 1
        assert measured["epoch_seconds"] > 0
        with training.sparse.projected():
            assert measured["val_accuracy_at_target"] == evaluate(training.experiment, training.model, data.val)
    assert training.finished
    assert training.sparse.steps == training.sparse.total_steps == 28
    assert measured["val_accuracy_at_target"] == measured["val_accuracy"]
    assert measured["sparsity"] == zeros_for(0.9, 300) / 300
    assert int(sum((training.model[k].weight == 0).sum() for k in (0, 2))) == zeros_for(0.9, 300)


def test_accuracy_at_target_uses_running_statistics_of_the_pruned_network() -> None:
    """Running statistics of the network before it is pruned would not fit the activations of the pruned network."""
    data, which = small_data(), experiment(noisy)
    training = start(which)
    measured = training.epoch()
    assert not training.sparse.fixed
    untouched = weights(training)
    with training.sparse.projected():
        copied = copy.deepcopy(training.model)
    assert equal(untouched, weights(training))
    copied.eval()
    copied[1].train()
    copied[1].reset_running_stats()
    copied[1].momentum = None
    copied(data.train.x)  # 100 examples: the whole set in one batch
    assert measured["val_accuracy_at_target"] == evaluate(which, copied.eval(), data.val)


def test_validation_takes_no_part_in_training() -> None:
    data, which = small_data(), experiment(noisy)
    ends = []
    for val in (data.val, Split(data.val.x * 100, data.val.y.flip(0))):
        training = Training(which, data.train, val, "lpss", PARAMS, epochs=2, seed=0)
        training.epoch()
        training.epoch()
        ends.append(weights(training))
    assert equal(*ends)


@pytest.mark.parametrize(
    ("bad", "at"), [(math.nan, 10), (math.inf, 10), (math.nan, 14), (math.inf, 14), (-math.inf, 14)]
)
def test_a_nan_or_infinite_loss_raises_an_error(bad: float, at: int) -> None:
    steps = 0

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        return F.cross_entropy(outputs, targets) * (bad if steps == at else 1.0)

    training = start(experiment(loss=loss))
    training.epoch()  # 7 steps, and the second epoch ends with the 14th
    with pytest.raises(NotFinite, match="in epoch 2") as error:
        training.epoch()
    assert "\n" not in str(error.value)


def test_a_training_that_diverges_raises_an_error() -> None:
    training = start(experiment(loss=lambda outputs, targets: outputs.square().sum()), lr=1e30)
    with pytest.raises(NotFinite):
        training.epoch()


# ---- resuming


@pytest.mark.parametrize("model", [plain, noisy])
@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_resumed_training_equals_an_unbroken_one(model: Any, done: int) -> None:
    which = experiment(model)
    unbroken = start(which, seed=3)
    file = io.BytesIO()
    measured = {}
    for epoch in range(4):
        if epoch == done:
            torch.save(unbroken.state_dict(), file)
        measured = unbroken.epoch()

    torch.manual_seed(99)
    file.seek(0)
    resumed = start(which, seed=4)  # the seed of the new object does not matter
    resumed.load_state_dict(torch.load(file, weights_only=True))
    again = {}
    while not resumed.finished:
        again = resumed.epoch()
    assert equal(weights(resumed), weights(unbroken))
    assert {**again, "epoch_seconds": 0} == {**measured, "epoch_seconds": 0}
    assert all(torch.equal(a, b) for a, b in zip(resumed.sparse.masks, unbroken.sparse.masks, strict=True))


# ---- what is done to the inputs


class Shift:
    """An augmentation that adds a random number to each example, and records its inputs."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        self.seen.append(x)
        return x + torch.rand(len(x), 1, generator=generator)


def tenfold(x: Tensor) -> Tensor:
    return 10 * x


def test_augmentation_precedes_prepare_and_changes_only_training_batches() -> None:
    taken: list[tuple[bool, Tensor]] = []

    class Noting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            taken.append((self.training, x))
            return super().forward(x)

    augment, data = Shift(), small_data()
    training = start(experiment(lambda: Noting(12, 3), augment=augment, prepare=tenfold))
    training.epoch()
    assert [len(x) for x in augment.seen] == [16] * 6 + [4]
    given = torch.cat(augment.seen)
    # `prepare` has not been applied to the inputs of the augmentation.
    assert sorted(given[:, 0].tolist()) == sorted(data.train.x[:, 0].tolist())
    shift = torch.cat([x for training, x in taken if training]) / 10 - given
    assert shift.min() > -1e-5
    assert shift.max() < 1 + 1e-5
    assert torch.allclose(shift, shift[:, :1].expand_as(shift), atol=1e-4)
    assert len({round(value, 4) for value in shift[:, 0].tolist()}) > 90
    evaluated = [x for training, x in taken if not training]
    assert evaluated
    assert all(torch.equal(x, 10 * data.val.x) for x in evaluated)


def test_augmentation_is_decided_by_the_seed() -> None:
    ends = []
    for seed, disturbance in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(disturbance)
        augment = Shift()
        training = start(experiment(augment=augment), seed=seed)
        training.epoch()
        ends.append(weights(training))
    assert equal(ends[0], ends[1])
    assert not equal(ends[0], ends[2])
    without = start(experiment())
    without.epoch()
    assert not equal(ends[0], weights(without))


@pytest.mark.parametrize("done", [0, 1, 3])
def test_resumed_augmentation_equals_an_unbroken_one(done: int) -> None:
    def images() -> Split:
        generator = Generator().manual_seed(1)
        pixels = torch.randint(256, (40, 1, 6, 6), dtype=torch.uint8, generator=generator)
        return Split(pixels, torch.arange(40) % 3)

    which = Experiment(
        "images",
        unused,
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.ReLU(), nn.Linear(20, 3)),
        Recipe(4, 16),
        prepare=Normalise((0.5,), (0.3,)),
        augment=Augmentation(2, True, 2),
    )
    unbroken = Training(which, images(), images(), "lpss", PARAMS, epochs=4, seed=3)
    file = io.BytesIO()
    for epoch in range(4):
        if epoch == done:
            torch.save(unbroken.state_dict(), file)
        unbroken.epoch()
    file.seek(0)
    resumed = Training(which, images(), images(), "lpss", PARAMS, epochs=4, seed=4)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    while not resumed.finished:
        resumed.epoch()
    assert equal(weights(resumed), weights(unbroken))
    assert torch.equal(resumed.train_split.x, images().x)


# ---- whole trainings


def test_an_experiment_says_which_layers_are_pruned_and_how_long_the_training_is() -> None:
    rules = LayerRules(dense=("0.*",), off_sphere=())
    training = start(experiment(noisy, layers=rules), epochs=6, learning_rate="published")
    assert [(layer.name, layer.sphere) for layer in training.sparse.layers] == [("4.weight", True), ("6.weight", True)]
    assert training.sparse.learning_rate(1 - 3 / 6) == pytest.approx(0.002)
    while not training.finished:
        training.epoch()
    assert set(training.sparse.by_layer()) == {"4.weight", "6.weight"}
    assert bool((training.model.state_dict()["0.weight"] != 0).all())


def test_bad_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^p = 3 is not accepted"):
        start(experiment(), p=3)
    with pytest.raises(ValueError, match="lpss has no parameter 'rho'"):
        start(experiment(), rho=3)


@pytest.mark.slow
def test_digits_are_learned_at_ninety_percent_sparsity() -> None:
    data = digits.load(None)
    params = {"final_sparsity": 0.9, "p": 1.4, "sphere_lr": 0.01, "threshold_interval": 10}
    training = train_whole(digits, data, "lpss", params, epochs=12, seed=0)
    assert training.epochs_done == 12
    assert training.sparse.zeros() == (zeros_for(0.9, 50200), 50200)
    assert evaluate(digits, training.model, data.test) > 0.93
    untrained = Training(digits, data.train, data.val, "lpss", params, epochs=1, seed=0)
    assert evaluate(digits, untrained.model, data.test) < 0.3
