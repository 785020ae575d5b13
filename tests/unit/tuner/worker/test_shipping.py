"""Tests how a user's code is sent to workers: into other folders, to other machines, and with Ray."""

from __future__ import annotations

import csv
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests import ROOT
from tests.helpers.own_code import FILES, imports_of_its_own, write_files
from tune_sparsity.experiments import Experiment, find
from tune_sparsity.experiments.base import correct
from tune_sparsity.experiments.user_files import Code, code_of
from tune_sparsity.tuner.worker.shipping import Parcel, by_value, unpack, write_packed

TRAIN = """
import sys
from tune_sparsity.experiments import Split, Training
import torch
def train(experiment):
    part = Split(torch.zeros(12, 5) + torch.arange(12.0)[:, None], torch.arange(12) % 3)
    training = Training(experiment, part, part, "lpss", {"final_sparsity": .5, "p": 1.5}, epochs=2, seed=0)
    training.epoch()
    return training.epoch()["nonzero_weights"]
"""
NONZERO = (5 * 7 + 7 * 3) // 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a user's folder: an experiment, modules that it imports, and a file that it reads. Return the folder."""
    return write_files(FILES, tmp_path / "own")


@pytest.fixture(autouse=True)
def clean_imports() -> Iterator[None]:
    with imports_of_its_own():
        yield


UNPICKLE = """
import pickle
experiment = pickle.loads(open(sys.argv[1], "rb").read())
print(int(train(experiment)), experiment.model.__code__.co_filename, flush=True)
"""
# This process imports torch once and forks for each request. A fork is like a new worker, but starts faster.
ZYGOTE = f"""
import json, os, sys, tempfile
import torch._dynamo  # optimizers import it at their first step
from tune_sparsity.experiments import user_files
from tune_sparsity.tuner.worker import shipping
{TRAIN}
for line in sys.stdin:
    cwd, arguments, code = json.loads(line)
    if os.fork() == 0:
        os.chdir(cwd)
        tempfile.tempdir = os.path.dirname(cwd)
        sys.argv[1:] = arguments
        exec(code, globals())
        sys.stdout.flush()
        os._exit(0)
    print("end", os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""
Elsewhere = Callable[[Path], tuple[int, Path]]


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", ZYGOTE],
        cwd=tmp_path_factory.mktemp("zygote"),
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.communicate(timeout=200)


@pytest.fixture
def elsewhere(zygote: subprocess.Popen[str], tmp_path: Path) -> Elsewhere:
    """Return a function that unpickles a `Parcel` in another process and trains its experiment. This process runs in an
    empty folder and can import only the project. The function returns the number of nonzero weights and the file from
    which the other process imported the network's function."""
    (tmp_path / "empty").mkdir()

    def run(parcel: Path) -> tuple[int, Path]:
        assert zygote.stdin is not None
        assert zygote.stdout is not None
        zygote.stdin.write(json.dumps([str(tmp_path / "empty"), [str(parcel)], UNPICKLE]) + "\n")
        zygote.stdin.flush()
        printed = zygote.stdout.readline()
        assert not printed.startswith("end"), "the worker failed, see standard error"
        assert zygote.stdout.readline() == "end 0\n"
        return int(printed.split()[0]), Path(printed.split()[1])

    return run


def packed(folder: Path, experiment: Experiment | None = None) -> Path:
    """Pickle a `Parcel` with an experiment into a file, by default with the folder's experiment. Return the file."""
    name = f"{folder}/mine.py:mine"
    path = folder.parent / "parcel"
    path.write_bytes(pickle.dumps(Parcel(experiment or find(name), name)))
    return path


def test_packed_csv_lists_every_file_that_is_sent_to_workers(folder: Path, tmp_path: Path) -> None:
    write_packed(tmp_path, find(f"{folder}/mine.py:mine"), f"{folder}/mine.py:mine")
    rows = list(csv.reader((tmp_path / "packed.csv").open()))
    assert rows[0] == ["file", "bytes"]
    assert dict(rows[1:]) == {
        name: str(len(FILES[name]))
        for name in ("blocks.py", "deeper/__init__.py", "deeper/parts.py", "lazy.py", "mine.py", "sizes.json")
    }
    write_packed(folder, find("digits"), "digits")
    assert not (folder / "packed.csv").exists()


