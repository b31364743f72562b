"""Sums of squares of a stream of points: how large each dimension is."""

from typing import Any, Self

import torch
from torch import Tensor

from anamorph.machine.devices import in_float64
from anamorph.simplifications.statistics.blocks import Blocks


class Squares:
    """Streaming sums of squares in float64, dimension by dimension, where the points are.

    Args:
        dim: the width of a point.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._blocks = Blocks()
        self._sum = torch.zeros((), dtype=torch.float64)  # then [dim], where the points are
        self._before = self._sum  # of the parts that were merged

    @property
    def key(self) -> tuple[str]:
        """All of one stream are the same."""
        return ("squares",)

    def update(self, x: Tensor) -> None:
        """Take in `x` [points, dim]."""
        for block in self._blocks.take(x):
            self._sum = self._sum + _sum(block)

    def part(self, start: int) -> Self:
        """An empty one for points of the same width, wherever in the stream they are."""
        return type(self)(self.dim)

    def merge(self, later: Self) -> None:
        """Take in what another has seen, of any part of the stream."""
        own = self._whole()
        self._before = own + later._whole().to(own.device)
        self._blocks, self._sum = Blocks(), torch.zeros((), dtype=torch.float64)

    def __getstate__(self) -> dict[str, Any]:
        # What travels to another process: `dim` numbers of eight bytes.
        return {**vars(type(self)(self.dim)), "_before": self._whole().cpu()}

    @property
    def norms(self) -> Tensor:
        """[dim] float64, on the CPU: the root of each dimension's sum of squares."""
        return self._whole().cpu().sqrt().expand(self.dim)

    def _whole(self) -> Tensor:
        """Of all points, where they are."""
        rest = self._blocks.rest
        return self._before + (self._sum + (_sum(torch.cat(rest)) if rest else 0))


def _sum(points: Tensor) -> Tensor:
    """[dim] float64."""
    return in_float64(points).square().sum(0)
