"""Intervals against SciPy, plain loops, published examples, and their promise: how they cover."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import scipy.stats

from anamorph.faithfulness.intervals import (
    Differences,
    Ends,
    Means,
    correlation,
    quantile,
    residuals,
    student,
)
from over_models import over_models

SHARE, MEAN = np.array(True), np.array(False)


def draw(rng, runs, sequences, p, correlated, longest=30):
    """Beta-binomial agreement [runs, sequences] over sequences of 1 to `longest` positions."""
    counts = rng.integers(1, longest + 1, size=(runs, sequences))
    chance = p
    if correlated:
        prior = 1 / correlated - 1
        chance = rng.beta(p * prior, (1 - p) * prior, size=(runs, sequences))
    return rng.binomial(counts, chance).astype(np.float64), counts.astype(np.float64)


def means(sums, counts, share=SHARE):
    return Means.of(np.asarray(sums, float), np.asarray(counts, float), share)


def made(value, positions, error, *, length=1.0, freedom=1e12, share=SHARE):
    """Means of which everything is given."""
    numbers = (np.array(float(x)) for x in (value, error, positions, length, freedom))
    return Means(*numbers, share, np.array(0.0), np.array(1))


def independent(right, trials):
    """So many single positions, of endless degrees of freedom: the design effect is 1."""
    p = right / trials
    return made(p, trials, math.sqrt(p * (1 - p) / trials))


# --- means and standard errors


def test_value_and_error_by_a_plain_loop_and_the_jackknife():
    rng = np.random.default_rng(0)
    sums, counts = (x[0] for x in draw(rng, 1, 40, 0.8, 0.2))
    found = means(sums, counts)
    total, right = 0, 0.0
    for a, c in zip(sums, counts, strict=True):
        total, right = total + int(c), right + a
    p = right / total
    left_out = [(right - a) / (total - c) for a, c in zip(sums, counts, strict=True)]
    assert (found.value, found.positions) == (pytest.approx(p), total)
    assert found.error == pytest.approx(math.sqrt(sum((x - p) ** 2 for x in left_out)))
    jackknife = math.sqrt(39 / 40 * sum((x - np.mean(left_out)) ** 2 for x in left_out))
    assert found.error == pytest.approx(jackknife, rel=0.02)
    squares = sum(c * c for c in counts)
    assert found.length == pytest.approx(squares / total)
    assert found.freedom == pytest.approx(total**2 / squares - 1)


def test_equal_lengths_have_the_error_of_a_mean():
    rates = np.random.default_rng(1).random(25)
    found = means(rates * 7, np.full(25, 7.0))
    assert found.error == pytest.approx(scipy.stats.sem(rates) * math.sqrt(25 / 24))
    assert (found.freedom, found.length) == (pytest.approx(24), pytest.approx(7))


def test_the_error_of_other_means_has_one_more_that_is_as_bad_as_the_worst():
    counts = np.full(10, 4.0)
    sums = np.array([2.0, 2, 2, 2, 2, 2, 2, 2, 2, 6]) * 4
    plain, found = means(sums, counts).error, means(sums, counts, MEAN).error
    assert found == pytest.approx(math.hypot(plain, (6 - 2.4) / 10))


@pytest.mark.parametrize("share", [SHARE, MEAN])
def test_sequences_that_were_not_seen_change_nothing(share):
    sums, counts = (x[0] for x in draw(np.random.default_rng(2), 1, 30, 0.9, 0.3))
    places = np.sort(np.random.default_rng(3).permutation(50)[:30])
    sparse = np.zeros((2, 50))
    sparse[:, places] = sums, counts
    ours, expected = means(*sparse, share), means(sums, counts, share)
    for name in ("value", "error", "positions", "length", "freedom"):
        assert getattr(ours, name) == pytest.approx(getattr(expected, name)), name
    np.testing.assert_allclose(ours.ends(), expected.ends())


@pytest.mark.parametrize("share", [SHARE, MEAN])
def test_one_sequence_has_no_interval_and_two_have_a_wide_one(share):
    for sums, counts in (([7.0], [10.0]), ([0, 7.0, 0], [0, 10.0, 0]), ([0.0, 0], [0.0, 0])):
        found = means(sums, counts, share)
        assert np.isnan(found.ends()).all()
        two = Differences(found, means([3, 4, 5], [9, 9, 9], share), np.array(0.0))
        assert np.isnan(two.ends()).all() and np.isnan([two.p_value(), two.p_value_of_none()]).all()
    low, high = means([7, 10], [10, 10], share).ends()
    assert low < 0.5 and high >= (1 if share else 1.5)


# --- intervals of one mean


@pytest.mark.parametrize(("right", "trials"), [(45, 50), (0, 20), (20, 20), (1, 1000), (7, 9)])
@pytest.mark.parametrize("level", [0.95, 0.5, 0.999])
def test_shares_of_independent_positions_have_the_exact_interval(right, trials, level):
    expected = scipy.stats.binomtest(right, trials).proportion_ci(level, method="exact")
    np.testing.assert_allclose(independent(right, trials).ends(level), expected, atol=1e-9)


@pytest.mark.parametrize("right", [0, 1, 18, 29, 30])
def test_shares_of_single_positions_by_hand(right):
    """The design effect is the leverage, (n/(n−1))², shrunk towards 1 from 3 positions' worth."""
    n, p = 30, right / 30
    bernoulli = n * p * (1 - p)
    effect = (bernoulli * (n / (n - 1)) ** 2 + 3) / (bernoulli + 3)
    number = n / effect * (1.959964 / scipy.stats.t.ppf(0.975, n - 1)) ** 2
    low = scipy.stats.beta.ppf(0.025, p * number, (1 - p) * number + 1) if right else 0
    high = scipy.stats.beta.ppf(0.975, p * number + 1, (1 - p) * number) if right < n else 1
    ours = means(np.arange(n) < right, np.ones(n)).ends()
    assert tuple(map(float, ours)) == pytest.approx((low, high), rel=1e-6)