def test_data_that_only_the_loader_reads_is_not_sent_to_workers(folder: Path) -> None:
    experiment = find(f"{folder}/mine.py:mine")
    assert len(pickle.dumps(Parcel(experiment, f"{folder}/mine.py:mine"))) < 20_000  # bytes; MANY has 2,000,000
    assert experiment.load(None).train.x.shape == (12, 5)


@pytest.mark.parametrize("gone", [False, True])
def test_a_worker_trains_in_another_folder_and_on_another_machine(
    folder: Path, tmp_path: Path, elsewhere: Elsewhere, gone: bool
) -> None:
    parcel = packed(folder)
    if gone:
        shutil.rmtree(folder)
    nonzero, file = elsewhere(parcel)
    assert nonzero == NONZERO
    assert file.is_relative_to(folder) is not gone
    unpacked = list(tmp_path.glob("tune-sparsity-code-*/*"))
    assert len(unpacked) == gone
    if gone:
        assert unpacked[0].parent.stat().st_mode & 0o077 == 0
        elsewhere(parcel)
        assert list(tmp_path.glob("tune-sparsity-code-*/*")) == unpacked


def test_a_worker_runs_the_sent_code_although_the_folder_changed_later(
    folder: Path, tmp_path: Path, elsewhere: Elsewhere
) -> None:
    parcel = packed(folder)
    (folder / "lazy.py").write_text("def kinds():\n    return 9\n")
    assert elsewhere(parcel)[0] == NONZERO


def test_an_experiment_that_workers_cannot_import_is_pickled_by_value(
    folder: Path, tmp_path: Path, elsewhere: Elsewhere
) -> None:
    """At its top level, the module reads a file outside the user's folder. This file is not sent, so that workers
    cannot import the module."""
    (folder / "sizes.json").rename(tmp_path / "sizes.json")
    (folder / "mine.py").write_text(
        FILES["mine.py"].replace(', files=("sizes.json",)', "")
        .replace('HERE / "sizes.json"', 'SIZES').replace("HERE = ", "SIZES = ")
        .replace("Path(__file__).parent", f"Path({str(tmp_path / 'sizes.json')!r})")
        .replace('json.loads((SIZES).read_text())["hidden"]', "HIDDEN")
        .replace("MANY =", 'HIDDEN = json.loads(SIZES.read_text())["hidden"]\nMANY =')
    )  # fmt: skip
    parcel = packed(folder)
    shutil.rmtree(folder)
    (tmp_path / "sizes.json").unlink()
    assert elsewhere(parcel)[0] == NONZERO


def test_an_experiment_that_cannot_be_pickled_is_sent_as_source_files(
    folder: Path, tmp_path: Path, elsewhere: Elsewhere
) -> None:
    lock = "import threading\nLOCK = threading.Lock()\ndef model():\n    assert not LOCK.locked()\n"
    (folder / "mine.py").write_text(FILES["mine.py"].replace("def model():\n", lock))
    experiment = find(f"{folder}/mine.py:mine")
    assert by_value(experiment) is None
    parcel = packed(folder, experiment)
    for _ in range(2):  # first on this machine, then as on another machine
        assert elsewhere(parcel)[0] == NONZERO
        shutil.rmtree(folder, ignore_errors=True)


def test_a_package_of_the_user_reaches_a_worker(
    folder: Path, tmp_path: Path, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "place" / "a_users_package"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "deep" / "__init__.py").write_text("")
    (package / "deep" / "inside.py").write_text(
        FILES["mine.py"].replace("from blocks", "from ..blocks").replace("from lazy", "from a_users_package.lazy")
    )  # fmt: skip
    (folder / "lazy.py").rename(package / "lazy.py")
    (folder / "sizes.json").rename(package / "deep" / "sizes.json")
    (folder / "deeper").rename(package / "deeper")
    (package / "blocks.py").write_text(FILES["blocks.py"].replace("from deeper", "from .deeper"))
    monkeypatch.chdir(package.parent)
    name = "a_users_package.deep.inside:mine"
    experiment = find(name)
    code = code_of(experiment, name)
    assert code is not None
    assert code.root == str(package.parent)
    parcel = tmp_path / "parcel"
    parcel.write_bytes(pickle.dumps(Parcel(experiment, name)))
    assert elsewhere(parcel)[0] == NONZERO
    shutil.rmtree(package)
    assert elsewhere(parcel)[0] == NONZERO


