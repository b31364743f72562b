"""The bootstrap against SciPy, plain loops, and its own promise: the coverage of its interval."""

import numpy as np
import pytest
import scipy.stats

from anamorph.faithfulness import interval, p_value, replicates, seed_replicates, weights


def test_weights_are_multinomial():
    drawn = weights(50, 4000, seed=0)
    assert drawn.shape == (50, 4000)
    assert (drawn.sum(axis=0) == 50).all()
    assert drawn.mean(axis=1) == pytest.approx(np.ones(50), abs=0.08)
    shares = np.bincount(drawn.astype(int).ravel(), minlength=4)[:4] / drawn.size
    assert shares == pytest.approx(scipy.stats.binom.pmf(range(4), 50, 1 / 50), abs=0.01)
    assert np.array_equal(drawn, weights(50, 4000, seed=0))
    assert not np.array_equal(drawn, weights(50, 4000, seed=1))


def test_unclustered_interval_is_scipys():
    data = np.random.default_rng(0).gamma(2, size=80)
    scipys = scipy.stats.bootstrap(
        (data,), np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(1)
    )
    ours = replicates(data, np.ones(80), weights(80, 20000, seed=2))
    low, high = interval(ours)
    # The ends of the interval are random: about 0.003 here at 20,000 resamples.
    assert low == pytest.approx(scipys.confidence_interval.low, abs=0.015)
    assert high == pytest.approx(scipys.confidence_interval.high, abs=0.015)
    assert ours.std() == pytest.approx(scipys.standard_error, rel=0.02)


def clustered(rng, sequences):
    """Tokens by sequence: long sequences are worse, and tokens of one sequence are alike."""
    counts = rng.integers(1, 30, size=sequences)
    chance = rng.beta(2, 1, size=sequences) * (1 - counts / 60)
    return rng.binomial(counts, chance).astype(np.float64), counts


TRUTH = sum(2 / 3 * c * (1 - c / 60) for c in range(1, 30)) / sum(range(1, 30))


def test_clustered_replicates_are_those_of_a_plain_loop():
    rng = np.random.default_rng(3)
    (sums, counts), other = clustered(rng, 25), rng.random(25)
    drawn = weights(25, 200, seed=4)
    expected = np.empty((2, 200))
    for resample in range(200):
        tokens, also = [], []  # write every token out, then take plain means
        for sequence in range(25):
            for _ in range(int(drawn[sequence, resample])):
                wrong = counts[sequence] - int(sums[sequence])
                tokens += [1] * int(sums[sequence]) + [0] * wrong
                also += [other[sequence] / counts[sequence]] * counts[sequence]
        expected[:, resample] = np.mean(tokens), np.mean(also)
    ours = replicates(np.stack([sums, other]), counts, drawn)
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(5)
    drawn, covered, naive = weights(150, 1000, seed=6), 0, 0
    for _ in range(2000):
        sums, counts = clustered(rng, 150)
        low, high = interval(replicates(sums, counts, drawn))
        covered += low <= TRUTH <= high
        mean = sums.sum() / counts.sum()
        half = 1.96 * np.sqrt(mean * (1 - mean) / counts.sum())  # as if tokens were independent
        naive += abs(mean - TRUTH) <= half
    assert 0.93 <= covered / 2000 <= 0.97
    assert naive / 2000 < 0.8  # the reason for all this


def test_interval_is_the_quantiles_and_leaves_out_nan():
    values = np.random.default_rng(7).normal(size=(3, 4, 501))
    values[1, 2, :300] = np.nan
    for level in (0.95, 0.5):
        expected = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2], axis=-1)
        np.testing.assert_allclose(interval(values, level), expected, rtol=1e-12)
    values[1, 2, :402] = np.nan  # 99 are left
    low, high = interval(values)
    assert np.isnan(low[1, 2]) and np.isnan(high[1, 2]) and np.isnan(low).sum() == 1
    values[:] = np.nan
    assert np.isnan(interval(values)).all()


def test_a_resample_without_counts_is_nan():
    drawn = np.array([[2.0, 1, 0], [0, 1, 2]])
    ours = replicates(np.array([[3.0, 0], [4.0, 0]]), np.array([4, 0]), drawn)
    np.testing.assert_array_equal(ours, [[0.75, 0.75, np.nan], [1, 1, np.nan]])


def test_seeds_are_resampled_above_sequences():
    rng = np.random.default_rng(8)
    by_seed = [rng.random((2, 500)) for _ in range(3)]
    drawn = weights(3, 500, seed=9)
    expected = np.empty((2, 500))
    for resample in range(500):
        seeds = [s for s in range(3) for _ in range(int(drawn[s, resample]))]
        expected[:, resample] = np.mean([by_seed[s][:, resample] for s in seeds], axis=0)
    np.testing.assert_allclose(seed_replicates(by_seed, seed=9), expected, rtol=1e-12)


def test_few_seeds():
    alone = np.random.default_rng(10).random((2, 300))
    np.testing.assert_array_equal(seed_replicates([alone], seed=0), alone)
    two = seed_replicates([np.zeros(4000), np.ones(4000)], seed=0)
    values, times = np.unique(two, return_counts=True)
    assert values.tolist() == [0, 0.5, 1]
    assert times / 4000 == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_p_value_by_hand():
    values = np.concatenate([np.full(10, -1.0), np.full(989, 1.0)])
    assert p_value(values) == pytest.approx(2 * 11 / 1000)
    assert p_value(-values) == pytest.approx(2 * 11 / 1000)
    assert p_value(np.ones(999)) == pytest.approx(2 / 1000)
    assert p_value(np.zeros(999)) == 1
    assert p_value(np.where(np.arange(999) < 500, np.nan, 1.0)) == pytest.approx(2 / 500)
    assert np.isnan(p_value(np.ones(99)))


def test_p_value_is_uniform_when_there_is_no_gap():
    rng = np.random.default_rng(11)
    drawn = weights(120, 500, seed=12), weights(120, 500, seed=13)
    small = 0
    for _ in range(1000):
        one, two = (replicates(*clustered(rng, 120), w) for w in drawn)
        small += p_value(one - two) < 0.05
    assert 0.03 <= small / 1000 <= 0.075
