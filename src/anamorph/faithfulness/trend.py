"""Whether gaps rise or fall along an axis, such as the steps of a training, by more than noise.

The trend of gaps g₁ … g_K is that of the straight line through them by least squares, over their
places 1 … K: `change`, from its first point to its last, is Σ cₖgₖ with weights that add up to 0.
So it is a weighted mean of the later gaps less one of the earlier gaps.

The gaps of an axis are mostly measured on the same sequences, and near each other they err
together. How much is not told by their intervals. So the most is assumed: that all gaps of one
half err as one. Then the distance of an end of a half's interval is the weighted mean of the
distances of its gaps. The two halves are taken as independent (step 4 of `intervals`), which is
on the safe side where errors go together, as what they have in common cancels. Whatever the
correlations, as long as none is negative, the variance of the change is at most

    (Σ₊ cₖeₖ)² + (Σ₋ cₖeₖ)²,

as the terms within a half are at most their products, and those between halves are subtracted.
Many values on an axis therefore give no more certainty than two do, and a trend that is said to be
more than noise is so even if the sequences are the same throughout.

How often it is wrong, and what it finds: `tests/faithfulness/test_trend.py`.
"""

import numpy as np

from anamorph.faithfulness.intervals import Ends, Floats
from anamorph.faithfulness.two_runs import Apart, unpaired


def trend(gaps: Floats, ends: Ends) -> Apart:
    """The change of gaps along an axis, from its first value to its last.

    Args:
        gaps: [..., value] in the order of the axis; two values or more.
        ends: their 95 % intervals, likewise.

    Returns:
        the change [...] of the straight line through the gaps, its 95 % interval, and the p-value
        of "there is none".
    """
    weights = _weights(gaps.shape[-1])
    early, late = np.clip(-weights, 0, None), np.clip(weights, 0, None)
    first, second = gaps @ early, gaps @ late
    return unpaired(
        first,
        Ends(ends.low @ early, ends.high @ early),
        second,
        Ends(ends.low @ late, ends.high @ late),
    )


def _weights(count: int) -> Floats:
    """cₖ: how much each gap weighs in the change of the line, for so many gaps."""
    centred = np.arange(count) - (count - 1) / 2
    weights: Floats = centred * (count - 1) / (centred @ centred)
    return weights
