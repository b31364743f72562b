"""Corrections and verdicts of whole tables: what more proxies may change, and what they may not."""

import math

import numpy as np
import polars as pl
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from anamorph.faithfulness.gaps import Thresholds
from anamorph.faithfulness.judging import FOR_VERDICTS, judge

LINES = Thresholds()


def cell(iid=0.97, gap=0.0, error=0.005, **changes):
    """A row with normal intervals; who is named in `changes` is as given there."""
    half = 1.96 * error
    row = {
        **{"seed": 0, "simplification": "svd", "split": "far", "metric": "same_prediction"},
        **{"iid": iid, "ood": iid - gap, "gap": gap},
        **{"low": gap - half, "high": gap + half},
        **{"low_all": gap - 2 * half, "high_all": gap + 2 * half},
        "p_value": 2 * scipy.stats.norm.sf(abs(gap) / error),
        "worse": scipy.stats.norm.sf((gap - LINES.tolerance) / error),
        **{"iid_low": iid - half, "iid_high": iid + half},
        **{"model_only_right": 0.1, "proxy_only_right": 0.0, "accuracy": 0.99},
        **{"iid_sequences": 100, "ood_sequences": 100, "control": None},
    }
    return row | changes


def judged(*rows, learnt=None):
    return judge(
        pl.DataFrame(rows, schema_overrides={"seed": pl.Int64, "control": pl.String}), LINES, learnt
    )


@pytest.mark.parametrize(
    ("iid", "gap", "error", "expected"),
    [
        (0.97, 0.0, 0.005, ("looks right", "none", "faithful")),
        (0.97, -0.1, 0.005, ("looks right", "better", "faithful")),
        (0.97, -0.02, 0.005, ("looks right", "no worse", "faithful")),
        (0.97, 0.1, 0.005, ("looks right", "worse", "illusion (under-generalizes)")),
        (0.97, 0.025, 0.005, ("looks right", "undecided", "undecided")),
        (0.89, 0.1, 0.02, ("unclear", "worse", "degrades")),
        (0.8, 0.1, 0.005, ("does not look right", "worse", "degrades")),
        (0.8, 0.0, 0.005, ("does not look right", "none", "unfaithful")),
        (0.8, 0.02, 0.005, ("does not look right", "undecided", "unfaithful")),
    ],
)
def test_verdicts(iid, gap, error, expected):
    found = judged(cell(iid, gap, error))
    assert found.select("level", "change", "verdict").row(0) == expected
    assert (found["needed"].item() is not None) == (expected[2] == "undecided")
    assert not set(FOR_VERDICTS) & set(found.columns)


def test_what_is_not_testable():
    rows = [cell(0.97, 0.1, accuracy=a) for a in (0.5, 0.9, 0.91)]
    found = judged(*rows, learnt=0.9)
    nothing = "not testable here"
    assert found["verdict"].to_list() == [nothing, nothing, "illusion (under-generalizes)"]
    assert found["needed"].is_null().all()
    assert found["gap"].to_list() == [0.1] * 3  # numbers stay
    assert nothing not in judged(*rows)["verdict"]


def test_without_an_interval_there_is_no_verdict():
    missing = {"low": math.nan, "high": math.nan, "worse": math.nan, "p_value": math.nan}
    for row in (cell(**missing), cell(iid_low=math.nan), cell(metric="output_jsd")):
        found = judged(row)
        assert found.select("level", "change", "verdict", "needed").row(0) == (None,) * 4
    assert judged(cell(**missing)).select("low", "high", "p_value").row(0) == (None,) * 3


