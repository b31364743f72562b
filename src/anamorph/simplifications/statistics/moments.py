"""Count, mean and scatter of a stream of points: all that SVD and PCA, of any rank, must know."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from anamorph.simplifications.statistics.blocks import Blocks


class Moments:
    """Streaming first and second moments in float64, on the device of the points.

    The scatter is kept around the mean and merged by the rule of Chan, Golub and LeVeque (1979), so
    that points far from the origin do not cancel away what sets them apart.

    Args:
        dims: the width of a point, or of the parts that a point has side by side.

    Attributes:
        dim: the width of a point.
    """

    def __init__(self, *dims: int) -> None:
        self.dims = dims
        self.dim = sum(dims)
        self._blocks = Blocks()
        self._sums: _Sums | None = None  # of the blocks that were full
        self._before: _Sums | None = None  # of the parts that were merged

    @property
    def key(self) -> tuple[str]:
        """All moments of one stream are the same."""
        return ("moments",)

    def update(self, x: Tensor) -> None:
        """Take in `x` [points, dim]."""
        for block in self._blocks.take(x):
            self._sums = _merge(self._sums, _sums(block))
        self._forget()

    def part(self, start: int) -> Self:
        """Empty moments of points of the same width, wherever in the stream they are."""
        return type(self)(*self.dims)

    def merge(self, later: Moments) -> None:
        """Take in what other moments have seen, of any part of the stream."""
        own, theirs = self._whole(), later._whole()
        if own is not None and theirs is not None:
            theirs = _merge(own, theirs.on(own.mean.device))
        self._before = own if theirs is None else theirs
        self._blocks, self._sums = Blocks(), None
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        # What travels to another process: of width d, d·(d + 1) numbers of eight bytes. They are
        # what `merge` would take in here.
        sums = self._whole()
        before = None if sums is None else sums.on("cpu")
        return {**vars(type(self)(*self.dims)), "_before": before}

    def _forget(self) -> None:
        for name in ("_total", "axes", "centred_axes"):
            self.__dict__.pop(name, None)

    @property
    def count(self) -> int:
        """Points seen."""
        return self._blocks.count + (0 if self._before is None else self._before.count)

    @property
    def second(self) -> Tensor:
        """[dim, dim] float64, on the CPU: the mean of x xᵀ, about the origin."""
        return self.scatter / max(self.count, 1) + torch.outer(self.mean, self.mean)

    @property
    def mean(self) -> Tensor:
        """[dim] float64, on the CPU."""
        return self._total.mean

    @property
    def scatter(self) -> Tensor:
        """[dim, dim] float64, on the CPU: the sum of (x - mean)(x - mean)ᵀ."""
        return self._total.scatter

    @cached_property
    def axes(self) -> Tensor:
        """[dim, dim] the right-singular vectors of the points, the greatest singular value first.

        A row an axis, with the sign that makes its greatest entry positive.
        """
        return _axes(self.scatter + self.count * torch.outer(self.mean, self.mean))

    @cached_property
    def centred_axes(self) -> Tensor:
        """[dim, dim] the principal axes, the greatest variance first; rows and signs as `axes`."""
        return _axes(self.scatter)

    @cached_property
    def _total(self) -> _Sums:
        total = self._whole()
        if total is None:
            zeros = torch.zeros(self.dim, self.dim, dtype=torch.float64)
            return _Sums(0, zeros[0], zeros)
        return total.on("cpu")

    def _whole(self) -> _Sums | None:
        """Of all points, where they are; None if there were none."""
        own, rest = self._sums, self._blocks.rest
        if rest:
            own = _merge(own, _sums(torch.cat(rest)))
        return self._before if own is None else _merge(self._before, own)


@dataclass(frozen=True)
class _Sums:
    count: int
    mean: Tensor  # [dim]
    scatter: Tensor  # [dim, dim]

    def on(self, device: torch.device | str) -> _Sums:
        return _Sums(self.count, self.mean.to(device), self.scatter.to(device))


def _sums(points: Tensor) -> _Sums:
    if points.device.type == "mps":
        points = points.cpu()  # Apple's GPUs have no float64
    # In one layout whatever the points' own is, on which the order of a sum would depend.
    points = points.to(torch.float64, memory_format=torch.contiguous_format, copy=True)
    mean = points.mean(dim=0)
    points -= mean
    if points.device.type != "cpu":
        return _Sums(len(points), mean, points.T @ points)
    array = points.numpy()  # NumPy sees that both factors are one array, and computes half
    return _Sums(len(points), mean, torch.from_numpy(array.T @ array))


def _merge(a: _Sums | None, b: _Sums) -> _Sums:
    if a is None:
        return b
    count = a.count + b.count
    shift = b.mean - a.mean
    between = torch.outer(shift, shift) * (a.count * b.count / count)
    return _Sums(count, a.mean + shift * (b.count / count), a.scatter + b.scatter + between)


def _axes(scatter: Tensor) -> Tensor:
    axes = torch.linalg.eigh(scatter).eigenvectors.T.flip(0)  # ascending columns to rows from top
    greatest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    return torch.where(greatest < 0, -axes, axes).contiguous()
