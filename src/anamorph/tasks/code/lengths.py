"""Functions that are as long as those of `iid`, so that lengths do not make the gaps."""

import warnings

import numpy as np
from numpy.typing import NDArray

LENGTH_BINS = 20  # in which the lengths of splits are matched
MATCHED_WITHIN = 0.02  # of the mean length; beyond it, a warning


def matching(
    lengths: NDArray[np.int64], target: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """For each of the target's lengths a function of that length, in bins, in the target's order.

    Where a bin has too few functions, the places that they get are drawn at random and the others
    stay empty, so that lengths have no trend along the split.

    Args:
        lengths: [functions] of a pool in random order; the first ones of each bin are taken.
        target: [places] lengths.
        rng: draws places.

    Returns:
        [at most places] indices into the pool.
    """
    edges = np.unique(np.quantile(target, np.linspace(0, 1, LENGTH_BINS + 1)[1:-1]))
    of_target, of_pool = (np.searchsorted(edges, x, side="right") for x in (target, lengths))
    chosen = np.full(len(target), -1)
    for number in range(len(edges) + 1):
        places = np.flatnonzero(of_target == number)
        found = np.flatnonzero(of_pool == number)[: len(places)]
        if len(found) < len(places):
            places = rng.choice(places, len(found), replace=False)
        chosen[places] = found
    return chosen[chosen >= 0]


def tell_lengths(name: str, lengths: NDArray[np.int64], target: NDArray[np.int64]) -> None:
    """Warn if a split is longer or shorter than `iid`."""
    if len(lengths) and abs(lengths.mean() / target.mean() - 1) > MATCHED_WITHIN:
        warnings.warn(
            f"code: the functions of {name} are not as long as those of iid (mean length "
            f"{lengths.mean():.0f} characters against {target.mean():.0f}; "
            f"{len(target) - len(lengths):,} of {len(target):,} functions missing), so that gaps "
            "may come from lengths. Give more source code, or ask for fewer test functions "
            "(task.test).",
            stacklevel=4,  # where the task is made
        )
