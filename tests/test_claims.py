"""Each claim on a table where it holds, one where it does not, and one that cannot say."""

from typing import Any

import polars as pl
import pytest

from anamorph.claims import measure, self_checks
from anamorph.report.words import FAILS, HOLDS, UNTESTED

SPEC = {
    "task": {"name": "dyck", "m": 3},
    "model": {"width": 8, "layers": 2, "heads": 2},
    "audit": {"thresholds": {"faithful": 0.9, "tolerance": 0.02, "level": 0.05, "share": 2 / 3}},
}
KEYS: dict[str, Any] = {
    "seed": pl.Int64,
    "simplification": pl.String,
    "method": pl.String,
    "size": pl.Float64,
    "sites": pl.String,
    "split": pl.String,
    "role": pl.String,
}
RESULTS = KEYS | {"facet": pl.String, "level": pl.String, "metric": pl.String}
RESULTS |= dict.fromkeys(["value", "low", "high"], pl.Float64) | {"tokens": pl.Int64}
GAPS = KEYS | {"metric": pl.String, "gap": pl.Float64, "low": pl.Float64, "high": pl.Float64}
GAPS |= {"p_value": pl.Float64, "verdict": pl.String}
SITES = "1.*.{query,key}"


def keys(proxy: str, split: str) -> dict[str, Any]:
    """`svd 4`, `onehot` or `identity` on a split."""
    method, _, size = proxy.partition(" ")
    name = {"svd": "rank", "kmeans": "clusters"}.get(method)
    text = f"{method}({name}={size})@{SITES}" if name else method
    role = "iid" if split == "iid" else "ood"
    return {"simplification": text, "method": method, "size": float(size) if size else None} | {
        "sites": SITES,
        "split": split,
        "role": role,
    }


def value(proxy: str, split: str, metric: str, mean: float, **more: Any) -> dict[str, Any]:
    """A row of results, with an interval of ±.01."""
    interval = {"value": mean, "low": mean - 0.01, "high": mean + 0.01, "tokens": 100}
    return keys(proxy, split) | {"metric": metric} | interval | more


def gap(proxy: str, split: str, size: float, p: float) -> dict[str, Any]:
    return keys(proxy, split) | {
        "metric": "same_prediction",
        "gap": size,
        "low": size - 0.01,
        "high": size + 0.01,
        "p_value": p,
        "verdict": "faithful",
    }


def accuracies(**by_split: float) -> list[dict[str, Any]]:
    return [value("identity", s, "model_accuracy", x) for s, x in by_split.items()]


def curve(*same: float) -> list[dict[str, Any]]:
    """Ranks 1, 2, 4, ...; attention diverges by as much as predictions do."""
    rows = [value(f"svd {2**i}", "iid", "same_prediction", x) for i, x in enumerate(same)]
    return rows + [value(f"svd {2**i}", "iid", "attention_jsd", 1 - x) for i, x in enumerate(same)]


def who(proxy: str, split: str, same: float, model: float, only_proxy: float) -> list[Any]:
    metrics = {"same_prediction": same, "model_only_right": model, "proxy_only_right": only_proxy}
    return [value(proxy, split, metric, x) for metric, x in metrics.items()]


def depths(within: float, beyond: float) -> list[dict[str, Any]]:
    """Rank 2 looks faithful; up to depth 3 is trained. Depth 5 is rare, so it counts for little."""
    rows = [value("svd 1", "iid", "same_prediction", 0.5)]
    rows += [value("svd 2", "iid", "same_prediction", 0.95)]
    levels = {"2": (within, 100), "3": (within, 50), "4": (beyond, 99), "5": (1.0, 1)}
    for level, (mean, tokens) in levels.items():
        place = {"facet": "depth", "level": level, "tokens": tokens}
        rows.append(value("svd 2", "unseen_depth", "same_prediction", mean, **place))
    return rows


def alike(kmeans: float, kmeans_gap: float) -> list[dict[str, Any]]:
    """A k-means proxy beside two SVD proxies, the nearer of them at .9 on iid."""
    on_iid = {"svd 1": 0.3, "svd 4": 0.9, "kmeans 8": kmeans}
    rows = [value(p, "iid", "same_prediction", x) for p, x in on_iid.items()]
    gaps = {"svd 1": 0.5, "svd 4": 0.2, "kmeans 8": kmeans_gap}
    return rows + [gap(p, "unseen_depth", g, 0.01) for p, g in gaps.items()]


