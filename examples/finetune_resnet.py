"""A pretrained ResNet becomes 90 % sparse in a few epochs.

    python examples/finetune_resnet.py    # trains the dense network, and writes its weights to digits_resnet.pt
    tune-sparsity --target 0.9 --experiment examples/finetune_resnet.py:finetuned

With `trained=True`, every trial begins with the trained network. The default method masks no weight at the start. To
use your own task, replace the network in `resnet`, the file in WEIGHTS, and the data in `digits`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models.resnet import BasicBlock, ResNet

from tune_sparsity import Data, DataUnavailable, Experiment, Recipe, Split

WEIGHTS = Path(__file__).parent / "digits_resnet.pt"


def load(data_dir: Path | None) -> Data:
    if not WEIGHTS.exists():
        raise DataUnavailable(f"no trained network {WEIGHTS}: run python {__file__} first")
    return digits()


def digits() -> Data:
    x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
    images = x.float().view(-1, 1, 8, 8) / 16
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return Data(*(Split(images[part], y[part]) for part in order.tensor_split([1200, 1500])))


def as_photographs(x: Tensor) -> Tensor:
    """Convert grey images of 8 x 8 pixels into inputs of the network: three channels, 16 x 16 pixels."""
    return interpolate(x, scale_factor=2).expand(-1, 3, -1, -1)


def resnet() -> nn.Module:
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)  # torchvision's class, with one block in each stage


def trained_resnet() -> nn.Module:
    if not WEIGHTS.exists():
        raise FileNotFoundError(f"there is no {WEIGHTS.name}: run python {Path(__file__).name} first, which trains it")
    model = resnet()
    model.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return model


finetuned = Experiment(
    "finetuned",
    load,
    trained_resnet,
    Recipe(epochs=4, batch_size=64),
    prepare=as_photographs,
    trained=True,
    files=(WEIGHTS.name,),
)


def main(epochs: int = 6, batch: int = 64) -> None:
    """Train the dense network without tune-sparsity, and save its weights."""
    torch.manual_seed(0)
    model, data = resnet(), digits()
    train, test = data.train, data.test
    steps = epochs * -(-train.examples // batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, steps)
    for _ in range(epochs):
        for some in torch.randperm(train.examples).split(batch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(as_photographs(train.x[some])), train.y[some]).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        accuracy = (model(as_photographs(test.x)).argmax(1) == test.y).float().mean()
    torch.save(model.state_dict(), WEIGHTS)
    print(f"{WEIGHTS.name}: dense, test accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
