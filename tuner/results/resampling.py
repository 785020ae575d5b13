"""Makes an ensemble of networks from the averaged weights of one network, without further training. A study does this
only with the option --ensemble.

Late in a training, each weight moves around a mean. The standard deviation of this movement is called the spread of the
weight. Networks of similar quality are drawn from normal distributions with these means and spreads. The ensemble
averages the outputs of such networks (weight parameter resampling, arXiv 1807.00847; the diagonal case of SWAG, Maddox
et al. 2019, arXiv 1902.02476).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Generator, Tensor

from tune_sparsity.experiments import Data, Experiment, Loaded, Split
from tune_sparsity.experiments.base import are_classes, outputs_of
from tune_sparsity.experiments.batchnorm import remeasured, sampled_inputs
from tune_sparsity.experiments.metrics import Scorer, metric_of
from tune_sparsity.tuner.results.networks import split_masks
from tune_sparsity.tuner.study.layout import SPREAD

SCALES = (0.0, 0.25, 0.5, 1.0, 2.0)
"""Factors of the spreads. The best factor on the validation data is used. 0 gives the averaged network alone."""
_BINS = 15  # bins of the calibration error, as in Guo et al. 2017 (arXiv 1706.04599)
_DROP = 0.005 + 1e-9  # how much the noise may lower the metric, which is in [0, 1]; 1e-9 allows for rounding
_HALVINGS, _SEED = 20, 0


@dataclass(frozen=True)
class Judged:
    """The quality of the outputs of a network or an ensemble, measured on a split of the data."""

    value: float  # the metric
    nll: float | None  # the mean negative log-likelihood; None unless the targets are classes
    ece: float | None  # the expected calibration error; None unless the targets are classes


class Resampling:
    """Draws networks around an average of weights, and measures the quality of ensembles of these networks.

    Args:
        experiment: the network's experiment.
        data: the experiment's data.
        file: the file of a network, written by `tune_sparsity.tuner.worker.weights.save_weights`.
        members: the number of networks in an ensemble. They are drawn in pairs, whose deviations from the average are
            opposite.
        device: the device on which the networks are evaluated.

    Raises:
        ValueError: if the file contains no spreads of weights, because the training did not average its weights.
    """

    def __init__(self, experiment: Experiment, data: Data, file: Path, members: int, device: str = "cpu") -> None:
        stored = load_file(file, device=device)
        self.spread = {name: stored[name + SPREAD] for name in stored if name + SPREAD in stored}
        if not self.spread:
            raise ValueError("the file holds no averaged weights")
        self.experiment, self.data, self.members = experiment, data, members
        self.tensors, self.masks = split_masks(stored)
        self.model = experiment.network_with(self.tensors).to(device)
        state = self.model.state_dict()
        self._means = {name: state[name].clone() for name in self.spread if name in state}

    def judged(self, split: Split | Loaded, scale: float) -> Judged:
        """Return the quality of the ensemble's mean outputs on a split of the data.

        Args:
            split: the examples.
            scale: the factor by which the spreads are multiplied. With 0, the averaged network alone is measured.
        """
        if scale == 0:
            return self._judged(split, [nullcontext()])
        return self._judged(split, [self.drawn(scale, member) for member in range(self.members)])

    @contextmanager
    def drawn(self, scale: float, member: int) -> Iterator[None]:
        """Return a context manager. In its block, the network has the weights of one member of the ensemble. Running
        statistics, for example of batch normalisation, are measured again for these weights, on training examples."""
        sign = -1.0 if member % 2 else 1.0
        with self._moved({name: sign * scale * one for name, one in self.spread.items()}, _SEED + member // 2):
            yield

    def noise_tolerance(self) -> float:
        """Return the largest relative noise of the weights, in [0, 1], that lowers the metric on the validation data by
        at most 0.005.

        Noise r changes a weight w to w (1 + r e), with e from a standard normal distribution. The result is found by
        bisection.
        """
        best, low, high = self.judged(self.data.val, 0.0).value, 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            noisy = self._moved({name: middle * mean for name, mean in self._means.items()}, _SEED)
            low, high = (middle, high) if best - self._judged(self.data.val, [noisy]).value <= _DROP else (low, middle)
        return low

    @contextmanager
    def _moved(self, deviations: Mapping[str, Tensor], seed: int) -> Iterator[None]:
        """Return a context manager. In its block, the network's weights have noise. The noise of a weight is the
        weight's deviation times a number from a standard normal distribution. Masked weights stay 0.

        Args:
            deviations: a dict from the name of each tensor to the deviations of the tensor's weights.
            seed: the seed of the random numbers.
        """
        state, generator = self.model.state_dict(), Generator().manual_seed(seed)
        try:
            with torch.no_grad():
                for name, mean in self._means.items():
                    noise = torch.randn(mean.shape, generator=generator).to(mean)
                    moved = mean + deviations[name].to(mean) * noise
                    state[name].copy_(moved * self.masks[name].to(mean) if name in self.masks else moved)
            with remeasured(self.model, sampled_inputs(self.model, self.data.train), self.experiment.outputs):
                yield
        finally:
            with torch.no_grad():
                for name, mean in self._means.items():
                    state[name].copy_(mean)

    def _judged(self, split: Split | Loaded, members: Sequence[AbstractContextManager[None]]) -> Judged:
        """Return the quality of the mean outputs of several networks.

        Args:
            split: the examples.
            members: a context manager for each network. In its block, `model` has the weights of this network.
        """
        parts = [self._outputs(split, member) for member in members]
        targets = [y for _, y in parts[0]]
        scorer, found = Scorer(metric_of(self.experiment.metric), torch.device("cpu")), []
        for index, y in enumerate(targets):
            outputs = torch.stack([part[index][0] for part in parts])
            found.append(mean_outputs(outputs, y))
            scorer.add(found[-1], y)
        value, outputs, wanted = scorer.value(), torch.cat(found), torch.cat(targets)
        if not are_classes(outputs, wanted):
            return Judged(value, None, None)
        nll = float(F.cross_entropy(outputs.double(), wanted))
        return Judged(value, nll, calibration_error(outputs.softmax(1), wanted))

    def _outputs(self, split: Split | Loaded, member: AbstractContextManager[None]) -> list[tuple[Tensor, Tensor]]:
        """Return (outputs, targets) of one member for each batch."""
        with member, torch.no_grad():
            return [(outputs.cpu(), y.cpu()) for outputs, y in outputs_of(self.experiment, self.model, split)]

    def bits(self, tolerance: float) -> dict[str, int]:
        """Return a dict from the name of each prunable tensor to the number of bits that each of its weights needs, so
        that the relative noise of rounding is at most `tolerance`.

        Let w be the weights of a tensor that are not masked, rms(w) their root mean square, and r the argument
        `tolerance`. A uniform quantiser with b bits has the step d = 2 max|w| / 2^b, and rounding has the noise d /
        sqrt(12). This noise is at most r rms(w) if b >= log2(2 max|w| / (sqrt(12) r rms(w))). The result is the
        smallest such b, at least 1.

        Args:
            tolerance: the largest relative noise r. With 0, the dict is empty, because no number of bits is enough.
        """
        found = {}
        for name, mask in self.masks.items():
            weights = self.tensors[name][mask.bool()].double()
            if tolerance > 0 and len(weights):
                rms = float(weights.square().mean().sqrt())
                levels = 2 * float(weights.abs().max()) / (math.sqrt(12) * tolerance * rms)
                found[name] = max(1, math.ceil(math.log2(levels)))
        return found


def mean_outputs(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean outputs of several networks. For a classification, these are the logarithms of the mean
    probabilities.

    Args:
        outputs: the outputs, shape (networks, examples, ...).
        targets: the targets, shape (examples, ...). For a classification, they are integers.
    """
    if len(outputs) == 1:
        return outputs[0]
    if are_classes(outputs[0], targets):
        return outputs.log_softmax(-1).logsumexp(0) - math.log(len(outputs))
    return outputs.mean(0)