def test_perfect_agreement_counts_a_sequence_as_its_prior_says():
    """d₀ = 1 + 0.2·(c − 1): 100 sequences of 21 positions are 420, less what Student's t takes."""
    found = means(np.full(100, 21.0), np.full(100, 21.0)).ends()
    number = 2100 / 5 * (1.959964 / scipy.stats.t.ppf(0.975, 99)) ** 2
    assert found.high == 1
    assert float(found.low) == pytest.approx(0.025 ** (1 / number), rel=1e-6)


def test_dependent_sequences_count_once():
    """All positions of a sequence alike: as of so many single ones, but for the prior."""
    alike = (np.arange(200) % 4 > 0).astype(float)
    long, short = means(alike * 50, np.full(200, 50.0)), means(alike, np.ones(200))
    np.testing.assert_allclose(long.ends(), short.ends(), atol=0.004)


def test_mirrored_shares_have_mirrored_intervals():
    sums, counts = draw(np.random.default_rng(4), 50, 25, 0.95, 0.2)
    ours, other = means(sums, counts).ends(), means(counts - sums, counts).ends()
    np.testing.assert_allclose(ours.low, 1 - other.high, atol=1e-9)
    np.testing.assert_allclose(ours.high, 1 - other.low, atol=1e-9)


@pytest.mark.parametrize("share", [SHARE, MEAN])
@pytest.mark.parametrize("p", [0.0, 0.6, 0.97, 1.0])
def test_more_sequences_and_lower_levels_give_shorter_intervals(p, share):
    if p in (0, 1) and not share:
        pytest.skip("what does not vary has no width")
    sums, counts = draw(np.random.default_rng(5), 1, 10, p, 0)
    times = [means(np.tile(sums, k), np.tile(counts, k), share) for k in (1, 2, 4, 16)]
    width = [float(np.subtract(*m.ends()[::-1])[0]) for m in times]
    assert width == sorted(width, reverse=True) and width[-1] < width[0] / (3 if share else 2.9)
    level = [float(np.subtract(*times[0].ends(x)[::-1])[0]) for x in (0.5, 0.9, 0.95, 0.9999)]
    assert level == sorted(level)
    for m in times:
        assert m.ends().low <= m.value <= m.ends().high


def test_other_means_have_students_interval_on_the_logarithm():
    rng = np.random.default_rng(6)
    found = means(rng.gamma(0.5, 3, 20) * 5, np.full(20, 5.0), MEAN)
    relative = float(found.error / found.value)
    expected = scipy.stats.t.interval(0.95, 19, np.log(found.value), relative)
    assert np.log(found.ends()) == pytest.approx(np.array(expected))


def test_units_do_not_matter_to_other_means():
    rng = np.random.default_rng(7)
    sums, counts = rng.gamma(0.5, 3, (3, 40)), rng.integers(1, 9, (3, 40))
    bits, nats = means(sums, counts, MEAN).ends(), means(sums * math.log(2), counts, MEAN).ends()
    np.testing.assert_allclose(nats, np.array(bits) * math.log(2))


def test_a_mean_of_zero_is_zero():
    assert means(np.zeros(9), np.ones(9), MEAN).ends() == (0, 0)


