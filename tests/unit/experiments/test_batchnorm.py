"""Test that running statistics of batch norm are remeasured from the data, and that the old ones can be restored."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.layers import kept_in_evaluation
from tune_sparsity.experiments.batchnorm import normalises, remeasure, remeasured, sample


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 5), nn.BatchNorm1d(5))


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [3 * torch.randn(8, 4, generator=generator) + 1 for _ in range(5)]


def test_statistics_are_the_means_over_the_batches() -> None:
    model, inputs = network(), batches()
    with remeasured(model, inputs):
        first = [model[0](x) for x in inputs]
        torch.testing.assert_close(model[1].running_mean, torch.stack([y.mean(0) for y in first]).mean(0))
        torch.testing.assert_close(model[1].running_var, torch.stack([y.var(0) for y in first]).mean(0))
        second = [model[3]((y - y.mean(0)) / (y.var(0, correction=0) + 1e-5).sqrt()) for y in first]  # no dropout
        torch.testing.assert_close(model[4].running_mean, torch.stack([y.mean(0) for y in second]).mean(0))
        assert not model.training


@pytest.mark.parametrize("training", [True, False])
def test_leaving_remeasured_restores_statistics_modes_and_random_state(training: bool) -> None:
    model = network()
    model.train()
    for x in batches():
        model(2 * x)
    model.train(training)
    model[3].eval()
    before = copy.deepcopy(model)
    noise = torch.get_rng_state()

    def leave() -> None:
        with remeasured(model, batches()):
            assert not torch.equal(model[1].running_mean, before[1].running_mean)
            raise KeyError("on the way")

    with pytest.raises(KeyError):
        leave()
    state = before.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert [model[k].momentum for k in (1, 4)] == [0.1, 0.1]
    assert torch.equal(torch.get_rng_state(), noise)


def test_normalises_returns_true_only_for_batch_norm_with_running_statistics() -> None:
    assert normalises(network())
    assert not normalises(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
    assert not normalises(nn.BatchNorm1d(3, track_running_stats=False))


def test_statistics_that_training_does_not_change_are_not_remeasured() -> None:
    model = network()
    kept_in_evaluation(model[1])
    with remeasured(model, batches()):
        assert model[1].running_mean.tolist() == [0.0] * 6
        assert model[4].running_mean.tolist() != [0.0] * 5
    model[4].momentum = 0.0
    assert not normalises(model)


@pytest.mark.parametrize("n", [2, 3, 127, 128, 129, 1000, 1024, 55000])
def test_the_sample_is_spread_over_the_whole_data_set(n: int) -> None:
    chosen = sample(n)
    together = torch.cat(chosen)
    assert len(together) == len(together.unique()) == min(n, 1024)
    assert together.min() == 0
    assert together.max() == n - 1
    assert all(2 <= len(batch) <= 128 for batch in chosen)
    if n >= 1000:
        halves = [float((batch < n / 2).double().mean()) for batch in chosen]
        assert all(0.4 < half < 0.6 for half in halves)


def test_remeasure_keeps_the_new_statistics_and_restores_the_modes() -> None:
    model, other = network(), network()
    with remeasured(other, batches()):
        expected = [value.clone() for value in other.buffers()]
    remeasure(model, batches())
    assert all(torch.equal(value, wanted) for value, wanted in zip(model.buffers(), expected, strict=True))
    assert all(module.training for module in model.modules())
    assert [model[k].momentum for k in (1, 4)] == [0.1, 0.1]
    remeasure(model, [])  # without a batch, the statistics do not change
    assert all(torch.equal(value, wanted) for value, wanted in zip(model.buffers(), expected, strict=True))
