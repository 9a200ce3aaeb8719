"""A small decoder-only transformer over bytes: pre-norm blocks, learned positions, dropout throughout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from aiockpt.demo.job import Recipe

#: Tokens are bytes.
VOCABULARY = 256
#: High enough that a random stream that was not restored shows in the very next loss.
DROPOUT = 0.1


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attend: (batch, context, dim) to the same shape."""
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        dropout = DROPOUT if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        attended: Tensor = self.out(mixed.transpose(1, 2).flatten(-2))
        return attended


class Block(nn.Module):
    """Attention and a feed-forward layer, each normed before and added after."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        """Transform: (batch, context, dim) to the same shape."""
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        y: Tensor = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return y


class Transformer(nn.Module):
    """Predicts the next byte at every place of a sequence."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, recipe.dim)
        self.position = nn.Embedding(recipe.context, recipe.dim)
        self.dropout = nn.Dropout(DROPOUT)
        self.blocks = nn.ModuleList(Block(recipe.dim, recipe.heads) for _ in range(recipe.layers))
        self.norm = nn.LayerNorm(recipe.dim)
        self.head = nn.Linear(recipe.dim, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits: (batch, context) of tokens to (batch · context, vocabulary)."""
        x = self.dropout(self.token(tokens) + self.position(torch.arange(tokens.shape[1])))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x).flatten(0, 1))
        return logits
