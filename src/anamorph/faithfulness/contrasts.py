"""How a level of a facet differs from the facet's other levels, on the same sequences."""

from itertools import groupby
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
    both = np.stack([sums, np.broadcast_to(tokens, sums.shape)])
    found = []
    for facet, several in groupby(index.groups, lambda group: group.facet):
        groups = list(several)
        if facet is not None and len(groups) > 1:
            levels = [_by_sequence(index, both, group) for group in groups]
            every = np.sum(levels, axis=0)
            pairs = zip(groups, levels, strict=True)
            found += [_contrast(group, here, every - here, share) for group, here in pairs]
    return found


def _by_sequence(index: SumIndex, values: Floats, group: Group) -> Floats:
    """[..., sequence] of the rows of a group, 0 where a sequence has none."""
    out = np.zeros((*values.shape[:-1], index.sequences))
    out[..., index.sequence[group.rows]] = values[..., group.rows]
    return out


def _contrast(group: Group, here: Floats, rest: Floats, share: NDArray[np.bool_]) -> Contrast:
    """Of [sums or counts, proxy, model, metric, sequence] at a level and at all others."""
    assert group.facet is not None and group.level is not None
    a, b = (Means.of_every_model(side[0], side[1], share) for side in (here, rest))
    ours, theirs = (with_mean(residuals(side[0], side[1])) for side in (here, rest))
    gaps = Differences.of_every_model(a, b, correlation(ours, theirs))
    ends = gaps.ends()
    error = np.sqrt(((ours - theirs) ** 2).sum(-1) + gaps.spread**2)
    error = np.where(np.isnan(ends.low), np.nan, error)
    count = here[1, :, :, 0]  # [proxy, model, sequence]
    tokens, sequences = (
        beside(x, x.max(axis=1, keepdims=True)).astype(np.int64)
        for x in (count.sum(-1), np.count_nonzero(count, axis=-1))
    )
    return Contrast(group.facet, group.level, gaps.value, ends, error, tokens, sequences)
