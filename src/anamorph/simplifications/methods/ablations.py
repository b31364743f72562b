"""Ablations: what is at a site is put out of action, by zero, by its mean or by another point."""

from typing import ClassVar, Self

import torch
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.models.base import Context
from anamorph.simplifications.base import Simplification
from anamorph.simplifications.statistics.moments import Moments
from anamorph.simplifications.statistics.reservoir import Reservoir


class Zero(Simplification):
    """Replaces every point by zeros. Nothing is fitted."""

    name: ClassVar[str] = "zero"

    def __call__(self, x: Tensor) -> Tensor:
        """Zeros of the shape of `x` [..., dim]."""
        return torch.zeros_like(x)


class Mean(Simplification):
    """Replaces every point by the mean of the points that it was fitted to.

    Attributes:
        mean_: [dim] float64.
    """

    name: ClassVar[str] = "mean"

    mean_: Tensor

    def statistic(self, dim: int) -> Moments:
        """The moments, which SVD and PCA share."""
        return Moments(dim)

    def learn(self, statistic: Moments) -> Self:
        """Take the mean.

        Raises:
            AnamorphError: if no point was seen.
        """
        _require_points(self, statistic.count)
        self.mean_ = statistic.mean.clone()
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """The mean at every point of `x` [..., dim]."""
        return self.prepared(x, "mean", lambda: self.mean_).expand_as(x)


class Resample(Simplification):
    """Replaces every point by one drawn from the points that it was fitted to.

    Which one follows from the tokens up to the point, and from the seed, so that it is the same in
    every batch. All sites of a model draw from the same positions of the data, as resampling
    ablations do (Chan et al. 2022, "Causal scrubbing").

    Args:
        seed: of the draws, and of the sample if there are more points than `reservoir`.
        reservoir: at most so many points, drawn uniformly from the stream, are kept to draw from.

    Attributes:
        points_: [at most reservoir, dim].
    """

    name: ClassVar[str] = "resample"
    chains: ClassVar[bool] = False

    points_: Tensor

    def __init__(self, *, seed: int = 0, reservoir: int = 4096) -> None:
        self.seed = seed
        self.reservoir = reservoir

    def validate(self, dim: int | None = None) -> None:
        """See `Simplification.validate`."""
        self.require_whole("seed", least=0)
        self.require_whole("reservoir", least=1)
        if self.seed >= 2**32:
            raise AnamorphError(f"{self}: seed must be below 2**32; got {self.seed}.")

    def statistic(self, dim: int) -> Reservoir:
        """A sample of the points."""
        self.validate(dim)
        return Reservoir(capacity=int(self.reservoir), seed=int(self.seed))

    def learn(self, statistic: Reservoir) -> Self:
        """Keep the sample.

        Raises:
            AnamorphError: if no point was seen.
        """
        _require_points(self, statistic.seen)
        self.points_ = statistic.points()
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """The first point that is kept, as no tokens tell which to draw, at all of `x`."""
        return self._points(x)[0].expand_as(x)

    def apply(self, x: Tensor, *, context: Context) -> Tensor:
        """Another point at each of `x` [batch, position, dim]."""
        drawn = _digests(context.tokens, self.seed)
        if context.at is not None:
            drawn = drawn.gather(1, context.at)
        return self._points(x)[drawn.remainder(len(self.points_))]

    def _points(self, like: Tensor) -> Tensor:
        return self.prepared(like, "points", lambda: self.points_)


def _digests(tokens: Tensor, seed: int) -> Tensor:
    """[batch, position] a digest of the tokens up to each position: the mixed sum of their own."""
    place = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
    own = _mixed(_mixed(_mixed(place) + seed) ^ tokens)
    return _mixed(own.cumsum(dim=1))


def _mixed(z: Tensor) -> Tensor:
    """SplitMix64's output function, on int64 that wrap around; see `splitmix64`."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ _shifted(z, shift)) * (factor - 2**64)
    return z.bitwise_xor(_shifted(z, 31))


def _shifted(z: Tensor, by: int) -> Tensor:
    """To the right, with zeros from the left, as of a number without a sign."""
    return z.bitwise_right_shift(by).bitwise_and(2 ** (64 - by) - 1)


def _require_points(simplification: Simplification, count: int) -> None:
    if count == 0:
        raise AnamorphError(f"{simplification}: there are no points to fit to; give at least one.")
