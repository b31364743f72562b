"""The three tables against plain loops over the tokens that they stand for."""

import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Mapping
from zlib import crc32

import numpy as np
import polars as pl
import pytest
import scipy.stats
import torch
from polars.testing import assert_frame_equal

from anamorph.errors import AnamorphError
from anamorph.faithfulness import measuring
from anamorph.faithfulness import spooled as spooled_tables
from anamorph.faithfulness.confidence import RatioSums, sequence_interval
from anamorph.faithfulness.contrasts import contrasts
from anamorph.faithfulness.estimates import Stopping
from anamorph.faithfulness.gaps import Thresholds
from anamorph.faithfulness.intervals import Differences, Means
from anamorph.faithfulness.measuring import ProxyInfo
from anamorph.faithfulness.metrics import find_metric, metric_names
from anamorph.faithfulness.sums import CellSums, SumIndex
from anamorph.faithfulness.tables import parts, tabulate
from anamorph.tasks.base import Facet, Split
from over_models import over_models

METRICS = metric_names()

ROLES = {"iid": "iid", "deep": "ood", "long": "ood"}
PROXIES = [
    ProxyInfo("identity", "identity", "identity", None, None, None, ""),
    ProxyInfo("svd(rank=4)@0.*.key", "svd", "svd@0.*.key", "rank", 4, None, "0.*.key"),
    ProxyInfo("onehot@0.*.pattern", "onehot", "onehot", None, None, "chance", "0.*.pattern"),
]
SEEDS = (0, 3)
# Chance that a proxy predicts as the model does: identity, a proxy with an illusion, a bad one.
AGREES = {"iid": (1, 0.97, 0.5), "deep": (1, 0.7, 0.45), "long": (1, 0.96, 0.5)}


def make_split(name, sequences=150):
    rng = np.random.default_rng(len(name))
    lengths = rng.integers(1, 20, size=sequences)
    offsets = np.concatenate([[0], lengths.cumsum()])
    scored = rng.random(offsets[-1]) < 0.6
    scored[offsets[:-1]] = False
    depth = rng.choice([-1, 0, 1, 2], p=[0.1, 0.45, 0.4, 0.05], size=offsets[-1])
    return Split(
        name=name,
        role=ROLES[name],
        tokens=np.zeros(offsets[-1], np.int16),
        offsets=offsets,
        scored=scored,
        facets={"depth": Facet(depth.astype(np.int16), ("1", "2", "3"))},
    )


SPLITS = {name: make_split(name) for name in ROLES}


def make_values(seed, proxy, split):
    """[metric, scored positions]: when proxy and model differ, the model is right."""
    rng = np.random.default_rng([seed, proxy, len(split.name)])
    values = rng.random((12, split.scored.sum()))
    same = rng.random(split.scored.sum()) < AGREES[split.name][proxy]
    values = np.concatenate([values, rng.random((len(METRICS) - 12, split.scored.sum()))])
    values[METRICS.index("same_prediction")] = same
    values[METRICS.index("model_only_right")] = ~same
    values[METRICS.index("proxy_only_right")] = 0
    return values


VALUES = {
    (seed, proxy.simplification, name): make_values(seed, p, split)
    for seed in SEEDS
    for p, proxy in enumerate(PROXIES)
    for name, split in SPLITS.items()
}


@pytest.fixture(scope="module")
def cells():
    index = {name: SumIndex.of(split) for name, split in SPLITS.items()}
    made = {}
    for key, values in VALUES.items():
        made[key] = CellSums(index[key[2]])
        add(made[key], values)
    return made


def add(cell, values):
    """The values of the first scored positions, [metric, position]."""
    cell.add_rows(cell.index.rows_at(torch.arange(values.shape[1])), torch.from_numpy(values))


def run(cells, **changes):
    return tabulate(cells, PROXIES, ROLES, **({"reference": "iid"} | changes))


@pytest.fixture(scope="module")
def study(cells):
    return run(cells)


