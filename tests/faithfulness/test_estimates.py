"""Means of many cells at once: each as if it were alone, and what stopping early changes."""

import numpy as np
import pytest
import scipy.stats
import torch

from anamorph.faithfulness.confidence import RatioSums, sequence_interval
from anamorph.faithfulness.estimates import Estimates, Gaps, Stopping
from anamorph.faithfulness.intervals import Differences, Means
from over_models import over_models

METRICS = "same_prediction", "output_jsd", "model_cross_entropy"
SHARE = np.array([True, False, False])
STOPPING = Stopping(0.1, 0.3)


def cells(seed, proxies=3, models=2, sequences=80, p=0.95):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 20, (1, 1, 1, sequences)) * np.ones((proxies, models, 3, 1))
    sums = rng.random(counts.shape) * counts
    sums[:, :, 0] = rng.binomial(counts[:, :, 0].astype(int), p)
    return sums, counts


def stopped(seed, **how):
    """Cells of one model that have seen 32, 48, 64, … sequences."""
    sums, counts = cells(seed, models=1, **how)
    for p in range(len(sums)):
        sums[p, ..., 16 * (p + 2) :] = counts[p, ..., 16 * (p + 2) :] = 0
    return sums, counts


@pytest.mark.parametrize("models", [1, 2])
def test_every_cell_is_as_if_it_were_alone(models):
    sums, counts = cells(0, models=models)
    found = Estimates.of(sums, counts, METRICS, None)
    for p in range(3):
        for m in range(3):
            alone = [Means.of(sums[p, s, m], counts[p, s, m], SHARE[m]) for s in range(models)]
            over = over_models(sums[p, :, m], counts[p, :, m], SHARE[m])
            every = [*alone, over] if models > 1 else alone
            np.testing.assert_allclose(found.value[p, :, m], [x.value for x in every])
            np.testing.assert_allclose(found.ends.low[p, :, m], [x.ends().low for x in every])
            np.testing.assert_allclose(found.ends.high[p, :, m], [x.ends().high for x in every])


def test_gaps_are_differences():
    first, second = (Estimates.of(*cells(s, p=p), METRICS, None) for s, p in ((1, 0.98), (2, 0.9)))
    gaps = Gaps.of(first, second, 6, 0.02)
    of_models = scipy.stats.sem((first.value - second.value)[:, :2], axis=1)
    for s, apart in enumerate([np.zeros((3, 3)), np.zeros((3, 3)), of_models]):
        d = Differences(first.means[:, s], second.means[:, s], apart)
        np.testing.assert_allclose(gaps.value[:, s], d.value)
        np.testing.assert_allclose(gaps.ends.low[:, s], d.ends().low)
        np.testing.assert_allclose(gaps.zero[:, s], d.p_value_of_none())
        np.testing.assert_allclose(gaps.worse[:, s, 0], d.p_value(0.02)[:, 0])
        bonferroni = scipy.stats.norm.isf(0.05 / 12)
        np.testing.assert_allclose(gaps.ends_all.high[:, s], d.ends(bonferroni).high, atol=1e-6)
    assert np.isnan(gaps.worse[..., 1:]).all()  # not judged
    assert (gaps.ends_all.low < gaps.ends.low).all() and (gaps.ends_all.high > gaps.ends.high).all()
    one = Gaps.of(first, second, 1, 0.02)
    np.testing.assert_allclose(one.ends_all, one.ends)


def test_cells_that_stopped_have_the_interval_that_stopped_them():
    sums, counts = stopped(3)
    found = Estimates.of(sums, counts, METRICS, STOPPING)
    for p in range(3):
        seen = counts[p, 0, 0] > 0
        looked = RatioSums.of(*(torch.from_numpy(x[p, 0, 0, seen]) for x in (sums, counts)))
        looks = sequence_interval(looked, 0.1, prior_correlation=0.3)
        ours = found.ends.low[p, :, 0], found.ends.high[p, :, 0]
        for end, expected in zip(ours, looks, strict=True):
            np.testing.assert_array_equal(end, expected.numpy())
    assert np.isnan(found.ends.low[:, :, 2]).all() and np.isnan(found.ends.high[:, :, 2]).all()
    assert not np.isnan(found.ends.low[:, :, :2]).any()
    plain = Estimates.of(sums, counts, METRICS, None)
    np.testing.assert_array_equal(found.value, plain.value)
    assert (found.ends.low <= plain.ends.low + 1e-9)[..., :2].all()  # the price of looking


def test_gaps_of_cells_that_stopped_come_from_two_sequences():
    (a, c), (b, e) = stopped(4, p=0.98), stopped(5, p=0.6)
    first, second = (Estimates.of(*x, METRICS, STOPPING) for x in ((a, c), (b, e)))
    gaps = Gaps.of(first, second, 5, 0.02)
    for p in range(3):
        for alpha, ends in ((0.05, gaps.ends), (0.01, gaps.ends_all)):
            (low, high), (other_low, other_high) = (
                sequence_interval(
                    RatioSums.of(*(torch.from_numpy(x[p, 0, 0]) for x in some)), 0.1, alpha / 2, 0.3
                )
                for some in ((a, c), (b, e))
            )
            assert ends.low[p, 0, 0] == pytest.approx(float(low - other_high))
            assert ends.high[p, 0, 0] == pytest.approx(float(high - other_low))
    for end in (*gaps.ends, gaps.zero):
        assert np.isnan(end[..., 2]).all()  # a cross entropy cannot be followed
    assert (gaps.zero[..., 0] < 0.05).all() and (gaps.worse[..., 0] < 0.05).all()
    same = Gaps.of(first, first, 5, 0.02)
    assert (same.zero[..., :2] == 1).all()


def test_several_models_that_stopped_have_no_interval_together():
    sums, counts = cells(6)
    found = Estimates.of(sums, counts, METRICS, STOPPING)
    assert np.isnan(found.ends.low[:, -1]).all() and not np.isnan(found.value[:, -1]).any()
    assert not np.isnan(found.ends.low[:, :-1, 0]).any()
