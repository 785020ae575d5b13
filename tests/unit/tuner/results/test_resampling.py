"""Tests ensembles that are drawn around an averaged network: their members, their quality and the noise tolerance."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tune_sparsity.experiments import Data, Experiment, Recipe, Split
from tune_sparsity.tuner.results.resampling import (
    Resampling,
    calibration_error,
    ensemble_document,
    mean_outputs,
)


def linear() -> nn.Linear:
    return nn.Linear(6, 3)


@pytest.fixture
def drawn(tmp_path: Path) -> Resampling:
    """Return an ensemble around a linear network. The weights of its third input are masked, and the network classifies
    all examples correctly."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 3))
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[:, 2] = False
    with torch.no_grad():
        network[0].weight.mul_(mask)
    x = torch.randn(200, 6)
    y = network(x).argmax(1)
    split = Split(x, y)
    data = Data(split, split, split)
    experiment = Experiment("linear", lambda _: data, lambda: nn.Sequential(linear()), Recipe(epochs=1, batch_size=10))
    stored = {**network.state_dict(), "0.weight.mask": mask}
    stored |= {"0.weight.spread": torch.rand(3, 6) * 0.1 * mask, "0.bias.spread": torch.rand(3) * 0.1}
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, tmp_path / "n.safetensors")
    return Resampling(experiment, data, tmp_path / "n.safetensors", members=400)


def weights(drawn: Resampling) -> list[Tensor]:
    return [tensor.clone() for tensor in drawn.model.state_dict().values()]


def test_ensemble_members_are_symmetric_pairs_and_are_reproducible(drawn: Resampling) -> None:
    average = weights(drawn)
    seen = []
    for member in (0, 1, 2, 0):
        with drawn.drawn(1.0, member):
            seen.append(weights(drawn))
            assert (seen[-1][0][:, 2] == 0).all()
        assert all(map(torch.equal, weights(drawn), average))
    for one, other, mean in zip(seen[0], seen[1], average, strict=True):
        assert torch.allclose((one + other) / 2, mean, atol=1e-7)
        assert not torch.equal(one, mean)
    assert not torch.equal(seen[0][0], seen[2][0])
    assert all(map(torch.equal, seen[0], seen[3]))


def test_output_mean_and_variance_of_a_linear_network_match_the_closed_form(drawn: Resampling) -> None:
    """The mean of the outputs is the output of the averaged network. Their variance is the sum of (scale spread x)^2
    over the inputs x, plus (scale spread)^2 of the bias, within three standard errors."""
    x, scale = drawn.data.val.x[:5], 2.0
    average = drawn.model(x).detach()
    outputs = []
    for member in range(400):
        with drawn.drawn(scale, member), torch.no_grad():
            outputs.append(drawn.model(x))
    found = torch.stack(outputs)
    expected = (x**2) @ (scale * drawn.spread["0.weight"]).T ** 2 + (scale * drawn.spread["0.bias"]) ** 2
    # The two members of a pair have opposite noise, so the noise has no effect on the mean.
    assert torch.allclose(found.mean(0), average, atol=1e-5)
    error = expected * math.sqrt(2 / 200)  # the standard error of a variance of 200 independent pairs
    assert ((found.var(0, unbiased=False) - expected).abs() < 3 * error).all()


def test_with_scale_zero_the_averaged_network_itself_is_measured(drawn: Resampling) -> None:
    alone = drawn.judged(drawn.data.val, 0.0)
    outputs = drawn.model(drawn.data.val.x).detach()
    assert alone.value == 1.0
    assert alone.nll == pytest.approx(float(nn.functional.cross_entropy(outputs, drawn.data.val.y)), abs=1e-6)


def test_ensembles_average_class_probabilities_and_regression_outputs() -> None:
    torch.manual_seed(0)
    outputs = torch.randn(4, 7, 3)
    mean = mean_outputs(outputs, torch.zeros(7, dtype=torch.long)).exp()
    assert torch.allclose(mean, outputs.softmax(-1).mean(0), atol=1e-6)
    assert torch.equal(mean_outputs(outputs, torch.zeros(7, 3)), outputs.mean(0))
    assert torch.equal(mean_outputs(outputs[:1], torch.zeros(7, dtype=torch.long)), outputs[0])


def test_the_calibration_error_matches_a_calculation_by_hand() -> None:
    # One of the two predictions with confidence .9 is right. The prediction with confidence .6 is right. So the error
    # is (2 * |.5 - .9| + 1 * |1 - .6|) / 3.
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]])
    found = calibration_error(probabilities, torch.tensor([0, 1, 0]))
    assert found == pytest.approx((2 * 0.4 + 0.4) / 3, abs=1e-6)
    assert calibration_error(torch.eye(3), torch.arange(3)) == 0.0


def test_noise_within_the_tolerance_lowers_accuracy_by_at_most_half_a_point(drawn: Resampling) -> None:
    tolerance = drawn.noise_tolerance()
    assert 0 < tolerance < 1
    # Noise of the size `tolerance` lowers the accuracy from 1 by at most .005. Four times this noise lowers it by more.
    least = [drawn._judged(drawn.data.val, [drawn._moved({n: r * m for n, m in drawn._means.items()}, 0)]).value
             for r in (tolerance, 4 * tolerance)]  # fmt: skip
    assert least[0] >= 0.995 > least[1]
    (bits,) = drawn.bits(tolerance).values()
    kept = drawn.tensors["0.weight"][drawn.masks["0.weight"]]
    step = 2 * kept.abs().max() / 2**bits
    assert step / math.sqrt(12) <= tolerance * kept.square().mean().sqrt() * 1.0001
    assert 2 * step / math.sqrt(12) > tolerance * kept.square().mean().sqrt()


def test_the_ensemble_document_has_the_scale_of_least_validation_loss(drawn: Resampling) -> None:
    drawn.members = 4
    document = ensemble_document(drawn, size_bytes=100, macs=15)
    chosen = document["scale"]
    worth = {float(scale): one["nll"] for scale, one in document["validation"].items()}
    assert worth[chosen] == min(worth.values())
    if chosen:
        assert (document["members"], document["size_bytes"], document["macs"]) == (4, 100 + 4 * (15 + 3), 60)
    else:
        assert (document["members"], document["size_bytes"], document["macs"]) == (1, 100, 15)
    assert document["test"]["average"]["value"] == 1.0


def test_a_network_whose_weights_were_not_averaged_is_refused(drawn: Resampling, tmp_path: Path) -> None:
    save_file({"0.weight": torch.ones(3, 6), "0.bias": torch.ones(3)}, tmp_path / "plain")
    with pytest.raises(ValueError, match="the file holds no averaged weights"):
        Resampling(drawn.experiment, drawn.data, tmp_path / "plain", members=2)
