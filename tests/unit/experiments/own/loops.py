"""The text of a user's file with training loops. Most of them differ from `train` in one point, often a mistake."""

LOOPS = """
import time
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset
from tune_sparsity import Metric

EPOCHS, BATCH = 4, 16

def examples(count, seed):
    y = torch.arange(count) % 4
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)) + 2 * torch.eye(4, 8)[y]
    return TensorDataset(x, y)

def network():
    return nn.Sequential(nn.Linear(8, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.1), nn.Linear(24, 4))

def accuracy(model, seed=1):
    model.eval()
    x, y = examples(80, seed).tensors
    return float((model(x).argmax(1) == y).float().mean())

def begun(trial, model=None):
    model = (model or network()).to(trial.device)
    loader = DataLoader(examples(160, 0), BATCH, shuffle=True)
    return model, loader, trial.sparsify(model, total_steps=EPOCHS * len(loader))

def pass_over(model, loader, sparse):
    model.train()
    for x, y in loader:
        sparse.zero_grad()
        cross_entropy(model(x), y).backward()
        sparse.step()

def train(trial):
    model, loader, sparse = begun(trial)
    halving = trial.keep("halving", torch.optim.lr_scheduler.StepLR(sparse, 20, gamma=0.5))
    for epoch in trial.epochs(EPOCHS):
        model.train()
        for x, y in loader:
            sparse.zero_grad()
            cross_entropy(model(x), y).backward()
            sparse.step()
            halving.step()
        trial.report(lambda: accuracy(model))

train.model = network
train.test = lambda model, data_dir: accuracy(model, seed=2)

def unnamed(trial):
    model, loader, sparse = begun(trial)
    for epoch in trial.epochs(EPOCHS):
        pass_over(model, loader, sparse)
        trial.report(lambda: accuracy(model), train_loss=0.5)

def entropy(trial):
    model, loader, sparse = begun(trial)
    def loss():
        model.eval()
        x, y = examples(80, 1).tensors
        return cross_entropy(model(x), y).item()
    for epoch in trial.epochs(EPOCHS):
        pass_over(model, loader, sparse)
        trial.report(loss)

entropy.metric = Metric("cross_entropy", maximize=False)
entropy.baseline = 1.3863

def never_reports(trial):
    model, loader, sparse = begun(trial)
    for epoch in trial.epochs(EPOCHS):
        pass_over(model, loader, sparse)

def leaves_early(trial):
    model, loader, sparse = begun(trial)
    for epoch in trial.epochs(EPOCHS):
        pass_over(model, loader, sparse)
        trial.report(lambda: accuracy(model))
        if epoch == 1:
            break

def reports_twice(trial):
    model, loader, sparse = begun(trial)
    for epoch in trial.epochs(1):
        pass_over(model, loader, sparse)
        trial.report(lambda: accuracy(model))
        trial.report(lambda: accuracy(model))

def reports_after_the_end(trial):
    model, loader, sparse = begun(trial)
    for epoch in trial.epochs(EPOCHS):
        pass_over(model, loader, sparse)
        trial.report(lambda: accuracy(model))
    trial.report(lambda: accuracy(model))

def half_the_steps(trial):
    model, loader, sparse = begun(trial)
    for epoch in trial.epochs(EPOCHS):
        pass_over(model, list(loader)[:5], sparse)
        trial.report(lambda: accuracy(model))

def more_steps(trial):
    model, loader, sparse = begun(trial)
    for epoch in trial.epochs(EPOCHS):
        pass_over(model, [*loader, *loader], sparse)
        trial.report(lambda: accuracy(model))

def nan(trial):
    model, loader, sparse = begun(trial)
    for epoch in trial.epochs(EPOCHS):
        pass_over(model, loader, sparse)
        trial.report(lambda: float("nan") if epoch else 0.5)

def percents(trial):
    model, loader, sparse = begun(trial)
    for epoch in trial.epochs(EPOCHS):
        pass_over(model, loader, sparse)
        trial.report(97.5)

def reports_nothing(trial):
    model, loader, sparse = begun(trial)
    for epoch in trial.epochs(EPOCHS):
        pass_over(model, loader, sparse)
        trial.report(lambda: accuracy(model) if epoch < 1 else None, seconds="3")

def reports_words(trial):
    model, loader, sparse = begun(trial)
    for epoch in trial.epochs(EPOCHS):
        pass_over(model, loader, sparse)
        trial.report(0.5, seconds="three")

def reports_sparsity(trial):
    model, loader, sparse = begun(trial)
    for epoch in trial.epochs(EPOCHS):
        pass_over(model, loader, sparse)
        trial.report(0.5, sparsity=0.3)

def raises(trial):
    model, loader, sparse = begun(trial)
    for epoch in trial.epochs(EPOCHS):
        pass_over(model, loader, sparse)
        if epoch:
            raise OSError("the disk of the examples is gone")
        trial.report(lambda: accuracy(model))

def goes_on(trial):
    print("a loop's own words")
    model, loader, sparse = begun(trial)
    epochs = iter(trial.epochs(EPOCHS))
    while True:
        next(epochs, None)
        try:
            pass_over(model, loader, sparse)
            trial.report(lambda: accuracy(model))
        except Exception:
            pass

ENOUGH = []

def never_ends(trial):
    model, loader, sparse = begun(trial)
    epochs, begun_once = iter(trial.epochs(EPOCHS)), False
    while not ENOUGH:
        try:
            next(epochs, None)
            pass_over(model, loader, sparse)
            begun_once = True
            trial.report(lambda: accuracy(model))
        except BaseException:
            if not begun_once:
                raise
            time.sleep(0.01)

def disturbs(trial):
    model, loader, sparse = begun(trial)
    def careless():
        x, y = examples(80, 1).tensors
        return float((model.train()(x).argmax(1) == y).float().mean())
    for epoch in trial.epochs(EPOCHS):
        pass_over(model, loader, sparse)
        trial.report(careless)

def still(trial):
    model, loader, sparse = begun(trial)
    for epoch in trial.epochs(EPOCHS):
        model.train()
        model[1].eval()
        for x, y in loader:
            sparse.zero_grad()
            cross_entropy(model(x), y).backward()
            sparse.step()
        trial.report(lambda: accuracy(model))

still.model = network

class Hidden(nn.Module):
    "Autograd's graph does not show its layers."
    def __init__(self):
        super().__init__()
        self.net = network()
    def forward(self, x):
        return checkpoint(self.net, x.clone().requires_grad_(), use_reentrant=True)

def hidden(trial):
    model, loader, sparse = begun(trial, Hidden())
    for epoch in trial.epochs(EPOCHS):
        pass_over(model, loader, sparse)
        trial.report(lambda: accuracy(model))

class TakesADict(nn.Module):
    "Its last layer is registered first."
    def __init__(self):
        super().__init__()
        self.out, self.body = nn.Linear(24, 4), nn.Linear(8, 24)
    def forward(self, batch):
        return self.out(self.body(batch["x"]).relu())

def takes_a_dict(trial):
    model, loader, sparse = begun(trial, TakesADict())
    for epoch in trial.epochs(EPOCHS):
        for x, y in loader:
            sparse.zero_grad()
            cross_entropy(model({"x": x}), y).backward()
            sparse.step()
        x, y = examples(80, 1)
        trial.report(lambda: (model({"x": x}).argmax(1) == y).float().mean().item())

def forgets(trial):
    model, loader, sparse = begun(trial)
    halving = torch.optim.lr_scheduler.StepLR(sparse, 7, gamma=0.1)
    for epoch in trial.epochs(EPOCHS):
        for x, y in loader:
            sparse.zero_grad()
            cross_entropy(model.train()(x), y).backward()
            sparse.step()
            halving.step()
        trial.report(lambda: accuracy(model))

def other_model(trial):
    train(trial)

other_model.model = lambda: nn.Linear(8, 4)

def no_optimizer(trial):
    for epoch in trial.epochs(EPOCHS):
        pass

def no_epochs(trial):
    begun(trial)

def fails_at_once(trial):
    raise FileNotFoundError("no examples in /nowhere")

def misnamed(trial):
    train(trial)

misnamed.modle = network

def swallows(trial):
    model, loader, sparse = begun(trial)
    for epoch in trial.epochs(EPOCHS):
        while not ENOUGH:
            try:
                pass_over(model, loader, sparse)
            except BaseException:
                pass

async def asynchronous(trial):
    pass

def generator(trial):
    yield

def takes_nothing():
    pass
"""
