"""The paper's claims on code completion, C9 and C10, as a study measures them.

Source of the claims: Friedman et al. 2023, arXiv 2312.03656.
"""

import math
from statistics import stdev
from typing import Any

import polars as pl

from anamorph.claims_tables import Finding, Tables, number, of_interval
from anamorph.faithfulness import level_gaps
from anamorph.faithfulness.levels import Z
from anamorph.report.heads import correlations
from anamorph.report.words import FAILS, HOLDS, UNTESTED

REPOSITORY = "unseen_repository"
LEAST_SHARE = 0.01  # of the characters, for a kind of prediction to be compared
MUCH = 0.25  # of the gap


def languages(t: Tables) -> list[str]:
    """The splits of unseen languages; none if the study is not one of code."""
    return [s for s in t.ood if s != REPOSITORY] if REPOSITORY in t.ood else []


def farther(t: Tables) -> Finding:
    """C9 holds if both steps away, to repositories and from there to languages, cost agreement.

    A step costs agreement if it does so significantly (95 % interval of the difference, over
    sequences and models) for more proxies than it gains agreement for. Of languages the mean is
    taken.
    """
    unseen = languages(t)
    if not unseen:
        return UNTESTED, "The study has no splits of unseen repositories and languages.", {}
    rows = t.seeds.filter(
        pl.col("facet").is_null(),
        pl.col("metric") == "same_prediction",
        pl.col("method") != "identity",
    )
    by_proxy: dict[str, list[dict[str, tuple[float, float]]]] = {}
    for (name, _), some in rows.group_by("simplification", "seed", maintain_order=True):
        of = {row["split"]: (row["value"], _error(row)) for row in some.iter_rows(named=True)}
        near = next(row["split"] for row in some.iter_rows(named=True) if row["role"] == "iid")
        points = {"iid": of[near], REPOSITORY: of[REPOSITORY]}
        points["languages"] = _mean([of[s] for s in unseen])
        by_proxy.setdefault(str(name), []).append(points)
    steps = {}
    for a, b in (("iid", REPOSITORY), (REPOSITORY, "languages")):
        falls = [
            over_models([(p[a][0] - p[b][0], math.hypot(p[a][1], p[b][1])) for p in models])
            for models in by_proxy.values()
        ]
        steps[f"{a} to {b}"] = {
            "less_faithful": sum(fall > Z * error for fall, error in falls),
            "more_faithful": sum(fall < -Z * error for fall, error in falls),
            "median_fall": number(pl.Series([fall for fall, _ in falls]).median()),
        }
    holds = all(step["less_faithful"] > step["more_faithful"] for step in steps.values())
    each = t.verdicts().group_by("split", maintain_order=True).agg(pl.col("gap").median())
    text = "; ".join(
        f"from {name.replace('_', ' ')}: agreement falls significantly for {n['less_faithful']} of "
        f"{len(by_proxy)} proxies and rises for {n['more_faithful']}, median fall "
        f"{n['median_fall']:+.4f}"
        for name, n in steps.items()
    )
    medians = dict(each.iter_rows())
    by_split = ", ".join(f"{s.replace('_', ' ')} {gap:+.4f}" for s, gap in medians.items())
    return (
        HOLDS if holds else FAILS,
        f"{text[0].upper()}{text[1:]}. Median gap to iid: {by_split}.",
        {"proxies": len(by_proxy), "steps": steps, "median_gaps": medians},
    )


