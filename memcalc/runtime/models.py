"""Two models that need nothing but torch, for trying a step: ``py:memcalc.runtime.models:mlp`` and ``…:transformer``.

``SHORT`` are the names ``memcalc measure`` knows them by.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

SHORT = {"mlp": "py:memcalc.runtime.models:mlp", "transformer": "py:memcalc.runtime.models:transformer"}


def mlp(width: int = 256, layers: int = 4, inputs: int = 64, outputs: int = 10) -> nn.Module:
    """Linear layers with ReLU between: (batch, inputs) -> (batch, outputs)."""
    sizes = [inputs, *[width] * layers, outputs]
    parts: list[nn.Module] = []
    for before, after in pairwise(sizes):
        parts += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def transformer(vocabulary: int = 1024, width: int = 128, layers: int = 2, heads: int = 4, positions: int = 128) -> nn.Module:
    """A decoder as a textbook draws it: (batch, tokens) of int64 -> (batch, tokens, vocabulary)."""
    return Decoder(vocabulary, width, layers, heads, positions)


class Decoder(nn.Module):
    """Vaswani et al. 2017 (arXiv:1706.03762), the decoder alone, normalised before each part as GPT-2 is."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, positions: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(positions, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits for the next token at every position."""
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.layers:
            x = layer(x)
        logits: torch.Tensor = self.head(self.norm(x))
        return logits


class Layer(nn.Module):
    """Causal attention and a two-layer MLP, each behind a norm and a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn_norm = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, width) to the same."""
        x = x + self.attn(self.attn_norm(x))
        inner: torch.Tensor = self.mlp(self.mlp_norm(x))
        return x + inner


class Attention(nn.Module):
    """Queries, keys and values in one matrix; every token sees those before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, width) to the same."""
        batch, tokens, width = x.shape
        split = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        projected: torch.Tensor = self.project(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return projected
