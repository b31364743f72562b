"""Language models in plain torch, as somebody may have them: a Transformer, an LSTM, a mixer."""

from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY = 23
CONTEXT = 16


class Attention(nn.Module):
    """Queries, keys and values out of one matrix; several query heads share a key head."""

    def __init__(self, width: int, heads: int, key_heads: int) -> None:
        super().__init__()
        self.heads, self.key_heads, self.dim = heads, key_heads, width // heads
        self.qkv = nn.Linear(width, (heads + 2 * key_heads) * self.dim)
        self.weights = nn.Identity()
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, seen: Tensor) -> tuple[Tensor, str]:
        q, k, v = self.qkv(x).split(
            [self.heads * self.dim, self.key_heads * self.dim, self.key_heads * self.dim], -1
        )
        q, k, v = (t.unflatten(-1, (-1, self.dim)).transpose(1, 2) for t in (q, k, v))
        k, v = (t.repeat_interleave(self.heads // self.key_heads, dim=1) for t in (k, v))
        scores = (q @ k.transpose(-1, -2)) * self.dim**-0.5
        weights = self.weights(scores.masked_fill(~seen, -1e9).softmax(-1))
        return self.out((weights @ v).transpose(1, 2).flatten(2)), "something else"


class Block(nn.Module):
    def __init__(self, width: int, heads: int, key_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, key_heads)
        self.mlp = nn.Sequential(nn.Linear(width, 24), nn.ReLU(), nn.Linear(24, width))

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), seen)[0]
        x += self.mlp(self.norm2(x))  # in place, as memory savers have it
        return x


class Transformer(nn.Module):
    def __init__(
        self, *, causal: bool = True, heads: int = 4, key_heads: int = 2, layers: int = 2
    ) -> None:
        super().__init__()
        self.causal = causal
        self.embed, self.place = nn.Embedding(VOCABULARY, 16), nn.Embedding(CONTEXT, 16)
        self.blocks = nn.ModuleList(Block(16, heads, key_heads) for _ in range(layers))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(16, VOCABULARY)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        length = tokens.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool)
        seen = (seen.tril() if self.causal else seen)[None, None]
        if mask is not None:
            seen = seen & mask[:, None, None]
        x = self.drop(self.embed(tokens) + self.place.weight[:length])
        for block in self.blocks:
            x = block(x, seen)
        return self.head(x)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 16)
        self.cells = nn.ModuleList(nn.LSTM(16, 16, batch_first=True) for _ in range(2))
        self.head = nn.Linear(16, VOCABULARY)

    def forward(self, tokens: Tensor) -> dict[str, Any] | tuple[Tensor, None]:
        x = self.embed(tokens)
        for cell in self.cells:
            x = x + cell(x)[0]
        return self.head(x), None


class Mixer(nn.Module):
    """Mixes along positions with a lower triangular matrix, then along the width."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 16)
        self.mix = nn.Parameter(torch.randn(2, CONTEXT, CONTEXT) / 4)
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16)) for _ in range(2)
        )
        self.after = nn.ModuleList(nn.LayerNorm(16) for _ in range(2))
        self.head = nn.Linear(16, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        length, x = tokens.shape[1], self.embed(tokens)
        for mix, mlp, after in zip(self.mix, self.mlp, self.after, strict=True):
            x = x + mix[:length, :length].tril() @ x
            x = after(x + mlp(x))
        return self.head(x)


def large(module: nn.Module) -> nn.Module:
    """With weights so large that every part matters; the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 2:
                std = 1.0 if len(parameter) == VOCABULARY else parameter.shape[1] ** -0.5
                parameter.normal_(0, 1.3 * std, generator=generator)
    return module
