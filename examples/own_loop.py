"""A plain training loop that trains a network to exactly 90 % sparsity, without a search and without Ray.

python examples/own_loop.py
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from tune_sparsity import lpss

EPOCHS, BATCH = 20, 64


def main() -> None:
    torch.manual_seed(0)
    x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
    x = x.float() / 16
    train = torch.randperm(len(x))[:1400]
    test = torch.tensor(sorted(set(range(len(x))) - set(train.tolist())))
    model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    sparse = lpss(model, sparsity=0.9, total_steps=EPOCHS * -(-len(train) // BATCH))  # replaces the optimizer
    for _ in range(EPOCHS):
        for batch in train[torch.randperm(len(train))].split(BATCH):
            sparse.zero_grad()
            cross_entropy(model(x[batch]), y[batch]).backward()
            sparse.step()
    accuracy = (model(x[test]).argmax(1) == y[test]).float().mean()
    print(f"{sparse.sparsity():.4f} of the weights are zero, test accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