def test_students_quantile_is_scipys_and_never_shorter_than_the_normals():
    for freedom in (1.0, 2.5, 30, 1e7):
        z = np.array([1e-3, 0.5, 1.96, 6, 12])
        expected = scipy.stats.t.isf(scipy.stats.norm.sf(z), freedom)
        np.testing.assert_allclose(student(z, np.full(5, freedom)), expected, rtol=1e-6)
    z = np.linspace(0.01, 37, 2000)
    for freedom in (0.001, 0.4, 1, 2.3, 3, 5, 9, 11, 100):  # SciPy gives -inf for some, far out
        t = student(z, np.full_like(z, freedom))
        assert (t >= z).all() and np.isfinite(t).all(), freedom


# --- differences


@dataclass
class Wilson:
    """A share with Wilson's interval, of which Newcombe made his."""

    right: int
    trials: int
    models: int = 1

    def __post_init__(self):
        self.value, self.freedom = np.array(self.right / self.trials), np.array(np.inf)

    def distances(self, z):
        level = 2 * scipy.stats.norm.cdf(float(z)) - 1
        found = scipy.stats.binomtest(self.right, self.trials).proportion_ci(level, "wilson")
        return Ends(self.value - found.low, found.high - self.value)


@pytest.mark.parametrize(
    ("first", "second", "published"),
    [
        ((56, 70), (48, 80), (0.0524, 0.3339)),
        ((9, 10), (3, 10), (0.1705, 0.8090)),
        ((6, 7), (2, 7), (0.0582, 0.8062)),
        ((5, 56), (0, 29), (-0.0381, 0.1926)),
        ((10, 10), (0, 10), (0.6075, 1.0)),
    ],
)
def test_newcombes_examples(first, second, published):
    """Newcombe (1998), "Interval estimation for the difference between independent proportions".

    Table II, method 10.
    """
    found = Differences(Wilson(*first), Wilson(*second), np.array(0.0)).ends()
    assert tuple(found) == pytest.approx(published, abs=6e-5)


def test_differences_of_exact_intervals_by_hand():
    (l1, u1), (l2, u2) = (
        scipy.stats.binomtest(*x).proportion_ci(0.95, "exact") for x in ((45, 50), (70, 100))
    )
    for r in (0.0, 0.6):
        d = Differences(independent(45, 50), independent(70, 100), np.array(0.0), r)
        a, b, c, e = 0.9 - l1, u2 - 0.7, u1 - 0.9, 0.7 - l2
        below, above = (math.sqrt(x * x + y * y - 2 * r * x * y) for x, y in ((a, b), (c, e)))
        assert d.value == pytest.approx(0.2)
        assert tuple(map(float, d.ends())) == pytest.approx((0.2 - below, 0.2 + above))


def two(seed=8, runs=60, p=(0.97, 0.9), n=(40, 60)):
    rng = np.random.default_rng(seed)
    first, second = (means(*draw(rng, runs, *x, 0.2)) for x in zip(n, p, strict=True))
    return Differences(first, second, np.zeros(runs))


@pytest.mark.parametrize("margin", [-0.05, 0.0, 0.02, 0.1])
def test_p_values_and_intervals_say_the_same(margin):
    d = two()
    p = d.p_value(margin)
    z = scipy.stats.norm.isf(np.minimum(p, 1 - p))
    low, high = d.ends(z)
    near = np.where(p <= 0.5, low, high)
    told = (z > 0.01) & (z < 8)  # beyond, 1 − p is rounded
    assert told.sum() > 40
    np.testing.assert_allclose(near[told], margin, atol=2e-6)
    rejected = d.ends(quantile(0.95)).low > margin
    np.testing.assert_array_equal(rejected, p < 0.025)


def test_p_values_both_ways_are_one():
    d = two()
    other = Differences(d.second, d.first, d.spread)
    np.testing.assert_allclose(d.p_value(0.02), 1 - other.p_value(-0.02), atol=1e-9)
    np.testing.assert_allclose(d.p_value_of_none(), other.p_value_of_none(), rtol=1e-6)
    p = d.p_value()
    np.testing.assert_allclose(d.p_value_of_none(), 2 * np.minimum(p, 1 - p), atol=1e-9)
    assert Differences(d.first, d.first, d.spread).p_value_of_none() == pytest.approx(np.ones(60))


def test_p_values_have_no_floor_in_either_direction():
    sums, counts = draw(np.random.default_rng(9), 2, 500, 0.99, 0.1)
    sums[1] *= 0.5
    clear, less = means(sums[0], counts[0]), means(sums[1], counts[1])
    for d in (Differences(clear, less, np.array(0.0)), Differences(less, clear, np.array(0.0))):
        assert 0 < d.p_value_of_none() < 1e-60
    assert 0 < Differences(clear, less, np.array(0.0)).p_value(0.3) < 1e-20


