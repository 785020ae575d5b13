"""Steps are recorded on a GPU and replayed. Tests that record nothing need no GPU."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.examples import needs_gpu
from tests.helpers.problems import tensors
from tune_sparsity.sparsity import METHODS, LpSGD, SparseTraining
from tune_sparsity.sparsity.optim.cuda_graph import (
    DeviceScalars,
    Recorded,
    RecordedPasses,
    RecordedSteps,
    can_be_recorded,
)
from tune_sparsity.sparsity.optim.foreach import ForeachStep

SHAPES = [(6, 40), (5, 40), (4, 3, 2, 2)]
PARAMS = {
    "lpss": {"final_sparsity": 0.8, "p": 1.4, "threshold_interval": 5},
    "rigl": {"final_sparsity": 0.8, "lr": 0.1, "interval": 5},
    "sparse-momentum": {"final_sparsity": 0.8, "lr": 0.1, "interval": 5, "weight_decay": 1e-3},
    "gmp": {"final_sparsity": 0.8, "lr": 0.1, "interval": 5},
    "snip": {"final_sparsity": 0.8, "lr": 0.1},
    "dense": {"lr": 0.1},
}


def drawn(seed: int) -> list[Tensor]:
    return tensors(seed, *SHAPES, dtype=torch.float64)


def stepped(moving: bool, **options: Any) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Take three steps with changing learning rates and exponents p. They are numbers, or tensors if `moving` is true.
    Return the parameters and their states."""
    params = [nn.Parameter(x) for x in drawn(0)]
    optimizer = LpSGD(params, weight_decay=1e-2 if options["gain"] or options["p"] is None else 0.0, **options)
    masks = [(x.abs() < 1).double() for x in drawn(1)]
    if options["p"] is not None:
        optimizer.set_masks(dict(zip(params, masks, strict=True)))
    names = ("lr", "gain_lr", "p") if options["p"] is not None else ("lr", "gain_lr")
    numbers = DeviceScalars(optimizer.param_groups, names, torch.device("cpu"), torch.float64)
    for number in range(3):
        group = optimizer.param_groups[0]
        group["lr"], group["gain_lr"] = 0.1 / (1 + number), 0.2 / (1 + number)
        if options["p"] is not None:
            group["p"] = options["p"] + 0.01 * number if options["p"] < 2 else 2.0
        for param, grad in zip(params, drawn(10 + number), strict=True):
            param.grad = grad
        if moving:
            numbers.follow()
            with numbers.in_use():
                assert isinstance(group["lr"], Tensor)
                optimizer.step()
        else:
            optimizer.step()
        assert isinstance(group["lr"], float)
    return [param.detach() for param in params], [optimizer.state[param] for param in params]


