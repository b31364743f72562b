"""Fits by many small steps over shuffled points: the training of autoencoders and their like."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from anamorph.errors import AnamorphError, require
from anamorph.simplifications.streamed import Streamed

WARM_UP = 50  # steps in which the learning rate rises
FEW = 200  # steps in which little is learnt
LOOK = 50  # steps on a device between two looks at its errors, for which the host has to wait
DECAY = 0.5  # the share of the last pool's steps in which it falls to zero


class Pooled(Streamed):
    """A simplification that learns by steps, a *pool* of points at a time.

    Neighbours in a stream are alike, so points wait until a pool is full and are then shuffled. The
    learning rate rises, stays, and falls while the last pool is learnt from, as how long the stream
    is is known only then. Points are scaled so that their mean distance from the mean is √width. On
    a device they are held, and learnt from, there.

    A subclass defines `start`, `train` and `settle`, beside `__call__`. Of a replacement the points
    hold what it reads and writes; a map reads and writes the same.

    Attributes:
        pool: how many points are held to be shuffled.
        passes: how often each point is learnt from.
        rate: the learning rate; None for `usual_rate`.
    """

    pool: int
    passes: int
    rate: float | None

    @property
    @abstractmethod
    def usual_rate(self) -> float:
        """The learning rate if none is given."""

    @abstractmethod
    def start(self, x: Tensor, y: Tensor, random: torch.Generator) -> None:
        """Make ready to learn, from the first pool.

        Args:
            x: [points, read] scaled, float32.
            y: [points, written] likewise; `x` itself of a map.
            random: on the CPU; all random numbers must come from it, later ones too.
        """

    @abstractmethod
    def train(self, x: Tensor, y: Tensor, rate: float) -> float | Tensor:
        """Take a step; give the share of the variance of `y` that was not explained before it.

        A tensor on a device is looked at only now and then, so that nothing waits for the device.
        """

    @abstractmethod
    def settle(self, scale: float, scale_written: float) -> None:
        """Set the learnt attributes, for points as they came.

        Args:
            scale: what is read was multiplied by it.
            scale_written: likewise, what is written.
        """

    def validate(self, dim: int | None = None) -> None:
        """See `Simplification.validate`."""
        super().validate(dim)
        for parameter in ("pool", "passes"):
            self.require_whole(parameter, least=1)
        if self.rate is not None:
            require(f"{self}: rate", self.rate, above=0)

    def begin(self, dims: Sequence[int], random: torch.Generator) -> None:
        """See `Streamed.begin`."""
        self._held: list[Tensor] = []
        self._random, self._widths = random, [dims[0], sum(dims[1:])]
        self._steps = 0

    def step(self, points: Tensor) -> None:
        """See `Streamed.step`."""
        if sum(map(len, self._held)) >= self.pool:
            self._learn(last=False)
        self._held.append(points.float())

    def end(self) -> None:
        """See `Streamed.end`.

        Warns:
            UserWarning: if there were so few steps that little is learnt.
        """
        self._learn(last=True)
        if self._steps < FEW:
            warnings.warn(
                f"{self} was learnt in {self._steps} steps, which are few: fit on more data, or "
                "give more passes= or a smaller batch=.",
                stacklevel=2,
            )
        self.settle(*self._scales)

    def _learn(self, last: bool) -> None:
        x, y = torch.split(torch.cat(self._held), self._widths, dim=1)
        self._held = []
        if not self._widths[1]:
            y = x
        if not self._steps:
            self._scales = _scale(x), _scale(y)
        x, y = x * self._scales[0], y * self._scales[1]
        if not self._steps:
            self.start(x, y, self._random)
        steps = self.passes * -(-len(x) // self.batch)
        for step, some in enumerate(self._batches(len(x), x.device)):
            rate = (self.rate or self.usual_rate) * min(1.0, (self._steps + 1) / WARM_UP)
            if last:
                rate *= min(1.0, (steps - step) / (DECAY * steps))
            error = self.train(x[some], y[some], rate)
            looked = x.device.type == "cpu" or (step + 1) % LOOK == 0 or step + 1 == steps
            if looked and not float(error) < float("inf"):
                raise AnamorphError(
                    f"{self}: after {self._steps} steps the numbers have grown beyond all bounds "
                    f"at a learning rate of {rate:.2g}; give a smaller one by rate=."
                )
            self._steps += 1

    def _batches(self, points: int, device: torch.device) -> Iterator[Tensor]:
        for _ in range(self.passes):
            order = torch.randperm(points, generator=self._random)
            yield from torch.split(order.to(device), self.batch)


def _scale(x: Tensor) -> float:
    length = float((x - x.mean(dim=0)).norm(dim=1).mean())
    return float(x.shape[1] ** 0.5 / length) if length else 1.0
