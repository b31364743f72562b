"""The paper's claims C1–C10 as a study measures them: direction, size and interval.

Each claim is a function of the tables alone. It says *holds* or *does not hold* by the rule in its
docstring, or *not tested here* where the study has not what it needs, and gives its numbers.
Source of the claims: Friedman et al. 2023, arXiv 2312.03656.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import polars as pl

from anamorph import claims_code
from anamorph.claims_tables import Finding, Tables, number, of_interval
from anamorph.report.words import FAILS, HOLDS, UNTESTED

TEXTS = {
    "C1": "The model generalizes: near-perfect on seen and unseen structures, less on new depths.",
    "C2": "Faithfulness grows with the size of the simplification.",
    "C3": "Proxies are less faithful on the systematic-generalization splits than in distribution.",
    "C4": "The gap goes both ways: some proxies fail where the model generalizes, some succeed "
    "where it fails.",
    "C5": "A simplification that is not fitted to data (one-hot attention) shows a gap too.",
    "C6": "The curves of iid and of unseen structure beyond 32 brackets nearly coincide.",
    "C7": "A low-dimensional proxy shares the model's errors within the trained depth and departs "
    "from them beyond it.",
    "C8": "Clustering keys and queries behaves like truncating them.",
    "C9": "Code: proxies of a next-character model are less faithful on unseen languages than on "
    "unseen repositories, and there less than in distribution.",
    "C10": "Code: the gap is uneven over kinds of prediction; repeated words and the induction "
    "heads behind them carry much of it.",
}

NEAR_PERFECT = 0.98  # accuracy
COINCIDE = 0.05  # of same_prediction, between two curves


def measure(
    results: pl.DataFrame,
    gaps: pl.DataFrame,
    spec: Mapping[str, Any],
    scores: pl.DataFrame | None = None,
) -> list[Any]:
    """All claims: id, claim, status, finding, numbers.

    Args:
        results: of a run.
        gaps: of a run.
        spec: of a run.
        scores: of its heads, all seeds together, if there are any.
    """
    tables = Tables(results, gaps, spec, scores)
    tests = {
        "C1": _generalizes,
        "C2": _grows,
        "C3": _less_faithful,
        "C4": _both_ways,
        "C5": _one_hot,
        "C6": _coincide,
        "C7": _departs,
        "C8": _clusters,
        "C9": claims_code.farther,
        "C10": claims_code.uneven,
    }
    found = []
    for name, test in tests.items():
        status, finding, numbers = test(tables)
        found.append(
            {
                "id": name,
                "claim": TEXTS[name],
                "status": status,
                "finding": finding,
                "numbers": numbers,
            }
        )
    return found


def self_checks(results: pl.DataFrame, noise: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The worst numbers of the identity proxy, and the noise floor.

    Args:
        results: of a run.
        noise: of each seed `anamorph.audit.noise_floor`, as `floor`, and `rounding`.

    Returns:
        `identity`: metric to worst value; `noise_floor`: the same over the seeds, with the spec
        string, or None if none was measured; `rounding`: the largest difference of logits, and the
        positions and ties of all seeds.
    """
    identity = results.filter(pl.col("facet").is_null() & (pl.col("method") == "identity"))
    floors = [n["floor"] for n in noise if n["floor"] is not None]
    rounded = [n["rounding"] for n in noise]
    return {
        "identity": _worst(
            {m: rows["value"].to_list() for (m,), rows in identity.group_by("metric")}
        ),
        "noise_floor": {
            "simplification": floors[0]["simplification"],
            **_worst({m: [f[m] for f in floors] for m in floors[0]}),
        }
        if floors
        else None,
        "rounding": {
            "logits": max(r["logits"] for r in rounded),
            "positions": sum(r["positions"] for r in rounded),
            "ties": sum(r["ties"] for r in rounded),
        },
    }


