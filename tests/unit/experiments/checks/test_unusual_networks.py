"""Test the checks on networks with other dtypes, and on networks that cannot be trained or saved correctly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.unit.experiments.checks.test_checks import DATA, SOUND
from tune_sparsity.experiments.checks import Level, first_fault, inspect


def failures(**changed: Any) -> dict[str, str]:
    found = inspect(replace(SOUND, **changed))
    return {finding.check: finding.text for finding in found if finding.level is Level.FAILED}


class Statistics(nn.Module):
    """A network in bfloat16. It subtracts the mean output of the batch, times `share`, from each output."""

    def __init__(self, share: float = 0.0) -> None:
        super().__init__()
        self.share, self.layers = share, nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
        self.layers.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.layers(x.bfloat16()).float()
        return outputs - self.share * outputs.mean(0)


class RoundedInBatches(Statistics):
    """A network whose outputs in a batch differ from those of a single example by a rounding error of bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + 2**-7 * (len(x) > 1))


def test_rounding_in_bfloat16_does_not_fail_the_batches_check() -> None:
    assert failures(model=RoundedInBatches) == {}
    assert list(failures(model=lambda: Statistics(0.5))) == ["batches"]


class Teacher(nn.Module):
    """A network with a layer `teacher`, whose weight is a moving average of the weight of `body`. If it is not frozen,
    the teacher itself is pruned."""

    def __init__(self, *, frozen: bool = True) -> None:
        super().__init__()
        self.body, self.teacher, self.head = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(12, 3)
        self.teacher.requires_grad_(not frozen)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.teacher.weight.lerp_(self.body.weight, 0.1)
        return self.head((self.body(x) + self.teacher(x)).relu())


def test_a_forward_pass_may_change_frozen_layers_but_no_trained_layers() -> None:
    assert failures(model=Teacher) == {}
    told = failures(model=lambda: Teacher(frozen=False))
    assert told["gradients"].startswith("a forward pass in training changes teacher.weight")


class Unusual(nn.Module):
    """A network with one parameter of another dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 12), nn.Linear(12, 3)
        self.table = nn.Parameter(torch.randn(12).to(dtype), requires_grad=dtype.is_complex)

    def forward(self, x: Tensor) -> Tensor:
        table = self.table.abs() if self.table.is_complex() else self.table.float()
        return self.head(self.body(x) * table)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn, torch.int8])
def test_parameters_of_other_dtypes_fail_no_check(dtype: torch.dtype) -> None:
    assert failures(model=lambda: Unusual(dtype)) == {}


def test_sparse_gradients_fail_no_check() -> None:
    def load(data_dir: object) -> Any:
        splits = {name: getattr(DATA, name) for name in ("train", "val", "test")}
        tokens = {name: split._replace(x=(4 * split.x).long().clamp(0, 9)) for name, split in splits.items()}
        return replace(DATA, **tokens)

    bag = nn.EmbeddingBag
    assert failures(load=load, model=lambda: nn.Sequential(bag(10, 8, sparse=True), nn.Linear(8, 3))) == {}


def in_place() -> nn.Module:
    return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))


class ExtraState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(6, 3), 2.0

    def get_extra_state(self) -> dict[str, float]:
        return {"scale": self.scale}

    def set_extra_state(self, state: dict[str, float]) -> None:
        self.scale = state["scale"]

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.layer(x)


def left_on_meta() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 3), nn.Linear(3, 3, device="meta"))


def in_one_memory() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3))
    model[1].weight = nn.Parameter(model[0].weight.T)
    return model


def renamed() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 3))
    model.register_state_dict_post_hook(lambda module, state, *_: state.update({"model.weight": state.pop("0.weight")}))
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "in place": (in_place, "the network changes the data set's own inputs in place: avoid inplace=True"),
    "extra state": (ExtraState, "_extra_state of the network's state_dict is a dict, and files hold only tensors"),
    "on meta": (left_on_meta, "1.weight lies on the device meta, where it has no numbers"),
    "renamed": (renamed, "0.weight is not in the network's state_dict under this name"),
    "in one memory": (in_one_memory, "0.weight and 1.weight are two tensors in the same memory"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_network_that_a_study_cannot_train_or_save_correctly_is_refused(name: str) -> None:
    make, told = REFUSED[name]
    fault = first_fault(replace(SOUND, model=make), DATA)
    assert fault is not None
    assert fault.text.startswith(told)


def test_prepared_inputs_may_be_changed_in_place() -> None:
    assert failures(model=in_place, prepare=torch.clone) == {}
