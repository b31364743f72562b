"""A uniform sample of a stream, in bounded memory, that does not depend on how the stream came."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Reservoir:
    """Keeps the points whose running index has the smallest hashes: a sample without replacement.

    What is kept depends on the index of a point in the stream alone, never on the sizes of the
    updates. Points keep their dtype; at most twice the capacity (and one update) is held.

    Args:
        capacity: how many points to keep.
        seed: which sample.
    """

    def __init__(self, *, capacity: int, seed: int) -> None:
        self.capacity = capacity
        self.seed = seed
        self.seen = 0
        self._hashes: list[NDArray[np.uint64]] = []
        self._points: list[Tensor] = []
        self._held = 0
        self._limit: np.uint64 | None = None  # once full, a point with a greater hash cannot enter

    @property
    def key(self) -> tuple[str, int, int]:
        """Reservoirs of one stream differ by capacity and seed."""
        return ("reservoir", self.capacity, self.seed)

    def update(self, x: Tensor) -> None:
        """Take in `x` [points, dim]."""
        hashes = splitmix64(self.seed, self.seen, len(x))
        self.seen += len(x)
        if self._limit is not None:
            chosen = np.flatnonzero(hashes < self._limit)
            hashes, x = hashes[chosen], x[torch.from_numpy(chosen).to(x.device)]
        if not len(x):
            return
        self._hashes.append(hashes)
        self._points.append(x.detach().to("cpu", copy=True))
        self._held += len(x)
        if self._held > 2 * self.capacity:
            self._compact()

    def points(self) -> Tensor:
        """[at most capacity, dim] the sample, in the order of the stream, float64."""
        if not self._points:
            return torch.empty(0, 0, dtype=torch.float64)
        self._compact()
        return self._points[0].double()

    def _compact(self) -> None:
        hashes, points = np.concatenate(self._hashes), torch.cat(self._points)
        if len(hashes) > self.capacity:
            kept = np.sort(np.argpartition(hashes, self.capacity - 1)[: self.capacity])
            hashes, points = hashes[kept], points[torch.from_numpy(kept)]
        if len(hashes) == self.capacity:
            self._limit = hashes.max()
        self._hashes, self._points, self._held = [hashes], [points], len(hashes)


def splitmix64(seed: int, start: int, count: int) -> NDArray[np.uint64]:
    """Outputs `start` to `start + count - 1` of the SplitMix64 generator; no two are equal.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
    """
    index = np.arange(start + 1, start + count + 1, dtype=np.uint64)
    z = np.uint64(seed) + index * np.uint64(0x9E3779B97F4A7C15)  # wraps around, as it should
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
