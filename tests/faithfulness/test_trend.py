"""The trend of gaps against least squares, and how often it is wrong, against brute force."""

import numpy as np
import pytest
from scipy.stats import norm

from anamorph.faithfulness.intervals import Differences, Ends, Means
from anamorph.faithfulness.trend import trend

REPEATS = 20_000
Z = norm.ppf(0.975)


def around(gaps: np.ndarray, errors: np.ndarray) -> Ends:
    return Ends(gaps - Z * errors, gaps + Z * errors)


def test_the_change_is_that_of_the_straight_line() -> None:
    gaps = np.random.default_rng(0).normal(size=(5, 7))
    found = trend(gaps, around(gaps, np.full(7, 0.1)))
    slopes = np.polyfit(np.arange(7), gaps.T, 1)[0]
    assert found.value == pytest.approx(6 * slopes)


def test_of_two_values_it_is_their_difference() -> None:
    """With the ends of Zou and Donner's interval, worked out by hand: 0.04² + 0.03² = 0.05²."""
    gaps = np.array([0.10, 0.30])
    found = trend(gaps, Ends(np.array([0.04, 0.26]), np.array([0.13, 0.42])))
    assert found.value == pytest.approx(0.2)
    assert found.ends.low == pytest.approx(0.2 - 0.05)
    assert found.ends.high == pytest.approx(0.2 + np.hypot(0.12, 0.06))


def test_of_three_values_the_one_in_the_middle_does_not_count() -> None:
    gaps = np.array([[0.1, 0.0, 0.3], [0.1, 5.0, 0.3]])
    found = trend(gaps, around(gaps, np.array([0.03, 1.0, 0.04])))
    assert found.value == pytest.approx(0.2)
    assert found.ends.high - 0.2 == pytest.approx(Z * 0.05)


def correlations(count: int) -> dict[str, np.ndarray]:
    """How the errors of the gaps of an axis may go together."""
    places = np.arange(count)
    half = places < count / 2
    near = 0.9 ** np.abs(places[:, None] - places)
    return {
        "not at all": np.eye(count),
        "alike": 0.7 + 0.3 * np.eye(count),
        "neighbours": near,
        "halves": (half[:, None] == half).astype(float),
    }


@pytest.mark.parametrize("count", [2, 5, 12])
def test_without_a_trend_few_are_said_to_have_one(count: int) -> None:
    rng = np.random.default_rng(count)
    errors = rng.uniform(0.01, 0.03, count)
    rates = {}
    for name, together in correlations(count).items():
        drawn = rng.multivariate_normal(np.zeros(count), together, REPEATS, method="eigh")
        gaps = 0.1 + errors * drawn
        found = trend(gaps, around(gaps, errors))
        rates[name] = (found.p_value < 0.05).mean()
        outside = (found.ends.low > 0) | (found.ends.high < 0)
        assert (outside == (found.p_value < 0.05)).mean() > 0.999  # p-value and interval agree
    assert max(rates.values()) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / REPEATS)
    # What is assumed is so where the gaps of a half err as one: the rate is met there.
    assert rates["halves"] == pytest.approx(0.05, abs=0.006)


def test_taken_as_independent_noise_would_be_a_trend() -> None:
    """Why the gaps of a half are taken to err together: least squares is wrong too often."""
    rng = np.random.default_rng(3)
    drawn = rng.multivariate_normal(
        np.zeros(12), correlations(12)["halves"], REPEATS, method="eigh"
    )
    weights = np.arange(12) - 5.5
    assert (np.abs(drawn @ weights) / np.linalg.norm(weights) > Z).mean() > 0.3


def test_a_trend_is_found_as_often_as_the_best_test_could_where_halves_err_as_one() -> None:
    """The best test knows the variance of the weighted sum; brute force takes it from draws."""
    count, error, rise = 6, 0.02, 0.08
    rng = np.random.default_rng(1)
    together = correlations(count)["halves"]
    drawn = error * rng.multivariate_normal(np.zeros(count), together, REPEATS, method="eigh")
    line = np.linspace(0, rise, count)
    found = trend(line + drawn, around(line + drawn, np.full(count, error)))
    spread = np.std(trend(drawn, around(drawn, np.full(count, error))).value)
    best = norm.sf(Z - rise / spread)
    assert (found.p_value < 0.05).mean() == pytest.approx(best, abs=0.015)
    assert 0.5 < best < 0.99


def test_intervals_of_real_sums_on_the_same_sequences() -> None:
    """Shares of 150 sequences, which are hard or easy for all models alike."""
    rng = np.random.default_rng(2)
    repeats, models, sequences = 600, 5, 150
    counts = rng.integers(3, 12, sequences)

    def means(level: np.ndarray) -> Means:
        """Of [model] shares: every sequence has a level of its own, the same for all models."""
        own = rng.normal(0, 0.8, (repeats, 1, 1, sequences))
        logit = np.log(level / (1 - level))[:, None, None] + own
        sums = rng.binomial(counts, 1 / (1 + np.exp(-logit))).astype(float)
        shaped = sums.reshape(repeats * models, 1, 1, sequences)
        return Means.of_every_model(shaped, counts.astype(float), np.array([True]))

    def found(fall: np.ndarray) -> float:
        gaps = Differences.of_every_model(means(np.full(models, 0.95)), means(0.93 - fall))
        ends = gaps.ends()
        value = (gaps.first.value - gaps.second.value).reshape(repeats, models)
        shaped = Ends(*(end.reshape(repeats, models) for end in ends))
        return float((trend(value, shaped).p_value < 0.05).mean())

    assert found(np.zeros(models)) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / repeats)
    assert found(np.linspace(0, 0.15, models)) > 0.8