def uneven(t: Tables) -> Finding:
    """C10 holds if kinds differ, repetition carries much of the gap, and induction goes with it.

    Looked at is the proxy that looks right on iid and loses most agreement on unseen languages.
    Three parts: the gaps of two kinds of token (each at least 1 % of the characters) have disjoint
    intervals; characters that copying predicts rightly carry at least a quarter of the gap; and
    over heads the induction score correlates positively with the largest gap (95 % interval).
    """
    unseen = languages(t)
    right = t.spec["audit"]["thresholds"]["faithful"]
    iid = t.cells("same_prediction", role="iid").filter(
        (pl.col("value") >= right) & (pl.col("method") != "identity")
    )
    gaps = t.verdicts().filter(
        pl.col("split").is_in(unseen)
        & pl.col("simplification").is_in(iid["simplification"].to_list())
    )
    if not unseen or not len(gaps) or not len(t.facets):
        return UNTESTED, "No proxy of a code model looks right on iid, or there are no facets.", {}
    means = gaps.group_by("simplification", maintain_order=True).agg(pl.col("gap").mean())
    name, gap = means.sort("gap", descending=True).row(0)
    kinds = _by_level(t, name, "token kind", unseen)
    copying = _by_level(t, name, "copying", unseen)
    common = {level: k for level, k in kinds.items() if k["share"] >= LEAST_SHARE}
    most, least = (f(common, key=lambda level: common[level]["gap"]) for f in (max, min))
    apart = common[most]["low"] > common[least]["high"]
    repeated = copying.get("copying is right", {"carried": 0.0, "share": 0.0})
    of_heads = [] if t.heads is None else correlations(t.heads)
    induction = [row for row in of_heads if row["score"] == "induction"]
    with_it = [row for row in induction if row["low"] > 0]
    holds = apart and repeated["carried"] >= MUCH and bool(with_it)
    text = (
        f"{name}, mean of the unseen languages: gap {gap:+.4f}; by kind from {most} "
        f"{of_interval(common[most], 'gap')} to {least} {of_interval(common[least], 'gap')}. "
        f"Characters that copying predicts rightly are {repeated['share']:.0%} of all and carry "
        f"{repeated['carried']:.0%} of the gap. "
    )
    text += "Rank correlation of a head's induction score with its largest gap: " + (
        "; ".join(f"{r['method']} {of_interval(r)}" for r in induction) or "not measured"
    )
    numbers = {
        "simplification": name,
        "gap": gap,
        "kinds": kinds,
        "copying": copying,
        "heads": of_heads,
    }
    return HOLDS if holds else FAILS, f"{text}.", numbers


def _error(row: dict[str, Any]) -> float:
    """The standard error behind an interval; 0 if it has none."""
    return 0.0 if row["low"] is None else (float(row["high"]) - float(row["low"])) / (2 * Z)


def _mean(found: list[tuple[float, float]]) -> tuple[float, float]:
    """The mean of independent numbers with their standard errors."""
    values, errors = zip(*found, strict=True)
    return sum(values) / len(found), math.hypot(*errors) / len(found)


def over_models(found: list[tuple[float, float]]) -> tuple[float, float]:
    """The mean over models of numbers with their standard errors, and its own.

    That is what the spread of the models says, or what their errors say if that is more: of three
    models the spread alone is little to go by.
    """
    mean, within = _mean(found)
    if len(found) == 1:
        return mean, within
    return mean, max(within, stdev(value for value, _ in found) / math.sqrt(len(found)))


def _by_level(t: Tables, name: str, facet: str, unseen: list[str]) -> dict[str, dict[str, float]]:
    """By level: gap with interval, share of the characters, and share of the gap it carries.

    Of several languages the means, all against one iid, and of several models the means. What a
    level carries is its disagreement times its share of the characters, on the languages less on
    iid, over the sum of that over the facet's levels.
    """
    gaps: dict[str, list[tuple[float, float]]] = {}
    found: dict[str, dict[str, float]] = {}
    seeds = t.seeds["seed"].unique().sort().to_list()
    of_facet = t.seeds.filter(
        pl.col("simplification") == name, pl.col("facet").is_null() | (pl.col("facet") == facet)
    )
    for seed in seeds:
        rows = level_gaps(of_facet, seed).filter(pl.col("split").is_in(unseen))
        for (level,), some in rows.group_by("level", maintain_order=True):
            of = some.to_dicts()
            gap, error = _mean([(row["gap"], row["error"] or 0.0) for row in of])
            error = math.hypot(error, of[0]["iid_error"] or 0.0)
            gaps.setdefault(str(level), []).append((gap, error))
            lost = sum(row["share"] * (1 - row["value"]) for row in of) / len(unseen)
            carried = lost - of[0]["iid_share"] * (1 - of[0]["iid"])
            sums = found.setdefault(str(level), {"share": 0.0, "carried": 0.0})
            sums["share"] += sum(row["share"] for row in of) / len(unseen) / len(seeds)
            sums["carried"] += carried / len(seeds)
    whole = sum(f["carried"] for f in found.values())
    for level, f in found.items():
        gap, error = over_models(gaps[level])
        f |= {"gap": gap, "low": gap - Z * error, "high": gap + Z * error}
        f["carried"] = f["carried"] / whole if whole > 0 else 0.0
    return found