def calibration_error(probabilities: Tensor, targets: Tensor) -> float:
    """Return the expected calibration error, in [0, 1].

    This is the mean of |accuracy - confidence| over 15 equal bins of confidence, weighted by the number of examples in
    each bin.

    Args:
        probabilities: the predicted probabilities, shape (examples, classes).
        targets: the true classes, shape (examples,).
    """
    confidence, chosen = probabilities.double().max(1)
    right = (chosen == targets).double()
    bins = (confidence * _BINS).long().clamp_(max=_BINS - 1)
    gaps = torch.zeros(_BINS, dtype=torch.float64).index_add_(0, bins, right - confidence)
    return float(gaps.abs().sum() / len(targets))


def ensemble_document(drawn: Resampling, size_bytes: int | None, macs: int | None) -> dict[str, Any]:
    """Return the entry "ensemble" of result.json. For drawing the networks, the spread of each weight is multiplied by
    a factor. The factor is chosen on the validation data alone.

    Args:
        drawn: the Resampling, which draws the networks of the ensemble.
        size_bytes: the size of the network's packed file in bytes; None if unknown.
        macs: the network's multiply-adds in one example; None if unknown.
    """
    experiment, data = drawn.experiment, drawn.data
    metric = metric_of(experiment.metric)
    tried = {scale: drawn.judged(data.val, scale) for scale in SCALES}
    sign = 1.0 if metric.maximize else -1.0
    worth = {scale: -one.nll if one.nll is not None else sign * one.value for scale, one in tried.items()}
    chosen = max(SCALES, key=lambda scale: (worth[scale], -scale))
    alone = drawn.judged(data.test, 0.0)
    test = drawn.judged(data.test, chosen) if chosen else alone
    document: dict[str, Any] = {
        "members": drawn.members if chosen else 1,
        "scale": chosen,
        "validation": {str(scale): vars(one) for scale, one in tried.items()},
        "test": {"ensemble": vars(test), "average": vars(alone)},
    }
    # The size does not depend on the number of members: a file would hold the packed network and 4 bytes for the spread
    # of each weight that is not masked. The spreads need no indices, because the packed network has them.
    masks = drawn.masks
    counts = [int(masks[name].sum()) if name in masks else one.numel() for name, one in drawn.spread.items()]
    if size_bytes is not None:
        document["size_bytes"] = size_bytes + (4 * sum(counts) if chosen else 0)
    if macs is not None:
        document["macs"] = macs * document["members"]
    if metric.percent and metric.maximize:
        tolerance = drawn.noise_tolerance()
        document |= {"noise_tolerance": tolerance, "bits": drawn.bits(tolerance)}
    return document
