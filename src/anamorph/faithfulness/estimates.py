"""Means with their intervals, of one model and over several, and the gaps between two splits.

The intervals are those of `intervals`, or, where cells may have stopped early, those of
`confidence`, which hold whatever made a cell stop.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
    joined,
    quantile,
    spread,
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
        each: [proxy, model, metric].
        over: [proxy, metric], means over models.
        stopping: how cells were stopped; None if they were not.
        looked: if they were, what their intervals follow from, [proxy · model · metric].
        kinds: of the metrics.
        ends: 95 % intervals, [proxy, model + 1, metric], last those over models; NaN where there is
            none.
    """

    each: Means
    over: Means
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
        each = Means.of(sums, counts, kinds.share)
        by_model = np.moveaxis(sums, 1, 0), np.moveaxis(counts, 1, 0)
        over = each[:, 0] if sums.shape[1] == 1 else Means.over_models(*by_model, kinds.share)
        if stopping is None:
            return cls(each, over, None, None, kinds, _side_by_side(each.ends(), over.ends()))
        looked = RatioSums.of(*(_flat(x) for x in (sums, counts)))
        ends = _sequence_ends(looked, each.value.shape, kinds, stopping)
        return cls(each, over, stopping, looked, kinds, _side_by_side(ends, _only(ends)))

    @property
    def value(self) -> Floats:
        """[proxy, model + 1, metric]."""
        return joined(self.each.value, self.over.value)


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
            tolerance: up to which a gap is none.
        """
        value = first.value - second.value
        if first.stopping is not None:
            return cls(value, *_stopped_gaps(first, second, family, tolerance))
        parts = [
            Differences(first.each, second.each, np.zeros_like(first.each.value)),
            Differences(
                first.over,
                second.over,
                spread(np.moveaxis(first.each.value - second.each.value, 1, 0)),
            ),
        ]
        every = quantile(1 - (1 - LEVEL) / family)  # Bonferroni's
        if first.each.value.shape[1] == 1:  # all models together are the only one
            parts = parts[:1]

        def of_parts(numbers: Sequence[Floats]) -> Floats:
            return joined(numbers[0], numbers[1] if len(numbers) > 1 else numbers[0][:, 0])

        ends, ends_all = [d.ends() for d in parts], [d.ends(every) for d in parts]
        return cls(
            value,
            Ends(of_parts([e.low for e in ends]), of_parts([e.high for e in ends])),
            Ends(of_parts([e.low for e in ends_all]), of_parts([e.high for e in ends_all])),
            of_parts([d.p_value_of_none() for d in parts]),
            of_parts([_worse(d, first.kinds.followed, tolerance) for d in parts]),
        )


def _worse(gaps: Differences, judged: NDArray[np.bool_], tolerance: float) -> Floats:
    """The p-value of "the gap is at most the tolerance" of the judged metrics; NaN for others."""
    some = replace(
        gaps,
        first=gaps.first[..., judged],
        second=gaps.second[..., judged],
        spread=gaps.spread[..., judged],
    )
    found = np.full(gaps.value.shape, np.nan)
    found[..., judged] = some.p_value(tolerance)
    return found


def _stopped_gaps(
    first: Estimates, second: Estimates, family: int, tolerance: float
) -> tuple[Ends, Ends, Floats, Floats]:
    """Gaps of cells that may have stopped: what two sequences at half the error rate leave open."""
    stopping, a, b = first.stopping, first.looked, second.looked
    assert stopping is not None and a is not None and b is not None
    shape, kinds = first.each.value.shape, first.kinds

    def apart(alpha: float) -> Ends:
        ours, theirs = (_sequence_ends(x, shape, kinds, stopping, alpha / 2) for x in (a, b))
        ends = Ends(ours.low - theirs.high, ours.high - theirs.low)
        return _side_by_side(ends, _only(ends))

    def p_value(one: RatioSums, other: RatioSums, margin: float) -> Floats:
        found = sequence_p_value(one, other, margin, stopping.until, stopping.correlation)
        p = np.where(kinds.bounded, found.numpy().reshape(shape), np.nan)
        return joined(p, p[:, 0] if shape[1] == 1 else np.full_like(p[:, 0], np.nan))

    zero = np.minimum(p_value(a, b, 0.0), p_value(b, a, 0.0))
    return apart(1 - LEVEL), apart((1 - LEVEL) / family), zero, p_value(a, b, tolerance)


def _sequence_ends(
    looked: RatioSums,
    shape: tuple[int, ...],
    kinds: Kinds,
    stopping: Stopping,
    alpha: float = 1 - LEVEL,
) -> Ends:
    ends = sequence_interval(looked, stopping.until, alpha, stopping.correlation)
    found = (end.numpy().reshape(shape) for end in ends)
    return Ends(*(np.where(kinds.bounded, end, np.nan) for end in found))


def _only(ends: Ends) -> Ends:
    """Those over models, of cells that may have stopped: known of a single model alone."""
    one = ends.low.shape[1] == 1
    return Ends(*(end[:, 0] if one else np.full_like(end[:, 0], np.nan) for end in ends))


def _flat(values: Floats) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values).reshape(-1, values.shape[-1]))


def _side_by_side(each: Ends, over: Ends) -> Ends:
    return Ends(joined(each.low, over.low), joined(each.high, over.high))
