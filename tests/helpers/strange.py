"""Define experiments as users may have them: networks that fail for some batches, that compute in other types than
float32, or that are inside wrappers such as DataParallel."""

EXPERIMENTS = """
import torch
from torch import nn
from tune_sparsity import Data, Experiment, Recipe, Split

def blobs(n, seed):
    g = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(3, 12, generator=torch.Generator().manual_seed(9))
    y = torch.randint(0, 3, (n,), generator=g)
    return Split(means[y] + torch.randn(n, 12, generator=g), y)

def load(data_dir):
    return Data(blobs(240, 0), blobs(90, 1), blobs(75, 2))

def layers():
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 3))

class Strange(nn.Module):
    def __init__(self, when):
        super().__init__()
        self.when, self.net = when, layers()
    def forward(self, x):
        if "pair" in self.when and len(x) == 2:
            return self.net(x), x
        if self.when == "alone" and len(x) == 1 or "test" in self.when and len(x) == 75:
            raise RuntimeError(f"no batch of {len(x)}, please")
        return self.net(x) * (torch.nan if self.when == "nan" and len(x) == 90 else 1)

def experiment(name, model, load=load, **more):
    return Experiment(name, load, model, Recipe(2, 30), **more)

pair = experiment("pair", lambda: Strange("pair"))
alone = experiment("alone", lambda: Strange("alone"))
test_and_pair = experiment("test_and_pair", lambda: Strange("test and pair"))
nan = experiment("nan", lambda: Strange("nan"))

class Half(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.net = layers().to(dtype)
    def forward(self, x):
        return self.net(x)

class Autocast(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = layers()
    def forward(self, x):
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.net(x)

class Words(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.words, self.net = nn.Embedding(50, 12, dtype=dtype), layers().to(dtype)
    def forward(self, x):
        return self.net(self.words(x).mean(1))

class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module
    def forward(self, x):
        return 2 * self.module(x)

def compiled_in_place():
    network = layers()
    network.compile(backend="eager")
    return network

def in_words(data_dir):
    def split(n, seed):
        x, y = blobs(n, seed)
        return Split((4 * x + 25).clamp(0, 49).long(), y)
    return Data(split(240, 0), split(90, 1), split(75, 2))

def in_double(data_dir):
    return Data(*(Split(x.double(), y) for x, y in (blobs(240, 0), blobs(90, 1), blobs(75, 2))))

def to(dtype):
    return lambda x: x.to(dtype)

def float_loss(outputs, y):
    return nn.functional.cross_entropy(outputs.float(), y)

bfloat16 = experiment("bfloat16", lambda: Half(torch.bfloat16), prepare=to(torch.bfloat16))
float16 = experiment("float16", lambda: Half(torch.float16), prepare=to(torch.float16), loss=float_loss)
float64 = experiment("float64", lambda: Half(torch.float64), in_double)
narrowed = experiment("narrowed", layers, in_double, prepare=to(torch.float32))
autocast = experiment("autocast", Autocast)
integers = experiment("integers", lambda: Words(torch.float32), in_words)
compiled = experiment("compiled", lambda: torch.compile(layers(), backend="eager"))
compiled_half = experiment(
    "compiled_half", lambda: torch.compile(layers().to(torch.bfloat16), backend="eager"), prepare=to(torch.bfloat16)
)
in_place = experiment("in_place", compiled_in_place)
parallel = experiment("parallel", lambda: nn.DataParallel(layers()))
wrapped = experiment("wrapped", lambda: Wrapper(torch.compile(layers(), backend="eager")))
scripted = experiment("scripted", lambda: torch.jit.script(layers()))
half_words = experiment("half_words", lambda: Words(torch.bfloat16), in_words)
"""

DTYPES = ("bfloat16", "float16", "float64", "narrowed", "autocast", "integers", "half_words")
"""Of these, those that compute with other numbers."""

WRAPPED = ("compiled", "in_place", "parallel", "wrapped")
"""Those whose networks are in wrappers."""