def test_columns_and_number_of_rows(study):
    start = {
        "seed": pl.Int64,
        **dict.fromkeys(["simplification", "method", "family", "size_name"], pl.String),
        "size": pl.Float64,
        **dict.fromkeys(["control", "sites", "split", "role"], pl.String),
    }
    assert study.results.schema == {
        **start,
        **dict.fromkeys(["facet", "level", "metric"], pl.String),
        **dict.fromkeys(["value", "low", "high"], pl.Float64),
        "interval": pl.String,
        **dict.fromkeys(["tokens", "sequences"], pl.Int64),
    }
    assert study.gaps.schema == {
        **start,
        **dict.fromkeys(["metric", "reference"], pl.String),
        **dict.fromkeys(["iid", "ood", "gap", "low", "high"], pl.Float64),
        **dict.fromkeys(["low_all", "high_all", "p_value"], pl.Float64),
        **dict.fromkeys(["level", "change", "verdict"], pl.String),
        "needed": pl.Int64,
    }
    assert study.contrasts.schema == {
        **start,
        **dict.fromkeys(["facet", "level", "metric"], pl.String),
        **dict.fromkeys(["value", "low", "high", "error"], pl.Float64),
        **dict.fromkeys(["tokens", "sequences"], pl.Int64),
    }
    # splits x proxies x (seeds + all) x (metrics of the whole and 3 levels, and 3 per sequence)
    assert len(study.results) == 3 * 3 * 3 * (len(METRICS) * 4 + 3)
    assert len(study.gaps) == 2 * 2 * 3 * (len(METRICS) + 3)
    assert len(study.contrasts) == 3 * 2 * 3 * 3 * 2
    for table, order in ((study.results, list(ROLES)), (study.gaps, ["deep", "long"])):
        assert table["seed"].unique(maintain_order=True).to_list() == [0, 3, None]
        assert table["split"].unique(maintain_order=True).to_list() == order


@pytest.mark.parametrize("table", ["results", "gaps", "contrasts"])
def test_proxies_are_described(study, table):
    columns = list(ProxyInfo._fields)
    found = getattr(study, table).select(columns).unique(maintain_order=True).rows()
    assert found == [tuple(p) for p in PROXIES if table == "results" or p.method != "identity"]


def test_values_are_plain_means(study):
    results = study.results
    expected = {}
    for (seed, proxy, name), values in VALUES.items():
        split = SPLITS[name]
        sequence = np.repeat(np.arange(len(split)), split.lengths)[split.scored]
        depth = split.facets["depth"].codes[split.scored]
        levels = {None: np.ones_like(depth, bool)} | {str(d + 1): depth == d for d in range(3)}
        for level, here in levels.items():
            behind = here.sum(), len(set(sequence[here]))
            for metric, row in zip(METRICS, values, strict=True):
                expected[seed, proxy, name, level, metric] = row[here].mean(), *behind
        for metric in ("same_prediction", "model_accuracy", "proxy_accuracy"):
            row = values[METRICS.index(metric)]
            means = [row[sequence == s].mean() for s in sorted(set(sequence))]
            key = seed, proxy, name, None, f"{metric}_per_sequence"
            expected[key] = np.mean(means), *behind_whole(split)
    for key in [key for key in expected if key[0] == 0]:
        first, second = expected[key], expected[3, *key[1:]]
        expected[None, *key[1:]] = (first[0] + second[0]) / 2, *first[1:]
    ours = {
        tuple(row[:5]): row[5:]
        for row in results.select(
            "seed", "simplification", "split", "level", "metric", "value", "tokens", "sequences"
        ).iter_rows()
    }
    assert ours.keys() == expected.keys()
    for key, numbers in expected.items():
        assert ours[key] == pytest.approx(numbers), key


def behind_whole(split):
    sequence = np.repeat(np.arange(len(split)), split.lengths)[split.scored]
    return len(sequence), len(set(sequence))