@pytest.mark.parametrize("gain", [False, True])
@pytest.mark.parametrize("p", [1.07, 1.5, 2.0, None])
def test_steps_with_settings_in_tensors_equal_steps_with_numbers(p: float | None, gain: bool) -> None:
    plain, moved = (stepped(moving, p=p, gain=gain and p is not None, foreach=True) for moving in (False, True))
    for a, b in zip(plain[0], moved[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    for first, second in zip(plain[1], moved[1], strict=True):
        assert first.keys() == second.keys()
        for key in first:
            torch.testing.assert_close(first[key], second[key], rtol=1e-12, atol=1e-14)


def test_changed_learning_rates_of_numpy_types_are_copied_to_the_tensors() -> None:
    optimizer = LpSGD([nn.Parameter(x) for x in drawn(0)], p=1.5)
    group = optimizer.param_groups[0]
    group["lr"] = np.float32(0.25)
    numbers = DeviceScalars(optimizer.param_groups, ("lr", "p"), torch.device("cpu"), torch.float64)
    for lr in (0.25, 0.125):
        group["lr"] = np.float32(lr)
        numbers.follow()
        with numbers.in_use():
            assert (group["lr"].item(), group["p"].item()) == (lr, 1.5)


def test_device_scalars_detect_that_the_optimizers_groups_have_changed() -> None:
    params = [nn.Parameter(x) for x in drawn(0)]
    optimizer = LpSGD(params[:2], p=1.5)
    numbers = DeviceScalars(optimizer.param_groups, ("lr",), torch.device("cpu"), torch.float64)
    assert numbers.belongs_to(optimizer.param_groups)
    optimizer.add_param_group({"params": params[2:]})
    assert not numbers.belongs_to(optimizer.param_groups)
    numbers = DeviceScalars(optimizer.param_groups, ("lr",), torch.device("cpu"), torch.float64)
    optimizer.load_state_dict(optimizer.state_dict())
    assert not numbers.belongs_to(optimizer.param_groups)


def test_groups_contain_plain_numbers_again_after_a_failed_step() -> None:
    optimizer = LpSGD([nn.Parameter(x) for x in drawn(0)], p=1.5)
    numbers = DeviceScalars(optimizer.param_groups, ("lr", "p"), torch.device("cpu"), torch.float64)
    with pytest.raises(ZeroDivisionError), numbers.in_use():
        raise ZeroDivisionError
    assert optimizer.param_groups[0]["p"] == 1.5
    assert isinstance(optimizer.param_groups[0]["lr"], float)


def test_the_optimizers_arrangement_number_changes_with_its_tensors() -> None:
    params = [nn.Parameter(x) for x in drawn(0)]
    optimizer = LpSGD(params, p=1.5, foreach=True)
    masks = {param: torch.ones_like(param) for param in params}

    def after(act: Any) -> bool:
        before = optimizer.arrangement
        act()
        return optimizer.arrangement != before

    def step() -> None:
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()

    assert after(lambda: optimizer.set_masks(masks))
    assert after(step)  # the first step creates the ForeachStep object
    assert not after(step)
    (block,) = optimizer._blocks[id(optimizer.param_groups[0])][1]
    assert isinstance(block, ForeachStep)
    masks[params[0]][0] = 0
    assert not after(lambda: optimizer.set_masks(masks))  # the same tensors with other contents
    assert not after(step)
    assert (params[0][0] == 0).all()
    assert after(lambda: optimizer.set_masks({param: torch.ones_like(param) for param in params}))
    assert after(step)
    assert after(lambda: optimizer.load_state_dict(optimizer.state_dict()))
    params[0].grad = None
    assert after(optimizer.step)  # another set of parameters
    other = copy.deepcopy(optimizer)
    assert other.arrangement > 0


def test_steps_on_a_cpu_are_not_recorded() -> None:
    params = [nn.Parameter(x) for x in drawn(0)]
    assert not can_be_recorded(params)
    assert not can_be_recorded([])
    recorded = RecordedSteps(LpSGD(params, p=1.5), p_moves=False)
    assert not recorded(lambda: pytest.fail("a step on a CPU must not be recorded"), fixed=True)


class Net(nn.Sequential):
    """A convolution, batch normalisation and two layers."""

    def __init__(self, normalised: bool) -> None:
        inner: list[nn.Module] = [nn.Conv2d(1, 4, 3, padding=1)]
        inner += [nn.BatchNorm2d(4)] if normalised else []
        super().__init__(*inner, nn.ReLU(), nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 3))


def data(steps: int, device: str) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.randn(16, 1, 4, 4, generator=generator, dtype=torch.float64).to(device), torch.arange(16).to(device) % 3)
        for _ in range(steps)
    ]


def begun(
    method: str, steps: int, device: str, normalised: bool = False, network: type[Net] = Net, **params: Any
) -> SparseTraining:
    torch.manual_seed(0)
    model = network(normalised).double().to(device)
    generator = torch.Generator().manual_seed(1)
    return METHODS[method].build(model, PARAMS[method] | params, total_steps=steps, generator=generator)


def train(
    sparse: SparseTraining, batches: list[tuple[Tensor, Tensor]], *, whole: bool = False, waits: bool = False
) -> list[float]:
    """Train and return the losses. With `whole`, also record the forward and backward passes. With `waits`, the network
    waits for the GPU, so check that its passes are not recorded."""
    x, y = (tensor.clone() for tensor in batches[0])
    losses, recorded = [], RecordedPasses(sparse.model.parameters())

    def passes() -> Tensor:
        loss = F.cross_entropy(sparse.model(x), y)
        sparse.zero_grad()
        loss.backward()
        return loss

    for batch, target in batches:
        x.copy_(batch)
        y.copy_(target)
        losses.append((recorded(passes) if whole else passes()).item())
        sparse.step()
    assert recorded._recorded.is_made == (whole and not waits)
    return losses


