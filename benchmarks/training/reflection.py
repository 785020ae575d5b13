"""Measure what a second network gains if its training depends on the errors of a first network. Two procedures are
compared: the published one, and that of `--group reflect`.

    python -m benchmarks.training.reflection [--seeds 10]

The data are digits. All networks are perceptrons with one hidden layer, trained for 12 epochs. The first network has 8
hidden neurons.

"as published" (arXiv 1901.02433, and the code of its authors): k-means on the labels divides the training examples that
the first network gets wrong into two clusters. A network with 8 hidden neurons is trained on each cluster alone. For
each image, a decision tree on the pixels chooses one of the three networks. The tree was trained with three classes of
training examples: those that the first network gets right, the first cluster and the second cluster. "as published, out
of fold" is the same, but an example counts as an error if a network that was not trained on this example gets it wrong.

"group": a second network with 16 hidden neurons answers if the first network is unsure: if its margin (the largest
class probability minus the second largest) is less than a threshold. A fifth of the validation examples are below this
threshold. The training data of the second network contain each example once ("plain"), or repeat the examples that are
hard for networks of the first network's size, as `--group reflect` does ("reflected"), or have the same number of
repetitions, but of random examples ("random"). The three groups have the same first network, threshold, seed, size and
multiply-adds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import mean, stdev

import torch
from sklearn.cluster import KMeans
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor, nn

from tune_sparsity.experiments import Data, Experiment, Split, find
from tune_sparsity.experiments.builtin.mlp import multilayer_perceptron
from tune_sparsity.experiments.cascade import Cascade, margins
from tune_sparsity.experiments.training import train_whole
from tune_sparsity.tuner.results.reflection import out_of_fold, probabilities, repeated

EPOCHS = 12
PASSED_ON = 0.2
Model = Callable[[Tensor], Tensor]


def perceptron(hidden: int, data: Data, train: Split, seed: int) -> nn.Module:
    """Return a perceptron with this number of hidden neurons, trained on the examples of `train`."""
    experiment = replace(find("digits"), model=partial(multilayer_perceptron, 64, hidden, 10))
    options = {"epochs": EPOCHS, "seed": seed}
    return train_whole(experiment, replace(data, train=train), "dense", {}, **options).model.eval()


def accuracy(answer: Model, split: Split) -> float:
    return 100 * float((answer(split.x).argmax(1) == split.y).float().mean())


def routed(data: Data, first: nn.Module, wrong: Tensor, seed: int) -> Model:
    """Return the published system as one function. For each example, a decision tree chooses the first network or one
    of two networks that are trained on errors alone.

    Args:
        wrong: whether each training example counts as an error, shape (n,).
    """
    train, state = data.train, seed
    errors = train.at(wrong.nonzero()[:, 0])
    clusters = torch.from_numpy(KMeans(2, n_init=10, random_state=state).fit_predict(errors.y[:, None].numpy())).long()
    route = torch.zeros(train.examples, dtype=torch.long)
    route[wrong] = 1 + clusters
    tree = DecisionTreeClassifier(random_state=state).fit(train.x.numpy(), route.numpy())
    networks = [first]
    networks += [perceptron(8, data, errors.at((clusters == part).nonzero()[:, 0]), seed) for part in (0, 1)]

    def answer(x: Tensor) -> Tensor:
        outputs = torch.stack([network(x) for network in networks])
        return outputs[torch.from_numpy(tree.predict(x.numpy())), torch.arange(len(x))]

    return answer


@torch.no_grad()
def judged(first: nn.Module, split: Split) -> Tensor:
    return first(split.x).argmax(1) != split.y


def measured(data: Data, experiment: Experiment, seed: int) -> dict[str, float]:
    """Train all systems of the table under a seed. Return their test accuracies in per cent, by their names."""
    train = data.train
    first = perceptron(8, data, train, seed)

    def judge(seen: Tensor, asked: Tensor) -> Tensor:
        network = perceptron(8, data, train.at(seen), seed)
        wrong.index_copy_(0, asked, judged(network, train.at(asked)))
        return probabilities(experiment, network, train.at(asked))

    wrong = torch.zeros(train.examples, dtype=torch.bool)
    sure = out_of_fold(train.examples, seed, judge)
    shuffled = sure[torch.randperm(len(sure), generator=torch.Generator().manual_seed(seed))]
    trained = {"plain": train}
    trained |= {name: train.at(repeated(one, seed)) for name, one in {"reflected": sure, "random": shuffled}.items()}
    with torch.no_grad():
        theta = float(margins(first(data.val.x)).quantile(PASSED_ON))
    sides: dict[str, Model] = {
        "the first network": first,
        "as published": routed(data, first, judged(first, train), seed),
        "as published, out of fold": routed(data, first, wrong, seed),
        **{f"group, {name}": Cascade(first, perceptron(16, data, some, seed), theta) for name, some in trained.items()},
        "one network of 24 neurons": perceptron(24, data, train, seed),
    }
    with torch.no_grad():
        return {name: accuracy(answer, data.test) for name, answer in sides.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    experiment = find("digits")
    data = experiment.load(None)
    found = [measured(data, experiment, seed) for seed in range(options.seeds)]
    print("| side | test accuracy % | minus the first network |")
    print("| --- | --- | --- |")
    for name in found[0]:
        values = [one[name] for one in found]
        apart = [one[name] - one["the first network"] for one in found]
        print(f"| {name} | {mean(values):.2f} ({min(values):.2f} to {max(values):.2f}) | {mean(apart):+.2f} |")
    for other in ("plain", "random"):
        apart = [one["group, reflected"] - one[f"group, {other}"] for one in found]
        error = stdev(apart) / len(apart) ** 0.5
        print(f"reflected minus {other}: {mean(apart):+.2f}, standard error {error:.2f}")


if __name__ == "__main__":
    main()
