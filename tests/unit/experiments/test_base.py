"""Experiments' building blocks: checksums, the metric and the evaluation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tune_sparsity.experiments.base import Data, Experiment, NotFinite, Recipe, Split, correct, evaluate


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def data() -> Data:
    splits = [Split(normal(k, 6, 2, 3), torch.arange(6)) for k in range(3)]
    return Data(*splits)


def unusable(_: object) -> Data:
    raise AssertionError("the data is not needed here")


def test_the_checksum_ignores_memory_layout_preprocessing_and_class_names() -> None:
    one = data()
    assert len(one.checksum()) == 64
    assert one.checksum() == data().checksum()
    spread = one.train.x.transpose(1, 2).contiguous().transpose(1, 2)  # the same values in another memory layout
    assert not spread.is_contiguous()
    assert Data(Split(spread, one.train.y), one.val, one.test).checksum() == one.checksum()
    assert Data(one.train, one.val, one.test, {"divide": 9}, ("a", "b")).checksum() == one.checksum()


def test_the_checksum_changes_with_values_order_shapes_types_and_splits() -> None:
    one = data()
    x, y = one.train
    changed = x.clone()
    changed[3, 1, 2] += 1e-6
    others = [
        Data(Split(changed, y), one.val, one.test),
        Data(Split(x, y.roll(1)), one.val, one.test),
        Data(Split(x.flip(0), y.flip(0)), one.val, one.test),
        Data(Split(x.flatten(1), y), one.val, one.test),
        Data(Split(x, y.int()), one.val, one.test),
        Data(Split(x.view(torch.int32), y), one.val, one.test),
        Data(one.val, one.train, one.test),
        Data(one.train, one.test, one.val),
        Data(one.train, one.val, Split(*(part[:5] for part in one.test))),
    ]
    assert len({one.checksum(), *(other.checksum() for other in others)}) == len(others) + 1


def test_the_function_correct_scores_each_example_with_0_or_1() -> None:
    outputs = torch.tensor([[0.1, 2.0, -1.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.1]])
    assert correct(outputs, torch.tensor([1, 1, 2])).tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(("epochs", "batch"), [(0, 32), (-1, 32), (10, 0)])
def test_impossible_recipes_are_refused(epochs: int, batch: int) -> None:
    with pytest.raises(ValueError, match="epochs, batch_size and accumulate of at least 1") as error:
        Recipe(epochs, batch)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("batch", [1, 7, 100, 1000])
def test_evaluation_is_the_mean_over_examples_in_evaluation_mode(batch: int) -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.Linear(5, 3), nn.BatchNorm1d(3))
    split = Split(normal(0, 100, 5), torch.arange(100) % 3)
    experiment = Experiment("x", unusable, nn.Identity, Recipe(1, 1))
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    score = evaluate(experiment, model, split, batch)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model.eval()
    expected = sum(int(model(split.x[i : i + 1]).argmax() == split.y[i]) for i in range(100)) / 100
    assert score == pytest.approx(expected, abs=1e-12)
    assert 0 < score < 1
    evaluate(experiment, model, split, batch)
    assert not model.training


def test_evaluation_uses_the_experiments_own_metric() -> None:
    def close(outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs.squeeze(1) - targets).abs() < 0.5).float()

    experiment = Experiment("x", unusable, nn.Identity, Recipe(1, 1), F.mse_loss, close)
    split = Split(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([0.1, 1.4, 3.0, 9.0]))
    assert evaluate(experiment, nn.Identity(), split) == 0.5


def test_evaluation_prepares_the_inputs_and_does_not_augment_them() -> None:
    def never(x: Tensor, generator: object) -> Tensor:
        raise AssertionError("only training batches are augmented")

    experiment = Experiment("x", unusable, nn.Identity, Recipe(1, 1), prepare=torch.neg, augment=never)
    split = Split(torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([0, 0]))
    assert evaluate(experiment, nn.Identity(), split) == 0.5
    assert evaluate(experiment, nn.Identity(), Split(-split.x, split.y)) == 0.5
    assert evaluate(experiment, nn.Identity(), Split(split.x[:1], split.y[:1])) == 1.0


@pytest.mark.parametrize(("shape", "largest"), [((4,), 4096), ((3, 64, 64), 341), ((3, 2048, 2048), 1)])
def test_evaluation_uses_smaller_batches_for_larger_inputs(shape: tuple[int, ...], largest: int) -> None:
    taken: list[int] = []

    def prepare(x: Tensor) -> Tensor:
        taken.append(len(x))
        return x.flatten(1)[:, :2].float()

    n = largest + 1
    x = torch.zeros(1, *shape, dtype=torch.uint8).expand(n, *shape)
    experiment = Experiment("x", unusable, nn.Identity, Recipe(1, 1), prepare=prepare)
    assert evaluate(experiment, nn.Identity(), Split(x, torch.zeros(n).long())) == 1.0
    assert taken == [largest, 1]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_evaluation_refuses_nan_outputs_and_accepts_infinite_outputs(bad: float) -> None:
    def broken(x: Tensor) -> Tensor:
        return torch.where(x.sum((1, 2))[:, None] > 0, bad, x[:, 0])

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return broken(x)

    split = Split(normal(0, 40, 2, 3), torch.zeros(40, dtype=torch.long))
    many = int((split.x.sum((1, 2)) > 0).sum())
    assert 0 < many < 40
    experiment = Experiment("broken", unusable, Broken, Recipe(1, 1))
    for batch in (7, 40):
        if bad == torch.inf:  # infinite outputs are allowed: a class may be certain, or impossible
            assert 0 <= evaluate(experiment, Broken(), split, batch) <= 1
            continue
        with pytest.raises(NotFinite, match=f"outputs are NaN for {many} of 40 examples"):
            evaluate(experiment, Broken(), split, batch)


@pytest.mark.parametrize(
    ("examples", "size", "drop", "trained"),
    [(61, 30, True, 60), (60, 30, True, 60), (61, 30, False, 61), (9, 30, True, 0)],
)
def test_a_recipe_counts_the_examples_of_an_epoch_with_and_without_drop_last(
    examples: int, size: int, drop: bool, trained: int
) -> None:
    assert Recipe(1, size, drop_last=drop).trained_on(examples) == trained
