"""What a generalization gap means: correction for many cells, and a verdict a cell."""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from anamorph.errors import AnamorphError

FAITHFUL = "faithful"
UNDER = "illusion (under-generalizes)"
OVER = "illusion (over-generalizes)"
MIXED = "illusion (mixed)"
UNFAITHFUL = "unfaithful everywhere"


@dataclass(frozen=True)
class Thresholds:
    """Where the lines between verdicts are drawn; a report prints them.

    Attributes:
        faithful: `same_prediction` from which a proxy looks right on a split.
        tolerance: a gap up to this size is no gap.
        level: an adjusted p-value below this is significant.
        share: of the scored positions where only one of model and proxy is right, the share on one
            side from which an illusion has a direction; above one half.

    Raises:
        AnamorphError: if a threshold lies outside its range.
    """

    faithful: float = 0.9
    tolerance: float = 0.02
    level: float = 0.05
    share: float = 2 / 3

    def __post_init__(self) -> None:
        for field in fields(self):
            low, value = 0.5 if field.name == "share" else 0, getattr(self, field.name)
            if not low <= value <= 1:
                raise AnamorphError(
                    f"The threshold {field.name} is {value}; expected a number from {low} to 1."
                )


def benjamini_hochberg(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """P-values adjusted for the false discovery rate over the first axis.

    Args:
        p_values: [cells, ...]; NaN means not tested: it stays, and does not count.

    Returns:
        [cells, ...] adjusted p-values, at most 1.

    Source: Benjamini and Hochberg (1995), "Controlling the False Discovery Rate".
    """
    tests = np.count_nonzero(~np.isnan(p_values), axis=0)
    order = np.argsort(p_values, axis=0)  # NaN goes last
    rank = np.arange(1, len(p_values) + 1).reshape(-1, *[1] * (p_values.ndim - 1))
    scaled = np.take_along_axis(p_values, order, axis=0) * tests / rank
    # Each takes the smallest of those at and above it in rank; fmin passes over NaN.
    smallest = np.fmin.accumulate(scaled[::-1], axis=0)[::-1]
    adjusted = np.empty_like(p_values)
    np.put_along_axis(adjusted, order, np.minimum(smallest, 1), axis=0)
    return np.where(np.isnan(p_values), np.nan, adjusted)


def verdict(
    iid: float,
    ood: float,
    gap: float,
    adjusted_p: float,
    model_only_right: float,
    proxy_only_right: float,
    thresholds: Thresholds,
) -> str:
    """What a proxy's `same_prediction` says on an `ood` split, beside the reference.

    An *illusion* looks right in distribution and is significantly less faithful out of it. It
    under-generalizes if it mostly fails where the model is right, over-generalizes if it is mostly
    right where the model fails.

    Args:
        iid: `same_prediction` on the reference split.
        ood: `same_prediction` on the `ood` split.
        gap: `iid - ood`.
        adjusted_p: the gap's p-value, corrected for the number of cells.
        model_only_right: on the `ood` split.
        proxy_only_right: on the `ood` split.
        thresholds: where the lines are drawn.

    Returns:
        One of `FAITHFUL`, `UNDER`, `OVER`, `MIXED` and `UNFAITHFUL`.
    """
    looks_right = iid >= thresholds.faithful
    if looks_right and gap > thresholds.tolerance and adjusted_p < thresholds.level:
        decided = model_only_right + proxy_only_right
        if decided == 0:
            return MIXED
        if model_only_right / decided >= thresholds.share:
            return UNDER
        return OVER if proxy_only_right / decided >= thresholds.share else MIXED
    if not looks_right and ood < thresholds.faithful:
        return UNFAITHFUL
    return FAITHFUL
