"""Test two processes that train one network together, against one process that trains on the same batches."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import Tensor, nn
from torch.distributed import FileStore
from torch.utils.data import Dataset, IterableDataset

from tune_sparsity.experiments.base import Data, Experiment, Recipe
from tune_sparsity.experiments.examples import Loaded, Split
from tune_sparsity.experiments.ranks import ONE_RANK, Disconnected, OneRank, Ranks, RanksDiffer
from tune_sparsity.experiments.training import Training

SIZE = 2
# With the batch size 16, the last batch has 3 examples: too few to divide it between two ranks. With the batch size 15,
# the ranks get 7 and 8 examples.
EXAMPLES = 99
PARAMS: dict[str, dict[str, Any]] = {
    "lpss": {"final_sparsity": 0.9, "p": 1.3, "threshold_interval": 3},
    "rigl": {"final_sparsity": 0.8},
    "snip": {"final_sparsity": 0.8},
    "gmp": {"final_sparsity": 0.8},
}


class Numbers(Dataset[Any]):
    """A data set with the examples of a split. `asked` lists the indices of the examples that were loaded."""

    def __init__(self, split: Split) -> None:
        self.split, self.asked = split, list[int]()

    def __len__(self) -> int:
        return self.split.examples

    def __getitem__(self, index: int) -> Any:
        self.asked.append(index)
        return self.split.x[index], self.split.y[index]


class Stream(IterableDataset[Any]):
    """An iterable data set of a split, in an order that is drawn from torch's global generator."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __len__(self) -> int:
        return self.split.examples

    def __iter__(self) -> Any:
        return iter([(self.split.x[i], self.split.y[i]) for i in torch.randperm(len(self)).tolist()])


def split_of(count: int, dtype: torch.dtype) -> Split:
    generator = torch.Generator().manual_seed(count)
    y = torch.arange(count) % 3
    return Split((torch.randn(count, 12, generator=generator) + 2 * torch.eye(12)[y]).to(dtype), y)


class Partly(nn.Module):
    """A network with a layer that is never used, a layer that only some examples use, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.never, self.head = nn.Linear(12, 20), nn.Linear(20, 20), nn.Linear(20, 3)
        self.sometimes = nn.Linear(20, 20)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        hidden = torch.relu(self.hidden(x))
        large = x[:, 0] > 3
        if large.any():
            hidden = hidden + self.sometimes(hidden) * large[:, None]
        return self.head(hidden)


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3))


def noisy() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.3), nn.Linear(20, 3))


def shaken(x: Tensor, generator: torch.Generator) -> Tensor:
    return x + 0.1 * torch.randn(x.shape, generator=generator)


class Unlike(nn.Linear):
    """A layer with other first weights in each process and at each call."""

    def __init__(self) -> None:
        super().__init__(12, 3)
        with torch.no_grad():
            self.weight.add_(time.time_ns() % 1_000_003)


def training(
    ranks: OneRank,
    model: Callable[[], nn.Module] = plain,
    method: str = "lpss",
    *,
    dtype: torch.dtype = torch.float64,
    train: Callable[[Split], Any] = lambda split: split,
    epochs: int = 4,
    augment: Any = None,
    **recipe: Any,
) -> Training:
    experiment = Experiment(
        "small",
        lambda folder: Data(None, None, None),
        lambda: model().to(dtype),
        Recipe(**{"epochs": epochs, "batch_size": 16, **recipe}),
        augment=augment,
    )
    data = train(split_of(EXAMPLES, dtype)), split_of(60, dtype)
    return Training(experiment, *data, method, PARAMS[method], epochs=epochs, seed=5, ranks=ranks)


def trained(ranks: OneRank, *args: Any, **options: Any) -> dict[str, Any]:
    """Train to the end. Return the losses, the masks and the network."""
    one = training(ranks, *args, **options)
    losses = []
    while not one.finished:
        losses.append(one.train())
    return {"losses": losses, "masks": one.sparse.masks, "state": one.state_dict()}


ALIKE: dict[str, Callable[[OneRank], dict[str, Any]]] = {
    **{method: lambda ranks, method=method: trained(ranks, method=method) for method in PARAMS},
    "unequal shares": lambda ranks: trained(ranks, batch_size=15),
    "unused layers": lambda ranks: trained(ranks, Partly, "gmp", batch_size=5),
    "accumulated and clipped": lambda ranks: trained(ranks, accumulate=3, clip_norm=0.05, drop_last=True),
    "loaded": lambda ranks: trained(ranks, train=lambda split: Loaded(Numbers(split))),
}


def fifty_steps(ranks: OneRank) -> dict[str, Any]:
    return trained(ranks, dtype=torch.float32, epochs=50, batch_size=EXAMPLES)


def resumed(ranks: OneRank) -> dict[str, Any]:
    """Train a network with random numbers and buffers twice: without a break, and with a break after two epochs."""
    whole = trained(ranks, noisy, augment=shaken)
    first, second = (training(ranks, noisy, augment=shaken) for _ in range(2))
    first.train()
    first.train()
    second.load_state_dict(first.state_dict())
    while not second.finished:
        second.train()
    return {"whole": whole["state"], "broken": second.state_dict()}


def masks_that_differ(ranks: Ranks) -> None:
    one = training(ranks, method="snip", epochs=2)
    one.train()
    if ranks.rank == 1:
        one.sparse.masks[1][0, 0] = 1 - one.sparse.masks[1][0, 0]
    one.train()


def loads_its_share(ranks: Ranks) -> list[int]:
    data = Numbers(split_of(EXAMPLES, torch.float64))
    one = training(ranks, train=lambda split: Loaded(data), drop_last=True)
    data.asked.clear()
    one.train()
    return data.asked


def stream(ranks: OneRank) -> dict[str, Any]:
    return trained(ranks, noisy, train=lambda split: Loaded(Stream(split)))


def noise(ranks: Ranks) -> list[float]:
    """Return four random numbers: one in `own_noise`, one from `own_generator`, and one from each of the two generators
    that all ranks share (torch's global generator and `order`)."""
    torch.manual_seed(3)
    order = torch.Generator().manual_seed(3)
    with ranks.own_noise():
        inside = float(torch.rand(()))
    own = float(torch.rand((), generator=ranks.own_generator(order)))
    return [inside, own, float(torch.rand(())), float(torch.rand((), generator=order))]


def one_leaves(ranks: Ranks) -> None:
    one = training(ranks)
    one.train()
    if ranks.rank == 1:
        ranks.leave()
        return
    one.train()


TOGETHER: dict[str, Callable[[Any], Any]] = {
    **ALIKE,
    "fifty steps": fifty_steps,
    "resumed": resumed,
    "masks that differ": masks_that_differ,
    "weights that differ": lambda ranks: training(ranks, Unlike),
    "loads its share": loads_its_share,
    "stream": stream,
    "noise": noise,
    "one leaves": one_leaves,
}


def run_all(rank: int, folder: Path) -> None:
    """Call every function in `TOGETHER` as the given rank, and save the results or errors."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for number, (name, function) in enumerate(TOGETHER.items()):
        ranks = Ranks(rank, SIZE, FileStore(str(folder / f"store{number}"), SIZE))
        try:
            results[name] = function(ranks)
        except (RanksDiffer, Disconnected) as error:
            results[name] = (type(error).__name__, str(error))
        ranks.leave()
    torch.save(results, folder / f"rank{rank}.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Start all ranks as processes. Return the results of `run_all` for each rank."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(run_all, (folder,), SIZE)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(SIZE)]


def equal(one: Any, other: Any) -> bool:
    """Return whether two nested structures of tensors and numbers are equal, bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.mark.parametrize("name", ALIKE)
def test_two_ranks_train_like_one_process(name: str, both: list[dict[str, Any]]) -> None:
    first, second = (results[name] for results in both)
    alone = ALIKE[name](ONE_RANK)
    assert equal(first, second)
    assert equal(first["masks"], alone["masks"])
    assert 0 < sum(float(mask.sum()) for mask in alone["masks"]) < sum(mask.numel() for mask in alone["masks"])
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-10)
    trained, expected = first["state"]["model"], alone["state"]["model"]
    for key, tensor in expected.items():
        if key != "seen":  # this buffer counts only the examples of one rank
            torch.testing.assert_close(trained[key], tensor, rtol=1e-8, atol=1e-10)


