"""How far a mean in one run lies from that in another, and a gap from a gap.

*On the same sequences.* Sequence i adds aᵢ in the first run and bᵢ in the second, over cᵢ scored
positions in both. The difference of the pooled means is what is gained less what is lost,

    Σb/Σc − Σa/Σc = Σ max(bᵢ−aᵢ, 0)/Σc − Σ max(aᵢ−bᵢ, 0)/Σc,

as McNemar's test looks at discordant pairs alone. Both parts are means of `intervals`: shares of
positions where the metric is one, and otherwise means that are not negative. So each has an
interval that keeps a width where nothing was gained or lost in the sequences seen, and the
interval of the difference follows by step 4 there, with the correlation of the two. The usual ways
fail where they matter most: of two models that differ in one sequence of a hundred, most samples
show hardly any difference, and Student's interval of bᵢ−aᵢ, or that of two correlated means, has
no width then.

*Of two gaps.* With Δ the difference of a split's means,

    gap_B − gap_A = (iid_B − ood_B) − (iid_A − ood_A) = Δ_iid − Δ_ood.

Each Δ is paired by sequence; the two are of different sequences, and so independent: step 4 again,
with no correlation. Over several models, paired by seed, the models' spread is that of the
difference itself.

*On other sequences*, means and gaps of two runs are independent, and the interval follows from the
two intervals that were made of them, by step 4.

How well they cover: `tests/faithfulness/test_two_runs.py`.
"""

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from anamorph.faithfulness.intervals import (
    LEVEL,
    Differences,
    Ends,
    Floats,
    Means,
    correlation,
    quantile,
    residuals,
    with_mean,
)

with warnings.catch_warnings():  # it adds a filter
    from scipy.special import ndtr


class Apart(NamedTuple):
    """A difference: arrays of one shape; NaN where something is not known."""

    value: Floats
    ends: Ends
    p_value: Floats


def paired(first: Floats, second: Floats, counts: Floats, share: NDArray[np.bool_]) -> Differences:
    """Means of the second less means of the first, on the same sequences.

    Args:
        first: [proxy, model, metric, sequence] sums of a metric.
        second: likewise; models stand in the same order.
        counts: scored positions, broadcast against both.
        share: [metric] whether it is 0 or 1 at a position.

    Returns:
        of shape [proxy, model + 1, metric], as `Means.of_every_model` has it.
    """
    counts = np.broadcast_to(counts, first.shape)
    both = np.maximum(second - first, 0), np.maximum(first - second, 0)
    gained, lost = (Means.of_every_model(sums, counts, share) for sums in both)
    errors = (with_mean(residuals(sums, counts)) for sums in both)
    return Differences.of_every_model(gained, lost, correlation(*errors))


def of_gaps(reference: Differences, split: Differences) -> Differences:
    """The second run's gaps less the first's, where a higher metric is better; else their negative.

    Args:
        reference: from `paired`, on the split that gaps are measured against.
        split: likewise, on another, whose sequences are independent of these.
    """
    return Differences.of_every_model(reference, split)


def unpaired(first: Floats, of_first: Ends, second: Floats, of_second: Ends) -> Apart:
    """Numbers of the second less those of the first, which are independent.

    Args:
        first: the numbers.
        of_first: their 95 % intervals; NaN where there is none.
        second: likewise.
        of_second: likewise.

    Returns:
        the difference; its p-value, of "it is 0", is Altman and Bland's (2011, "How to obtain the P
        value from a confidence interval"), by the distance of the end on the side of 0.
    """
    value = second - first
    below = np.hypot(second - of_second.low, of_first.high - first)
    above = np.hypot(of_second.high - second, first - of_first.low)
    nearer = np.where(value >= 0, below, above)
    z = np.abs(value) * quantile(LEVEL)
    score = np.divide(z, nearer, out=np.where(np.isnan(nearer), np.nan, np.inf), where=nearer > 0)
    score = np.where(value == 0, nearer * 0, score)
    return Apart(value, Ends(value - below, value + above), 2 * ndtr(-score))
