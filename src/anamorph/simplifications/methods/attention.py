"""Attention cut short: only near keys, or only those that a query attends to most.

Rows keep their sum: one, but in models with attention sinks, where it is less.
"""

from typing import ClassVar

import torch
from torch import Tensor

from anamorph.models.base import Context
from anamorph.simplifications.base import Simplification


class Window(Simplification):
    """Attention to keys less than `size` positions away, renormalized. Nothing is fitted.

    In a causal model these are the last `size` keys, the query's own included. A query that had no
    attention there attends to its own position.

    Args:
        size: how many positions; 1 leaves each query its own.

    Examples:
        >>> Window(size=2)(torch.tensor([0.5, 0.25, 0.25]))
        tensor([0.0000, 0.5000, 0.5000])
    """

    name: ClassVar[str] = "window"
    size_name: ClassVar[str | None] = "size"
    kinds: ClassVar[frozenset[str]] = frozenset({"pattern"})

    size: int = 1  # an attribute, in place of the property

    def __init__(self, *, size: int) -> None:
        self.size = size

    def validate(self, dim: int | None = None) -> None:
        """See `Simplification.validate`."""
        self.require_whole("size", least=1)

    def exact_size(self, dim: int, points: int) -> int | None:
        """A window as long as the sequence leaves attention as it is."""
        return dim

    def __call__(self, x: Tensor) -> Tensor:
        """Cut rows `x` [..., keys] of queries that stand where the last key stands."""
        return self._cut(x, torch.tensor(x.shape[-1] - 1, device=x.device))

    def apply(self, x: Tensor, *, context: Context) -> Tensor:
        """Cut `x` [batch, query, key]."""
        at = context.at
        return self._cut(x, torch.arange(x.shape[1], device=x.device) if at is None else at)

    def _cut(self, x: Tensor, at: Tensor) -> Tensor:
        """Rows `x` [..., query, key] of queries at the positions `at`."""
        distance = (torch.arange(x.shape[-1], device=x.device) - at[..., None]).abs()
        kept = torch.where(distance < self.size, x, 0)
        before, after = (part.sum(dim=-1, keepdim=True) for part in (x, kept))
        return before * torch.where(after == 0, (distance == 0).to(x), kept / after)


class TopKAttention(Simplification):
    """Attention to the `k` keys that a query attends to most, renormalized. Nothing is fitted.

    Of keys with equal attention the first are kept.

    Args:
        k: how many keys.

    Examples:
        >>> TopKAttention(k=2)(torch.tensor([0.375, 0.25, 0.375]))
        tensor([0.5000, 0.0000, 0.5000])
    """

    name: ClassVar[str] = "topk_attention"
    size_name: ClassVar[str | None] = "k"
    kinds: ClassVar[frozenset[str]] = frozenset({"pattern"})

    def __init__(self, *, k: int) -> None:
        self.k = k

    def validate(self, dim: int | None = None) -> None:
        """See `Simplification.validate`."""
        self.require_whole("k", least=1)

    def exact_size(self, dim: int, points: int) -> int | None:
        """With all keys attention is as it was."""
        return dim

    def __call__(self, x: Tensor) -> Tensor:
        """Cut rows `x` [..., keys]."""
        # A stable sort, as `topk` may take any of equal ones.
        most = x.sort(dim=-1, descending=True, stable=True)
        where, values = most.indices[..., : self.k], most.values[..., : self.k]
        before, after = (part.sum(dim=-1, keepdim=True) for part in (x, values))
        return torch.zeros_like(x).scatter(-1, where, before * (values / after))
