"""A transformer that classifies the questions of TREC by the kind of their answer: a place, a number, ...

    tune-sparsity --target 0.8 --experiment examples/text_transformer.py:questions --data-dir FOLDER

FOLDER contains TREC.train and TREC.test. Each line of these files has a label and a question. The inputs of the network
are a dict of two tensors. Its entries become the keyword arguments of the network.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

from tune_sparsity import Data, DataUnavailable, Experiment, Recipe, Split

WORDS, LONGEST, WIDTH = 2000, 24, 64
KINDS = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")


def read(path: Path) -> list[tuple[int, list[str]]]:
    lines = path.read_text(encoding="latin-1").splitlines()
    return [(KINDS.index(line.split(":")[0]), line.split()[1:]) for line in lines]


def load(data_dir: Path | None) -> Data:
    folder = data_dir or Path()
    if not (folder / "TREC.train").exists():
        raise DataUnavailable(f"no TREC.train in {folder.absolute()}: give its folder by --data-dir")
    train, test = read(folder / "TREC.train"), read(folder / "TREC.test")
    counts = Counter(word for _, words in train for word in words)
    numbers = {word: i + 2 for i, (word, _) in enumerate(counts.most_common(WORDS - 2))}  # 0: padding, 1: unknown word

    def split(questions: list[tuple[int, list[str]]]) -> Split:
        rows = [[numbers.get(word, 1) for word in words[:LONGEST]] for _, words in questions]
        tokens = torch.tensor([row + [0] * (LONGEST - len(row)) for row in rows])
        return Split({"tokens": tokens, "padding": tokens == 0}, torch.tensor([kind for kind, _ in questions]))

    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
    parts = [train[i] for i in order[500:]], [train[i] for i in order[:500]], test
    return Data(*map(split, parts), classes=KINDS)


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Parameter(0.02 * torch.randn(LONGEST, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, len(KINDS))

    def forward(self, tokens: Tensor, padding: Tensor) -> Tensor:
        encoded = self.encoder(self.words(tokens) + self.places, src_key_padding_mask=padding)
        kept = (~padding).unsqueeze(-1).to(encoded.dtype)
        return self.head((encoded * kept).sum(1) / kept.sum(1).clamp_min(1))


questions = Experiment(
    "questions", load, Transformer, Recipe(epochs=8, batch_size=64, clip_norm=1.0), optimizer="adamw"
)
