"""The two tables against plain loops over the tokens that they stand for."""

import tracemalloc
from collections import Counter
from collections.abc import Mapping
from zlib import crc32

import numpy as np
import polars as pl
import pytest
import scipy.stats
import torch

from anamorph.errors import AnamorphError
from anamorph.faithfulness import METRICS, CellSums, ProxyInfo, SumIndex, tables, tabulate
from anamorph.tasks.base import Facet, Split

ROLES = {"iid": "iid", "deep": "ood", "long": "ood"}
PROXIES = [
    ProxyInfo("identity", "identity", None, ""),
    ProxyInfo("svd(rank=4)@0.*.key", "svd", 4, "0.*.key"),
    ProxyInfo("onehot@0.*.pattern", "onehot", None, "0.*.pattern"),
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
    values = rng.random((len(METRICS), split.scored.sum()))
    same = rng.random(split.scored.sum()) < AGREES[split.name][proxy]
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
        made[key].add(torch.arange(values.shape[1]), torch.from_numpy(values))
    return made


def run(cells, **changes):
    arguments = {"reference": "iid", "resamples": 400, "seed": 7} | changes
    return tabulate(cells, PROXIES, ROLES, **arguments)


@pytest.fixture(scope="module")
def study(cells):
    return run(cells)


def test_columns_and_number_of_rows(study):
    results, gaps = study
    assert results.schema == {
        "seed": pl.Int64,
        **dict.fromkeys(["simplification", "method"], pl.String),
        "size": pl.Float64,
        **dict.fromkeys(["sites", "split", "role", "facet", "level", "metric"], pl.String),
        **dict.fromkeys(["value", "low", "high"], pl.Float64),
        **dict.fromkeys(["tokens", "sequences"], pl.Int64),
    }
    assert gaps.schema == {
        "seed": pl.Int64,
        **dict.fromkeys(["simplification", "method"], pl.String),
        "size": pl.Float64,
        **dict.fromkeys(["sites", "split", "role", "metric", "reference"], pl.String),
        **dict.fromkeys(["gap", "low", "high", "p_value"], pl.Float64),
        "verdict": pl.String,
    }
    # splits x proxies x (seeds + all) x (metrics of the whole and 3 levels, and 3 per sequence)
    assert len(results) == 3 * 3 * 3 * (12 * 4 + 3)
    assert len(gaps) == 2 * 2 * 3 * 15
    assert results["seed"].unique(maintain_order=True).to_list() == [0, 3, None]


def test_values_are_plain_means(study):
    results, _ = study
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


def test_intervals_agree_with_a_plain_bootstrap(cells):
    results, gaps = run(cells, resamples=4000)
    proxy, rng = PROXIES[1].simplification, np.random.default_rng(0)
    made = {}
    for name, split in SPLITS.items():
        sequence = np.repeat(np.arange(len(split)), split.lengths)[split.scored]
        by_seed = [VALUES[seed, proxy, name][0] for seed in SEEDS]
        tokens = [np.flatnonzero(sequence == s) for s in range(len(split))]
        made[name] = np.array(
            [
                [values[here].mean() for values in by_seed]
                for here in (
                    np.concatenate([tokens[s] for s in rng.integers(len(split), size=len(split))])
                    for _ in range(1500)
                )
            ]
        )  # [resample, seed]
    seeds = rng.integers(2, size=(1500, 2))

    def over_seeds(values):
        return np.take_along_axis(values, seeds, axis=1).mean(axis=1)

    def check(table, expected, **where):
        row = table.filter(
            pl.col("simplification") == proxy,
            pl.col("metric") == "same_prediction",
            *(pl.col(k).eq_missing(pl.lit(v)) for k, v in where.items()),
        )
        low, high = row.select("low", "high").row(0)
        assert len(row) == 1
        # The ends of 1,500 resamples have a standard error below 0.001 here.
        assert (low, high) == pytest.approx(np.quantile(expected, [0.025, 0.975]), abs=0.005)

    gap = made["iid"] - made["deep"]
    check(results, made["deep"][:, 0], split="deep", seed=0, facet=None)
    check(results, over_seeds(made["deep"]), split="deep", seed=None, facet=None)
    check(gaps, gap[:, 1], split="deep", seed=3)
    check(gaps, over_seeds(gap), split="deep", seed=None)


def test_identity_is_exact_and_has_no_gaps(study):
    results, gaps = study
    same = results.filter(method="identity", metric="same_prediction")
    assert same.select("value", "low", "high").unique().rows() == [(1, 1, 1)]
    assert "identity" not in gaps["method"]


def test_a_gap_is_positive_where_out_of_distribution_is_worse(study):
    results, gaps = study
    whole = results.filter(pl.col("facet").is_null(), seed=3, method="svd")
    value = {(s, m): v for s, m, v in whole.select("split", "metric", "value").iter_rows()}
    here = gaps.filter(seed=3, method="svd", split="deep")
    gap = dict(here.select("metric", "gap").iter_rows())
    better_high = {"same_prediction", "same_attention", "model_accuracy", "proxy_accuracy"}
    for metric in METRICS:
        fall = value["iid", metric] - value["deep", metric]
        assert gap[metric] == pytest.approx(fall if metric in better_high else -fall), metric
    assert gap["same_prediction"] == pytest.approx(0.27, abs=0.05)
    assert gap["model_only_right"] == pytest.approx(gap["same_prediction"])
    assert gap["same_prediction_per_sequence"] > 0.2


def test_p_values_are_adjusted_over_proxies_and_splits(cells):
    _, alone = tabulate(cells, PROXIES[1:2], {"iid": "iid", "long": "ood"}, reference="iid")
    raw = {}
    for proxy in PROXIES[1:]:
        for split in ("deep", "long"):
            _, one = tabulate(
                cells, [proxy], {"iid": "iid", split: "ood"}, reference="iid"
            )  # a single cell is not corrected
            raw[split, proxy.method] = dict(
                one.filter(seed=0).select("metric", "p_value").iter_rows()
            )
    assert len(alone) == 3 * 15
    _, gaps = tabulate(cells, PROXIES, ROLES, reference="iid")
    for metric in ("same_prediction", "output_jsd"):
        rows = gaps.filter(seed=0, metric=metric)
        adjusted = {(s, m): p for s, m, p in rows.select("split", "method", "p_value").iter_rows()}
        expected = scipy.stats.false_discovery_control([raw[key][metric] for key in adjusted])
        assert list(adjusted.values()) == pytest.approx(list(expected))


def test_verdicts_stand_at_same_prediction(study):
    _, gaps = study
    judged = gaps.filter(pl.col("verdict").is_not_null())
    assert judged["metric"].unique().to_list() == ["same_prediction"]
    by_cell = {
        (method, split): verdict
        for method, split, verdict in judged.filter(pl.col("seed").is_null())
        .select("method", "split", "verdict")
        .iter_rows()
    }
    assert by_cell == {
        ("svd", "deep"): "illusion (under-generalizes)",
        ("svd", "long"): "faithful",
        ("onehot", "deep"): "unfaithful everywhere",
        ("onehot", "long"): "unfaithful everywhere",
    }


def test_tables_do_not_depend_on_order_or_blocks(cells, study, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK_BYTES", 1)
    again = run(dict(reversed(cells.items())))
    for ours, expected in zip(again, study, strict=True):
        assert ours.drop("low", "high").equals(expected.drop("low", "high"))
        for column in ("low", "high"):  # a matrix product may round by the size of its block
            np.testing.assert_allclose(ours[column], expected[column], rtol=1e-9, atol=1e-12)


def test_too_few_resamples_give_no_interval_and_no_verdict(cells):
    results, gaps = run(cells, resamples=50)
    assert results["low"].is_null().all() and results["value"].is_not_null().all()
    assert gaps["p_value"].is_null().all() and gaps["verdict"].is_null().all()


def test_a_study_without_ood_splits_has_no_gaps(cells):
    results, gaps = tabulate(cells, PROXIES, {"iid": "iid"}, reference="iid", resamples=100)
    assert len(gaps) == 0 and len(results) > 0
    assert "verdict" in gaps.columns


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
    broken.add(torch.arange(2), torch.full((len(METRICS), 2), torch.nan))
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
    return [ProxyInfo(f"svd(rank={i + 1})@0.*.key", "svd", i + 1, "0.*.key") for i in range(number)]


def peak(number):
    """Bytes that numpy and Python hold at most."""
    made = Made(many(number))
    tracemalloc.start()
    try:
        tabulate(made, made.proxies, ROLES, reference="iid", resamples=400)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_is_flat_in_proxies(monkeypatch):
    """Law 9: 400 replicates of 15 metrics, 2 seeds and 2 splits held are 192 kB a proxy."""
    monkeypatch.setattr(tables, "BLOCK_BYTES", 2**25)
    few, lots = peak(100), peak(1000)
    assert few > 2**23
    # What grows are the tables: 306 and 60 rows a proxy, of five numbers.
    assert (lots - few) / 900 < (306 + 60) * 5 * 8 * 1.5


def test_blocks_of_proxies_change_nothing(monkeypatch):
    made = Made(many(23))
    whole = tabulate(made, made.proxies, ROLES, reference="iid", resamples=200)
    assert sum(made.asked.values()) == len(made) + len(ROLES) + 1  # to know rows and metrics
    bytes_a_proxy = 8 * 15 * (max(map(len, made.index.values())) + tables.COPIES * 2 * 200)
    monkeypatch.setattr(tables, "BLOCK_BYTES", 5 * bytes_a_proxy)  # 5, 5, 5, 5 and 3
    for ours, expected in zip(
        tabulate(made, made.proxies, ROLES, reference="iid", resamples=200), whole, strict=True
    ):
        inexact = [c for c in ("low", "high") if c in ours.columns]
        assert ours.drop(inexact).equals(expected.drop(inexact))  # rows, order, p-values, verdicts
        for column in inexact:
            np.testing.assert_allclose(ours[column], expected[column], rtol=1e-9, atol=1e-12)
