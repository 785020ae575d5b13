"""Compare dense, gmp, rigl and lpss with AdamW on transformers that classify the questions of TREC.

    python -m benchmarks.training.text --data-dir FOLDER [--networks transformer bert] [--seeds 5] [--trainer 1]

FOLDER contains TREC.train and TREC.test. The networks are the encoder of examples/text_transformer.py, and a BERT of
the same size from the library transformers. Both begin with random weights.

Every method is tuned with nine trainings: six with the settings of a grid, then three that each change one setting of
the best of the six. The sparsity is .9 (0 for dense). These networks are judged by macro-F1 on a fifth of the training
questions, under one seed. With the best settings, networks are then trained on all training questions under other
seeds, at the sparsities .8 and .9 (0 for dense). They are judged once on the test questions. Settings that `GRIDS`,
`CHANGES` and `COMMON` do not name keep their defaults. All trainings have the same number of epochs, and masks do not
change in the last fifth of a training.

The intervals come from a paired bootstrap over test questions and seeds. Each finished training is a line of the file
--out, and is not run again. The tables are in Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from benchmarks.training.jobs import Job, Jobs
from benchmarks.training.paired import accuracy, confusion, difference, macro_f1
from tune_sparsity.experiments import Data, Experiment, find
from tune_sparsity.experiments.training import NotFinite, train_whole

EXAMPLE = Path(__file__).parents[2] / "examples" / "text_transformer.py"
# FIRST_SEED is the first seed of the final trainings. The parameters are chosen with seed 0.
CLASSES, EPOCHS, FIRST_SEED = 6, 12, 100
TUNED_AT, SPARSITIES = 0.9, (0.8, 0.9)
METHODS = ("dense", "gmp", "rigl", "lpss")
NETWORKS = ("transformer", "bert")
COMMON = {"optimizer": "adamw", "weight_decay": 0.01}

Params = dict[str, Any]
GRIDS: dict[str, list[Params]] = {
    "dense": [{"lr": lr, "weight_decay": decay} for lr in (0.0005, 0.001, 0.002) for decay in (0.01, 0.1)],
    "gmp": [{"lr": lr, "end": end} for lr in (0.001, 0.002, 0.004) for end in (0.5, 0.75)],
    "rigl": [{"lr": lr, "drop_fraction": drop} for lr in (0.001, 0.002, 0.004) for drop in (0.1, 0.3)],
    "lpss": [
        {"lr": lr, "sphere_lr": sphere_lr, "p": 1.7, "threshold.end": 0.75}
        for lr in (0.001, 0.003)
        for sphere_lr in (0.004, 0.008, 0.016)
    ],
}
CHANGES: dict[str, list[Params]] = {
    "dense": [{"momentum": 0.8}, {"momentum": 0.95}, {"lr": 0.004}],
    "gmp": [{"distribution": "uniform"}, {"distribution": "erk"}, {"weight_decay": 0.1}],
    "rigl": [{"distribution": "uniform"}, {"interval": 30}, {"weight_decay": 0.1}],
    "lpss": [{"distribution": "uniform"}, {"p": 1.4}, {"threshold.end": 0.5}],
}


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
    config = BertConfig(vocab_size=2000, max_position_embeddings=24, num_labels=CLASSES, **sizes)
    return BertForSequenceClassification(config)


def logits(model: nn.Module, x: dict[str, Tensor]) -> Tensor:
    return model(input_ids=x["tokens"], attention_mask=(~x["padding"]).long()).logits


@cache
def experiment(network: str) -> Experiment:
    found = find(f"{EXAMPLE}:questions")
    found = replace(found, recipe=replace(found.recipe, epochs=EPOCHS))
    return found if network == "transformer" else replace(found, model=bert, forward=logits)


@cache
def split_questions(folder: str, *, final: bool) -> Data:
    """Return the questions for a training. A final training uses all training questions and is judged on the test
    questions. Otherwise, a training uses four fifths of the training questions and is judged on the other fifth."""
    data = experiment("transformer").load(Path(folder))
    both = type(data.train)(
        {name: torch.cat([data.train.x[name], data.val.x[name]]) for name in data.train.x},
        torch.cat([data.train.y, data.val.y]),
    )
    if final:
        return replace(data, train=both, val=data.test)
    parts = train_test_split(range(both.examples), test_size=0.2, random_state=0, stratify=both.y)
    train, val = (both.at(torch.tensor(part)) for part in parts)
    return replace(data, train=train, val=val, test=val)


def work(job: Job) -> Job:
    """Train a network. Return its sparsity, and the classes that it predicts for the questions of `data.val`."""
    data = split_questions(job["folder"], final=job["final"])
    ours = experiment(job["network"])
    train = with_trainer if job.get("trainer") else _train
    try:
        model, sparsity = train(ours, data, job)
    except NotFinite:
        return {"predictions": [0] * data.val.examples, "sparsity": None}
    model.eval()
    with torch.no_grad():
        predictions = ours.outputs(model, data.val.x).argmax(1).tolist()
    return {"predictions": predictions, "sparsity": sparsity}


def _train(ours: Experiment, data: Data, job: Job) -> tuple[nn.Module, float]:
    done = train_whole(ours, data, job["method"], job["params"], epochs=EPOCHS, seed=job["seed"], device="cpu")
    return done.model, done.sparse.sparsity()


def with_trainer(ours: Experiment, data: Data, job: Job) -> tuple[nn.Module, float]:
    """Train lpss with the Trainer of transformers instead of this project's loop. The network, the settings and the
    number of steps are the same, but the order of the questions differs."""
    from transformers import Trainer, TrainingArguments

    from tune_sparsity.sparsity import METHODS as RECIPES
    from tune_sparsity.sparsity import lpss

    torch.manual_seed(job["seed"])
    model, x = ours.model(), data.train.x
    rows = [
        {"input_ids": tokens, "attention_mask": (~padding).long(), "labels": y}
        for tokens, padding, y in zip(x["tokens"], x["padding"], data.train.y, strict=True)
    ]
    sparse = lpss(
        model,
        RECIPES["lpss"].configure(job["params"]),
        total_steps=EPOCHS * ours.recipe.steps(data.train.examples),
        generator=torch.Generator().manual_seed(job["seed"]),
        example={"input_ids": x["tokens"][:2], "attention_mask": (~x["padding"][:2]).long()},
    )
    arguments = TrainingArguments(
        output_dir=job["out"],
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=ours.recipe.batch_size,
        max_grad_norm=ours.recipe.clip_norm,
        seed=job["seed"],
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    constant = torch.optim.lr_scheduler.LambdaLR(sparse, lambda _: 1.0)  # the schedule is lpss's own
    Trainer(model, arguments, train_dataset=rows, optimizers=(sparse, constant)).train()
    return model, sparse.sparsity()


class Benchmark:
    """All trainings of one network."""

    def __init__(self, jobs: Jobs, network: str, folder: str, seeds: int) -> None:
        self.jobs, self.network, self.folder = jobs, network, folder
        self.seeds = range(FIRST_SEED, FIRST_SEED + seeds)
        self.chosen = dict.fromkeys(METHODS, COMMON)
        self.tune()

    def job(self, method: str, params: Params, *, final: bool, seed: int, **more: Any) -> Job:
        common = {"network": self.network, "folder": self.folder, "method": method, "params": params}
        return {**common, "final": final, "seed": seed, **more}

    def tune(self) -> None:
        """Choose the hyperparameters of every method."""
        targets = split_questions(self.folder, final=False).val.y
        tries = {method: [{**COMMON, **at(method, TUNED_AT), **point} for point in GRIDS[method]] for method in METHODS}
        for more in (CHANGES, {}):
            flat = [self.job(method, one, final=False, seed=0) for method in METHODS for one in tries[method]]
            scores = iter(float(scored(targets, [done])[0]) for done in self.jobs.run(flat))
            for method in METHODS:
                by_score = [(next(scores), -index) for index in range(len(tries[method]))]
                self.chosen[method] = tries[method][-max(by_score)[1]]
                print(f"{self.network} {method}: {max(by_score)[0]:.4f} {self.chosen[method]}", flush=True)
                tries[method] += [{**self.chosen[method], **change} for change in more.get(method, [])]

    def final(self) -> dict[tuple[str, float], Tensor]:
        """Train every method at every sparsity. Return the predicted classes of each, shape (seeds, questions)."""
        keys = [("dense", 0.0), *((method, s) for s in SPARSITIES for method in METHODS[1:])]
        jobs = [
            self.job(method, {**self.chosen[method], **at(method, s)}, final=True, seed=seed)
            for method, s in keys
            for seed in self.seeds
        ]
        done = iter(self.jobs.run(jobs))
        return {key: torch.tensor([next(done)["predictions"] for _ in self.seeds]) for key in keys}

    def through_trainer(self, seeds: int) -> Tensor:
        params = {**self.chosen["lpss"], **at("lpss", TUNED_AT)}
        more = {"trainer": True, "out": str(self.jobs.file.parent / "trainer")}
        jobs = [self.job("lpss", params, final=True, seed=seed, **more) for seed in self.seeds[:seeds]]
        return torch.tensor([done["predictions"] for done in self.jobs.run(jobs)])


def at(method: str, sparsity: float) -> Params:
    return {} if method == "dense" else {"final_sparsity": sparsity}


def scored(targets: Tensor, done: Sequence[Job]) -> Tensor:
    """Return the macro-F1 of each training."""
    predictions = torch.tensor([one["predictions"] for one in done])
    return macro_f1(confusion(targets, predictions, torch.ones(1, len(targets)).double(), CLASSES))[0]


def rows(network: str, targets: Tensor, found: dict[tuple[str, float], Tensor]) -> list[str]:
    """Return the table's lines: the mean and the range of each score over the seeds, and the macro-F1 of lpss minus
    that of the line's method."""
    lines = []
    for (method, sparsity), predictions in found.items():
        counts = confusion(targets, predictions, torch.ones(1, len(targets)).double(), CLASSES)
        cells = [f"{100 * s.mean():.2f} ({100 * s.min():.2f} to {100 * s.max():.2f})" for s in _both(counts)]
        behind = [
            str(difference(macro_f1, targets, found["lpss", s], predictions, classes=CLASSES))
            if method != "lpss" and sparsity in (0.0, s)
            else ""
            for s in SPARSITIES
        ]
        lines.append(f"| {network} | {method} | {sparsity:g} | {' | '.join([*cells, *behind])} |")
    return lines


def _both(counts: Tensor) -> tuple[Tensor, Tensor]:
    return macro_f1(counts), accuracy(counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trainer", type=int, default=1, help="seeds of lpss .9 on bert through transformers' Trainer")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out/text.jsonl"))
    options = parser.parse_args()
    jobs = Jobs(work, options.out, options.workers)
    targets = split_questions(options.data_dir, final=True).test.y
    lines = [
        "| network | method | sparsity | macro-F1 % | accuracy % | lpss .8 minus it, macro-F1 | lpss .9 minus it |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for network in options.networks:
        benchmark = Benchmark(jobs, network, options.data_dir, options.seeds)
        found = benchmark.final()
        if network == "bert" and options.trainer:
            found["Trainer, lpss", TUNED_AT] = benchmark.through_trainer(options.trainer)
        lines += rows(network, targets, found)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
