"""A uniform sample of a stream, in bounded memory, that does not depend on how the stream came."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anamorph.errors import AnamorphError

USUAL = 32768
"""Points that are kept where nobody asks for another number."""

BROUGHT = 2048
"""Points that wait on another device until they are brought to the CPU at once."""


class Reservoir:
    """Keeps the points whose running index has the smallest hashes: a sample without replacement.

    What is kept depends on the index of a point in the stream alone, never on the sizes of the
    updates. Points keep their dtype and are held on the CPU: a quarter more than the capacity at
    most, in one piece of memory, because many small ones for a long time would splinter the heap.
    From another device only those are brought that may stay, many at a time.

    Args:
        capacity: how many points to keep.
        seed: which sample.
        start: how many points of the stream come before those that it will see.

    Attributes:
        seen: points of the stream that it has seen, or that came before.
        device: where those were that came last.
    """

    def __init__(self, *, capacity: int, seed: int, start: int = 0) -> None:
        self.capacity = capacity
        self.seed = seed
        self.start = self.seen = start
        self._hashes = np.empty(0, dtype=np.uint64)  # as many as points, in the stream's order
        self._points = torch.empty(0, 0)
        self._held = 0  # of both; behind it is room
        self._most = capacity + max(1, capacity // 4)
        self._limit: np.uint64 | None = None  # a point with no smaller hash cannot enter any more
        self.device = torch.device("cpu")
        self._far: list[tuple[NDArray[np.uint64], Tensor]] = []  # on another device, to be brought

    @property
    def key(self) -> tuple[str, int, int]:
        """Reservoirs of one stream differ by capacity and seed."""
        return ("reservoir", self.capacity, self.seed)

    def update(self, x: Tensor) -> None:
        """Take in `x` [points, dim]."""
        hashes = splitmix64(self.seed, self.seen, len(x))
        self.seen += len(x)
        limit = self._limit
        if limit is None and len(x) > self.capacity:  # of these so many may stay
            limit = np.partition(hashes, self.capacity)[self.capacity]
        if limit is not None:
            chosen = np.flatnonzero(hashes < limit)
            there = torch.from_numpy(chosen).to(x.device, non_blocking=x.is_cuda)
            hashes, x = hashes[chosen], x[there]
        self.device = x.device
        if x.device.type == "cpu":
            self._take(hashes, x.detach())
        else:
            self._far.append((hashes, x.detach().clone()))
            if sum(len(some) for some, _ in self._far) >= BROUGHT:
                self._bring()

    def _bring(self) -> None:
        if self._far:
            hashes, points = zip(*self._far, strict=True)
            self._far = []
            self._take(np.concatenate(hashes), torch.cat(points).cpu())

    def _take(self, hashes: NDArray[np.uint64], x: Tensor) -> None:
        while len(x):
            room = self._most - self._held
            self._append(hashes[:room], x[:room])
            hashes, x = hashes[room:], x[room:]
            if self._held == self._most:
                self._compact()

    def foresee(self, points: int) -> None:
        """Know how many points the stream has: of a part, only those are kept that stay to the end.

        All parts together then hold no more than the sample.
        """
        if points > self.capacity:
            self._limit = _smallest(self.seed, points, self.capacity)

    def part(self, start: int) -> Reservoir:
        """An empty one for the points from number `start` of the stream on.

        It keeps none that could not enter what this one holds.
        """
        self._only_sample()
        part = Reservoir(capacity=self.capacity, seed=self.seed, start=start)
        part._limit = self._limit
        return part

    def merge(self, later: Reservoir) -> None:
        """Take in what `later` has kept of the part of the stream that follows its own.

        The sample is then, to the byte, that of the whole stream.

        Raises:
            AnamorphError: if that part does not follow.
        """
        if (later.key, later.start) != (self.key, self.seen):
            raise AnamorphError(
                f"The part of a sample that begins at point {later.start} cannot follow one that "
                f"ends before point {self.seen}; merge parts in the order of the stream."
            )
        if later.seen > later.start:
            self.seen, self.device = later.seen, later.device
        self._bring()
        later._bring()
        self._take(later._hashes[: later._held], later._points[: later._held])

    def __getstate__(self) -> dict[str, Any]:
        # What travels to another process: the sample, eight bytes a point beside the point itself.
        self._only_sample()
        hashes, points = self._hashes[: self._held].copy(), self._points[: self._held].clone()
        return {**vars(self), "_hashes": hashes, "_points": points}

    def points(self) -> Tensor:
        """[at most capacity, dim] the sample, in the order of the stream, float64."""
        self._only_sample()
        return self._points[: self._held].to(torch.float64, copy=True)

    def _only_sample(self) -> None:
        self._bring()
        if self._held >= self.capacity:
            self._compact()

    def _append(self, hashes: NDArray[np.uint64], x: Tensor) -> None:
        stop = self._held + len(x)
        if not self._held:
            self._points = x.new_empty(0, x.shape[1])
        if stop > len(self._hashes):
            more = min(max(stop, 2 * self._held), self._most) - self._held
            self._hashes = np.append(self._hashes[: self._held], np.empty(more, dtype=np.uint64))
            self._points = torch.cat([self._points[: self._held], x.new_empty(more, x.shape[1])])
        self._points = self._points.to(torch.promote_types(self._points.dtype, x.dtype))
        self._hashes[self._held : stop] = hashes
        self._points[self._held : stop] = x
        self._held = stop

    def _compact(self) -> None:
        smallest = np.argpartition(self._hashes[: self._held], self.capacity - 1)[: self.capacity]
        kept = np.sort(smallest)
        self._held = self.capacity
        self._hashes[: self._held] = self._hashes[kept]
        self._points[: self._held] = self._points[torch.from_numpy(kept)]
        self._limit = self._hashes[: self._held].max()


@lru_cache(maxsize=16)
def _smallest(seed: int, points: int, number: int) -> np.uint64:
    """The hash, of so many points, below which there are `number`."""
    hashes = splitmix64(seed, 0, points)
    hashes.partition(number)
    return np.uint64(hashes[number])


def splitmix64(seed: int, start: int, count: int) -> NDArray[np.uint64]:
    """Outputs `start` to `start + count - 1` of the SplitMix64 generator; no two are equal.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
    """
    index = np.arange(start + 1, start + count + 1, dtype=np.uint64)
    z = np.uint64(seed) + index * np.uint64(0x9E3779B97F4A7C15)  # wraps around, as it should
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
