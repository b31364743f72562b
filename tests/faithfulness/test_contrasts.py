"""A level against the other levels of its facet: plain loops over sequences, and the jackknife."""

import math

import numpy as np
import pytest
import scipy.stats

from anamorph.faithfulness.contrasts import contrasts
from anamorph.faithfulness.intervals import Differences, Means
from anamorph.faithfulness.sums import SumIndex
from anamorph.tasks.base import NOT_APPLICABLE, Facet, Split

SHARE = np.array([True, False])
MODELS = 3


def make_split(codes, lengths):
    """One facet over so many scored positions a sequence, each behind a start token."""
    offsets = np.concatenate([[0], np.cumsum(np.add(lengths, 1))])
    scored = np.ones(offsets[-1], bool)
    scored[offsets[:-1]] = False
    every = np.full(len(scored), NOT_APPLICABLE, np.int16)
    every[scored] = codes
    return Split(
        name="iid",
        role="iid",
        tokens=np.zeros(len(scored), np.int16),
        offsets=offsets,
        scored=scored,
        facets={"distance": Facet(every, ("near", "far", "never"))},
    )


def rows_of(index, values):
    """[..., row] sums of values [..., position]."""
    out = np.zeros((*values.shape[:-1], len(index)))
    for position, rows in enumerate(index.rows_of):
        for row in rows[rows >= 0]:
            out[..., row] += values[..., position]
    return out


def case(seed=0, sequences=30, absent=0.15):
    """A split, levels and sequences of its positions, and values: far ones agree less.

    Values are [proxy 2, model 3, metric 2, position].
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 12, sequences)
    total = lengths.sum()
    codes = rng.choice([NOT_APPLICABLE, 0, 1], p=[absent, 0.6, 0.25], size=total)
    split = make_split(codes, lengths)
    of_sequence = np.repeat(rng.beta(8, 1, sequences), lengths)
    chance = of_sequence * np.where(codes == 1, 0.7, 1)
    values = np.stack(
        [rng.random((2, MODELS, total)) < chance, rng.gamma(1, 1, (2, MODELS, total))], axis=2
    )
    return split, codes, np.repeat(np.arange(sequences), lengths), values.astype(float)


def found_in(split, values):
    index = SumIndex.of(split)
    return contrasts(index, rows_of(index, values), index.tokens[None, None, None], SHARE)


def test_values_and_errors_by_a_plain_loop_and_the_jackknife():
    split, codes, sequence, values = case()
    found = found_in(split, values)
    assert [(c.facet, c.level) for c in found] == [("distance", "near"), ("distance", "far")]
    for c, code in zip(found, (0, 1), strict=True):
        here, there = codes == code, codes == 1 - code

        def contrast(v, kept, here=here, there=there):
            return v[here & kept].mean() - v[there & kept].mean()

        every = np.ones_like(here)
        assert c.value.shape == (2, MODELS + 1, 2)
        for p in range(2):
            for m in range(2):
                one = [contrast(values[p, s, m], every) for s in range(MODELS)]
                left = np.array(
                    [
                        [contrast(values[p, s, m], sequence != i) for i in range(len(split))]
                        for s in range(MODELS)
                    ]
                )
                assert list(c.value[p, :, m]) == pytest.approx([*one, np.mean(one)])
                apart = left - np.array(one)[:, None]
                errors = np.sqrt((apart**2).sum(1))
                of_mean = math.hypot(np.sqrt((apart.mean(0) ** 2).sum()), scipy.stats.sem(one))
                assert list(c.error[p, :, m]) == pytest.approx([*errors, of_mean])
        tokens, sequences = here.sum(), len(set(sequence[here]))
        assert (c.tokens == tokens).all() and (c.sequences == sequences).all()
    np.testing.assert_allclose(found[0].value, -found[1].value)  # of two levels
    np.testing.assert_allclose(found[0].ends.low, -found[1].ends.high, atol=1e-9)
    np.testing.assert_allclose(found[0].error, found[1].error)


def test_what_sequences_have_in_common_cancels():
    """Sequences are good or bad as a whole: pairing makes the interval shorter."""
    rng = np.random.default_rng(1)
    chance = np.repeat(rng.choice([0.2, 0.95], 60), 20)
    split = make_split(np.tile([0, 1], 600), np.full(60, 20))
    values = (rng.random((1, 1, 1200)) < chance)[:, :, None].repeat(2, axis=2).astype(float)
    c = found_in(split, values)[0]
    counts = np.full(60, 10.0)
    alone = [
        Means.of(values[0, 0, 0, i::2].reshape(60, 10).sum(1), counts, SHARE[0]) for i in (0, 1)
    ]
    low, high = Differences(*alone, np.array(0.0)).ends()
    width = c.ends.high[0, 0, 0] - c.ends.low[0, 0, 0]
    assert c.value[0, 0, 0] == pytest.approx(alone[0].value - alone[1].value)
    assert width < 0.6 * (high - low)
    assert c.ends.low[0, 0, 0] < 0 < c.ends.high[0, 0, 0]
    # about as wide as 1.96 standard errors on each side
    assert width == pytest.approx(2 * 1.96 * c.error[0, 0, 0], rel=0.25)


def test_intervals_cover_the_truth():
    """Far positions agree at 0.85, near ones at 0.95, in sequences that differ."""
    rng = np.random.default_rng(2)
    runs, n = 400, 50
    split = make_split(np.tile([0, 0, 0, 1, 1], n * 2), np.full(n, 10))
    easy = np.repeat(rng.beta(18, 2, (runs, n)) / 0.9, 10, axis=1)  # 1 in the mean
    far = np.tile([0, 0, 0, 1, 1], n * 2) == 1
    values = (rng.random((runs, n * 10)) < easy * np.where(far, 0.8, 0.85)).astype(float)
    index = SumIndex.of(split)
    sums = rows_of(index, values[:, None, None])
    near, _ = contrasts(index, sums, index.tokens[None, None, None], SHARE[:1])
    low, high = (end[:, 0, 0] for end in near.ends)
    assert ((low <= 0.05) & (high >= 0.05)).mean() >= 0.93


def test_a_level_in_one_sequence_has_a_value_and_no_interval():
    codes = [0, 0, 1, 1, 0, 0, 0, 0, 0]
    split = make_split(codes, [4, 2, 3])
    values = np.array([1, 1, 0, 1, 1, 0, 1, 1, 1.0])
    near, far = found_in(split, np.broadcast_to(values, (1, 1, 2, 9)))
    assert near.value[0, 0, 0] == pytest.approx(6 / 7 - 1 / 2)
    for c in (near, far):
        assert np.isnan([c.ends.low, c.ends.high, c.error]).all()
    assert far.tokens.tolist() == [[2]] and far.sequences.tolist() == [[1]]


def test_one_level_alone_has_nothing_to_differ_from():
    split = make_split([0, 0, NOT_APPLICABLE, 0], [2, 2])
    assert found_in(split, np.ones((1, 1, 2, 4))) == []


def test_perfect_agreement_keeps_a_width():
    split = make_split(np.tile([0, 1, 1], 30), np.full(30, 3))
    near, _ = found_in(split, np.ones((1, 1, 2, 90)))
    assert near.value[0, 0, 0] == 0
    assert near.ends.low[0, 0, 0] < -0.02 and near.ends.high[0, 0, 0] > 0.02
