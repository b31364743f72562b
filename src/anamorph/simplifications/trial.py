"""What a simplification is tried on: points to fit it to, and sequences to apply it to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from anamorph.models.base import Context
from anamorph.models.sites import HEAD_KINDS, Site
from anamorph.simplifications.base import Simplification

LENGTHS = (6, 9, 4)
"""Of the sequences, in tokens."""

CHANGED = 3
"""The position from which on the other sequences are others."""

VOCABULARY = 50


@dataclass(frozen=True)
class Sequences:
    """A batch of sequences, as a model has them at a site.

    Attributes:
        given: what is mapped, or each thing that is read: [batch, position, dim], or of a pattern
            [batch, query, key].
        context: their tokens and mask, and which positions they hold.
    """

    given: tuple[Tensor, ...]
    context: Context

    def mapped(self, by: Simplification) -> Tensor:
        """What a fitted simplification makes of them."""
        return by.apply(*self.given, context=self.context)

    def like(self, x: Tensor) -> Sequences:
        """The same in the dtype and on the device of a tensor."""
        tokens, mask = (part.to(x.device) for part in (self.context.tokens, self.context.mask))
        return Sequences(tuple(part.to(x) for part in self.given), Context(tokens, mask))

    def at(self, rows: Tensor) -> Sequences:
        """Of the positions `rows` [batch, query] alone."""
        given = tuple(x.take_along_dim(rows[..., None], dim=1) for x in self.given)
        return Sequences(given, replace(self.context, at=rows))

    def alone(self, number: int, pattern: bool) -> Sequences:
        """One of them, without padding."""
        one, length = slice(number, number + 1), LENGTHS[number]
        given = tuple(x[one, :length, : length if pattern else None] for x in self.given)
        context = Context(self.context.tokens[one, :length], self.context.mask[one, :length])
        return Sequences(given, context)


@dataclass(frozen=True)
class Trial:
    """A simplification, and what it is tried on.

    Attributes:
        tried: the simplification; itself it is not fitted.
        points: each [points, dim]: what a map maps; or what a replacement reads and, last, writes.
        given: those of them that it is called with.
        sequences: some of these points in sequences; of a pattern, attention of a causal model.
        others: the same up to the position `CHANGED`, and other tokens and points from there on.
    """

    tried: Simplification
    points: tuple[Tensor, ...]
    given: tuple[Tensor, ...]
    sequences: Sequences
    others: Sequences

    @classmethod
    def of(cls, tried: Simplification, widths: Sequence[int], points: int, seed: int) -> Trial:
        """One with distinct random points.

        Args:
            tried: the simplification.
            widths: of what it reads, if it is a replacement, and last of what it maps or writes.
            points: as for `check_simplification`.
            seed: likewise.
        """
        generator = torch.Generator().manual_seed(seed)
        dim = max(widths)
        mix, noise = (torch.randn(n, dim, generator=generator) for n in (dim, points))
        x = 0.5 + noise @ mix
        pattern = tried.kinds == {"pattern"}
        if pattern:
            x = x.softmax(dim=-1)
        read = len(tried.reads(some_site(min(tried.kinds))))
        whole = [x.roll(n, dims=1) for n in range(max(read, 1))]
        given = tuple(part[:, :width].clone() for part, width in zip(whole, widths, strict=False))
        written = (torch.tanh(sum(whole) @ mix)[:, : widths[-1]],) if read else ()  # type: ignore[operator]
        size = (2, len(LENGTHS), max(LENGTHS))
        tokens = torch.randint(VOCABULARY, size, generator=generator)
        taken = torch.randint(points, size, generator=generator)
        scores = torch.randn(*size, max(LENGTHS), generator=generator)
        for drawn in (tokens, taken, scores):
            drawn[1, :, :CHANGED] = drawn[0, :, :CHANGED]
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        attention = scores.masked_fill(future, -torch.inf).softmax(dim=-1)
        mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
        sequences, others = (
            Sequences(
                (attention[n],) if pattern else tuple(part[taken[n]] for part in given),
                Context(tokens[n], mask),
            )
            for n in range(2)
        )
        return cls(tried, (*given, *written), given, sequences, others)

    def fresh(self) -> Trial:
        """The same with points in memory of their own, which a law may spoil."""
        points = tuple(x.clone() for x in self.points)
        sequences, others = (
            replace(some, given=tuple(x.clone() for x in some.given))
            for some in (self.sequences, self.others)
        )
        given = points[: len(self.given)]
        return replace(self, points=points, given=given, sequences=sequences, others=others)

    def fitted(self) -> Simplification:
        """A copy that is fitted to the points."""
        return self.tried.clone().fit(*self.points)

    def mapped(self, by: Simplification | None = None) -> Tensor:
        """What a fitted one makes of the points."""
        return (by or self.fitted())(*self.given)

    def statistic(self) -> Any:
        """What a copy asks for, empty."""
        return self.tried.clone().statistic(*(x.shape[1] for x in self.points))

    @property
    def widths(self) -> tuple[int, ...]:
        """Of what is read, if it is a replacement, and last of what is mapped or written."""
        return tuple(x.shape[1] for x in self.points)

    @property
    def pattern(self) -> bool:
        """Whether what is mapped is attention."""
        return self.tried.kinds == {"pattern"}


def some_site(kind: str) -> Site:
    """A site of a kind, with layers before it."""
    return Site(3, 0 if kind in HEAD_KINDS else None, kind)


def require(kept: bool, otherwise: str) -> None:
    """Say how a law is broken, unless it is kept."""
    if not kept:
        raise AssertionError(otherwise)


def require_close(a: Tensor, b: Tensor, otherwise: str) -> None:
    """Say so of two tensors that are not equal up to rounding."""
    require(torch.allclose(a, b, rtol=1e-4, atol=1e-4), otherwise)
