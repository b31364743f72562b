"""Confidence sequences against plain integrals and loops, and their promise: all looks hold."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats
import torch

from anamorph.faithfulness.confidence import (
    FEWEST_SEQUENCES,
    RatioSums,
    design_effect,
    mixture_interval,
    sequence_interval,
    sequence_p_value,
)


def sequences(seed, cells, n, correlation=0.2, p=0.9):
    rng = np.random.default_rng(seed)
    counts = rng.integers(16, 129, size=n)
    more = 1 / correlation - 1
    chance = rng.beta(p * more, (1 - p) * more, size=(cells, n))
    return torch.from_numpy(rng.binomial(counts, chance)).double(), torch.from_numpy(counts)


def plain_positions(a, c, prior_correlation):
    """Effective positions of one cell, with loops."""
    mean = sum(a) / sum(c)
    n, length = len(a), sum(y * y for y in c) / sum(c)
    residuals = sum((x - mean * y) ** 2 for x, y in zip(a, c, strict=True)) * n / (n - 1)
    worth = length / 2
    effect = residuals + worth * (1 + prior_correlation * (length - 1))
    effect /= sum(mean * (1 - mean) for _ in range(int(sum(c)))) + worth
    return sum(c) / effect


def plain_interval(mean, n, until, alpha):
    """The mixture integrated over its alternatives, and its ends by root finding."""

    def log_mixture(m):
        k = (1 + 2 * m * (1 - m) / until) / (4 * until)
        prior = scipy.stats.beta(k * m, k * (1 - m))

        def ratio(q):
            gain = n * mean * math.log(q / m) + n * (1 - mean) * math.log((1 - q) / (1 - m))
            return prior.pdf(q) * math.exp(gain)

        near = sorted({m, mean})
        return math.log(scipy.integrate.quad(ratio, 1e-12, 1 - 1e-12, points=near, limit=500)[0])

    def crossed(m):
        return log_mixture(m) + math.log(alpha)

    return (
        scipy.optimize.brentq(crossed, 0.02, mean, xtol=1e-9),
        scipy.optimize.brentq(crossed, mean, 0.999, xtol=1e-9),
    )


@pytest.mark.parametrize(
    ("mean", "n", "until", "alpha"), [(0.5, 60.0, 0.1, 0.05), (0.8, 33.5, 0.1, 0.1)]
)
def test_interval_is_that_of_the_integrated_mixture(mean, n, until, alpha):
    tensors = [torch.tensor([x], dtype=torch.float64) for x in (mean, n, 1e9)]
    low, high = mixture_interval(*tensors, until, alpha)
    assert (low.item(), high.item()) == pytest.approx(
        plain_interval(mean, n, until, alpha), abs=1e-6
    )


def test_effective_positions_are_those_of_a_plain_loop():
    a, c = sequences(0, 3, 20)
    ours = c.sum() / design_effect(RatioSums.of(a, c.double()), 0.3)
    expected = [plain_positions(row, c.tolist(), 0.3) for row in a.tolist()]
    np.testing.assert_allclose(ours, expected, rtol=1e-10)


def test_design_effect_by_hand():
    """Many sequences of 10: alike positions give 10, independent ones 1, unseen ones the prior."""
    counts = torch.full((4000,), 10.0, dtype=torch.float64)
    alike = torch.tensor([0.0, 10.0] * 2000, dtype=torch.float64)
    rng = np.random.default_rng(1)
    independent = torch.from_numpy(rng.binomial(10, 0.5, size=4000)).double()
    effects = design_effect(RatioSums.of(torch.stack([alike, independent, counts]), counts), 0.5)
    assert effects.tolist() == pytest.approx([10, 1, 5.5], rel=0.07)


def evidence_on(grid, mean, n, sequences, until):
    """Log evidence against each m of a grid, by SciPy's beta function."""
    k = (1 + 2 * grid * (1 - grid) / until) / (4 * until)
    ones, zeros = n * mean, n * (1 - mean)
    mixed = scipy.special.betaln(k * grid + ones, k * (1 - grid) + zeros)
    likelihood = scipy.special.xlogy(ones, grid) + scipy.special.xlogy(zeros, 1 - grid)
    mixture = mixed - scipy.special.betaln(k * grid, k * (1 - grid)) - likelihood
    # That no sequence was drawn of a kind that brings the mean down, or up, to m.
    with np.errstate(divide="ignore", invalid="ignore"):
        others = np.where(grid < mean, grid / mean, (1 - grid) / (1 - mean))
    return np.minimum(mixture, -sequences * np.log(others))


def evidence(grid, a, c, until, prior_correlation):
    """The same from a cell's sequences; those without positions are left out."""
    a, c = a[c > 0], c[c > 0]
    n = plain_positions(a.tolist(), c.tolist(), prior_correlation)
    return evidence_on(grid, a.sum() / c.sum(), n, c.sum() ** 2 / (c**2).sum(), until)


