"""Intervals by resampling sequences, which are the independent units: the tokens of one are not.

The same resampled sequences serve model and proxy and all cells of a split (paired), and all seeds
(crossed: the seeds share one test set). Resamples stand on the *last* axis everywhere, so that one
matrix product makes the replicates of many cells, and quantiles run along contiguous memory.

Source: Efron and Tibshirani (1993), "An Introduction to the Bootstrap", chapters 8, 13 and 16.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FEWEST = 100  # replicates below which an interval or a p-value means nothing


def weights(units: int, resamples: int, seed: int | Sequence[int]) -> Floats:
    """How often every unit is drawn: [units, resamples], whose columns sum to `units`."""
    draws = np.random.default_rng(seed).integers(units, size=(resamples, units))
    flat = draws + units * np.arange(resamples)[:, None]
    counts = np.bincount(flat.ravel(), minlength=units * resamples)
    return np.ascontiguousarray(counts.reshape(resamples, units).T, dtype=np.float64)


def replicates(sums: Floats, counts: NDArray[np.generic], weights: Floats) -> Floats:
    """The ratio Σ sums / Σ counts in every resample.

    A pooled mean has token counts here; a mean of per-sequence means has these means as `sums`, and
    ones as `counts`.

    Args:
        sums: [..., sequences].
        counts: [sequences], or with leading axes that broadcast against those of `sums`.
        weights: [sequences, resamples] from `weights`.

    Returns:
        [..., resamples]; NaN where a resample holds no count.
    """
    drawn = counts.astype(np.float64) @ weights  # [..., resamples]
    flat = sums.reshape(-1, sums.shape[-1]) @ weights
    total = flat.reshape(*sums.shape[:-1], -1)
    return np.divide(total, drawn, out=np.full_like(total, np.nan), where=drawn > 0)


def seed_replicates(by_seed: Sequence[Floats], seed: int | Sequence[int]) -> Floats:
    """Replicates of the mean over seeds: seeds are resampled above their sequences.

    With few seeds the interval is a rough one: it cannot know how far an unseen seed may lie.

    Args:
        by_seed: for every seed the [..., resamples] that `replicates` gave with the same weights.
        seed: of the resampling; the same one keeps two quantities paired.

    Returns:
        [..., resamples].
    """
    shares = weights(len(by_seed), by_seed[0].shape[-1], seed) / len(by_seed)
    mean = np.zeros_like(by_seed[0])
    for share, values in zip(shares, by_seed, strict=True):
        mean += share * values
    return mean


def interval(replicates: Floats, level: float = 0.95) -> tuple[Floats, Floats]:
    """The percentile interval (low, high), each [...], of replicates [..., resamples].

    NaN replicates are left out; where fewer than 100 remain, low and high are NaN.
    """
    ordered = np.sort(replicates, axis=-1)  # NaN goes last
    valid = np.count_nonzero(~np.isnan(ordered), axis=-1)
    low, high = (_quantile(ordered, valid, q) for q in ((1 - level) / 2, (1 + level) / 2))
    return low, high


def _quantile(ordered: Floats, valid: NDArray[np.int64], q: float) -> Floats:
    """Linear between order statistics, as `numpy.nanquantile`, but on sorted data."""
    place = q * np.maximum(valid - 1, 0)
    below = np.floor(place).astype(np.int64)
    above = np.minimum(below + 1, np.maximum(valid - 1, 0))
    left = np.take_along_axis(ordered, below[..., None], axis=-1)[..., 0]
    right = np.take_along_axis(ordered, above[..., None], axis=-1)[..., 0]
    return np.where(valid < FEWEST, np.nan, left + (right - left) * (place - below))


def p_value(replicates: Floats) -> Floats:
    """Two-sided p-value of "the quantity is 0": [...] from replicates [..., resamples].

    Twice the share of replicates on the far side of 0, one added above and below so that it is
    never 0 (Davison and Hinkley 1997, chapter 4). NaN where fewer than 100 replicates are not NaN.
    """
    valid = np.count_nonzero(~np.isnan(replicates), axis=-1)
    beyond = np.minimum((replicates <= 0).sum(axis=-1), (replicates >= 0).sum(axis=-1))
    return np.where(valid < FEWEST, np.nan, np.minimum(1, 2 * (1 + beyond) / (valid + 1)))