def _worst(values: Mapping[Any, Sequence[float]]) -> dict[str, float]:
    highest = ("attention_jsd", "output_jsd", "output_kl")
    lowest = ("same_prediction", "same_attention")
    return {m: min(values[m]) for m in lowest if m in values} | {
        m: max(values[m]) for m in highest if m in values
    }


def _generalizes(t: Tables) -> Finding:
    """Holds if accuracy is at least .98 on all structure splits, and lower on unseen depth."""
    rows = {r["split"]: r for r in t.cells("model_accuracy", method="identity").to_dicts()}
    structure = [s for s in ("seen_structure", "unseen_short", "unseen_long") if s in rows]
    if not structure or "unseen_depth" not in rows:
        return UNTESTED, "The study has no structure and depth splits.", {}
    near = all(rows[s]["value"] >= NEAR_PERFECT for s in structure)
    deeper = rows["unseen_depth"]
    lower = deeper["high"] < min(rows[s]["value"] for s in structure)
    text = ", ".join(f"{s} {of_interval(rows[s])}" for s in rows)
    return (
        HOLDS if near and lower else FAILS,
        f"Accuracy of the model: {text}. The paper reports about .75 to .80 on unseen depth.",
        {s: {k: r[k] for k in ("value", "low", "high")} for s, r in rows.items()},
    )


def _families(rows: pl.DataFrame) -> list[pl.DataFrame]:
    """The rows of every family of one method and place, by size."""
    sized = rows.filter(pl.col("size").is_not_null()).with_columns(
        family=pl.col("simplification").str.replace(r"(rank|clusters)=\d+", "")
    )
    families = sized.sort("size").group_by("family", maintain_order=True)
    return [family for _, family in families if len(family) > 1]


def _grows(t: Tables) -> Finding:
    """Holds if in at least 90 % of steps to the next size the proxy is no less faithful.

    A step counts against the claim if same_prediction falls, or attention_jsd rises, by more than
    half the width of the intervals.
    """
    numbers: dict[str, Any] = {}
    for metric, sign in (("same_prediction", 1), ("attention_jsd", -1)):
        steps = good = 0
        for split in t.splits:
            for family in _families(t.cells(metric, split=split)):
                rows = family.to_dicts()
                for a, b in pairwise(rows):
                    slack = max(r["high"] - r["low"] for r in (a, b)) / 2
                    steps += 1
                    good += sign * (b["value"] - a["value"]) >= -slack
        numbers[metric] = {"steps": steps, "not_worse": good}
    if not all(n["steps"] for n in numbers.values()):
        return UNTESTED, "No simplification was run at two sizes.", numbers
    share = {m: n["not_worse"] / n["steps"] for m, n in numbers.items()}
    return (
        HOLDS if min(share.values()) >= 0.9 else FAILS,
        "Going to the next size, same_prediction does not fall in "
        f"{share['same_prediction']:.0%} and attention_jsd does not rise in "
        f"{share['attention_jsd']:.0%} of {numbers['same_prediction']['steps']} steps.",
        numbers,
    )


def _less_faithful(t: Tables) -> Finding:
    """Holds if on unseen depth more proxies are significantly less faithful than are more."""
    numbers: dict[str, Any] = {}
    rows = t.verdicts()
    level = t.spec["audit"]["thresholds"]["level"]
    for split in t.ood:
        here = rows.filter((pl.col("split") == split) & (pl.col("p_value") < level))
        numbers[split] = {
            "cells": len(rows.filter(pl.col("split") == split)),
            "less_faithful": len(here.filter(pl.col("gap") > 0)),
            "more_faithful": len(here.filter(pl.col("gap") < 0)),
            "median_gap": rows.filter(pl.col("split") == split)["gap"].median(),
        }
    depth = [s for s in ("unseen_depth", "unseen_depth_matched") if s in numbers]
    if not depth:
        return UNTESTED, "The study has no split of unseen depth.", numbers
    holds = all(numbers[s]["less_faithful"] > numbers[s]["more_faithful"] for s in depth)
    text = "; ".join(
        f"{s}: {n['less_faithful']} of {n['cells']} proxies significantly less faithful, "
        f"{n['more_faithful']} more, median gap {n['median_gap']:+.3f}"
        for s, n in numbers.items()
    )
    return (
        HOLDS if holds else FAILS,
        f"{text}. Judged on unseen depth: seen and short structures are easier than iid, which "
        "is mostly long sentences.",
        numbers,
    )