def test_float32_losses_of_two_ranks_are_within_1e_4_of_one_process(both: list[dict[str, Any]]) -> None:
    alone = fifty_steps(ONE_RANK)["losses"]
    assert len(alone) == 50
    assert both[0]["fifty steps"]["losses"] == both[1]["fifty steps"]["losses"]
    assert both[0]["fifty steps"]["losses"] == pytest.approx(alone, abs=1e-4)
    assert alone[-1] < 0.5 * alone[0]


def test_a_resumed_training_goes_on_bit_for_bit(both: list[dict[str, Any]]) -> None:
    for results in both:
        assert equal(results["resumed"]["whole"], results["resumed"]["broken"])
    assert equal(*(results["resumed"]["whole"] for results in both))


@pytest.mark.parametrize(("name", "words"), [("masks that differ", "the masks"), ("weights that differ", "first weig")])
def test_ranks_with_different_masks_or_first_weights_raise_an_error(
    name: str, words: str, both: list[dict[str, Any]]
) -> None:
    for results in both:
        kind, text = results[name]
        assert kind == "RanksDiffer"
        assert words in text
        assert text.endswith("differ between the 2 workers of the trial")


def test_each_rank_loads_only_its_own_share_of_the_examples(both: list[dict[str, Any]]) -> None:
    shares = [results["loads its share"] for results in both]
    assert [len(share) for share in shares] == [48, 48]
    assert len({*shares[0], *shares[1]}) == 96


def test_all_ranks_train_equally_on_an_iterable_data_set(both: list[dict[str, Any]]) -> None:
    assert equal(both[0]["stream"], both[1]["stream"])


def test_ranks_draw_different_noise_and_share_all_other_random_numbers(both: list[dict[str, Any]]) -> None:
    (noise0, own0, *rest0), (noise1, own1, *rest1) = (results["noise"] for results in both)
    assert noise0 != noise1
    assert own0 != own1
    assert rest0 == rest1


def test_a_waiting_rank_gets_an_error_if_the_other_rank_has_left(both: list[dict[str, Any]]) -> None:
    assert both[1]["one leaves"] is None
    assert both[0]["one leaves"][0] == "Disconnected"


def test_the_shares_of_all_ranks_form_the_whole_batch() -> None:
    parts = [object.__new__(Ranks) for _ in range(3)]
    for rank, one in enumerate(parts):
        one.rank, one.size = rank, 3
    for whole in (6, 7, 8, 64):
        places = [one._place(whole) for one in parts]
        assert [i for place in places for i in range(whole)[place]] == list(range(whole))
        assert sum(1 / one._parts(whole) for one in parts) == pytest.approx(1)
    assert [one._place(5) for one in parts] == [slice(0, 5)] * 3
    assert sum(1 / one._parts(5) for one in parts) == pytest.approx(1)
