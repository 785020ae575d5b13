"""Test the checks before a study: they look at all examples, and find faults that would fail every trial."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.unit.experiments.checks.test_checks import DATA, SOUND
from tune_sparsity.experiments import Recipe, Split
from tune_sparsity.experiments.checks import Level, assert_sound, first_fault, first_look


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("part", ["x", "y"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_nan_or_infinite_number_anywhere_in_the_data_is_found(
    split: str, part: str, bad: float, dtype: torch.dtype
) -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets.long())

    splits = {name: getattr(DATA, name) for name in ("train", "val", "test")}
    data = replace(DATA, **{name: Split(one.x.to(dtype), one.y.to(dtype)) for name, one in splits.items()})
    experiment = replace(SOUND, loss=loss, prepare=Tensor.float)
    assert first_fault(experiment, data) is None
    tensor = getattr(getattr(data, split), part).clone()
    tensor[7 if part == "x" else 0] = bad  # example 7 is not among the four that go through the network
    fault = first_fault(experiment, replace(data, **{split: getattr(data, split)._replace(**{part: tensor})}))
    assert fault is not None
    assert fault.check == "values"
    assert f"{part} of the {split} split has NaN or infinite numbers in 1 example" in fault.text


def test_a_last_batch_that_cannot_be_trained_on_is_found_before_a_study() -> None:
    alone = replace(SOUND, recipe=Recipe(2, 59))
    fault = first_fault(alone, DATA)
    assert fault is not None
    assert (fault.check, fault.level) == ("remainder", Level.FAILED)
    assert "drop_last=True" in fault.text
    ones = first_fault(replace(SOUND, recipe=Recipe(2, 1, drop_last=True)), DATA)
    assert ones is not None
    assert "network cannot train on: take a larger batch_size: " in ones.text
    assert first_fault(replace(alone, recipe=Recipe(2, 59, drop_last=True)), DATA) is None
    assert_sound(replace(alone, recipe=Recipe(2, 59, drop_last=True)))


def test_a_study_warns_of_faults_found_with_one_network_and_one_batch() -> None:
    """The findings are only warnings, so the study begins."""

    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.spare = SOUND.model(), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    large = replace(DATA, train=DATA.train._replace(x=1e4 * DATA.train.x))
    unused = replace(SOUND, model=Unused)
    told = {one.check: one for one in first_look(unused, large, told=True) if one.level is not Level.OK}
    assert {name: one.level for name, one in told.items()} == dict.fromkeys(("inputs", "gradients"), Level.WARNING)
    assert told["gradients"].text.startswith("no gradient reaches spare.weight")
    assert told["inputs"].text.startswith("the inputs reach ")
    assert all(one.level is Level.OK for one in first_look(unused, large))

    equal = replace(DATA, train=DATA.train._replace(x=torch.ones_like(DATA.train.x)))
    (inputs,) = [one for one in first_look(SOUND, equal, told=True) if one.level is Level.WARNING]
    assert inputs.text.startswith("all training inputs are equal")
