"""Test studies that search the settings of a user's training loop, from the command line and from Python."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from tests.helpers.command import run_command
from tests.helpers.in_process import exported, run_in_process
from tests.unit.experiments.own.loops import LOOPS
from tune_sparsity import load_study, tune
from tune_sparsity.tuner.cli import main

TRAINERS = """
import lightning as L
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from loops import EPOCHS, accuracy, examples, network
from tune_sparsity import LightningSparsity, TrainerSparsity
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = network()
    def forward(self, x):
        return self.net(x)
    def training_step(self, batch, index):
        return cross_entropy(self(batch[0]), batch[1])
    def validation_step(self, batch, index):
        self.log("val_accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

def lightning(trial):
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
    sparse = LightningSparsity(trial, "val_accuracy")
    trainer = L.Trainer(max_epochs=EPOCHS, accelerator="cpu", callbacks=[sparse], **quiet)
    trainer.fit(Module(), DataLoader(examples(160, 0), 16, shuffle=True), DataLoader(examples(80, 1), 80))

lightning.model = Module
lightning.test = lambda model, data_dir: accuracy(model, seed=2)

CONFIG = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                    num_labels=4, max_position_embeddings=8, use_cache=False)

def rows(count, seed):
    y = torch.arange(count) % 4
    ids = torch.randint(0, 10, (count, 6), generator=torch.Generator().manual_seed(seed)) + 10 * y[:, None]
    return [{"input_ids": ids[i], "labels": y[i]} for i in range(count)]

def trainer(trial):
    model = BertForSequenceClassification(CONFIG)
    args = TrainingArguments(output_dir="trainer", num_train_epochs=EPOCHS, per_device_train_batch_size=16,
                             report_to=[], save_strategy="no", eval_strategy="epoch", use_cpu=True, disable_tqdm=True)
    training = rows(160, 0)
    sparse = TrainerSparsity(trial, model, args, len(training), "eval_accuracy")
    right = lambda p: {"accuracy": float((p.predictions.argmax(1) == p.label_ids).mean())}
    Trainer(model, args, train_dataset=training, eval_dataset=rows(80, 1), compute_metrics=right, callbacks=[sparse],
            optimizers=sparse.optimizers).train()

trainer.model = lambda: BertForSequenceClassification(CONFIG)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "loops.py").write_text(LOOPS)
    return tmp_path / "loops.py"


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "trials.csv").open()))


