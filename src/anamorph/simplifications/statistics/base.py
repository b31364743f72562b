"""What a fit keeps of a stream of points, so that it never sees its data whole."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol, Self, TypeGuard, runtime_checkable

import torch
from torch import Tensor

from anamorph.errors import AnamorphError


class Statistic(Protocol):
    """What a fit must see of a stream of points. It is small, however long the stream.

    What it holds depends on the points and their order, never on how they were cut into updates.
    """

    @property
    def key(self) -> Hashable:
        """Statistics with equal keys, fed with the same stream, are equal."""
        ...

    def update(self, x: Tensor) -> None:
        """Take in `x` [points, dim], of any dtype and device."""
        ...


@runtime_checkable
class Mergeable(Statistic, Protocol):
    """A statistic of which parts of a stream can be seen apart, and put together afterwards.

    The parts together hold, up to rounding, what one of the whole stream holds. A part may be seen
    in another process, from which it is pickled. What comes of merging must not depend on that.
    """

    def part(self, start: int) -> Self:
        """An empty one of the same key, for the points from number `start` of the stream on."""
        ...

    def merge(self, later: Self) -> None:
        """Take in what `later` has seen: the part of the stream that follows its own.

        Raises:
            AnamorphError: if it is known to be another part.
        """
        ...


@runtime_checkable
class Foreseeing(Statistic, Protocol):
    """A statistic that can be told how long its stream is, so that parts of it are smaller."""

    def foresee(self, points: int) -> None:
        """Know that the whole stream has so many points."""
        ...


class Several:
    """Several statistics of one stream."""

    def __init__(self, *statistics: Statistic | None) -> None:
        self.statistics = statistics

    @property
    def key(self) -> Hashable:
        """The keys of all."""
        return ("several", *(s and s.key for s in self.statistics))

    def update(self, x: Tensor) -> None:
        """Take in `x` [points, dim]."""
        for statistic in self.statistics:
            if statistic is not None:
                statistic.update(x)

    def foresee(self, points: int) -> None:
        """See `Foreseeing.foresee`."""
        for statistic in self.statistics:
            if isinstance(statistic, Foreseeing):
                statistic.foresee(points)

    def part(self, start: int) -> Several:
        """See `Mergeable.part`."""
        return Several(*(s and _mergeable(s).part(start) for s in self.statistics))

    def merge(self, later: Several) -> None:
        """See `Mergeable.merge`."""
        for mine, theirs in zip(self.statistics, later.statistics, strict=True):
            if mine is not None and theirs is not None:
                _mergeable(mine).merge(_mergeable(theirs))


def can_merge(statistic: Statistic) -> TypeGuard[Mergeable]:
    """Whether it can be put together from parts; of several, whether each of them can."""
    if isinstance(statistic, Several):
        return all(s is None or can_merge(s) for s in statistic.statistics)
    return isinstance(statistic, Mergeable)


def _mergeable(statistic: Statistic) -> Mergeable:
    if not can_merge(statistic):
        raise AnamorphError(
            f"{type(statistic).__name__} cannot be put together from parts; fit in one pass."
        )
    return statistic


def as_points(x: Tensor) -> Tensor:
    """`x` [..., dim] as [points, dim].

    Raises:
        AnamorphError: if `x` has no axes, or holds a NaN or infinity.
    """
    if x.ndim == 0:
        raise AnamorphError("Cannot fit to a single number; give activations [..., dim].")
    points = x.detach().reshape(-1, x.shape[-1])
    if not torch.isfinite(points).all():
        bad = (~torch.isfinite(points)).any(dim=1).nonzero()[0].item()
        raise AnamorphError(
            f"Cannot fit to activations with a NaN or infinity (first at point {bad} of "
            f"{len(points)}); find out where in the model it comes from."
        )
    return points


def beside(parts: Sequence[Tensor]) -> Tensor:
    """[points, sum of dims] several parts of the same points, [points, dim] each, side by side."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)
