"""Search for sparse networks without tune-sparsity. A competent user could write this script from the documentation of
Ray Tune, Optuna, MLflow, torchvision and torch.

    python -m benchmarks.user_script --experiment digits --data-dir DIR --out FOLDER --trials 32 --epochs 30

Ray Tune runs a function trainable, with Ray's OptunaSearch, ASHA and MLflow callback. A DataLoader reads the data set
and applies its transforms. LpSGD is written directly from its equations. torch.nn.utils.prune applies the masks; their
sparsity rises along a cubic curve. Each trial that reaches the last epoch saves a checkpoint. The best of these
networks is tested. The script prints one JSON document, which includes the times of its parts.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

STARTED = time.time()

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from ray import tune  # noqa: E402
from ray.air.integrations.mlflow import MLflowLoggerCallback  # noqa: E402
from ray.tune.schedulers import ASHAScheduler  # noqa: E402
from ray.tune.search.optuna import OptunaSearch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset  # noqa: E402
from torchvision import datasets, transforms  # noqa: E402

BATCH = {"digits": 32, "fashion-mnist": 128}
SMOOTHING = {"digits": 0.1, "fashion-mnist": 0.0}
PARTS = ("data", "forward_backward", "optimizer", "topology", "validation", "setup", "reporting")
MASKS_EVERY, RAMP = 40, (0.1, 0.8)


class Neurons(nn.Linear):
    """A linear layer. The weights of each neuron have the Lp norm 1, and its output is multiplied by a trained gain."""

    def __init__(self, fan_in: int, fan_out: int, p: float) -> None:
        super().__init__(fan_in, fan_out)
        with torch.no_grad():
            self.weight.div_((self.weight.abs() ** p).sum(1, keepdim=True) ** (1 / p))
        self.gain = nn.Parameter(2**0.5 / self.weight.detach().norm(dim=1))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) * self.gain + self.bias


def network(pixels: int, p: float) -> nn.Sequential:
    return nn.Sequential(Neurons(pixels, 300, p), nn.ReLU(), Neurons(300, 100, p), nn.ReLU(), nn.Linear(100, 10))


class LpSGD(torch.optim.Optimizer):
    """Updates each row of weights w in three steps: v <- (1 - lr) v - lr d / ||d||_q, then v <- v / ||v||_q, then
    w = sign(v) |v|^(1 / (p - 1)). Here d is the gradient with Nesterov momentum, and q = p / (p - 1)."""

    def __init__(self, params: Any, lr: float, p: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "p": p, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            p, q, lr, momentum = group["p"], group["p"] / (group["p"] - 1), group["lr"], group["momentum"]
            for w in group["params"]:
                state = self.state[w]
                if not state:
                    state["v"], state["buffer"] = w.sign() * w.abs() ** (p - 1), torch.zeros_like(w)
                buffer = state["buffer"].mul_(momentum).add_(w.grad)
                d = w.grad + momentum * buffer
                norm = (d.abs() ** q).sum(1, keepdim=True) ** (1 / q)
                v = (1 - lr) * state["v"] - lr * d / norm.clamp_min(1e-12)
                v /= (v.abs() ** q).sum(1, keepdim=True) ** (1 / q)
                state["v"] = v
                w.copy_(v.sign() * v.abs() ** (1 / (p - 1)))


def move_masks(layers: list[nn.Module], sparsity: float) -> None:
    """Set the masks to this sparsity. Over all layers together, they keep the largest |weight * gain|."""
    with torch.no_grad():
        sizes = [layer.weight_orig.abs() * getattr(layer, "gain", torch.ones(1)).reshape(-1, 1) for layer in layers]
        flat = torch.cat([size.flatten() for size in sizes])
        keep = torch.zeros_like(flat)
        keep[flat.topk(int(len(flat) * (1 - sparsity))).indices] = 1.0
        for layer, part in zip(layers, keep.split([size.numel() for size in sizes]), strict=True):
            layer.weight_mask.copy_(part.view_as(layer.weight_mask))


def data(name: str, folder: str) -> tuple[Dataset, Dataset, Dataset]:
    """Return training, validation and test data, in the same split as tune-sparsity."""
    if name == "digits":
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        images, labels = load_digits(return_X_y=True)
        x, x_test, y, y_test = train_test_split(images, labels, test_size=360, stratify=labels, random_state=0)
        x, x_val, y, y_val = train_test_split(x, y, test_size=180, stratify=y, random_state=0)
        mean, std = x.mean(), x.std()

        def part(images: Any, labels: Any) -> TensorDataset:
            return TensorDataset(torch.tensor((images - mean) / std, dtype=torch.float32), torch.tensor(labels))

        return part(x, y), part(x_val, y_val), part(x_test, y_test)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.2860,), (0.3530,)), torch.flatten])
    train = datasets.FashionMNIST(folder, train=True, transform=transform)
    test = datasets.FashionMNIST(folder, train=False, transform=transform)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
    return Subset(train, order[5000:]), Subset(train, order[:5000]), test


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader) -> float:
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in loader)
    return right / len(loader.dataset)  # type: ignore[arg-type]


class Watch:
    """Adds up the seconds of each part of a trial."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def __call__(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part] += now - self._last
        self._last = now


