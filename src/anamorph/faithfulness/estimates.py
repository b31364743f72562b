"""Means with their intervals, of one model and over several, and the gaps between two splits.

The intervals are those of `intervals`, or, where cells may have stopped early, those of
`confidence`, which hold whatever made a cell stop.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from anamorph.faithfulness.confidence import (
    RatioSums,
    sequence_interval,
    sequence_p_value,
)
from anamorph.faithfulness.intervals import (
    LEVEL,
    Differences,
    Ends,
    Floats,
    Means,
    of_all,
    quantile,
)


class Stopping(NamedTuple):
    """How cells were stopped early.

    Attributes:
        until: the width at which a cell stopped.
        correlation: assumed within sequences.
    """

    until: float
    correlation: float


class Kinds(NamedTuple):
    """What is known of metrics: arrays [metric].

    Attributes:
        share: 0 or 1 at a position.
        bounded: in [0, 1] at a position.
        followed: it is judged, and decides when a cell stops.
    """

    share: NDArray[np.bool_]
    bounded: NDArray[np.bool_]
    followed: NDArray[np.bool_]


@dataclass(frozen=True)
class Estimates:
    """Means of many proxies and metrics, for every model and over all.

    Attributes:
        means: [proxy, model + 1, metric], last those over all models; [proxy, 1, metric] of one.
        stopping: how cells were stopped; None if they were not.
        looked: if they were, what their intervals follow from, [proxy, model, metric].
        kinds: of the metrics.
        ends: 95 % intervals, [proxy, model + 1, metric], last those over models; NaN where there is
            none.
    """

    means: Means
    stopping: Stopping | None
    looked: RatioSums | None
    kinds: Kinds
    ends: Ends

    @classmethod
    def of(
        cls, sums: Floats, counts: Floats, kinds: Kinds, stopping: Stopping | None
    ) -> "Estimates":
        """From [proxy, model, metric, sequence] sums, and counts that broadcast against them."""
        counts = np.broadcast_to(counts, sums.shape).astype(np.float64)
        means = Means.of_every_model(sums, counts, kinds.share)
        if stopping is None:
            return cls(means, None, None, kinds, Ends(*map(of_all, means.ends())))
        looked = RatioSums.of(*(torch.from_numpy(np.ascontiguousarray(x)) for x in (sums, counts)))
        ends = _sequence_ends(looked, kinds, stopping, 1 - LEVEL)
        return cls(means, stopping, looked, kinds, Ends(*map(_of_the_only, ends)))

    @property
    def value(self) -> Floats:
        """[proxy, model + 1, metric]."""
        return of_all(self.means.value)


@dataclass(frozen=True)
class Gaps:
    """What separates two splits: arrays [proxy, model + 1, metric]; NaN where it is not known.

    Attributes:
        value: mean of the first less mean of the second.
        ends: 95 % interval.
        ends_all: interval that holds for all gaps of one model and metric at once.
        zero: two-sided p-value of "the gap is 0".
        worse: one-sided p-value of "the gap is at most the tolerance", of the judged metric.
    """

    value: Floats
    ends: Ends
    ends_all: Ends
    zero: Floats
    worse: Floats

    @classmethod
    def of(cls, first: Estimates, second: Estimates, family: int, tolerance: float) -> "Gaps":
        """Of two splits, whose sequences are independent.

        Args:
            first: of one.
            second: of the other.
            family: how many gaps there are of one model and metric.
            tolerance: up to which a gap is not worth mentioning.
        """
        value = first.value - second.value
        if first.stopping is not None:
            return cls(value, *_stopped_gaps(first, second, family, tolerance))
        gaps = Differences.of_every_model(first.means, second.means)
        every = quantile(1 - (1 - LEVEL) / family)  # Bonferroni's
        judged = first.kinds.followed
        worse = np.full(gaps.value.shape, np.nan)
        some = Differences.of_every_model(first.means[..., judged], second.means[..., judged])
        worse[..., judged] = some.p_value(tolerance)
        ends, ends_all = (Ends(*map(of_all, gaps.ends(z))) for z in (None, every))
        return cls(value, ends, ends_all, of_all(gaps.p_value_of_none()), of_all(worse))


def _stopped_gaps(
    first: Estimates, second: Estimates, family: int, tolerance: float
) -> tuple[Ends, Ends, Floats, Floats]:
    """Gaps of cells that may have stopped: what two sequences at half the error rate leave open."""
    stopping, kinds, a, b = first.stopping, first.kinds, first.looked, second.looked
    assert stopping is not None and a is not None and b is not None

    def apart(alpha: float) -> Ends:
        ours, theirs = (_sequence_ends(x, kinds, stopping, alpha / 2) for x in (a, b))
        return Ends(_of_the_only(ours.low - theirs.high), _of_the_only(ours.high - theirs.low))

    def p_value(one: RatioSums, other: RatioSums, margin: float) -> Floats:
        found = sequence_p_value(one, other, margin, stopping.until, stopping.correlation)
        return _of_the_only(np.where(kinds.bounded, found.numpy(), np.nan))

    zero = np.minimum(p_value(a, b, 0.0), p_value(b, a, 0.0))
    return apart(1 - LEVEL), apart((1 - LEVEL) / family), zero, p_value(a, b, tolerance)


def _sequence_ends(looked: RatioSums, kinds: Kinds, stopping: Stopping, alpha: float) -> Ends:
    """[proxy, model, metric] of cells that may have stopped; NaN of metrics that are unbounded."""
    ends = sequence_interval(looked, stopping.until, alpha, stopping.correlation)
    return Ends(*(np.where(kinds.bounded, end.numpy(), np.nan) for end in ends))


def _of_the_only(values: Floats) -> Floats:
    """[proxy, model + 1, ...]: over models, cells that may have stopped are known of one alone."""
    if values.shape[1] == 1:
        return of_all(values)
    return np.concatenate([values, np.full_like(values[:, :1], np.nan)], axis=1)
