"""Correction against SciPy; judgements and verdicts against cases thought out by hand."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from anamorph.errors import AnamorphError
from anamorph.faithfulness.gaps import (
    Thresholds,
    agreed,
    benjamini_hochberg,
    change_of,
    level_of,
    needed,
    verdict,
)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_benjamini_hochberg_is_scipys(p):
    ours = benjamini_hochberg(np.array(p))
    np.testing.assert_allclose(ours, scipy.stats.false_discovery_control(p), atol=1e-12)


def test_benjamini_hochberg_column_by_column_without_the_untested():
    p = np.random.default_rng(0).random((20, 3))
    p[[2, 5, 11], 1] = np.nan
    p[:, 2] = np.nan
    ours = benjamini_hochberg(p)
    tested = ~np.isnan(p)
    assert np.array_equal(np.isnan(ours), ~tested)
    for column in (0, 1):
        rows = tested[:, column]
        expected = scipy.stats.false_discovery_control(p[rows, column])
        np.testing.assert_allclose(ours[rows, column], expected)


def test_benjamini_hochberg_of_nothing():
    assert benjamini_hochberg(np.empty(0)).shape == (0,)


LINES = Thresholds()  # 0.9, 0.02, 0.05, 2/3


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.95, 0.99, "looks right"),
        (0.9, 0.9, "looks right"),  # the line itself still looks right
        (0.89, 0.95, "unclear"),
        (0.85, 0.9, "unclear"),
        (0.5, 0.899, "does not look right"),
        (0.0, 1.0, "unclear"),
    ],
)
def test_levels(low, high, expected):
    assert level_of(low, high, LINES) == expected


@pytest.mark.parametrize(
    ("low", "high", "p", "expected"),
    [
        (0.021, 0.1, 0.001, "worse"),
        (0.021, 0.1, 0.025, "undecided"),  # a half of the level on this side; itself not below it
        (0.021, 0.1, 0.2, "undecided"),  # one of many
        (0.02, 0.1, 0.001, "undecided"),  # the tolerance itself is no gap
        (0.01, 0.1, 0.001, "undecided"),
        (-0.1, 0.03, 1.0, "undecided"),
        (-0.1, 0.02, 1.0, "no worse"),
        (-0.02, 0.02, 1.0, "none"),
        (0.001, 0.015, 0.9, "none"),  # a gap, but none that matters
        (-0.03, -0.01, 1.0, "no worse"),
        (-0.03, -0.02, 1.0, "no worse"),
        (-0.09, -0.021, 1.0, "better"),
    ],
)
def test_changes(low, high, p, expected):
    assert change_of(low, high, p, LINES) == expected


@pytest.mark.parametrize(
    ("level", "change", "model_only", "proxy_only", "expected"),
    [
        ("looks right", "none", 0.1, 0.0, "faithful"),
        ("looks right", "better", 0.1, 0.0, "faithful"),
        ("looks right", "no worse", 0.1, 0.0, "faithful"),
        ("looks right", "undecided", 0.1, 0.0, "undecided"),
        ("looks right", "worse", 0.1, 0.02, "illusion (under-generalizes)"),
        ("looks right", "worse", 0.2, 0.1, "illusion (under-generalizes)"),  # two thirds
        ("looks right", "worse", 0.02, 0.1, "illusion (over-generalizes)"),
        ("looks right", "worse", 0.1, 0.2, "illusion (over-generalizes)"),
        ("looks right", "worse", 0.06, 0.05, "illusion (mixed)"),
        ("looks right", "worse", 0.0, 0.0, "illusion (mixed)"),  # only errors differ
        ("does not look right", "worse", 0.1, 0.0, "degrades"),
        ("does not look right", "none", 0.1, 0.0, "unfaithful"),
        ("does not look right", "better", 0.1, 0.0, "unfaithful"),
        ("does not look right", "no worse", 0.1, 0.0, "unfaithful"),
        ("does not look right", "undecided", 0.1, 0.0, "unfaithful"),
        ("unclear", "none", 0.1, 0.0, "undecided"),
        ("unclear", "better", 0.1, 0.0, "undecided"),
        ("unclear", "no worse", 0.1, 0.0, "undecided"),
        ("unclear", "undecided", 0.1, 0.0, "undecided"),
    ],
)
def test_verdicts(level, change, model_only, proxy_only, expected):
    assert verdict(0.9, level, change, model_only, proxy_only, LINES) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["worse", "worse", "worse"], "worse"),
        (["worse", "worse", "undecided"], "undecided"),
        (["worse", "none", "none"], "undecided"),
        (["none", "better", "none"], "no worse"),
        (["better", "better"], "better"),
        (["no worse", "undecided"], "undecided"),
    ],
)
def test_models_agree_or_leave_it_open(changes, expected):
    same = [("looks right", change) for change in changes]
    assert agreed(same) == ("looks right", expected)
    assert agreed([*same, ("does not look right", changes[0])])[0] == "unclear"


def test_what_is_worse_is_never_undecided():
    """Where it is open whether it looks right, the number on iid says how it looks."""
    assert verdict(0.9, "unclear", "worse", 0.1, 0.0, LINES) == "illusion (under-generalizes)"
    assert verdict(0.899, "unclear", "worse", 0.1, 0.0, LINES) == "degrades"


def test_all_follows_the_thresholds():
    strict = Thresholds(faithful=0.999, tolerance=0, level=0.01, share=0.9)
    assert level_of(0.99, 0.998, strict) == "does not look right"
    assert change_of(0.001, 0.1, 0.004, strict) == "worse"
    assert change_of(0.001, 0.1, 0.006, strict) == "undecided"
    assert change_of(-0.01, 0.0, 1.0, strict) == "no worse"
    assert verdict(1.0, "looks right", "worse", 0.8, 0.2, strict) == "illusion (mixed)"


@pytest.mark.parametrize(
    ("sequences", "level", "iid", "change", "gap", "low_all", "expected"),
    [
        # 100 sequences, half width .02, distance .01 from .9: four times as many
        ((100, 100), "unclear", (0.91, 0.89, 0.92), "none", (0.0, -0.01, 0.01), -0.01, 400),
        ((100, 100), "unclear", (0.89, 0.8, 0.91), "none", (0.0, -0.01, 0.01), -0.01, 400),
        # the gap .01 has .02 to go below the tolerance of .02: (.03/.01)² = 9 times
        ((50, 50), "looks right", (0.97, 0.95, 0.98), "undecided", (0.01, -0.02, 0.04), -0.05, 450),
        # above it the corrected end counts: (.06/.03)²
        ((50, 50), "looks right", (0.97, 0.95, 0.98), "undecided", (0.05, 0.01, 0.09), -0.01, 200),
        # a fall decides by itself, and so does a level that is below the line
        ((50, 50), "unclear", (0.901, 0.89, 0.95), "undecided", (0.05, 0.01, 0.09), -0.01, 200),
        ((100, 100), "unclear", (0.89, 0.8, 0.91), "undecided", (0.019, -0.02, 0.04), -0.05, 400),
        # or else both: the larger
        ((50, 50), "unclear", (0.92, 0.88, 0.95), "undecided", (0.01, -0.02, 0.04), -0.05, 450),
        ((50, 50), "unclear", (0.91, 0.89, 0.95), "undecided", (0.05, 0.01, 0.09), -0.01, 200),
        # all of the width comes from the reference of 50, or nearly none of it does
        ((50, 800), "looks right", (0.97, 0.93, 0.98), "undecided", (0.05, 0.01, 0.1), -0.01, 200),
        ((50, 800), "looks right", (1.0, 1.0, 1.0), "undecided", (0.05, 0.01, 0.1), -0.01, 3200),
        # rounded up to two digits
        ((123, 123), "unclear", (0.91, 0.899, 0.92), "none", (0.0, -0.01, 0.01), -0.01, 150),
        # an end that just touches the line: one more than there are
        ((40, 50), "unclear", (0.92, 0.9, 0.94), "none", (0.0, -0.01, 0.01), -0.01, 41),
        # on the line itself nothing would decide
        ((50, 50), "unclear", (0.9, 0.8, 0.95), "none", (0.0, -0.01, 0.01), -0.01, None),
    ],
)
def test_how_many_would_decide(sequences, level, iid, change, gap, low_all, expected):
    assert needed(sequences, level, iid, change, gap, low_all, LINES) == expected


@pytest.mark.parametrize("bad", [{"faithful": 1.1}, {"share": 0.4}, {"level": -0.1}])
def test_thresholds_out_of_range_are_refused(bad):
    with pytest.raises(AnamorphError, match=next(iter(bad))):
        Thresholds(**bad)
