"""Differences between two runs: against plain loops and the bootstrap, and how they cover."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from anamorph.faithfulness.intervals import Differences, Means, quantile
from anamorph.faithfulness.two_runs import of_gaps, paired, unpaired

Floats = NDArray[np.float64]
SHARE, MEAN = np.array([True]), np.array([False])


def of_one(first: Floats, second: Floats, counts: Floats, share: NDArray[np.bool_]) -> Differences:
    """Of [draw, sequence] sums of one model and metric; a draw stands where a proxy does."""
    shaped = (x[:, None, None, :] for x in (first, second, counts))
    return paired(*shaped, share)


def two_models(
    rng: np.random.Generator, draws: int, sequences: int, lost: float, gained: float
) -> tuple[Floats, Floats, Floats]:
    """Agreeing positions of two models, and scored ones; hard sequences are hard for both."""
    counts = rng.integers(1, 9, (draws, sequences))
    first = rng.binomial(counts, rng.beta(3, 1, counts.shape))
    second = first - rng.binomial(first, lost) + rng.binomial(counts - first, gained)
    return first.astype(float), second.astype(float), counts.astype(float)


def pooled_difference(first: Floats, second: Floats, counts: Floats) -> float:
    a = b = c = 0.0
    for n in range(len(counts)):
        a, b, c = a + first[n], b + second[n], c + counts[n]
    return b / c - a / c


def resampled(rng: np.random.Generator, *sides: tuple[Floats, Floats, Floats]) -> Floats:
    """The bootstrap: whole sequences of each side are drawn again, both models with them."""
    found = []
    for _ in range(4000):
        drawn = (rng.integers(len(c), size=len(c)) for _, _, c in sides)
        some = [[x[rows] for x in side] for side, rows in zip(sides, drawn, strict=True)]
        parts = [(b.sum() - a.sum()) / c.sum() for a, b, c in some]
        found.append(parts[0] - sum(parts[1:]))
    return np.quantile(found, [0.025, 0.975])


def test_the_interval_of_a_difference_is_that_of_the_bootstrap_where_that_is_valid() -> None:
    rng = np.random.default_rng(1)
    a, b, c = (x[0] for x in two_models(rng, 1, 1500, 0.15, 0.2))
    found = of_one(a[None], b[None], c[None], SHARE)
    assert found.value.item() == pytest.approx(pooled_difference(a, b, c), abs=1e-12)
    low, high = resampled(rng, (a, b, c))
    width = high - low
    assert found.ends().low.item() == pytest.approx(low, abs=0.08 * width)
    assert found.ends().high.item() == pytest.approx(high, abs=0.08 * width)
    alone = Differences(*(Means.of(x[None], c[None], SHARE) for x in (b, a)), np.zeros(1))
    assert np.ptp([*alone.ends()]) > 1.4 * width  # as if the sequences were others


def test_the_interval_of_a_difference_of_gaps_is_that_of_the_bootstrap() -> None:
    rng = np.random.default_rng(2)
    sides = [
        tuple(x[0] for x in two_models(rng, 1, n, lost, 0.1))
        for n, lost in ((900, 0.1), (1400, 0.3))
    ]
    iid, ood = (of_one(*(x[None] for x in side), SHARE) for side in sides)
    found = of_gaps(iid, ood)
    loops = [pooled_difference(*side) for side in sides]
    assert found.value.item() == pytest.approx(loops[0] - loops[1], abs=1e-12)
    low, high = resampled(rng, *sides)
    assert found.ends().low.item() == pytest.approx(low, abs=0.08 * (high - low))
    assert found.ends().high.item() == pytest.approx(high, abs=0.08 * (high - low))


def test_a_mean_that_is_no_share_has_the_jackknife_s_error() -> None:
    rng = np.random.default_rng(3)
    c = rng.integers(1, 9, 600).astype(float)
    hard = rng.exponential(size=600)
    a, b = (hard * rng.uniform(0.8, 1.2, 600) * c * k for k in (1.0, 1.05))
    total = pooled_difference(a, b, c)
    left_out = [pooled_difference(*(np.delete(x, n) for x in (a, b, c))) for n in range(len(c))]
    error = np.sqrt(len(c) - 1) * np.std(left_out)
    found = of_one(a[None], b[None], c[None], MEAN).ends()
    assert found.high.item() - found.low.item() == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert found.low.item() < total < found.high.item()


def test_turned_round_it_is_the_negative() -> None:
    a, b, c = two_models(np.random.default_rng(4), 5, 60, 0.1, 0.3)
    there, back = of_one(a, b, c, SHARE), of_one(b, a, c, SHARE)
    np.testing.assert_allclose(there.ends().low, -back.ends().high)
    np.testing.assert_allclose(there.p_value_of_none(), back.p_value_of_none())


@pytest.mark.parametrize("sequences", [30, 100])
def test_it_covers_where_few_sequences_differ_and_the_usual_intervals_do_not(
    sequences: int,
) -> None:
    """Two models agree half of the time, and differ in one sequence of a hundred."""
    rng, draws = np.random.default_rng(sequences), 600
    c = np.full((draws, sequences), 4.0)
    a = rng.binomial(4, rng.beta(1, 1, c.shape)).astype(float)
    b = np.where(rng.random(c.shape) < 0.01, 0, a)
    truth, d = -0.5 * 0.01, (b - a) / 4
    ends = of_one(a, b, c, SHARE).ends()
    assert np.mean((ends.low < truth) & (truth < ends.high)) > 0.94
    half = stats.t.ppf(0.975, sequences - 1) * d.std(axis=1, ddof=1) / np.sqrt(sequences)
    assert np.mean(np.abs(d.mean(axis=1) - truth) <= half) < 0.87


def test_it_covers_and_rejects_as_it_says() -> None:
    a, b, c = two_models(np.random.default_rng(5), 800, 120, 0.1, 0.3)
    found = of_one(a, b, c, SHARE)  # 0.75 agree, so that both are 0.075
    ends = found.ends()
    assert 0.94 < np.mean((ends.low < 0) & (ends.high > 0)) <= 0.985
    rejected = found.p_value_of_none() < 0.05
    np.testing.assert_array_equal(rejected, (ends.low > 0) | (ends.high < 0))


def test_gaps_cover() -> None:
    rng = np.random.default_rng(6)
    iid, ood = (
        of_one(*two_models(rng, 600, n, 0.05, k), SHARE) for n, k in ((80, 0.15), (60, 0.05))
    )
    truth = 0.0 - (0.25 * 0.05 - 0.75 * 0.05)  # nothing changes on iid, and ood falls by 0.025
    ends = of_gaps(iid, ood).ends()
    assert np.mean((ends.low < truth) & (truth < ends.high)) > 0.94


def test_over_models_their_spread_counts() -> None:
    """Three models whose differences are 0.1, 0.2 and 0.3 to the position, on equal sequences."""
    counts = np.full((1, 1, 1, 200), 10.0)
    first = np.full((1, 3, 1, 200), 5.0)
    second = first + np.array([1.0, 2.0, 3.0])[:, None, None]
    found = paired(first, second, counts, SHARE)
    np.testing.assert_allclose(found.value.ravel(), [0.1, 0.2, 0.3, 0.2])
    models = stats.t.ppf(0.975, 2) * 0.1 / np.sqrt(3)
    z = np.full((1, 4, 1), quantile(0.95))
    below = found.distances(z).low[0, -1, 0]
    assert found.ends().low[0, -1, 0] == pytest.approx(0.2 - np.hypot(models, below))
    assert below < 0.05 < models


def test_independent_numbers_have_the_interval_of_a_gap() -> None:
    rng = np.random.default_rng(7)
    c = np.full((50, 80), 5.0)
    a, b = (Means.of(rng.binomial(5, p, c.shape).astype(float), c, SHARE[0]) for p in (0.9, 0.86))
    found, known = unpaired(a.value, a.ends(), b.value, b.ends()), Differences(b, a, np.zeros(50))
    np.testing.assert_allclose(found.value, known.value)
    np.testing.assert_allclose(found.ends, known.ends())
    outside = (found.ends.low > 0) | (found.ends.high < 0)
    np.testing.assert_array_equal(found.p_value < 0.05, outside)
    assert outside.any() and not outside.all()
    near = (found.p_value > 0.005) & (found.p_value < 0.1)  # where something depends on it
    np.testing.assert_allclose(found.p_value[near], known.p_value_of_none()[near], rtol=0.1)
    unknown = unpaired(a.value, a.ends(), b.value * np.nan, b.ends())
    assert np.isnan(unknown.p_value).all() and np.isnan(unknown.ends.low).all()
