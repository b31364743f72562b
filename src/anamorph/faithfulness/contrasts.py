"""How a level of a facet differs from the facet's other levels, on the same sequences."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from anamorph.faithfulness.intervals import (
    Differences,
    Ends,
    Floats,
    Means,
    beside,
    correlation,
    residuals,
    with_mean,
)
from anamorph.faithfulness.sums import Group, SumIndex


class Contrast(NamedTuple):
    """A level less the other levels of its facet: arrays [proxy, model + 1, metric].

    Models stand as in `Means.of_every_model`: a single one stands there once.

    Attributes:
        facet: its name.
        level: its name.
        value: mean at the level's positions less the mean at the others'.
        ends: 95 % interval; NaN where there is none.
        error: standard error of the value, over sequences and models; NaN as `ends`.
        tokens: [proxy, model + 1] scored positions at the level that were seen.
        sequences: [proxy, model + 1] sequences that have one.
    """

    facet: str
    level: str
    value: Floats
    ends: Ends
    error: Floats
    tokens: NDArray[np.int64]
    sequences: NDArray[np.int64]


class _Side(NamedTuple):
    """Positions of one kind: [proxy, model, metric, sequence] sums and scored positions."""

    sums: Floats
    counts: Floats

    def without(self, other: "_Side") -> "_Side":
        return _Side(self.sums - other.sums, self.counts - other.counts)


def contrasts(
    index: SumIndex, sums: Floats, tokens: Floats, share: NDArray[np.bool_]
) -> list[Contrast]:
    """All levels of all facets that have two levels or more on a split.

    Sequences are the same on both sides, so that what they have in common cancels: the correlation
    of the two errors is taken into account.

    Args:
        index: the rows of the split.
        sums: [proxy, model, metric, row].
        tokens: [proxy, model, 1, row] scored positions that were seen, or broadcast against `sums`.
        share: [metric] whether a metric is 0 or 1 at a position.
    """
    tokens = np.broadcast_to(tokens, sums.shape)
    by_facet: dict[str, list[Group]] = {}
    for group in index.groups():
        if group.facet is not None:
            by_facet.setdefault(group.facet, []).append(group)
    found = []
    for groups in by_facet.values():
        if len(groups) > 1:
            sides = [_Side(*(_spread_out(index, x, g) for x in (sums, tokens))) for g in groups]
            every = _Side(*(np.sum(x, axis=0) for x in zip(*sides, strict=True)))
            pairs = zip(groups, sides, strict=True)
            found += [_contrast(group, side, every.without(side), share) for group, side in pairs]
    return found


def _spread_out(index: SumIndex, values: Floats, group: Group) -> Floats:
    """[..., sequence] of the rows of a group, 0 where a sequence has none."""
    out = np.zeros((*values.shape[:-1], index.sequences))
    out[..., index.sequence[group.rows]] = values[..., group.rows]
    return out


def _contrast(group: Group, here: _Side, rest: _Side, share: NDArray[np.bool_]) -> Contrast:
    assert group.facet is not None and group.level is not None
    a, b = (Means.of_every_model(*side, share) for side in (here, rest))
    ours, theirs = (with_mean(residuals(*side)) for side in (here, rest))
    gaps = Differences.of_every_model(a, b, correlation(ours, theirs))
    ends = gaps.ends()
    error = np.sqrt(((ours - theirs) ** 2).sum(-1) + gaps.spread**2)
    count = here.counts[:, :, 0]  # [proxy, model, sequence]
    tokens, sequences = (
        beside(x, x.max(axis=1, keepdims=True)).astype(np.int64)
        for x in (count.sum(-1), np.count_nonzero(count, axis=-1))
    )
    error = np.where(np.isnan(ends.low), np.nan, error)
    return Contrast(group.facet, group.level, gaps.value, ends, error, tokens, sequences)
