"""The paper's claims on proxies of any task, C2 to C4, as a study measures them.

Source of the claims: Friedman et al. 2023, arXiv 2312.03656.
"""

from itertools import pairwise
from typing import Any

import polars as pl

from anamorph.analysis.words import FAILS, HOLDS, UNTESTED, families, split_label
from anamorph.faithfulness.gaps import BETTER, WORSE
from anamorph.faithfulness.metrics import find_metric
from anamorph.paper.code import languages
from anamorph.paper.tables import BOTH, Claim, Finding, Tables, at_once

FULL = 1 - 1e-9  # agreement that an interval reaches
ROUNDING = 1e-6  # bits of divergence up to which all is rounding
NOT_FALLING = 0.9  # of the steps to the next size
HALF = 0.5  # same_prediction below which a proxy destroys the model


def grows(t: Tables) -> Finding:
    """C2: a step counts where it is longer than half an interval, and not between two full sizes.

    Full are sizes whose interval of same_prediction reaches 1, or whose attention_jsd is rounding.
    """
    numbers: dict[str, Any] = {}
    for metric, sign in (("same_prediction", 1), ("attention_jsd", -1)):
        count = {"steps": 0, "rises": 0, "falls": 0, "saturated": 0}
        for split in t.splits:
            for family in families(t.cells(metric, split=split).drop_nulls("size")):
                for a, b in pairwise(family.to_dicts()):
                    if _full(metric, a) and _full(metric, b):
                        count["saturated"] += 1
                        continue
                    slack = max(r["high"] - r["low"] for r in (a, b)) / 2
                    step = sign * (b["value"] - a["value"])
                    count["steps"] += 1
                    count["rises"] += step > slack
                    count["falls"] += step < -slack
        numbers[metric] = count
    if not all(n["steps"] for n in numbers.values()):
        return UNTESTED, "No simplification was run at two sizes that differ in anything.", numbers
    holds = all(
        n["falls"] <= (1 - NOT_FALLING) * n["steps"] and n["rises"] > n["falls"]
        for n in numbers.values()
    )
    text = "; ".join(
        f"{find_metric(metric).label}: of {n['steps']} steps to the next size {n['rises']} make "
        f"the proxy more faithful, {n['falls']} less"
        for metric, n in numbers.items()
    )
    left = max(n["saturated"] for n in numbers.values())
    return (
        HOLDS if holds else FAILS,
        f"{text}. Not counted: up to {left} steps between sizes that agree fully.",
        numbers,
    )


def _full(metric: str, row: dict[str, Any]) -> bool:
    return bool(row["high"] >= FULL if metric == "same_prediction" else row["value"] <= ROUNDING)


def less_faithful(t: Tables) -> Finding:
    """C3: counted are the proxies whose change is "worse" and "better" (after correction)."""
    numbers: dict[str, Any] = {}
    for split in t.ood:
        here = t.verdicts().filter(split=split)
        numbers[split] = {
            "cells": len(here),
            "less_faithful": len(here.filter(change=WORSE)),
            "more_faithful": len(here.filter(change=BETTER)),
            "median_gap": here["gap"].median(),
        }
    far = [s for s in ("unseen_depth", "unseen_depth_matched", *languages(t)) if s in numbers]
    if not any(numbers[s]["cells"] for s in far):
        lacking = "The study has no verdicts on unseen depth or on unseen languages."
        return UNTESTED, lacking, numbers
    holds = all(numbers[s]["less_faithful"] > numbers[s]["more_faithful"] for s in far)
    text = "; ".join(
        f"{split_label(s)}: {n['less_faithful']} of {n['cells']} proxies less faithful, "
        f"{n['more_faithful']} more, median gap {n['median_gap']:+.3f}"
        for s, n in numbers.items()
        if n["cells"]
    )
    nearer = (
        " Seen and short structures are not judged: they are easier than iid, which is mostly long "
        "sentences."
        if t.spec["task"]["name"] == "dyck"
        else ""
    )
    return HOLDS if holds else FAILS, f"{text}.{nearer}", numbers


def both_ways(t: Tables) -> Finding:
    """C4: counted are cells of proxies that agree on at least half of the positions.

    One that destroys the model says nothing. In every model the two intervals have to be disjoint
    when they are widened to hold for all these cells at once.
    """
    keys = ["seed", "simplification", "split"]
    same = t.of_each("same_prediction", role="ood").filter(pl.col("method") != "identity")
    rows = same.filter(pl.col("value").mean().over("simplification", "split") >= HALF).select(keys)
    for who in ("model", "proxy"):
        ends = {f"{who}_only": "value", f"{who}_low": "low", f"{who}_high": "high"}
        rows = rows.join(t.of_each(f"{who}_only_right").select(*keys, **ends), on=keys)
    model, proxy = pl.col("model_only"), pl.col("proxy_only")
    below = (model - pl.col("model_low")) + (pl.col("proxy_high") - proxy)
    above = (pl.col("model_high") - model) + (proxy - pl.col("proxy_low"))
    if rows.is_empty():
        return UNTESTED, "No proxy agrees with the model on half the positions.", {}
    wide = at_once(rows.select("simplification", "split").n_unique())  # in each model
    rows = (
        rows.with_columns(under=model - proxy > wide * below, over=proxy - model > wide * above)
        .group_by("simplification", "split", maintain_order=True)
        .agg(pl.col("under", "over").all(), pl.col("model_only", "proxy_only").mean())
    )
    under, over = rows.filter("under"), rows.filter("over")
    words = []
    for who, table in (("model", under), ("proxy", over)):
        if len(table):
            top = table.sort(f"{who}_only", descending=True).row(0, named=True)
            words.append(
                f"most often the {who} alone is right: {top['simplification']} on "
                f"{split_label(top['split'])} "
                f"({top['model_only']:.3f} model alone, {top['proxy_only']:.3f} proxy alone)"
            )
    numbers = {"under": len(under), "over": len(over), "cells": len(rows)}
    return (
        HOLDS if len(under) and len(over) else FAILS,
        f"Of {len(rows)} cells, in {len(under)} the model alone is shown to be right more often "
        f"than the proxy alone, in {len(over)} less often"
        + (f"; {'; '.join(words)}." if words else "."),
        numbers,
    )


CLAIMS = (
    Claim(
        "C2",
        BOTH,
        "Faithfulness grows with the size of the simplification.",
        "Of the steps from one size of a family to the next, on every split, at most one in ten "
        "makes the proxy less faithful and more make it more faithful, by same prediction and by "
        "attention divergence; steps between sizes that both agree fully are not counted.",
        grows,
    ),
    Claim(
        "C3",
        BOTH,
        "Proxies are less faithful on the systematic-generalization splits than in distribution.",
        "On each split of unseen depth, or of an unseen language, more proxies are less faithful "
        "than on iid than are more faithful, counting changes beyond the tolerance that are "
        "significant after correction.",
        less_faithful,
    ),
    Claim(
        "C4",
        BOTH,
        "The gap goes both ways: some proxies fail where the model generalizes, some succeed where "
        "it fails.",
        "Among proxies that agree with the model on at least half of the positions, out of "
        "distribution, there is one that is right less often than the model where the two differ, "
        "and one that is right more often, by more than chance would give over all cells.",
        both_ways,
    ),
)