def by_sequence(seed, proxy, name, metric, here=None):
    """Sums and counts of the sequences that have a position, by a plain loop."""
    split = SPLITS[name]
    sequence = np.repeat(np.arange(len(split)), split.lengths)[split.scored]
    values = VALUES[seed, PROXIES[proxy].simplification, name][METRICS.index(metric)]
    kept = np.ones(len(values), bool) if here is None else here
    numbers = sorted(set(sequence[kept]))
    sums = [values[kept & (sequence == i)].sum() for i in numbers]
    return np.array(sums), np.array([(kept & (sequence == i)).sum() for i in numbers], float)


def only(table, **where):
    """The one row there is."""
    rows = table.filter(*(pl.col(k).eq_missing(pl.lit(v)) for k, v in where.items()))
    assert len(rows) == 1
    return rows.row(0, named=True)


@pytest.mark.parametrize("metric", ["same_prediction", "output_jsd"])
def test_intervals_are_those_of_the_sequences(study, metric):
    share = np.array(find_metric(metric).share)
    how = {"simplification": PROXIES[1].simplification, "metric": metric}
    found = {}
    for name in ROLES:
        parts = [by_sequence(seed, 1, name, metric) for seed in SEEDS]
        over = [np.stack(x) for x in zip(*parts, strict=True)]
        found[name] = [*(Means.of(*x, share) for x in parts), over_models(*over, share)]
        for seed, means in zip((*SEEDS, None), found[name], strict=True):
            row = only(study.results, seed=seed, split=name, facet=None, **how)
            assert (row["low"], row["high"]) == pytest.approx(tuple(map(float, means.ends())))
            assert row["interval"] == ("binomial" if share else "t")
    depth = SPLITS["deep"].facets["depth"].codes[SPLITS["deep"].scored]
    level = Means.of(*by_sequence(3, 1, "deep", metric, depth == 1), share)
    row = only(study.results, seed=3, split="deep", level="2", **how)
    assert (row["low"], row["high"]) == pytest.approx(tuple(map(float, level.ends())))
    sign = 1 if share else -1
    each = [found["iid"][s].value - found["deep"][s].value for s in range(2)]
    for i, seed in enumerate((0, 3, None)):
        of_models = scipy.stats.sem(each) if seed is None else np.array(0.0)
        d = Differences(found["iid"][i], found["deep"][i], of_models)
        row = only(study.gaps, seed=seed, split="deep", **how)
        assert [row["low"], row["high"]] == pytest.approx(sorted(sign * end for end in d.ends()))
        assert row["gap"] == pytest.approx(sign * (row["iid"] - row["ood"]))
        assert row["low_all"] < row["low"] < row["gap"] < row["high"] < row["high_all"]


def test_contrasts_are_those_of_the_sums(cells, study):
    """In themselves they are tested elsewhere; here, that each stands in its row."""
    places = [METRICS.index(m) for m in ("same_prediction", "same_attention")]
    for name in ROLES:
        index = cells[0, PROXIES[2].simplification, name].index
        sums = np.stack([cells[s, PROXIES[2].simplification, name].sums.numpy() for s in SEEDS])
        found = contrasts(
            index, sums[None][:, :, places], index.tokens[None, None, None], SHARE_TWO
        )
        assert [c.level for c in found] == ["1", "2", "3"]
        for c in found:
            for s, seed in enumerate((*SEEDS, None)):
                for m, metric in enumerate(("same_prediction", "same_attention")):
                    row = only(
                        study.contrasts,
                        **{"seed": seed, "split": name, "method": "onehot", "metric": metric},
                        **{"facet": "depth", "level": c.level},
                    )
                    at = 0, s, m
                    assert [row[k] for k in ("value", "low", "high", "error")] == pytest.approx(
                        [c.value[at], c.ends.low[at], c.ends.high[at], c.error[at]]
                    )
                    assert row["tokens"] == c.tokens[0, s]
                    assert row["sequences"] == c.sequences[0, s]