def test_built_in_experiments_send_no_code() -> None:
    experiment = find("digits")
    assert code_of(experiment, "digits") is None
    assert len(pickle.dumps(Parcel(experiment, "digits"))) < 2_000
    assert pickle.loads(pickle.dumps(Parcel(experiment, "digits"))).model().state_dict().keys()


def test_an_experiment_made_in_python_is_pickled_by_value() -> None:
    made = replace(find("digits"), name="made", metric=lambda outputs, targets: correct(outputs, targets) / 2)
    assert code_of(made, "") is None
    back = pickle.loads(pickle.dumps(Parcel(made)))
    assert isinstance(back, Experiment)
    assert back.metric(torch.eye(2), torch.tensor([0, 1])).tolist() == [0.5, 0.5]


def test_a_user_defined_metric_is_pickled_by_value(folder: Path) -> None:
    metric = "def worst(outputs, targets):\n    return outputs.max()\n"
    judged = "mine = replace(mine, metric=tune_sparsity.Metric('worst', worst, maximize=False))\n"
    imports = "\nimport tune_sparsity\nfrom dataclasses import replace\n"
    (folder / "mine.py").write_text(FILES["mine.py"] + imports + metric + judged)
    made = replace(find("digits"), name="made", metric=find(f"{folder}/mine.py:mine").metric)
    value = by_value(made, alone=True)
    assert value is not None
    del sys.modules["experiment_file_mine"]
    back = pickle.loads(value).metric
    assert (back.name, back.maximize) == ("worst", False)
    assert back.function(torch.eye(2), None) == 1


def test_a_changed_copy_of_a_named_experiment_is_pickled_by_value(folder: Path) -> None:
    changed = replace(find(f"{folder}/mine.py:mine"), name="changed")
    assert code_of(changed, f"{folder}/mine.py:mine") is None
    assert pickle.loads(pickle.dumps(Parcel(changed, f"{folder}/mine.py:mine"))).name == "changed"


def test_an_experiment_that_cannot_be_sent_gives_an_error_with_the_reason() -> None:
    import threading

    lock = threading.Lock()
    made = replace(find("digits"), metric=lambda outputs, targets: lock)
    with pytest.raises(TypeError, match="lock"):
        Parcel(made)


def test_code_is_not_unpacked_where_others_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    home = tmp_path / f"tune-sparsity-code-{os.getuid()}"
    home.mkdir()
    home.chmod(0o777)
    with pytest.raises(RuntimeError, match="remove it"):
        Code("a.py:a", "/there/is/no/such/folder", {"a.py": b""}).folder()


def test_an_import_error_on_a_worker_is_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = Code("a.py:a", "/there/is/no/such/folder", {"a.py": b"x = 1\nopen('/there/is/no/such/file')\n"})
    with pytest.raises(ValueError, match=r"FileNotFoundError.*a\.py:2\)$"):
        unpack(code, None)


RAY = """
import os, pickle, shutil, tempfile
import ray
from tune_sparsity.experiments import find
from tune_sparsity.tuner.worker.shipping import Parcel

folder, scratch = sys.argv[1:]
experiment = find(f"{folder}/mine.py:mine")
ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=40)
parcel = ray.put(Parcel(experiment, f"{folder}/mine.py:mine"))

@ray.remote
class Worker:
    def here(self):
        tempfile.tempdir = scratch  # where the code is unpacked
        return os.getcwd(), sys.path
    def train(self, experiment):
        return train(experiment)

def cleared(worker):
    cwd, path = ray.get(worker.here.remote())
    assert not cwd.startswith(folder), cwd
    assert not any(one.startswith(folder) for one in path), path
    return worker

print(int(ray.get(cleared(Worker.remote()).train.remote(parcel))))
shutil.rmtree(folder)  # from here on, the process is as on another machine
worker = cleared(Worker.remote())
print(int(ray.get(worker.train.remote(parcel))), int(ray.get(worker.train.remote(parcel))))
"""


@pytest.mark.slow
def test_rays_workers_get_the_code(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", TRAIN + RAY, str(folder), str(tmp_path)],
        cwd=tmp_path / "empty",
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == [str(NONZERO)] * 3
    assert len(list(tmp_path.glob("tune-sparsity-code-*/*"))) == 1
