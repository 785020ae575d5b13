"""Networks with attention, and networks whose inputs are tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.layers import Conv1D

TOKENS = 11


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.1, batch_first=True)
        self.lift, self.layers, self.head = nn.Linear(8, 16), nn.TransformerEncoder(layer, 1), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.lift(x)).mean(1))


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Transformer(16, 2, 1, 1, 24, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.both(x, x.roll(1, 1))


class Cross(nn.Module):
    """Attention with keys and values of other sizes than the queries."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(12, 3, kdim=8, vdim=6, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x[..., :8], x[..., :6])[0])


class Block(nn.Module):
    """A block as in GPT-2: its layers are Conv1D instead of Linear."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = Conv1D(3 * width, width), Conv1D(width, width)
        self.c_fc, self.mlp_proj = Conv1D(2 * width, width), Conv1D(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (part.unsqueeze(1) for part in self.c_attn(self.ln_1(x)).chunk(3, -1))
        x = x + self.c_proj(F.scaled_dot_product_attention(query, key, value, is_causal=True).squeeze(1))
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x))))


class Gpt(nn.Module):
    """A small GPT-2. Its head and its token embedding share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(TOKENS, 16), nn.Embedding(6, 16)
        self.h = nn.ModuleList([Block(16), Block(16)])
        self.lm_head = nn.Linear(16, TOKENS, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        return self.lm_head(x)


class LanguageModel(nn.Module):
    """A recurrent language model. Its head shares no weight with the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.cells = nn.Embedding(TOKENS, 16), nn.LSTM(16, 16, batch_first=True)
        self.head = nn.Linear(16, TOKENS)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.cells(self.embedding(tokens))[0])


def bag() -> nn.Module:
    return nn.Sequential(nn.EmbeddingBag(TOKENS, 32), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 3))