SHARE_TWO = np.array([True, True])


def test_identity_is_exact_and_has_no_gaps(study):
    same = study.results.filter(method="identity", metric="same_prediction")
    assert same.select("value", "low", "high", "interval").unique().rows() == [(1, 1, 1, "exact")]
    accuracy = study.results.filter(method="identity", metric="model_accuracy")
    assert set(accuracy["interval"]) == {"binomial"}
    assert "identity" not in study.gaps["method"]
    assert "identity" not in study.contrasts["method"]


def test_a_level_in_a_single_sequence_has_a_value_and_no_interval():
    split = SPLITS["deep"]
    codes = np.zeros(len(split.tokens), np.int16)
    first = np.flatnonzero(split.scored)[0]
    codes[first] = 1
    rare = Split(
        **{f: getattr(split, f) for f in ("name", "role", "tokens", "offsets", "scored")},
        facets={"depth": Facet(codes, ("1", "2", "3"))},
    )
    index, made = {"deep": SumIndex.of(rare)}, {}
    for proxy in PROXIES:
        key = 0, proxy.simplification, "deep"
        made[key] = CellSums(index["deep"])
        add(made[key], VALUES[key])
    found = tabulate(made, PROXIES, {"deep": "iid"}, reference="deep")
    level = found.results.filter(level="2")
    exact = level.filter(interval="exact")
    compared = [name for name in METRICS if find_metric(name).about == "both"]
    assert len(exact) == 2 * len(compared) and set(exact["method"]) == {"identity"}
    others = level.filter(pl.col("interval").is_null())
    assert len(others) == len(level) - len(exact)
    assert others["low"].is_null().all() and others["high"].is_null().all()
    assert level["value"].is_not_null().all()
    assert found.contrasts.select("low", "high", "error").null_count().row(0) == (16, 16, 16)


def test_a_gap_is_positive_where_out_of_distribution_is_worse(study):
    whole = study.results.filter(pl.col("facet").is_null(), seed=3, method="svd")
    value = {(s, m): v for s, m, v in whole.select("split", "metric", "value").iter_rows()}
    here = study.gaps.filter(seed=3, method="svd", split="deep")
    gap = dict(here.select("metric", "gap").iter_rows())
    for metric in METRICS:
        fall = value["iid", metric] - value["deep", metric]
        assert gap[metric] == pytest.approx(
            fall if find_metric(metric).better == "higher" else -fall
        ), metric
    assert gap["same_prediction"] == pytest.approx(0.27, abs=0.05)
    assert gap["model_only_right"] == pytest.approx(gap["same_prediction"])
    assert gap["same_prediction_per_sequence"] > 0.2


def test_p_values_are_adjusted_over_proxies_and_splits(cells, study):
    raw = {}
    for proxy in PROXIES[1:]:
        for split in ("deep", "long"):  # a single cell is not corrected
            one = tabulate(cells, [proxy], {"iid": "iid", split: "ood"}, reference="iid").gaps
            raw[split, proxy.method] = dict(
                one.filter(seed=0).select("metric", "p_value").iter_rows()
            )
    for metric in ("same_prediction", "output_jsd"):
        rows = study.gaps.filter(seed=0, metric=metric)
        adjusted = {(s, m): p for s, m, p in rows.select("split", "method", "p_value").iter_rows()}
        for proxy in PROXIES[1:]:  # a view, and a control, which are corrected apart
            own = [key for key in adjusted if key[1] == proxy.method]
            expected = scipy.stats.false_discovery_control([raw[key][metric] for key in own])
            assert [adjusted[key] for key in own] == pytest.approx(list(expected))