def trial(config: dict[str, Any]) -> None:
    """Train one network, and report every epoch to Ray Tune."""
    began, watch = time.time(), Watch()
    torch.manual_seed(config["seed"])
    train, val, _ = data(config["experiment"], config["data_dir"])
    batch, epochs, target = BATCH[config["experiment"]], config["epochs"], config["target"]
    loader, val_loader = DataLoader(train, batch_size=batch, shuffle=True), DataLoader(val, batch_size=1000)
    model = network(train[0][0].numel(), config["p"])
    sphere = [model[0].weight, model[2].weight]
    others = [param for param in model.parameters() if all(param is not weight for weight in sphere)]
    lp = LpSGD(sphere, config["sphere_lr"], config["p"], config["momentum"])
    sgd = torch.optim.SGD(others, config["lr"], config["momentum"], nesterov=True, weight_decay=config["weight_decay"])
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, epochs * len(loader)) for o in (lp, sgd)]
    layers = [model[0], model[2], model[4]]
    for layer in layers:
        prune.identity(layer, "weight")
    lp.param_groups[0]["params"] = [layer.weight_orig for layer in layers[:2]]
    sgd.param_groups[0]["params"] = [param for param in model.parameters() if all(param is not w for w in sphere)]
    step, total = 0, epochs * len(loader)
    watch("setup")
    for epoch in range(epochs):
        model.train()
        watch("reporting")
        for x, y in loader:
            watch("data")
            loss = F.cross_entropy(model(x), y, label_smoothing=SMOOTHING[config["experiment"]])
            lp.zero_grad()
            sgd.zero_grad()
            loss.backward()
            watch("forward_backward")
            if step % MASKS_EVERY == 0 and RAMP[0] <= step / total < RAMP[1]:
                along = (step / total - RAMP[0]) / (RAMP[1] - RAMP[0])
                move_masks(layers, target * (1 - (1 - along) ** 3))
            elif step == int(RAMP[1] * total):
                move_masks(layers, target)
            watch("topology")
            for optimizer in (lp, sgd):
                optimizer.step()
            for schedule in schedules:
                schedule.step()
            watch("optimizer")
            step += 1
        watch("data")
        value = accuracy(model, val_loader)
        kept = sum(int(layer.weight_mask.sum()) for layer in layers)
        sparsity = 1 - kept / sum(layer.weight_mask.numel() for layer in layers)
        watch("validation")
        report = {"val_accuracy": value, "sparsity": sparsity, "train_loss": loss.item(), "ended": time.time()}
        report |= {"began": began, **{f"seconds_{part}": watch.seconds[part] for part in PARTS}}
        if epoch + 1 < epochs:
            tune.report(report)
            continue
        with tempfile.TemporaryDirectory() as folder:
            torch.save(model.state_dict(), os.path.join(folder, "model.pt"))
            tune.report(report, checkpoint=tune.Checkpoint.from_directory(folder))