def test_a_difference_of_the_same_data_is_none():
    half = means(np.full(20, 3.0), np.full(20, 6.0))
    errors = residuals(*draw(np.random.default_rng(10), 1, 20, 0.5, 0))
    assert correlation(errors, errors) == pytest.approx(1)
    same = Differences(half, half, np.array(0.0), 1.0)
    np.testing.assert_allclose(same.ends(), 0, atol=1e-7)
    apart = Differences(half, half, np.array(0.0)).ends()
    assert apart.low < -0.05 and apart.high > 0.05


def test_correlation_is_that_of_the_residuals():
    a, b = np.random.default_rng(11).normal(size=(2, 50))
    a, b = a - a.mean(), b - b.mean()
    assert correlation(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert correlation(a, np.zeros(50)) == 0


# --- several models


def test_models_that_are_equal_are_as_good_as_one():
    sums, counts = draw(np.random.default_rng(12), 1, 30, 0.9, 0.2)
    for share in (SHARE, MEAN):
        one = Means.of(sums[0], counts[0], share)
        twice = over_models(np.tile(sums, (2, 1)), np.tile(counts, (2, 1)), share)
        assert twice.spread == 0 and twice.models == 2
        np.testing.assert_allclose(twice.ends(), one.ends())
        wider = replace(twice, spread=np.array(0.01)).ends()
        assert wider.low < one.ends().low and wider.high > one.ends().high


def test_models_without_error_over_sequences_have_students_interval():
    rates, counts = np.array([1.1, 1.4, 1.2, 1.9]), np.random.default_rng(13).integers(1, 9, 25)
    found = over_models(rates[:, None] * counts, np.tile(counts, (4, 1)), MEAN)
    expected = scipy.stats.t.interval(0.95, 3, rates.mean(), scipy.stats.sem(rates))
    assert tuple(map(float, found.ends())) == pytest.approx(expected)
    assert found.spread == pytest.approx(scipy.stats.sem(rates))


def test_the_gap_of_several_models_is_a_paired_t_test_where_sequences_have_no_error():
    first, second = np.array([1.1, 1.4, 1.2]), np.array([0.9, 1.35, 1.0])
    counts = np.random.default_rng(14).integers(1, 9, 25)
    parts = [
        over_models(x[:, None] * counts, np.tile(counts, (3, 1)), MEAN) for x in (first, second)
    ]
    d = Differences(*parts, scipy.stats.sem(first - second))
    test = scipy.stats.ttest_rel(first, second)
    assert d.p_value_of_none() == pytest.approx(test.pvalue, rel=1e-3)
    assert tuple(map(float, d.ends())) == pytest.approx(tuple(test.confidence_interval(0.95)))


def test_the_error_of_a_mean_over_models_is_the_jackknifes():
    rng = np.random.default_rng(15)
    counts = rng.integers(1, 20, (1, 30)) * np.ones((3, 1))
    sums = rng.binomial(counts.astype(int), rng.beta(8, 1, 30)).astype(float)
    found = over_models(sums, counts, SHARE)
    rates = [
        np.mean(
            [
                np.delete(a, i).sum() / np.delete(c, i).sum()
                for a, c in zip(sums, counts, strict=True)
            ]
        )
        for i in range(30)
    ]
    assert found.value == pytest.approx(np.mean(sums.sum(1) / counts.sum(1)))
    assert found.error == pytest.approx(math.sqrt(((rates - found.value) ** 2).sum()))


# --- what is promised


@pytest.mark.parametrize("sequences", [50, 100])
@pytest.mark.parametrize("p", [0.95, 0.99])
@pytest.mark.parametrize("correlated", [0, 0.3])
def test_intervals_cover(sequences, p, correlated):
    """A short form of benchmarks/coverage.py; 0.93 lies 3 standard errors below 0.95."""
    rng = np.random.default_rng([sequences, int(100 * p), int(10 * correlated)])
    one, other, few, many = (
        means(*draw(rng, 1000, n, p, correlated)) for n in (sequences, sequences, 40, 400)
    )
    low, high = one.ends()
    assert ((low <= p) & (p <= high)).mean() >= 0.93
    for first, second in ((one, other), (few, many)):
        d = Differences(first, second, np.zeros(1000))
        low, high = d.ends()
        assert ((low <= 0) & (high >= 0)).mean() >= 0.93
        assert (d.p_value_of_none() < 0.05).mean() <= 0.07


def test_intervals_of_other_means_cover():
    rng = np.random.default_rng(16)
    counts = rng.integers(1, 30, (1000, 100))
    sums = rng.gamma(0.5, 2, (1000, 100)) * counts
    low, high = means(sums, counts, MEAN).ends()
    assert ((low <= 1) & (high >= 1)).mean() >= 0.93