def test_verdicts_stand_at_same_prediction(study):
    judged = study.gaps.filter(pl.col("verdict").is_not_null())
    assert judged["metric"].unique().to_list() == ["same_prediction"]
    seeds = {
        (method, split): verdict
        for method, split, verdict in judged.filter(seed=0)
        .select("method", "split", "verdict")
        .iter_rows()
    }
    assert seeds == {
        ("svd", "deep"): "illusion (under-generalizes)",
        ("svd", "long"): "undecided",
        ("onehot", "deep"): "unfaithful",
        ("onehot", "long"): "unfaithful",
    }
    needed = judged.filter(seed=0, method="svd", split="long")["needed"].item()
    assert needed > 150
    of_both = judged.filter(pl.col("verdict") == "undecided", method="svd", split="long")
    over, *each = of_both.sort("seed", nulls_last=False)["needed"].to_list()
    assert over == max(each)  # what the more demanding of the models asks
    levels = judged.filter(seed=0).select("method", "level").unique().rows()
    assert set(levels) == {("svd", "looks right"), ("onehot", "does not look right")}


def test_a_model_that_has_not_learnt_is_not_testable(cells):
    """The model is right at about half of the positions."""
    assert set(run(cells, learnt=0.9).gaps["verdict"]) == {"not testable here", None}
    assert "not testable here" not in run(cells, learnt=0.4).gaps["verdict"]


def test_one_model_that_has_not_learnt_is_enough_for_no_verdict_over_all(cells, study):
    accuracy = study.results.filter(
        pl.col("facet").is_null(), method="svd", metric="model_accuracy", split="iid"
    )
    of = dict(accuracy.select("seed", "value").iter_rows())
    worse, better = sorted(SEEDS, key=lambda seed: of[seed])
    assert of[worse] < of[None] < of[better]
    gaps = (
        run(cells, learnt=(of[worse] + of[None]) / 2)
        .gaps.filter(method="svd")
        .drop_nulls("verdict")
    )
    found = {seed: set(rows["verdict"]) for (seed,), rows in gaps.group_by("seed")}
    assert found[worse] == found[None] == {"not testable here"}
    assert "not testable here" not in found[better]


def test_rounding_is_not_tested_and_does_not_count(cells, study):
    """A third proxy that differs from the model by rounding alone, and one that not even does."""
    split = "long"
    most = dict(study.gaps.filter(seed=0, method="svd").select("split", "gap").iter_rows())[split]
    jsd = study.gaps.filter(metric="output_jsd", seed=0)
    floor = jsd["gap"].abs().sort()[1] + 1e-12  # two of the four are rounding
    found = run(cells, floor={"output_jsd": floor, "same_prediction": 1.0}).gaps
    ours = found.filter(metric="output_jsd", seed=0)
    assert ours["p_value"].is_null().to_list() == (jsd["gap"].abs() <= floor).to_list()
    raw = []
    for proxy, name in ours.drop_nulls("p_value").select("simplification", "split").iter_rows():
        (info,) = (p for p in PROXIES if p.simplification == proxy)
        one = tabulate(cells, [info], {"iid": "iid", name: "ood"}, reference="iid").gaps
        raw.append(one.filter(metric="output_jsd", seed=0)["p_value"].item())
    expected = scipy.stats.false_discovery_control(raw)
    assert ours["p_value"].drop_nulls().to_list() == pytest.approx(list(expected))
    others = pl.col("metric") != "output_jsd"
    assert found.filter(others).equals(study.gaps.filter(others))  # floor 1 is no rounding
    assert most != 0


def test_equal_splits_have_no_p_value(cells):
    twin = {(s, p, "twin" if name == "long" else name): c for (s, p, name), c in cells.items()}
    twin |= {(s, p, "twin"): cells[s, p, "iid"] for s, p, _ in cells}
    found = tabulate(twin, PROXIES, {"iid": "iid", "twin": "ood"}, reference="iid").gaps
    assert (found["gap"] == 0).all() and found["p_value"].is_null().all()
    assert (found["low"] < 0).all() and (found["high"] > 0).all()