def test_the_command_searches_the_settings_of_a_training_loop(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The study has files, a test accuracy, exports, a model in MLflow and final seeds, like that of an experiment."""
    options = ["--target", "0.8", "--trials", "6", "--study", "own", "--final-seeds", "2", "--json"]
    ran = run_command(["--experiment", "loops.py:train", *options], file.parent)
    assert ran.code == 0, ran.stderr
    best = ran.result()["best"]
    assert best["sparsity"] >= 0.8
    assert best["test_accuracy"] > 0.4
    assert len(ran.result()["final_seeds"][0]["test_accuracy"]["seeds"]) == 2
    folder = file.parent / "studies" / "own"
    assert {"completed", "pruned"} >= {row["state"] for row in rows(folder)} >= {"completed"}
    about = json.loads((folder / "best" / "model.json").read_text())
    assert about["input_shape"] == [8]
    for kind in ("onnx", "csr", "torch"):
        assert exported(file.parent / "studies", "own", kind, capsys)["largest_difference"] < 1e-4
    mlflow.set_tracking_uri(f"sqlite:///{file.parent}/mlflow.db")
    client = mlflow.MlflowClient()
    (model,) = client.search_logged_models([one.experiment_id for one in client.search_experiments()])
    assert mlflow.pyfunc.load_model(model.model_uri).predict(np.zeros((3, 8), np.float32)).shape == (3, 4)


def test_a_study_of_a_loop_without_a_model_saves_only_tensors_and_masks(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = run_command(
        ["--experiment", "loops.py:unnamed", "--target", "0.8", "--trials", "2", "--study", "u"], file.parent
    )
    assert ran.code == 0
    assert ran.stderr.count("set unnamed.model to a function that makes it") == 1
    assert (file.parent / "studies" / "u" / "best" / "model.safetensors").exists()
    assert {float(row["train_loss"]) for row in csv.DictReader((file.parent / "studies/u/epochs.csv").open())} == {0.5}
    with pytest.raises(ValueError, match="network cannot be made"):
        load_study("u", file.parent / "studies").best.network()


def test_the_best_network_of_a_loop_with_an_error_metric_has_the_smallest_error(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_in_process(file.parent / "studies", "e", experiment=f"{file}:entropy")
    values = [float(row["val_cross_entropy"]) for row in rows(folder) if row["state"] == "completed"]
    assert load_study(folder).best.val_cross_entropy == min(values) < 1.3863
    capsys.readouterr()
    assert exported(file.parent / "studies", "e", "safetensors", capsys)["largest_difference"] == 0


def test_the_network_of_a_loop_gets_narrower_to_fit_into_very_few_bytes(file: Path) -> None:
    file.write_text(LOOPS.replace("nn.BatchNorm1d(24), ", ""))
    options = {"experiment": f"{file}:train", "max_bytes": 200, "trials": 2, "scheduler": "none"}
    folder = run_in_process(file.parent / "studies", "small", **options)
    assert all(0 < float(row["width"]) < 1 and int(row["size_bytes"]) <= 200 for row in rows(folder))
    dead = json.loads((folder / "result.json").read_text())["dead_neurons"]
    assert sum(one["dead"] for one in dead.values()) > 0


def test_the_settings_of_a_loop_are_searched_in_a_space_with_a_width(file: Path) -> None:
    file.write_text(LOOPS.replace("nn.BatchNorm1d(24), ", ""))
    (space := file.with_name("narrow.yaml")).write_text("method: gmp\nparameters: {width: 0.5, final_sparsity: 0.9}\n")
    options = {"experiment": f"{file}:train", "method": "gmp", "space": str(space), "trials": 2, "scheduler": "none"}
    folder = run_in_process(file.parent / "studies", "own-width", target=0.9, **options)
    assert [row["state"] for row in rows(folder)] == ["completed"] * 2
    dead = json.loads((folder / "result.json").read_text())["dead_neurons"]
    assert sum(one["dead"] for one in dead.values()) > 0


@pytest.mark.parametrize("kind", ["lightning", "transformers"])
def test_the_settings_of_other_libraries_trainers_are_searched(kind: str, file: Path) -> None:
    pytest.importorskip("lightning"), pytest.importorskip("transformers"), pytest.importorskip("accelerate")
    (file.parent / "trainers.py").write_text(TRAINERS)
    name = "lightning" if kind == "lightning" else "trainer"
    options = {"experiment": f"{file.parent}/trainers.py:{name}", "trials": 3, "target": 0.8}
    folder = run_in_process(file.parent / "studies", name, **options)
    done = [row for row in rows(folder) if row["state"] == "completed"]
    assert done
    assert all(0.8 <= float(row["sparsity"]) < 0.81 for row in done)
    assert load_study(folder).best.network() is not None
    made = [row for row in csv.DictReader((folder / "epochs.csv").open()) if row["number"] == done[0]["number"]]
    assert len(made) == 4


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("misnamed", "the loop misnamed has an unknown attribute 'modle': it may have"),
        ("takes_nothing", "takes one argument, the trial"),
        ("no_optimizer", "no_optimizer: the loop begins without an optimizer"),
        ("fails_at_once", "FileNotFoundError: no examples in /nowhere"),
        ("other_model", "other_model.model makes another network than the loop trains"),
    ],
)
def test_an_invalid_loop_is_refused_in_one_line_before_any_file_is_written(
    name: str, said: str, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(file.parent)
    assert main(["--experiment", f"loops.py:{name}", "--target", "0.8"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert [path.name for path in file.parent.iterdir() if path.name != "__pycache__"] == ["loops.py"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("raises", "the disk of the examples is gone"),
        pytest.param("never_reports", "epoch 0 ended without trial.report", marks=pytest.mark.long),
        pytest.param("nan", "val_accuracy is nan after epoch 2", marks=pytest.mark.long),
    ],
)
def test_trials_of_a_loop_that_fails_during_a_study_record_the_reason(name: str, reason: str, file: Path) -> None:
    own = ["--experiment", f"loops.py:{name}", "--scheduler", "none"]
    ran = run_command([*own, "--target", "0.8", "--trials", "2", "--study", "f"], file.parent)
    assert "Traceback" not in ran.stderr
    found = rows(file.parent / "studies" / "f")
    assert [row["state"] for row in found] == ["failed", "failed"]
    assert all(reason in row["reason"] for row in found)


@pytest.mark.long
def test_a_loop_that_catches_every_exception_fails_no_trial(file: Path) -> None:
    # With several trials at a time, it would depend on timing which trials are stopped early.
    own = ["--experiment", "loops.py:goes_on", "--target", "0.8", "--trials", "9", "--concurrency", "1"]
    ran = run_command([*own, "--study", "g", "--json"], file.parent)
    assert ran.code == 0, ran.stderr
    assert ran.result()["study"] == "g"  # standard output has only the result: no text that a loop prints
    assert "a loop's own words" in ran.stderr
    states = [row["state"] for row in rows(file.parent / "studies" / "g")]
    assert len(states) == 9
    assert set(states) == {"completed", "pruned"}


def test_the_function_tune_searches_the_settings_of_a_training_loop(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    space: dict[str, Any] = {}
    exec(LOOPS, space)
    study = tune(space["train"], target=0.8, trials=2, quiet=True)
    assert study.best.test_accuracy > 0.3
    assert study.best.network()(__import__("torch").zeros(2, 8)).shape == (2, 4)


@pytest.mark.parametrize(
    ("name", "code", "failed", "said"),
    [
        ("train", 0, None, ""),
        ("half_the_steps", 0, None, "2 epochs took 10 steps, but 20 follow from trial.sparsify"),
        ("reports_after_the_end", 1, "epochs", "the loop fails after its last epoch: LoopError"),
        ("disturbs", 1, "epochs", "call model.eval() in this function"),
        ("forgets", 1, "resumption", "trial.keep(name, object)"),
        ("leaves_early", 0, None, ""),
        ("never_reports", 1, "epochs", "epoch 0 ended without trial.report"),
        ("fails_at_once", 1, "loop", "fails before its first step"),
    ],
)
def test_check_says_what_is_wrong_with_a_loop(
    name: str, code: int, failed: str | None, said: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", f"{file}:{name}", "--json"]) == code
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert next((one["check"] for one in checks if one["level"] == "failed"), None) == failed
    assert said in " ".join(one["text"] for one in checks)
