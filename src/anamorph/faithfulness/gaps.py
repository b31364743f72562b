"""What a generalization gap means: correction for many cells, and a verdict on each.

A verdict follows from two judgements of `same_prediction`. Each is made by an interval, so that it
says no more than the data can carry:

- the *level* on the reference: the proxy looks right there, or does not, or this is unclear;
- the *change* from the reference to an `ood` split: worse, better, none, no worse, or undecided.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anamorph.errors import require

FAITHFUL = "faithful"
UNDER = "illusion (under-generalizes)"
OVER = "illusion (over-generalizes)"
MIXED = "illusion (mixed)"
DEGRADES = "degrades"
UNFAITHFUL = "unfaithful"
UNDECIDED = "undecided"
NOT_TESTABLE = "not testable here"
VERDICTS = (FAITHFUL, UNDER, OVER, MIXED, DEGRADES, UNFAITHFUL, UNDECIDED, NOT_TESTABLE)
ILLUSIONS = (UNDER, OVER, MIXED)

# So that nobody depends on colours. Faithful is left without a sign.
SIGNS = {
    FAITHFUL: "",
    UNDER: "▼",
    OVER: "▲",
    MIXED: "◆",
    DEGRADES: "↓",
    UNFAITHFUL: "×",
    UNDECIDED: "?",
    NOT_TESTABLE: "–",
}

LOOKS_RIGHT, LOOKS_WRONG, UNCLEAR = "looks right", "does not look right", "unclear"
WORSE, BETTER, NONE, NO_WORSE = "worse", "better", "none", "no worse"  # or UNDECIDED

MOST_NEEDED = 10_000_000  # sequences; a larger number is not given


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
        for name, value in vars(self).items():
            least = 0.5 if name == "share" else 0
            require(f"The threshold {name}", value, least=least, most=1)
            object.__setattr__(self, name, float(value))  # NumPy's are not JSON


def benjamini_hochberg(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """P-values adjusted for the false discovery rate over the first axis.

    Args:
        p_values: [cells, ...]; NaN for a cell that was not tested.

    Returns:
        [cells, ...] adjusted p-values, at most 1; cells that were not tested stay NaN and do not
        count.

    Source: Benjamini and Hochberg (1995), "Controlling the False Discovery Rate".
    """
    tests = np.count_nonzero(~np.isnan(p_values), axis=0)
    order = np.argsort(p_values, axis=0)  # NaN goes last
    rank = np.arange(1, len(p_values) + 1).reshape(-1, *[1] * (p_values.ndim - 1))
    scaled = np.take_along_axis(p_values, order, axis=0) * tests / rank
    # Each becomes the smallest of those of its rank and higher ones; fmin passes over NaN.
    smallest = np.fmin.accumulate(scaled[::-1], axis=0)[::-1]
    adjusted = np.empty_like(p_values)
    np.put_along_axis(adjusted, order, np.minimum(smallest, 1), axis=0)
    return np.where(np.isnan(p_values), np.nan, adjusted)


def level_of(low: float, high: float, thresholds: Thresholds) -> str:
    """Whether a proxy looks right on the reference, by the interval of its `same_prediction`."""
    if low >= thresholds.faithful:
        return LOOKS_RIGHT
    return LOOKS_WRONG if high < thresholds.faithful else UNCLEAR


def change_of(low: float, high: float, worse: float, thresholds: Thresholds) -> str:
    """What the interval of a gap in `same_prediction` says.

    Args:
        low: its lower end.
        high: its upper end.
        worse: the one-sided p-value of "the gap is at most the tolerance", corrected for the number
            of cells: the more are looked at, the more certain a fall has to be.
        thresholds: where the lines are drawn.

    Returns:
        `WORSE`: the gap is above the tolerance, after the correction. `BETTER`: its interval lies
        below minus the tolerance. `NONE`: all of it lies within the tolerance, on both sides.
        `NO_WORSE`: its upper end does, its lower end does not. `UNDECIDED`: everything else.
    """
    tolerance = thresholds.tolerance
    if worse < thresholds.level / 2 and low > tolerance:
        return WORSE
    if high > tolerance:
        return UNDECIDED
    if high < -tolerance:
        return BETTER
    return NONE if low >= -tolerance else NO_WORSE


def agreed(judgements: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """The level and the change that several models agree on.

    Args:
        judgements: level and change of each.

    Returns:
        Level and change, each if it is the same for all models. If not, the level is `UNCLEAR`; the
        change is `NO_WORSE` if every model has a change that rules out a fall, else `UNDECIDED`.
    """
    levels, changes = ({each[i] for each in judgements} for i in (0, 1))
    level = levels.pop() if len(levels) == 1 else UNCLEAR
    if len(changes) == 1:
        return level, changes.pop()
    return level, NO_WORSE if changes <= {NONE, BETTER, NO_WORSE} else UNDECIDED


def verdict(
    iid: float,
    level: str,
    change: str,
    model_only_right: float,
    proxy_only_right: float,
    thresholds: Thresholds,
) -> str:
    """What a proxy's `same_prediction` says on an `ood` split, compared with the reference.

    An *illusion* looks right in distribution and is less faithful out of it. It under-generalizes
    if it mostly fails where the model is right, and over-generalizes if it is mostly right where
    the model fails. A proxy that looks right and is no worse is *faithful*. One that does not look
    right in distribution *degrades* if it is worse out of it, and is *unfaithful* otherwise.

    A proxy that is worse is never undecided: where its interval leaves open whether it looks right,
    its value decides, as it would for a reader.

    Args:
        iid: `same_prediction` on the reference.
        level: from `level_of`.
        change: from `change_of`.
        model_only_right: on the `ood` split, share of the scored positions.
        proxy_only_right: likewise.
        thresholds: where the lines are drawn.

    Returns:
        One of `VERDICTS`, but for `NOT_TESTABLE`.
    """
    if level == UNCLEAR and change == WORSE:
        level = LOOKS_RIGHT if iid >= thresholds.faithful else LOOKS_WRONG
    if level == LOOKS_WRONG:
        return DEGRADES if change == WORSE else UNFAITHFUL
    if level == UNCLEAR or change == UNDECIDED:
        return UNDECIDED
    if change != WORSE:
        return FAITHFUL
    decided = model_only_right + proxy_only_right
    if decided == 0:
        return MIXED
    if model_only_right / decided >= thresholds.share:
        return UNDER
    return OVER if proxy_only_right / decided >= thresholds.share else MIXED


def needed(
    sequences: tuple[int, int],
    level: str,
    of_iid: tuple[float, float, float],
    change: str,
    of_gap: tuple[float, float, float],
    low_all: float,
    thresholds: Thresholds,
) -> int | None:
    """How many sequences of each split would decide what is undecided, if the values stay.

    That many make the interval so short that it lies on one side of the line. Its width falls with
    the square root of the number of sequences; near 1 it falls faster, and fewer may do.

    Args:
        sequences: of the reference and of the `ood` split.
        level: from `level_of`.
        of_iid: `same_prediction` on the reference, with the ends of its interval.
        change: from `change_of`.
        of_gap: the gap, with the ends of its interval.
        low_all: the gap's lower end corrected for the number of cells, which decides on a fall.
        thresholds: where the lines are drawn.

    Returns:
        The number, rounded up to two digits; None if no number up to ten million would.
    """
    most = min(sequences) + 1.0
    (value, low, high), (gap, least, largest) = of_iid, of_gap
    falls = change == UNDECIDED and gap > thresholds.tolerance  # worse decides, at any level
    if level == UNCLEAR and not falls:
        apart = value - thresholds.faithful
        half = value - low if apart >= 0 else high - value
        most = max(most, sequences[0] * _times(half, apart))
    if falls or (change == UNDECIDED and value >= thresholds.faithful):
        apart = gap - thresholds.tolerance
        half, ours = (gap - least, value - low) if apart >= 0 else (largest - gap, high - value)
        part = min(1.0, (ours / half) ** 2) if half > 0 else 1.0  # the reference's, of the width
        at_once = part * sequences[0] + (1 - part) * sequences[1]
        most = max(most, at_once * _times(gap - low_all if apart >= 0 else half, apart))
    if most > MOST_NEEDED:
        return None
    count = math.ceil(round(most, 6))
    digits: int = 10 ** max(0, len(str(count)) - 2)
    return -(-count // digits) * digits


def _times(half: float, apart: float) -> float:
    """By which factor the sequences must grow for a half width to be as short as a distance."""
    return (half / max(abs(apart), 1e-9)) ** 2
