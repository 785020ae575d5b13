"""The settings of a recipe: accumulated gradients, clipped gradients and lower precision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tune_sparsity.experiments import Experiment, NotFinite, Recipe, Split, Training

PARAMS = {
    "gmp": {"final_sparsity": 0.5, "lr": 0.05, "interval": 2},
    "lpss": {"final_sparsity": 0.5, "p": 1.4, "threshold_interval": 2},
}


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)).double()


def split(count: int = 48, seed: int = 0) -> Split:
    numbers = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 4
    return Split(torch.randn(count, 6, generator=numbers, dtype=torch.float64) + torch.eye(4, 6)[y], y)


def training(
    method: str = "gmp", *, model: Callable[[], nn.Module] = network, data: Split | None = None, **recipe: Any
) -> Training:
    given = {"epochs": 3, "batch_size": 8, **recipe}
    experiment = Experiment("test", lambda _: None, model, Recipe(**given))  # type: ignore[arg-type, return-value]
    return Training(experiment, data or split(), split(16, 1), method, PARAMS[method], epochs=given["epochs"], seed=0)


@pytest.mark.parametrize("method", PARAMS)
def test_accumulated_batches_are_one_large_batch(method: str) -> None:
    whole, parts = training(method, batch_size=24), training(method, batch_size=8, accumulate=3)
    for _ in range(3):
        one, other = whole.epoch(), parts.epoch()
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=1e-9)
    assert whole.sparse.steps == parts.sparse.steps == 6
    for mine, theirs in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    assert all(torch.equal(one, other) for one, other in zip(whole.sparse.masks, parts.sparse.masks, strict=True))


def test_the_remaining_batches_of_an_epoch_form_a_step_of_their_own() -> None:
    steps: list[Tensor] = []
    trained = training(batch_size=8, accumulate=4, data=split(44))  # two steps: batches of 8, 8, 8, 8 and of 8, 4
    step = trained.sparse.quick_step
    trained.sparse.quick_step = lambda: (steps.append(trained.model[0].weight.grad.clone()), step())[1]  # type: ignore
    fresh = copy.deepcopy(trained.model)
    order = torch.randperm(44, generator=copy.deepcopy(trained.order))
    trained.epoch()
    assert trained.sparse.steps == 2
    assert trained.sparse.total_steps == 6
    x, y = split(44)
    losses = [nn.functional.cross_entropy(fresh(x[some]), y[some]) for some in order[:32].split(8)]
    torch.stack(losses).mean().backward()
    torch.testing.assert_close(steps[0], fresh[0].weight.grad, rtol=1e-9, atol=1e-12)  # type: ignore[union-attr]


def test_clip_norm_limits_the_norm_of_all_gradients_together() -> None:
    norms: list[float] = []

    def watched(clip: float | None) -> None:
        trained = training(clip_norm=clip)
        step = trained.sparse.quick_step

        def measured() -> None:
            grads = [param.grad for param in trained.model.parameters() if param.grad is not None]
            norms.append(float(torch.cat([grad.flatten() for grad in grads]).norm()))
            step()

        trained.sparse.quick_step = measured  # type: ignore[method-assign]
        trained.epoch()

    watched(None)
    free = norms.copy()
    norms.clear()
    clip = sorted(free)[0] / 2
    watched(clip)
    assert norms == pytest.approx([clip] * len(norms), rel=1e-4)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("method", PARAMS)
def test_lower_precision_learns_and_resumes_bit_for_bit(method: str, precision: str) -> None:
    seen: set[torch.dtype] = set()

    class Watched(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            outputs = super().forward(x)
            if self.training:
                seen.add(outputs.dtype)
            return outputs

    def model() -> nn.Module:
        return Watched(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))

    data = Split(split().x.float(), split().y)
    val = Split(split(16, 1).x.float(), split(16, 1).y)
    experiment = Experiment("test", lambda _: None, model, Recipe(6, 8, precision=precision))  # type: ignore

    def begun() -> Training:
        return Training(experiment, data, val, method, PARAMS[method], epochs=6, seed=0)

    unbroken = begun()
    first = unbroken.epoch()
    state = copy.deepcopy(unbroken.state_dict())
    resumed = begun()
    resumed.load_state_dict(state)
    for _ in range(5):
        last, again = unbroken.epoch(), resumed.epoch()
        assert last["train_loss"] == again["train_loss"]
    assert last["train_loss"] < first["train_loss"]
    assert last["sparsity"] == 0.5
    assert seen == {getattr(torch, precision)}
    assert all(param.dtype == torch.float32 for param in unbroken.model.parameters())


def test_a_float16_step_with_an_infinite_gradient_is_skipped_and_not_counted() -> None:
    class Overflows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(6, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.inner(x)) * 30)

    data = Split(split().x.float(), split().y)
    experiment = Experiment("test", lambda _: None, Overflows, Recipe(2, 8, precision="float16"))  # type: ignore
    trained = Training(experiment, data, data, "gmp", PARAMS["gmp"], epochs=2, seed=0)
    assert trained._scaler is not None
    trained._scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)  # its gradients are infinite at first
    before = [param.clone() for param in trained.model.parameters()]
    trained.epoch()
    assert trained.sparse.steps == 0
    assert all(torch.equal(one, other) for one, other in zip(before, trained.model.parameters(), strict=True))
    measured = trained.epoch()
    assert measured["sparsity"] == 0.5  # exactly, in spite of the missing steps


def test_nan_gradients_fail_the_training() -> None:
    data = Split(split().x * float("nan"), split().y)
    for precision in ("float32", "float16"):
        trained = training(data=data, precision=precision)
        with pytest.raises(NotFinite, match="in epoch 1"):
            trained.epoch()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"accumulate": 0}, "accumulate of at least 1"),
        ({"clip_norm": 0.0}, r"clip_norm must lie in \(0, inf\)"),
        ({"clip_norm": float("nan")}, "clip_norm must lie"),
        ({"precision": "float8"}, "precision must be one of float32, bfloat16, float16, got 'float8'"),
    ],
)
def test_recipe_values_out_of_range_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Recipe(1, 1, **wrong)