def test_interval_holds_exactly_the_values_not_ruled_out():
    """On a grid: what is inside has evidence below 1/alpha, what is outside has not."""
    grid = np.linspace(0.0005, 0.9995, 1999)
    for mean in (0.0, 0.002, 0.3, 0.97, 1.0):
        for n, sequences in ((5.0, 1.3), (300.0, 30.0), (30000.0, 200.0), (30000.0, 1e6)):
            for until in (0.2, 0.02, 0.005):
                against = evidence_on(grid, mean, n, sequences, until)
                tensors = [torch.tensor([x], dtype=torch.float64) for x in (mean, n, sequences)]
                low, high = (end.item() for end in mixture_interval(*tensors, until))
                inside = (grid >= low) & (grid <= high)
                np.testing.assert_array_equal(inside, against < math.log(20))


def test_a_kind_that_may_not_have_been_drawn_stays_inside():
    """However many positions agree: 1 − .05^(1/n) of the sequences may be of a kind not drawn."""
    for mean, n in ((1.0, 30.0), (0.9, 70.0), (0.5, 200.0)):
        tensors = [torch.tensor([x], dtype=torch.float64) for x in (mean, 1e7, n)]
        low, high = mixture_interval(*tensors, 0.02)
        share = scipy.optimize.brentq(lambda s, n=n: scipy.stats.binom.pmf(0, n, s) - 0.05, 0, 1)
        assert low.item() == pytest.approx(mean * (1 - share), abs=1e-8)
        assert high.item() == pytest.approx(mean + (1 - mean) * share, abs=1e-8)


def some_unseen(seed, cells, n, p=0.9):
    """As `sequences`, with counts of each cell's own, a fifth of them 0."""
    a, c = sequences(seed, cells, n, p=p)
    counts = c.double() * torch.from_numpy(np.random.default_rng(seed).random((cells, n)) < 0.8)
    return a * (counts > 0), counts


def test_interval_of_one_look_on_a_grid():
    a, c = some_unseen(7, 4, 60)
    grid = np.linspace(0.0005, 0.9995, 4001)
    alpha = torch.tensor([0.05, 0.01, 1e-4, 1e-9], dtype=torch.float64)
    low, high = sequence_interval(RatioSums.of(a, c), 0.05, alpha, 0.3)
    for i in range(4):
        inside = evidence(grid, a[i].numpy(), c[i].numpy(), 0.05, 0.3) < -math.log(alpha[i])
        expected = grid[inside]
        assert (low[i].item(), high[i].item()) == pytest.approx(expected[[0, -1]], abs=3e-4)
    assert (low[1:] < low[:-1]).all()  # surer is wider


@pytest.mark.parametrize("margin", [-0.3, 0.0, 0.02, 0.1])
def test_p_value_is_the_best_of_a_grid_and_agrees_with_the_intervals(margin):
    (a, c), (b, e) = some_unseen(8, 3, 60, p=0.95), some_unseen(9, 3, 80, p=0.7)
    first, second = RatioSums.of(a, c), RatioSums.of(b, e)
    p = sequence_p_value(first, second, margin, 0.05, 0.3)
    grid = np.linspace(0.0005, 0.9995, 20001)
    grid = grid[(grid - margin > 0) & (grid - margin < 1)]
    for i in range(3):
        means = (a[i].sum() / c[i].sum()).item(), (b[i].sum() / e[i].sum()).item()
        between = grid[(grid < means[0]) & (grid > means[1] + margin)]
        ours = evidence(between, a[i].numpy(), c[i].numpy(), 0.05, 0.3)
        theirs = evidence(between - margin, b[i].numpy(), e[i].numpy(), 0.05, 0.3)
        assert p[i].item() == pytest.approx(2 * math.exp(-np.minimum(ours, theirs).max()), rel=0.02)
    for factor, rejected in ((1.001, True), (0.999, False)):
        low, _ = sequence_interval(first, 0.05, p * factor / 2, 0.3)
        _, high = sequence_interval(second, 0.05, p * factor / 2, 0.3)
        assert (low - high > margin).tolist() == [rejected] * 3


def test_p_value_without_evidence_is_one():
    a, c = sequences(10, 3, 40)
    few = RatioSums.of(a[:, : FEWEST_SEQUENCES - 1], c[: FEWEST_SEQUENCES - 1].double())
    sums, none = RatioSums.of(a, c.double()), RatioSums.of(torch.zeros_like(a), c.double() * 0)
    faultless = RatioSums.of(c.expand_as(a).double(), c.double())
    for first, second in ((sums, sums), (few, faultless), (sums, faultless), (none, sums)):
        assert sequence_p_value(first, second, 0.0, 0.02).tolist() == [1, 1, 1]
    assert sequence_interval(none, 0.02)[0].tolist() == [0, 0, 0]
    halved = RatioSums.of(a / 2, c.double())
    assert (sequence_p_value(faultless, halved, 0.0, 0.02) < 0.05).all()