DRIVER: dict[str, float] = defaultdict(float)  # seconds of the driver, by what it did


def timed(part: str, *names: str) -> Any:
    """Return a class decorator that adds the seconds in the methods with these names to DRIVER[part]."""

    def decorate(cls: type) -> type:
        for name in names:
            setattr(cls, name, _timed(getattr(cls, name), part))
        return cls

    return decorate


def _timed(method: Any, part: str) -> Any:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            DRIVER[part] += time.perf_counter() - start

    return wrapper


@timed("sampling", "suggest", "on_trial_result", "on_trial_complete")
class Search(OptunaSearch):
    pass


@timed("tracking", "setup", "log_trial_start", "log_trial_result", "log_trial_end")
class Tracking(MLflowLoggerCallback):
    pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiment", choices=list(BATCH), required=True)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--target", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    out = options.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    fixed = {name: getattr(options, name) for name in ("experiment", "data_dir", "epochs", "target", "seed")}
    space = {
        **fixed,
        "p": tune.uniform(1.05, 2.0),
        "sphere_lr": tune.loguniform(0.001, 0.05),
        "lr": tune.loguniform(0.01, 0.3),
        "momentum": tune.uniform(0.8, 0.95),
        "weight_decay": tune.loguniform(3e-5, 2e-3),
    }
    callback = Tracking(tracking_uri=f"sqlite:///{out}/mlflow.db", experiment_name=options.experiment)
    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": 1}),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="val_accuracy",
            mode="max",
            search_alg=Search(seed=options.seed),
            scheduler=ASHAScheduler(max_t=options.epochs),
            num_samples=options.trials,
        ),
        run_config=tune.RunConfig(name="study", storage_path=str(out), callbacks=[callback], verbose=0),
    )
    results = [result for result in tuner.fit() if result.metrics and "began" in result.metrics]
    ended = [r for r in results if r.checkpoint is not None and r.metrics["sparsity"] >= options.target - 1e-3]
    best = max(ended, key=lambda r: np.nan_to_num(r.metrics["val_accuracy"]), default=None)
    document: dict[str, Any] = {"trials": len(results), "best": None, "startup": None}
    if best is not None:
        model = network(64 if options.experiment == "digits" else 784, best.config["p"])
        for layer in (model[0], model[2], model[4]):
            prune.identity(layer, "weight")
        model.load_state_dict(torch.load(os.path.join(best.checkpoint.path, "model.pt")))
        test = accuracy(model, DataLoader(data(options.experiment, options.data_dir)[2], batch_size=1000))
        metrics = best.metrics
        document["best"] = {
            **{name: metrics[name] for name in ("val_accuracy", "sparsity")},
            "test_accuracy": test,
            "config": {name: value for name, value in best.config.items() if name not in fixed},
        }
    if results:
        document["startup"] = min(result.metrics["began"] for result in results) - STARTED
        parts = {part: sum(result.metrics[f"seconds_{part}"] for result in results) for part in PARTS}
        document["worker_seconds"] = parts
        document["reached"] = reached(results, options.target, 0.89)
    document["driver_seconds"] = dict(DRIVER)
    print(json.dumps(document))


def reached(results: list[Any], target: float, accuracy_wanted: float) -> float | None:
    """Return the seconds from the start until the first report with this accuracy and the target sparsity. Return None
    if there was no such report."""
    found = []
    for result in results:
        frame = result.metrics_dataframe
        good = frame[(frame["val_accuracy"] >= accuracy_wanted) & (frame["sparsity"] >= target - 1e-3)]
        found += list(good["ended"][:1])
    return min(found) - STARTED if found else None


if __name__ == "__main__":
    main()
