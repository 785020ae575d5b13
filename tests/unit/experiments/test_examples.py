"""Test examples in tensors, in dicts and tuples of tensors, and from a DataLoader: order, resumption, memory."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from tests.helpers.examples import examples
from tune_sparsity.experiments import Data, Experiment, Loaded, NotFinite, Recipe, Split, Training
from tune_sparsity.experiments.base import evaluate
from tune_sparsity.experiments.examples import is_data_set, named, tensors_in

GMP = {"final_sparsity": 0.5, "lr": 0.05}


class Noisy(Dataset):
    """A data set whose examples contain random numbers from torch, NumPy and Python."""

    def __init__(self, count: int = 40) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        noise = torch.tensor([torch.rand(()).item(), np.random.rand(), random.random()])
        return torch.cat([torch.eye(4)[index % 4], noise]).float(), index % 4


class Numbered(IterableDataset):
    def __init__(self, count: int, given: int | None = None) -> None:
        self.count, self.given, self.epochs = count, count if given is None else given, list[int]()

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self) -> Any:
        return ((torch.full((4,), float(i)), i % 3) for i in range(self.given))


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 12), nn.ReLU(), nn.Linear(12, 4))


def shuffled(split: Split | Loaded, size: int, *, seed: int = 0, count: int | None = None) -> list[Split]:
    return list(split.shuffled(size, Generator().manual_seed(seed), count=count or split.examples, epoch=0))


@examples(60)
@given(st.integers(1, 60), st.integers(1, 20), st.data())
def test_plain_nested_and_loaded_examples_come_once_each_in_the_same_order(n: int, size: int, data: Any) -> None:
    count = data.draw(st.integers(1, n))
    x, y = torch.arange(n), torch.arange(n) + 100
    plain = shuffled(Split(x, y), size, count=count)
    nested = shuffled(Split({"a": x, "b": [x + 1]}, (y,)), size, count=count)
    loaded = shuffled(Loaded(TensorDataset(x, y)), size, count=count)
    assert [len(batch.x) for batch in plain] == [size] * (count // size) + [count % size] * (count % size > 0)
    drawn = torch.cat([batch.x for batch in plain])
    assert len(set(drawn.tolist())) == count
    assert torch.equal(torch.cat([batch.y for batch in plain]), drawn + 100)
    for one, two, three in zip(plain, nested, loaded, strict=True):
        for ours, theirs in ((two.x["a"], one.x), (two.x["b"][0], one.x + 1), (two.y[0], one.y), (three.x, one.x)):
            assert torch.equal(ours, theirs)
        assert torch.equal(three.y, one.y)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_training_sees_the_same_examples_and_the_same_noise(workers: int) -> None:
    experiment = Experiment("noisy", lambda _: None, network, Recipe(3, 8))  # type: ignore[arg-type, return-value]
    data = Data(Noisy(), Noisy(12), Noisy(12), workers=workers)

    def begun() -> Training:
        return Training(experiment, data.train, data.val, "gmp", GMP, epochs=3, seed=1)

    unbroken = begun()
    metrics = [unbroken.epoch() for _ in range(2)]
    state = unbroken.state_dict()
    saved = {**state, "model": {name: value.clone() for name, value in state["model"].items()}}
    random.seed(5), np.random.seed(5), torch.manual_seed(5)  # other code of the process draws random numbers too
    resumed = begun()
    resumed.load_state_dict(torch.load(_file(saved), weights_only=False))
    random.seed(6), np.random.seed(6), torch.manual_seed(6)
    last, again = unbroken.epoch(), resumed.epoch()
    for name in ("train_loss", "val_accuracy", "val_accuracy_at_target"):
        assert last[name] == again[name]
    assert metrics[0]["train_loss"] != metrics[1]["train_loss"]
    for one, other in zip(unbroken.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def _file(value: Any) -> Any:
    import io

    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return buffer


def test_an_iterable_data_set_gets_the_epoch_and_stops_at_its_last_batch() -> None:
    data = Numbered(10, given=30)
    batches = list(Loaded(data).shuffled(4, Generator(), count=10, epoch=3))
    assert data.epochs == [3]
    assert torch.cat([batch.x[:, 0] for batch in batches]).tolist() == list(range(12))  # three batches of 4 examples


def test_a_training_with_fewer_batches_than_announced_ends_on_the_exact_target() -> None:
    model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 3))
    experiment = Experiment("short", lambda _: None, lambda: model, Recipe(2, 4))  # type: ignore[arg-type, return-value]
    numbers, val = Numbered(40, given=14), Split(torch.rand(6, 4), torch.arange(6) % 3)
    training = Training(experiment, Loaded(numbers), val, "gmp", GMP, epochs=2, seed=0)
    training.epoch()
    measured = training.epoch()
    assert training.sparse.steps < training.sparse.total_steps
    assert measured["sparsity"] == 0.5
    assert measured["val_accuracy"] == measured["val_accuracy_at_target"]

    other = Training(experiment, Loaded(numbers), val, "gmp", GMP, epochs=2, seed=0)
    numbers.given = 0
    with pytest.raises(NotFinite, match="no example in epoch 1"):
        other.epoch()
    with pytest.raises(ValueError, match="yields no example, but its length is 40"):
        Loaded(numbers).first(2)


@pytest.mark.parametrize("data_set", [Noisy(), Numbered(40)])
def test_all_loaded_tensors_are_on_the_device(data_set: Any) -> None:
    loaded = Loaded(data_set).to("meta")
    found = [loaded.first(2), loaded.at(torch.tensor([1, 3])), next(loaded.batches(2)), *shuffled(loaded, 20)]
    assert {tensor.device.type for some in found for tensor in tensors_in(some)} == {"meta"}


def test_evaluation_draws_the_same_noise_each_time_and_restores_generators() -> None:
    experiment = Experiment("noisy", lambda _: None, network, Recipe(1, 8))  # type: ignore[arg-type, return-value]
    model = network()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    first = evaluate(experiment, model, Loaded(Noisy()))
    drawn = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert drawn == (random.random(), np.random.rand(), torch.rand(()).item())
    assert evaluate(experiment, model, Loaded(Noisy())) == first


def test_data_sets_of_any_kind_are_recognised_and_tensors_are_not_data_sets() -> None:
    rows = [(torch.zeros(2), 0)]

    class Like:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Any:
            return rows[index]

    split = Split(torch.zeros(3, 2), torch.zeros(3))
    for data_set in (TensorDataset(torch.zeros(2, 2)), Numbered(3), Like()):
        assert is_data_set(data_set)
        assert isinstance(Data(split, data_set, split).val, Loaded)
    for other in (split, torch.zeros(3), rows, {"x": 1}, np.zeros(3)):
        assert not is_data_set(other)
    with pytest.raises(ValueError, match="is empty"):
        Data(TensorDataset(torch.zeros(0, 2)), split, split)
    with pytest.raises(ValueError, match=r"a batch of TensorDataset is a list: give Data\(collate="):
        Data(TensorDataset(torch.zeros(2, 2)), split, split).train.first(1)


def test_the_checksum_depends_on_all_tensors_and_on_the_examples_of_a_data_set() -> None:
    split = Split({"a": torch.zeros(3, 2), "b": torch.ones(3)}, torch.zeros(3))
    same = Split({"a": torch.zeros(3, 2), "b": torch.ones(3)}, torch.zeros(3))
    other = Split({"a": torch.zeros(3, 2), "b": torch.full((3,), 2.0)}, torch.zeros(3))
    assert Data(split, split, split).checksum() == Data(same, same, same).checksum()
    assert Data(split, split, split).checksum() != Data(split, other, split).checksum()
    sets = [TensorDataset(torch.full((5,), value), torch.zeros(5)) for value in (0.0, 0.0, 1.0)]
    first, again, third = (Data(split, one, split).checksum() for one in sets)
    assert first == again != third
    assert named(split.x).keys() == {"a", "b"}
    assert len(tensors_in(split)) == 3


MAPPED = """
import sys
import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from tune_sparsity.experiments import Data, Experiment, Recipe, Training

ROWS, WIDTH = 1 << 20, 1024
class Rows(Dataset):
    def __init__(self, path):
        self.rows = np.memmap(path, np.float32, "r", shape=(ROWS, WIDTH))
    def __len__(self):
        return 1 << 12
    def __getitem__(self, index):
        return torch.tensor(self.rows[index * (ROWS // len(self))]), index % 4

def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))

torch.set_num_threads(1)
rows = Rows(sys.argv[1])
before = anonymous()
network = lambda: nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, 4))
experiment = Experiment("rows", None, network, Recipe(1, 64))
data = Data(rows, rows, rows)
training = Training(experiment, data.train, data.val, "gmp", {"final_sparsity": 0.5, "lr": 0.01}, epochs=1, seed=0)
training.epoch()
print(before, anonymous())
"""


def test_a_memory_mapped_file_of_four_gibibytes_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.bin"
    with path.open("wb") as file:
        file.truncate(1 << 32)  # sparse: it takes no room
    told = subprocess.run([sys.executable, "-c", MAPPED, str(path)], capture_output=True, text=True, check=True).stdout
    before, after = (int(word) / 1024 for word in told.split())  # MiB
    assert after < 1536
    assert after - before < 300