def test_tables_do_not_depend_on_order_or_blocks(cells, study, monkeypatch):
    monkeypatch.setattr(measuring, "BLOCK_BYTES", 1)
    for ours, expected in zip(run(dict(reversed(cells.items()))), study, strict=True):
        same_but_for_rounding(ours, expected)
    turned = tabulate(cells, PROXIES[::-1], ROLES, reference="iid")
    for ours, expected in zip(turned, study, strict=True):
        keys = [c for c in ours.columns if ours.schema[c] in (pl.String, pl.Int64)]
        keys = [c for c in keys if c not in ("needed", "tokens", "sequences")]
        same_but_for_rounding(ours.sort(keys), expected.sort(keys))


def same_but_for_rounding(ours, expected):
    numbers = [c for c in ours.columns if ours.schema[c] == pl.Float64]
    assert ours.drop(numbers).equals(expected.drop(numbers))
    for column in numbers:
        np.testing.assert_allclose(
            ours[column].to_numpy(), expected[column].to_numpy(), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("stopping", [None, Stopping(0.1, 0.3)])
@pytest.mark.filterwarnings("error")
def test_a_proxy_whose_attention_was_not_compared(cells, stopping):
    """Its rows of attention are missing; all others stay as they are."""
    outputs = metric_names(attention=False)
    places = [METRICS.index(name) for name in outputs]
    which = PROXIES[1].simplification
    cut = dict(cells)
    for key in cells:
        if key[1] == which:
            cut[key] = CellSums(cells[key].index, outputs)
            cut[key].sums.copy_(cells[key].sums[places])
    attention = pl.col("metric").is_in(set(METRICS) - set(outputs))
    pairs = zip(run(cells, stopping=stopping), run(cut, stopping=stopping), strict=True)
    for before, after in pairs:
        left_out = (pl.col("simplification") == which) & attention
        kept = [before.filter(~left_out), after]
        if "p_value" in after.columns:  # of attention, they are corrected for fewer
            corrected = pl.when(~attention).then("p_value").alias("p_value")
            kept = [table.with_columns(corrected) for table in kept]
        assert kept[0].equals(kept[1], null_equal=True)
        assert before.is_empty() or not before.filter(left_out).is_empty()


def test_cells_that_stopped_early(cells):
    """Each with the interval of the look that stopped it, also in gaps; no contrasts."""
    cut = {}
    for number, ((seed, proxy, name), cell) in enumerate(sorted(cells.items())):
        if seed == 0:
            cut[0, proxy, name] = CellSums(cell.index)
            cut[0, proxy, name].seen = seen = 32 + 16 * (number % 3)
            early = cell.index.sequence < seen
            cut[0, proxy, name].sums.copy_(cell.sums * torch.from_numpy(early))
    found = tabulate(cut, PROXIES, ROLES, reference="iid", stopping=Stopping(0.1, 0.3))
    whole = found.results.filter(pl.col("facet").is_null(), seed=0)
    for (_, proxy, name), cell in cut.items():
        sums, counts = cell.sums[0], torch.from_numpy(cell.tokens).double()
        kept = np.flatnonzero(cell.tokens[cell.index.whole])
        looked = RatioSums.of(sums[kept], counts[kept])
        row = only(whole, simplification=proxy, split=name, metric="same_prediction")
        assert row["sequences"] == len(kept) <= cell.seen
        if row["method"] != "identity":
            expected = [e.item() for e in sequence_interval(looked, 0.1, prior_correlation=0.3)]
            assert [row["low"], row["high"]] == pytest.approx(expected)
            assert row["interval"] == "sequence"
    unbounded = whole.filter(pl.col("metric").is_in(["output_kl", "model_cross_entropy"]))
    unbounded = unbounded.filter(pl.col("method") != "identity")
    assert unbounded.select("low", "high", "interval").null_count().row(0) == (len(unbounded),) * 3
    assert len(found.contrasts) == 0 and found.contrasts.schema == run(cells).contrasts.schema
    for row in found.gaps.filter(metric="same_prediction", seed=0).iter_rows(named=True):
        how = {"simplification": row["simplification"], "metric": "same_prediction"}
        iid, ood = (only(whole, split=name, **how) for name in ("iid", row["split"]))
        assert row["low"] < iid["low"] - ood["high"] and row["high"] > iid["high"] - ood["low"]
        assert row["low_all"] < row["low"] and row["needed"] is None
    assert set(found.gaps.filter(seed=0, method="onehot")["verdict"].drop_nulls()) == {"unfaithful"}


def judged(iid, ood):
    """The row of a proxy, from (right, of) pairs, one a sequence."""
    made = {}
    for name, pairs in (("iid", iid), ("deep", ood)):
        lengths = np.array([of for _, of in pairs])
        offsets = np.concatenate([[0], np.cumsum(lengths + 1)])
        scored = np.ones(offsets[-1], bool)
        scored[offsets[:-1]] = False
        tokens = np.zeros(offsets[-1], np.int16)
        split = Split(name, ROLES[name], tokens, offsets, scored, {})
        cell = made[0, "svd(rank=4)@0.*.key", name] = CellSums(SumIndex.of(split))
        right = torch.tensor([r for r, _ in pairs], dtype=torch.float64)
        cell.sums[METRICS.index("same_prediction")] = right
        cell.sums[METRICS.index("model_only_right")] = torch.from_numpy(lengths) - right
    roles = {"iid": "iid", "deep": "ood"}
    gaps = tabulate(made, PROXIES[1:2], roles, reference="iid").gaps
    return only(gaps, seed=0, metric="same_prediction")


@pytest.mark.parametrize(
    ("iid", "ood"),
    [
        ((0.93, 40), (0.93, 40)),  # the level
        ((0.97, 40), (0.93, 40)),  # a fall
        ((0.97, 40), (0.97, 40)),  # none
        ((0.97, 40), (0.93, 200)),  # more of the other
        ((0.99, 200), (0.93, 40)),
    ],
)
def test_needed_by_repeating_the_data(iid, ood):
    """As many as are needed decide it; half of them do not, where splits are equally large."""
    rng = np.random.default_rng(5)
    parts = []
    for p, n in (iid, ood):
        of = rng.integers(2, 8, n)
        right = rng.binomial(of, rng.beta(10 * p, 10 * (1 - p), n))
        parts.append(list(zip(right.tolist(), of.tolist(), strict=True)))
    first = judged(*parts)
    assert first["verdict"] == "undecided" and first["needed"] > min(iid[1], ood[1])
    enough = judged(*(part * -(-first["needed"] // len(part)) for part in parts))
    assert enough["verdict"] != "undecided"
    if iid[1] == ood[1]:
        half = max(1, first["needed"] // 2 // iid[1])
        assert judged(*(part * half for part in parts))["verdict"] == "undecided"


def test_a_study_without_ood_splits_has_no_gaps(cells):
    results, gaps, contrasts = tabulate(cells, PROXIES, {"iid": "iid"}, reference="iid")
    assert len(gaps) == 0 and len(results) > 0 and len(contrasts) > 0
    assert gaps.schema == run(cells).gaps.schema


def test_a_missing_cell_is_named(cells):
    some = dict(cells)
    del some[3, "onehot@0.*.pattern", "long"]
    with pytest.raises(AnamorphError, match=r"seed 3, onehot@0\.\*\.pattern, split long"):
        run(some)
    with pytest.raises(AnamorphError, match="no cells"):
        run({})


def test_a_cell_that_is_not_finite_is_named(cells):
    key = 3, "onehot@0.*.pattern", "long"
    broken = CellSums(cells[key].index)
    add(broken, np.full((len(METRICS), 2), np.nan))
    with pytest.raises(AnamorphError, match=r"Seed 3, onehot@.*, split long: .* is nan"):
        run(cells | {key: broken})


def test_cells_of_other_metrics_are_refused(cells):
    key = 0, "onehot@0.*.pattern", "iid"
    with pytest.raises(AnamorphError, match="audited on the same data"):
        run(cells | {key: CellSums(cells[key].index, METRICS[:4])})


class Made(Mapping):
    """Cells that are made as they are asked for, and forgotten: as many as one likes."""

    def __init__(self, proxies):
        self.proxies = proxies
        self.index = {name: SumIndex.of(make_split(name, 30)) for name in ROLES}
        self.asked = Counter()

    def __iter__(self):
        return ((0, p.simplification, name) for p in self.proxies for name in ROLES)

    def __len__(self):
        return len(self.proxies) * len(ROLES)

    def __contains__(self, key):
        raise AssertionError("asking for a key may read a file")

    def __getitem__(self, key):
        self.asked[key] += 1
        index = self.index[key[2]]
        cell = CellSums(index)
        rng = np.random.default_rng(crc32(repr(key).encode()))
        cell.sums.copy_(torch.from_numpy(rng.random(cell.sums.shape) * index.tokens))
        return cell


def many(number):
    return [
        ProxyInfo(f"svd(rank={i})@0.*.key", "svd", "svd@0.*.key", "rank", i, None, "0.*.key")
        for i in range(1, number + 1)
    ]


def peak(number):
    """Bytes that numpy and Python hold at most."""
    made = Made(many(number))
    tracemalloc.start()
    try:
        tabulate(made, made.proxies, ROLES, reference="iid")
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_is_flat_in_proxies(monkeypatch):
    """Law 9: the sums of 15 metrics over 120 rows, and what is made of them, are 115 kB a proxy."""
    monkeypatch.setattr(measuring, "BLOCK_BYTES", 2**23)
    few, lots = peak(50), peak(200)
    # What grows are the tables: 306, 60 and 18 rows a proxy, of ten numbers.
    assert (lots - few) / 150 < (306 + 60 + 18) * 10 * 8 * 1.5


def test_blocks_of_proxies_change_nothing(monkeypatch):
    made = Made(many(23))
    whole = tabulate(made, made.proxies, ROLES, reference="iid")
    assert sum(made.asked.values()) == len(made) + len(ROLES) + 1  # to know rows and metrics
    bytes_a_proxy = 8 * measuring.COPIES * 2 * 15 * max(map(len, made.index.values()))
    monkeypatch.setattr(measuring, "BLOCK_BYTES", 5 * bytes_a_proxy)  # 5, 5, 5, 5 and 3
    for ours, expected in zip(
        tabulate(made, made.proxies, ROLES, reference="iid"), whole, strict=True
    ):
        same_but_for_rounding(ours, expected)


def test_tables_in_files_are_those_in_memory(cells, tmp_path, monkeypatch):
    """However many files they are made of; of several models and verdicts over them, too."""
    expected = run(cells, learnt=0.1, floor={"output_kl": 1e-3})
    monkeypatch.setattr(spooled_tables, "ROWS", 100)
    monkeypatch.setattr(measuring, "BLOCK_BYTES", 1)  # a proxy at a time
    one_by_one = run(cells, learnt=0.1, floor={"output_kl": 1e-3})
    made = parts(cells, PROXIES, ROLES, "iid", Thresholds(), {"output_kl": 1e-3})
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with spooled_tables.spooled(made, Thresholds(), 0.1) as tables:
        assert len([*tmp_path.rglob("results-*.parquet")]) > 5
        for name, table in tables._asdict().items():
            spooled_tables.write_rows(tmp_path / name, table)
            found = pl.read_parquet(tmp_path / name)
            assert_frame_equal(found, getattr(one_by_one, name), check_exact=True)
            same_but_for_rounding(found, getattr(expected, name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["contrasts", "gaps", "results"]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "results" / "no"))
    with pytest.raises(AnamorphError, match="TMPDIR"), spooled_tables.spooled([], Thresholds()):
        pass