def test_p_values_are_corrected_within_a_seed_and_a_metric():
    rng = np.random.default_rng(0)
    rows = [
        cell(seed=seed, metric=metric, p_value=float(rng.random()), worse=float(rng.random()))
        for _ in range(7)
        for metric in ("same_prediction", "output_jsd")
        for seed in (0, 1, None)
    ]
    rows[0]["p_value"] = rows[3]["p_value"] = math.nan  # not tested
    found = judged(*rows)
    before = pl.DataFrame(rows, schema_overrides={"seed": pl.Int64, "control": pl.String})
    for seed in (0, 1, None):
        for metric in ("same_prediction", "output_jsd"):
            where = pl.col("seed").eq_missing(seed) & (pl.col("metric") == metric)
            raw = before.filter(where)["p_value"].to_numpy()
            ours = found.filter(where)["p_value"].to_list()
            tested = ~np.isnan(raw)
            expected = scipy.stats.false_discovery_control(raw[tested])
            assert [p for p in ours if p is not None] == pytest.approx(list(expected))
            assert [p is not None for p in ours] == tested.tolist()


def test_nothing_to_judge():
    assert (
        judged(cell()).clear().columns
        == judge(
            pl.DataFrame(
                [cell()], schema_overrides={"seed": pl.Int64, "control": pl.String}
            ).clear(),
            LINES,
            None,
        ).columns
    )


CELLS = st.builds(
    cell,
    iid=st.floats(0.7, 1),
    gap=st.floats(-0.1, 0.3),
    error=st.floats(0.001, 0.05),
    model_only_right=st.sampled_from([0.0, 0.05, 0.1]),
    proxy_only_right=st.sampled_from([0.0, 0.05, 0.1]),
)
FAITHFUL = st.builds(
    cell, iid=st.floats(0.93, 1), gap=st.floats(-0.05, 0.01), error=st.floats(0.0005, 0.004)
)


@given(st.lists(CELLS, min_size=1, max_size=12), st.lists(FAITHFUL, min_size=1, max_size=60))
def test_faithful_proxies_make_others_less_certain_and_no_more(cells, faithful):
    before, both = judged(*cells), judged(*cells, *faithful)
    assert set(judged(*faithful)["verdict"]) == {"faithful"}
    assert set(both["verdict"][len(cells) :]) == {"faithful"}
    for was, now in zip(before["verdict"], both["verdict"], strict=False):
        allowed = {was}
        if was.startswith("illusion"):
            allowed.add("undecided")
        if was == "degrades":
            allowed |= {"unfaithful", "undecided"}
        assert now in allowed


@given(st.lists(CELLS, min_size=1, max_size=6), st.lists(CELLS, min_size=1, max_size=20))
def test_controls_change_nothing_of_what_is_said_of_views(cells, others):
    controls = [row | {"control": "oracle"} for row in others]
    both = judged(*controls, *cells)
    assert both[len(others) :].equals(judged(*cells), null_equal=True)
    assert both["p_value"][: len(others)].equals(judged(*others)["p_value"])


@pytest.mark.parametrize("harmless", [0, 5, 50, 500])
def test_a_clear_illusion_stays_one_beside_many(harmless):
    """.941 → .701 with [.217, .262], once called faithful beside 39 harmless proxies."""
    found = judged(cell(0.941, 0.24, 0.0115), *[cell(0.999, 0.0, 0.001)] * harmless)
    assert found["verdict"][0] == "illusion (under-generalizes)"
    assert set(found["verdict"][1:]) <= {"faithful"}


def test_over_models_more_sequences_are_asked_for_unless_models_contradict_each_other():
    """Two illusions of different directions and one open: deciding the third decides it all."""
    under = cell(0.97, 0.1)
    mixed = cell(0.97, 0.1, seed=1, proxy_only_right=0.09)
    open_, holds = cell(0.97, 0.025, seed=2), cell(0.97, 0.0, seed=3)
    over = cell(0.97, 0.08, seed=None, iid_sequences=0)

    def last(*rows):
        return (
            judged(*rows, over).filter(pl.col("seed").is_null()).select("verdict", "needed").row(0)
        )

    verdict, needed = last(under, mixed, open_)
    assert verdict == "undecided" and needed > 100
    assert last(under, holds) == ("undecided", None)
    assert last(under, holds, open_) == ("undecided", None)
    assert last(under, mixed)[0].startswith("illusion")