def _both_ways(t: Tables) -> Finding:
    """Holds if in some `ood` cell the proxy is right more often than the model, and in some less.

    Counted are cells with disjoint intervals, of proxies that agree with the model on at least half
    of the positions: one that destroys the model says nothing.
    """
    model = t.cells("model_only_right").rename({"value": "model_only", "low": "mlow"})
    proxy = t.cells("proxy_only_right").rename({"value": "proxy_only", "low": "plow"})
    same = t.cells("same_prediction").rename({"value": "same"})
    keys = ["simplification", "split"]
    rows = (
        model.select(*keys, "role", "method", "model_only", "mlow", mhigh="high")
        .join(proxy.select(*keys, "proxy_only", "plow", phigh="high"), on=keys)
        .join(same.select(*keys, "same"), on=keys)
        .filter((pl.col("role") == "ood") & (pl.col("method") != "identity"))
        .filter(pl.col("same") >= 0.5)
    )
    if not len(rows):
        return UNTESTED, "No proxy agrees with the model on half the positions.", {}
    under = rows.filter(pl.col("mlow") > pl.col("phigh"))
    over = rows.filter(pl.col("plow") > pl.col("mhigh"))
    words = []
    for side, column, table in (
        ("model alone is right", "model_only", under),
        ("proxy alone is right", "proxy_only", over),
    ):
        if len(table):
            top = table.sort(column, descending=True).row(0, named=True)
            words.append(
                f"most often the {side}: {top['simplification']} on {top['split']} "
                f"({top['model_only']:.3f} model alone, {top['proxy_only']:.3f} proxy alone)"
            )
    numbers = {"under": len(under), "over": len(over), "cells": len(rows)}
    return (
        HOLDS if len(under) and len(over) else FAILS,
        f"Of {len(rows)} cells, in {len(under)} the model alone is right significantly more often "
        f"than the proxy alone, in {len(over)} less often"
        + (f"; {'; '.join(words)}." if words else "."),
        numbers,
    )


def _one_hot(t: Tables) -> Finding:
    """Holds if a one-hot proxy has a significant positive gap on unseen depth."""
    rows = t.verdicts().filter((pl.col("method") == "onehot") & (pl.col("split") == "unseen_depth"))
    if not len(rows):
        return UNTESTED, "One-hot attention was not run on unseen depth.", {}
    level = t.spec["audit"]["thresholds"]["level"]
    found = rows.filter((pl.col("p_value") < level) & (pl.col("gap") > 0))
    text = "; ".join(
        f"{r['simplification']}: gap {of_interval(r, 'gap')}, {r['verdict']}"
        for r in rows.to_dicts()
    )
    numbers = {
        r["simplification"]: {k: r[k] for k in ("gap", "low", "high", "p_value")}
        for r in rows.to_dicts()
    }
    return HOLDS if len(found) else FAILS, f"On unseen depth: {text}.", numbers


def _coincide(t: Tables) -> Finding:
    """Holds if iid and unseen_long differ by at most .05 of same_prediction in 90 % of proxies."""
    rows = t.verdicts().filter(pl.col("split") == "unseen_long")
    if not len(rows):
        return UNTESTED, "The study has no split of long unseen structures.", {}
    off = rows["gap"].abs()
    median, most, share = map(number, (off.median(), off.max(), (off <= COINCIDE).mean()))
    return (
        HOLDS if share >= 0.9 else FAILS,
        f"The two differ by {median:.3f} in the median proxy and {most:.3f} at most; "
        f"{share:.0%} of proxies within {COINCIDE}. Pooled over tokens they must: nearly all far "
        "closers of an iid sample stand in unseen skeletons longer than 32.",
        {"median": median, "max": most, "share_within": share},
    )