STRUCTURE = {"seen_structure": 1.0, "unseen_short": 0.99, "unseen_long": 0.985}
CASES = {
    "C1 near-perfect, less on depth": (HOLDS, accuracies(**STRUCTURE, unseen_depth=0.8)),
    "C1 not near-perfect": (
        FAILS,
        accuracies(**STRUCTURE | {"unseen_long": 0.97}, unseen_depth=0.8),
    ),
    "C1 depth as good": (FAILS, accuracies(**STRUCTURE, unseen_depth=0.98)),
    "C1 no depth": (UNTESTED, accuracies(**STRUCTURE)),
    "C2 grows": (HOLDS, curve(0.5, 0.8, 0.9, 1.0)),
    "C2 within the interval": (HOLDS, curve(0.5, 0.8, 0.795, 1.0)),
    "C2 falls": (FAILS, curve(0.5, 0.8, 0.6, 1.0)),
    "C2 one size": (UNTESTED, curve(0.5)),
    "C3 less faithful": (
        HOLDS,
        [
            gap("svd 1", "unseen_depth", 0.2, 0.01),
            gap("svd 2", "unseen_depth", 0.3, 0.01),
            gap("svd 4", "unseen_depth", -0.1, 0.01),
        ],
    ),
    "C3 not significant": (
        FAILS,
        [gap("svd 1", "unseen_depth", 0.2, 0.06), gap("svd 2", "unseen_depth", 0.3, 0.5)],
    ),
    "C3 only on one of two": (
        FAILS,
        [gap("svd 1", "unseen_depth", 0.2, 0.01), gap("svd 1", "unseen_depth_matched", 0.0, 1.0)],
    ),
    "C3 no depth": (UNTESTED, [gap("svd 1", "unseen_long", 0.2, 0.01)]),
    "C4 both ways": (
        HOLDS,
        who("svd 1", "unseen_long", 0.7, 0.2, 0.05) + who("onehot", "unseen_depth", 0.8, 0.05, 0.1),
    ),
    "C4 one way": (FAILS, who("svd 1", "unseen_long", 0.7, 0.2, 0.05)),
    "C4 intervals overlap": (
        FAILS,
        who("svd 1", "unseen_long", 0.7, 0.2, 0.05)
        + who("onehot", "unseen_depth", 0.8, 0.05, 0.065),
    ),
    "C4 the other way on iid only": (
        FAILS,
        who("svd 1", "unseen_long", 0.7, 0.2, 0.05) + who("onehot", "iid", 0.8, 0.05, 0.1),
    ),
    "C4 destroyed": (UNTESTED, who("svd 1", "unseen_long", 0.4, 0.5, 0.01)),
    "C5 a gap": (HOLDS, [gap("onehot", "unseen_depth", 0.1, 0.01)]),
    "C5 the other way round": (FAILS, [gap("onehot", "unseen_depth", -0.1, 0.01)]),
    "C5 not significant": (FAILS, [gap("onehot", "unseen_depth", 0.1, 0.05)]),
    "C5 not run": (UNTESTED, [gap("svd 1", "unseen_depth", 0.1, 0.01)]),
    "C6 coincide": (HOLDS, [gap(f"svd {i}", "unseen_long", 0.01 * i, 0.01) for i in range(1, 6)]),
    "C6 either side counts": (
        FAILS,
        [gap(f"svd {i}", "unseen_long", -0.02 * i, 0.01) for i in range(1, 6)],
    ),
    "C6 no long split": (UNTESTED, [gap("svd 1", "unseen_depth", 0.0, 0.01)]),
    "C7 departs": (HOLDS, depths(0.95, 0.8)),
    "C7 as before": (FAILS, depths(0.95, 0.94)),
    "C7 nothing looks faithful": (UNTESTED, curve(0.5, 0.6)),
    "C8 alike": (HOLDS, alike(0.88, 0.24)),
    "C8 other gap": (FAILS, alike(0.88, 0.5)),
    "C8 no pair": (UNTESTED, alike(0.6, 0.2)),
    "C8 no k-means": (UNTESTED, [gap("svd 1", "unseen_depth", 0.1, 0.01)]),
}


