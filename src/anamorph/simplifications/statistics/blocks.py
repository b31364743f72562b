"""A stream of points in blocks of one size, however it comes."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

BLOCK = 2048
"""Points that are summed at once. What is left over waits, so that the sums do not depend, to the
last bit, on how the stream was cut into updates."""


class Blocks:
    """Cuts a stream into blocks of 2048 points, on the device of the first.

    Attributes:
        count: points seen.
        rest: what waits for its block to be full, in order and in its own dtype.
    """

    def __init__(self) -> None:
        self.count = 0
        self.rest: list[Tensor] = []
        self._waiting = 0  # points in it
        self._device: torch.device | None = None

    def take(self, x: Tensor) -> Iterator[Tensor]:
        """Take in `x` [points, dim]; gives the blocks [2048, dim] that are full now."""
        if not len(x):
            return
        x = x.detach().to(self._device or x.device)
        self._device = x.device
        self.count += len(x)
        missing = BLOCK - self._waiting
        for start, stop in pairwise([0, *range(missing, len(x), BLOCK), len(x)]):
            piece = x[start:stop]
            self._waiting += len(piece)
            if self._waiting < BLOCK:
                self.rest.append(piece.clone())
            else:
                block = torch.cat([*self.rest, piece]) if self.rest else piece
                self.rest, self._waiting = [], 0
                yield block
