"""Means with their intervals, of each model and over all, and the gaps between two splits.

The intervals are those of `intervals`, or, where cells may have stopped early, those of
`confidence`, which hold whatever made a cell stop.

Arrays have an axis of models: each model, and, if there are several, all of them together at the
end (`model + 1`). A single model stands there once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from anamorph.faithfulness.confidence import RatioSums, sequence_interval, sequence_p_value
from anamorph.faithfulness.intervals import (
    LEVEL,
    Differences,
    Ends,
    Floats,
    Means,
    beside,
    quantile,
)
from anamorph.faithfulness.metrics import JUDGED, which


class Stopping(NamedTuple):
    """How cells were stopped early.

    Attributes:
        until: the width at which a cell stopped.
        correlation: assumed within sequences.
    """

    until: float
    correlation: float


@dataclass(frozen=True)
class Estimates:
    """Means of many proxies and metrics.

    Attributes:
        means: [proxy, model + 1, metric].
        metrics: their names.
        stopping: how cells were stopped; None if they were not.
        looked: if they were, what their intervals follow from, [proxy, model, metric].
        ends: 95 % intervals, [proxy, model + 1, metric]; NaN where there is none.
    """

    means: Means
    metrics: Sequence[str]
    stopping: Stopping | None
    looked: RatioSums | None
    ends: Ends

    @classmethod
    def of(
        cls, sums: Floats, counts: Floats, metrics: Sequence[str], stopping: Stopping | None
    ) -> "Estimates":
        """From [proxy, model, metric, sequence] sums, and counts that broadcast against them."""
        counts = np.broadcast_to(counts, sums.shape).astype(np.float64)
        means = Means.of_every_model(sums, counts, which(metrics, lambda metric: metric.share))
        if stopping is None:
            return cls(means, metrics, None, None, means.ends())
        looked = RatioSums.of(*(torch.from_numpy(np.ascontiguousarray(x)) for x in (sums, counts)))
        ends = _sequence_ends(looked, metrics, stopping, 1 - LEVEL)
        return cls(means, metrics, stopping, looked, Ends(*map(_unknown_over_models, ends)))

    @property
    def value(self) -> Floats:
        """[proxy, model + 1, metric]."""
        return self.means.value


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
        worse = np.full(value.shape, np.nan)
        judged = np.array([name == JUDGED for name in first.metrics])
        some = Differences.of_every_model(first.means[..., judged], second.means[..., judged])
        worse[..., judged] = some.p_value(tolerance)
        return cls(value, gaps.ends(), gaps.ends(every), gaps.p_value_of_none(), worse)


def _stopped_gaps(
    first: Estimates, second: Estimates, family: int, tolerance: float
) -> tuple[Ends, Ends, Floats, Floats]:
    """Gaps of cells that may have stopped: from two sequences, each at half the error rate."""
    stopping, metrics, a, b = first.stopping, first.metrics, first.looked, second.looked
    assert stopping is not None and a is not None and b is not None

    def apart(alpha: float) -> Ends:
        ours, theirs = (_sequence_ends(x, metrics, stopping, alpha / 2) for x in (a, b))
        ends = ours.low - theirs.high, ours.high - theirs.low
        return Ends(*map(_unknown_over_models, ends))

    def p_value(one: RatioSums, other: RatioSums, margin: float) -> Floats:
        found = sequence_p_value(one, other, margin, stopping.until, stopping.correlation)
        return _unknown_over_models(_if_bounded(found, metrics))

    zero = np.minimum(p_value(a, b, 0.0), p_value(b, a, 0.0))
    return apart(1 - LEVEL), apart((1 - LEVEL) / family), zero, p_value(a, b, tolerance)


def _sequence_ends(
    looked: RatioSums, metrics: Sequence[str], stopping: Stopping, alpha: float
) -> Ends:
    """[proxy, model, metric] intervals of cells that may have stopped."""
    ends = sequence_interval(looked, stopping.until, alpha, stopping.correlation)
    return Ends(*(_if_bounded(end, metrics) for end in ends))


def _if_bounded(numbers: torch.Tensor, metrics: Sequence[str]) -> Floats:
    """[..., metric] with NaN for metrics that are unbounded, which no sequence can follow."""
    return np.where(which(metrics, lambda metric: metric.bounded), numbers.numpy(), np.nan)


def _unknown_over_models(values: Floats) -> Floats:
    """[proxy, model, ...] to [proxy, model + 1, ...]: sequences say nothing over several models."""
    return beside(values, np.full_like(values[:, :1], np.nan))