def same(a: SparseTraining, b: SparseTraining, relative: float = 1e-9) -> None:
    for mask, other in zip(a.masks, b.masks, strict=True):
        assert torch.equal(mask.cpu(), other.cpu())
    for (name, value), other in zip(a.model.state_dict().items(), b.model.state_dict().values(), strict=True):
        torch.testing.assert_close(value.cpu(), other.cpu(), rtol=relative, atol=relative / 100, msg=name)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("method", PARAMS)
def test_a_recorded_training_equals_the_training_on_a_cpu(method: str, normalised: bool, whole: bool) -> None:
    here, there = (begun(method, 60, device, normalised) for device in ("cpu", "cuda"))
    expected, losses = train(here, data(60, "cpu")), train(there, data(60, "cuda"), whole=whole)
    # LpSGD takes its rate in double precision, torch's SGD in single precision.
    relative = 1e-9 if method == "lpss" else 1e-5
    assert losses == pytest.approx(expected, rel=relative)
    same(here, there, relative)
    assert there._recorded._recorded.is_made


@pytest.mark.gpu
@needs_gpu
def test_a_training_whose_exponent_p_changes_is_recorded() -> None:
    p = {"shape": "linear", "start": 1.6, "stop": 1.2}
    here, there = (begun("lpss", 60, device, p=p) for device in ("cpu", "cuda"))
    train(here, data(60, "cpu"))
    train(there, data(60, "cuda"), whole=True)
    same(here, there)
    assert there._recorded._recorded.is_made


@pytest.mark.gpu
@needs_gpu
def test_a_recorded_training_resumes_from_its_state() -> None:
    batches = data(60, "cuda")
    whole, first, second = (begun("lpss", 60, "cuda") for _ in range(3))
    train(whole, batches, whole=True)
    train(first, batches[:23], whole=True)
    train(second, batches[:9], whole=True)  # so that it already has recordings, which are invalid after loading
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.model.load_state_dict(first.model.state_dict())
    train(second, batches[23:], whole=True)
    same(whole, second)


@pytest.mark.gpu
@needs_gpu
def test_passes_that_wait_for_the_gpu_are_not_recorded_and_still_train() -> None:
    class Waiting(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.dropout(x, 0.0) * (1.0 if x.sum().item() else 2.0))

    here, there = begun("lpss", 60, "cpu"), begun("lpss", 60, "cuda", network=Waiting)
    train(here, data(60, "cpu"))
    train(there, data(60, "cuda"), whole=True, waits=True)
    same(here, there)
    assert torch.rand(3, device="cuda").shape == (3,)  # the GPU can still draw random numbers


@pytest.mark.gpu
@needs_gpu
def test_dropout_is_drawn_anew_at_every_replay() -> None:
    x, recorded = torch.ones(1000, device="cuda"), Recorded()
    drawn = [recorded(lambda: F.dropout(x), "key").clone() for _ in range(6)]
    assert recorded.is_made
    assert len({tuple(each.tolist()) for each in drawn}) == 6


@pytest.mark.gpu
@needs_gpu
def test_a_copy_of_a_recorded_training_trains_independently() -> None:
    batches = data(60, "cuda")
    first, whole = begun("lpss", 60, "cuda"), begun("lpss", 60, "cuda")
    train(whole, batches, whole=True)
    train(first, batches[:23], whole=True)
    second = copy.deepcopy(first)
    train(first, batches[23:], whole=True)
    train(second, batches[23:], whole=True)
    same(whole, first)
    same(whole, second)


@pytest.mark.gpu
@needs_gpu
def test_deleting_a_training_frees_its_gpu_memory() -> None:
    held = []
    for _ in range(4):
        training = begun("lpss", 60, "cuda", True)
        train(training, data(60, "cuda"), whole=True)
        del training
        torch.cuda.empty_cache()
        held.append(torch.cuda.memory_allocated())
    assert held[-1] == held[1]