def _departs(t: Tables) -> Finding:
    """Holds if agreement on unseen depth is lower beyond the trained depth than up to it.

    Looked at is, of every SVD and PCA family, the smallest proxy that looks faithful on the
    reference; most of them must fall by more than .02.
    """
    trained = t.spec["task"].get("m")
    right = t.spec["audit"]["thresholds"]["faithful"]
    candidates = [
        family.filter(pl.col("value") >= right).head(1)
        for family in _families(t.cells("same_prediction", role="iid"))
        if family["method"][0] in ("svd", "pca")
    ]
    picked = [row for table in candidates for row in table.to_dicts()]
    rows = t.facets.filter(
        (pl.col("facet") == "depth")
        & (pl.col("split") == "unseen_depth")
        & (pl.col("metric") == "same_prediction")
    )
    if trained is None or not picked or not len(rows):
        return UNTESTED, "No low-dimensional proxy looks faithful on iid, or no depths.", {}
    numbers = {}
    for row in picked:
        name = row["simplification"]
        levels = rows.filter(pl.col("simplification") == name).with_columns(
            beyond=pl.col("level").cast(pl.Int32) > trained
        )
        mean = (pl.col("value") * pl.col("tokens")).sum() / pl.col("tokens").sum()
        means = dict(levels.group_by("beyond").agg(mean).iter_rows())
        if len(means) == 2:
            numbers[name] = {"within": means[False], "beyond": means[True]}
    if not numbers:
        return UNTESTED, "Too few scored positions on either side of the trained depth.", {}
    fall = [n["within"] - n["beyond"] for n in numbers.values()]
    text = "; ".join(
        f"{name}: {n['within']:.3f} up to depth {trained}, {n['beyond']:.3f} beyond"
        for name, n in numbers.items()
    )
    return (
        HOLDS if sum(f > 0.02 for f in fall) > len(fall) / 2 else FAILS,
        f"Agreement with the model on unseen depth: {text}.",
        numbers,
    )


def _clusters(t: Tables) -> Finding:
    """Holds if k-means has the gap that SVD has where both are as faithful on the reference.

    Each k-means proxy is paired with the SVD proxy that is nearest to it on iid, within .05; in at
    least half of the pairs the gaps on unseen depth must lie within .05 of each other.
    """
    iid = t.cells("same_prediction", role="iid").select("simplification", iid="value")
    gaps = t.verdicts().filter(pl.col("split") == "unseen_depth").join(iid, on="simplification")
    kmeans = gaps.filter(pl.col("method") == "kmeans").to_dicts()
    svd = gaps.filter(pl.col("method") == "svd").to_dicts()
    if not kmeans or not svd:
        return UNTESTED, "k-means and SVD were not both run on unseen depth.", {}
    pairs = []
    for row in kmeans:
        alike = [s for s in svd if s["sites"] == row["sites"]]
        if not alike:
            continue
        near = min(alike, key=lambda s: abs(s["iid"] - row["iid"]))
        if abs(near["iid"] - row["iid"]) <= COINCIDE:
            pairs.append((row["gap"], near["gap"]))
    if not pairs:
        return UNTESTED, "No k-means and SVD proxies are alike on iid.", {}
    alike = sum(abs(a - b) <= COINCIDE for a, b in pairs)
    return (
        HOLDS if alike >= len(pairs) / 2 else FAILS,
        f"Of {len(pairs)} k-means proxies with an SVD proxy that is as faithful on iid (within "
        f"{COINCIDE}), {alike} have a gap on unseen depth within {COINCIDE} of that proxy's.",
        {"pairs": [{"kmeans_gap": a, "svd_gap": b} for a, b in pairs]},
    )
