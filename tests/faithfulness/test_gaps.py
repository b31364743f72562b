"""Correction against SciPy; verdicts against cases thought out by hand."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from anamorph.errors import AnamorphError
from anamorph.faithfulness import Thresholds, benjamini_hochberg, verdict


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


@pytest.mark.parametrize(
    ("iid", "ood", "p", "model_only", "proxy_only", "expected"),
    [
        (0.99, 0.98, 0.001, 0.1, 0.0, "faithful"),  # the gap is within the tolerance
        (0.99, 0.80, 0.200, 0.1, 0.0, "faithful"),  # the gap may be chance
        (0.99, 0.80, 0.050, 0.1, 0.0, "faithful"),  # the level itself is not below the level
        (0.99, 0.80, 0.001, 0.1, 0.02, "illusion (under-generalizes)"),
        (0.99, 0.80, 0.001, 0.02, 0.1, "illusion (over-generalizes)"),
        (0.99, 0.80, 0.001, 0.06, 0.05, "illusion (mixed)"),
        (0.99, 0.80, 0.001, 0.0, 0.0, "illusion (mixed)"),  # only errors differ
        (0.90, 0.80, 0.001, 0.2, 0.1, "illusion (under-generalizes)"),  # 0.9 still looks right
        (0.90, 0.80, 0.001, 0.1, 0.2, "illusion (over-generalizes)"),
        (0.50, 0.40, 0.001, 0.1, 0.0, "unfaithful everywhere"),
        (0.50, 0.60, 1.000, 0.1, 0.0, "unfaithful everywhere"),
        (0.50, 0.95, 0.001, 0.1, 0.0, "faithful"),  # faithful on that split
        (0.92, 0.99, 0.001, 0.1, 0.0, "faithful"),  # better out of distribution
    ],
)
def test_verdicts(iid, ood, p, model_only, proxy_only, expected):
    assert verdict(iid, ood, iid - ood, p, model_only, proxy_only, Thresholds()) == expected


def test_verdicts_follow_the_thresholds():
    strict = Thresholds(faithful=0.999, tolerance=0, level=0.01, share=0.9)
    assert verdict(0.99, 0.8, 0.19, 0.001, 0.1, 0, strict) == "unfaithful everywhere"
    assert verdict(1.0, 0.999, 0.001, 0.001, 0.8, 0.2, strict) == "illusion (mixed)"
    assert verdict(1.0, 0.999, 0.001, 0.02, 0.8, 0.2, strict) == "faithful"


@pytest.mark.parametrize("bad", [{"faithful": 1.1}, {"share": 0.4}, {"level": -0.1}])
def test_thresholds_out_of_range_are_refused(bad):
    with pytest.raises(AnamorphError, match=next(iter(bad))):
        Thresholds(**bad)