def test_p_values_are_rarely_small_where_the_means_are_equal():
    """Both looked at after every 16 sequences: the smallest p of a run is below .1 in a tenth."""
    (a, c), (b, e) = sequences(11, 300, 160), sequences(12, 300, 160)
    smallest = torch.ones(300, dtype=torch.float64)
    for seen in range(16, 161, 16):
        sums = [RatioSums.of(x[:, :seen], y[:seen].double()) for x, y in ((a, c), (b, e))]
        smallest = smallest.minimum(sequence_p_value(*sums, 0.0, 0.02))
        smallest = smallest.minimum(sequence_p_value(*sums[::-1], 0.0, 0.02))
    assert (smallest <= 0.1).double().mean() <= 0.1


def look(a, c, until, **how):
    """The interval of cells [cell, sequence] with counts [sequence], [2, cell]."""
    return torch.stack(sequence_interval(RatioSums.of(a.double(), c.double()), until, **how))


def test_more_sequences_give_shorter_intervals():
    a, c = sequences(2, 5, 48)
    looks = [look(a[:, :seen], c[:seen], 0.02) for seen in (8, 16, 48)]
    widths = [high - low for low, high in looks]
    assert (widths[0] == 1).all()  # 8 sequences are too few
    assert (widths[2] < widths[1]).all()


def test_an_interval_widens_when_a_new_kind_turns_up():
    agree, counts = torch.full((1, 160), 50), torch.full((176,), 50)
    (before,), (after,) = (
        high - low
        for low, high in (
            look(agree, counts[:160], 0.02),
            look(torch.cat([agree, torch.tensor([[0] + [50] * 15])], 1), counts, 0.02),
        )
    )
    assert before < 0.02 < after


def test_cells_do_not_see_each_other():
    a, c = sequences(3, 4, 64)
    together = look(a, c, 0.05)
    for cell in range(4):
        np.testing.assert_allclose(together[:, cell], look(a[cell], c, 0.05), atol=1e-12)


def test_the_mirror_image_has_the_mirrored_interval():
    a, c = sequences(4, 3, 40)
    low, high = look(a, c, 0.02)
    np.testing.assert_allclose(look(c - a, c, 0.02), torch.stack([1 - high, 1 - low]), atol=1e-8)


def test_perfect_agreement_is_not_certainty():
    sequences_to_stop = {}
    for prior_correlation in (0.2, 0.5, 1.0):
        low, high, seen = 0.0, 1.0, 0
        while high - low > 0.02:
            seen += 8
            counts = torch.full((seen,), 64)
            low, high = look(counts, counts, 0.02, prior_correlation=prior_correlation)
        assert high == 1 and low >= 0.98
        sequences_to_stop[prior_correlation] = seen
    # No bound that is safe against sequences that fail whole can stop before: .98^149 < .05.
    assert sequences_to_stop[0.2] == sequences_to_stop[0.5] == 152 < sequences_to_stop[1.0]


def coverage(draw, truth, until, runs=300, most=400):
    """Shares of runs whose intervals hold the truth: at the stop, and at every look up to it."""
    rng = np.random.default_rng(5)
    a, c = (torch.from_numpy(x).double() for x in draw(rng, (runs, most)))
    active, always = torch.arange(runs), torch.ones(runs, dtype=torch.bool)
    low, high = torch.empty(2, runs, dtype=torch.float64)
    for seen in range(16, most + 1, 16):
        low[active], high[active] = look(a[active, :seen], c[active, :seen], until)
        covered = (low <= truth) & (truth <= high)
        always &= covered
        active = active[(high - low > until)[active]]
        if not len(active):
            break
    return covered.double().mean().item(), always.double().mean().item()


@pytest.mark.parametrize("p", [0.5, 0.98, 0.995])
def test_coverage_at_every_look(p):
    def draw(rng, shape):
        c = rng.integers(16, 129, size=shape)
        return rng.binomial(c, rng.beta(4 * p, 4 * (1 - p), size=shape)), c  # correlation 0.2

    assert min(coverage(draw, p, 0.02)) >= 0.95


def test_coverage_with_rare_failing_sequences():
    def draw(rng, shape):
        c = np.full(shape, 64)
        return rng.binomial(c, np.where(rng.random(shape) < 0.02, 0.3, 0.999)), c

    assert min(coverage(draw, 0.02 * 0.3 + 0.98 * 0.999, 0.02)) >= 0.95


@pytest.mark.parametrize(("share", "usual"), [(0.05, 1.0), (0.0575, 1.0), (0.04, 0.9)])
def test_coverage_where_sequences_fail_whole(share, usual):
    """The worst kinds known, at width .05: without step 3 two runs in ten would miss."""

    def draw(rng, shape):
        c = np.full(shape, 128)
        return rng.binomial(c, np.where(rng.random(shape) < share, 0, usual)), c

    at_the_stop, always = coverage(draw, (1 - share) * usual, 0.05, most=800)
    assert at_the_stop >= 0.93 and always >= 0.91


def test_too_few_sequences_say_nothing():
    a, c = sequences(6, 2, FEWEST_SEQUENCES)
    assert look(a[:, :-1], c[:-1], 0.02).tolist() == [[0, 0], [1, 1]]
    low, high = look(a, c, 0.02)
    assert (high - low < 1).all()