def tables(rows: list[dict[str, Any]]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Results and gaps over all seeds; those of seed 0 alone say something else."""
    results = pl.DataFrame([r for r in rows if "gap" not in r], RESULTS)
    gaps = pl.DataFrame([r for r in rows if "gap" in r], GAPS)
    other = results.with_columns(seed=pl.lit(0, pl.Int64), value=pl.lit(0.5))
    other_gaps = gaps.with_columns(seed=pl.lit(0, pl.Int64), gap=pl.lit(9.0), p_value=pl.lit(0.0))
    return pl.concat([other, results]), pl.concat([other_gaps, gaps])


@pytest.mark.parametrize("case", CASES)
def test_a_claim(case: str) -> None:
    status, rows = CASES[case]
    found = {claim["id"]: claim for claim in measure(*tables(rows), SPEC)}
    assert list(found) == [f"C{i}" for i in range(1, 11)]
    assert found["C9"]["status"] == found["C10"]["status"] == UNTESTED
    assert found[case[:2]]["status"] == status
    assert all(claim["claim"] and claim["finding"] for claim in found.values())


def test_every_claim_has_a_case_of_each_status() -> None:
    assert {(name[:2], status) for name, (status, _) in CASES.items()} == {
        (f"C{i}", status) for i in range(1, 9) for status in (HOLDS, FAILS, UNTESTED)
    }


def test_nothing_at_all_is_not_tested() -> None:
    assert {claim["status"] for claim in measure(*tables([]), SPEC)} == {UNTESTED}


def test_the_numbers_of_claims() -> None:
    numbers = {c["id"]: c["numbers"] for c in measure(*tables(depths(0.95, 0.8)), SPEC)}
    svd = numbers["C7"][f"svd(rank=2)@{SITES}"]
    assert svd == {"within": pytest.approx(0.95), "beyond": pytest.approx((0.8 * 99 + 1) / 100)}
    numbers = {c["id"]: c["numbers"] for c in measure(*tables(CASES["C6 coincide"][1]), SPEC)}
    assert numbers["C6"] == {
        "median": pytest.approx(0.03),
        "max": pytest.approx(0.05),
        "share_within": 1.0,
    }
    numbers = {c["id"]: c["numbers"] for c in measure(*tables(CASES["C3 less faithful"][1]), SPEC)}
    assert numbers["C3"]["unseen_depth"] == {
        "cells": 3,
        "less_faithful": 2,
        "more_faithful": 1,
        "median_gap": 0.2,
    }
    numbers = {c["id"]: c["numbers"] for c in measure(*tables(curve(0.5, 0.8, 0.6, 1.0)), SPEC)}
    assert numbers["C2"]["same_prediction"] == {"steps": 3, "not_worse": 2}


def test_self_checks_take_the_worst_of_every_split_and_seed() -> None:
    shown = {"same_prediction": 1.0, "same_attention": 1.0, "attention_jsd": 0.0}
    shown |= {"output_jsd": 0.0, "output_kl": 0.0}
    rows = [
        value(proxy, split, metric, mean)
        for proxy in ("identity", "svd 2")
        for split in ("iid", "unseen_long")
        for metric, mean in shown.items()
    ]
    for row in rows:
        if row["method"] == "svd":
            row["value"] = 0.5
        elif (row["split"], row["metric"]) == ("unseen_long", "output_kl"):
            row["value"] = 1e-7
    floor = {"simplification": "svd(rank=4)@0.*.{query,key}", **shown}
    worse = floor | {"same_prediction": 0.999, "model_accuracy": 0.1}
    floors = [floor, worse, floor | {"output_kl": 1e-6}]
    rounded = [{"logits": x, "positions": 10, "ties": t} for x, t in ((1e-6, 0), (3e-6, 2), (0, 1))]
    noise = [{"floor": f, "rounding": r} for f, r in zip(floors, rounded, strict=True)]
    found = self_checks(pl.DataFrame(rows, RESULTS), noise)
    assert found["rounding"] == {"logits": 3e-6, "positions": 30, "ties": 3}
    assert found["identity"] == shown | {"output_kl": 1e-7}
    assert found["noise_floor"] == floor | {"same_prediction": 0.999, "output_kl": 1e-6}
    assert (
        self_checks(pl.DataFrame(rows, RESULTS), [{**noise[0], "floor": None}])["noise_floor"]
        is None
    )
