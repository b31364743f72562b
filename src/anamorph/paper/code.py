"""The paper's claims on code completion, C9 and C10, as a study measures them.

Source of the claims: Friedman et al. 2023, arXiv 2312.03656.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anamorph.analysis.edited_heads import single_heads
from anamorph.analysis.words import FAILS, HOLDS, UNTESTED, families, method_label, split_label
from anamorph.faithfulness.gaps import WORSE
from anamorph.paper.tables import (
    CODE,
    Claim,
    Estimate,
    Finding,
    Tables,
    at_once,
    mean,
    most,
    number,
    over_models,
)

REPOSITORY = "unseen_repository"
RIGHT = "copying is right"  # a level of the facet "copying"
LEAST_SHARE = 0.01  # of the characters, for a kind of prediction to be compared
FEWEST_HEADS = 5  # for a correlation
SHUFFLES = 10_000  # of heads within their layers
CHANCE = 0.025  # one side of a 95 % interval
NO_HEADS = "not measured, or no size at which every head looks right"


def languages(t: Tables) -> list[str]:
    """The splits of unseen languages; empty if the study is not of code."""
    return [s for s in t.ood if s != REPOSITORY] if t.spec["task"]["name"] == "code" else []


def farther(t: Tables) -> Finding:
    """C9: a step costs a proxy agreement if the interval of the difference, over models, says so.

    Of languages the mean is taken; sequences of two splits are independent. The ends of intervals
    are added each to its side, as near an agreement of 1 they are not symmetric.
    """
    unseen = languages(t)
    if not unseen or REPOSITORY not in t.ood:
        return UNTESTED, "The study has no splits of unseen repositories and languages.", {}
    rows = t.of_each("same_prediction").filter(pl.col("method") != "identity")
    by_proxy: dict[str, list[dict[str, Estimate]]] = {}
    for (name, _), some in rows.group_by("simplification", "seed", maintain_order=True):
        points = _by_split(some.to_dicts())
        points["languages"] = mean([points[s] for s in unseen])
        by_proxy.setdefault(str(name), []).append(points)
    if not by_proxy:
        return UNTESTED, "No simplification was run.", {}
    steps = {}
    for a, b in (("iid", REPOSITORY), (REPOSITORY, "languages")):
        falls = [over_models([p[a].minus(p[b]) for p in models]) for models in by_proxy.values()]
        steps[f"{a} to {b}"] = {
            "less_faithful": sum(fall.low > 0 for fall in falls),
            "more_faithful": sum(fall.high < 0 for fall in falls),
            "median_fall": number(pl.Series([fall.value for fall in falls]).median()),
        }
    holds = all(step["less_faithful"] > step["more_faithful"] for step in steps.values())
    each = t.verdicts().group_by("split", maintain_order=True).agg(pl.col("gap").median())
    text = "; ".join(
        f"from {split_label(name)}: agreement falls significantly for {n['less_faithful']} of "
        f"{len(by_proxy)} proxies and rises for {n['more_faithful']}, median fall "
        f"{n['median_fall']:+.4f}"
        for name, n in steps.items()
    )
    medians = dict(each.iter_rows())
    by_split = ", ".join(f"{split_label(s)} {gap:+.4f}" for s, gap in medians.items())
    return (
        HOLDS if holds else FAILS,
        f"{text[0].upper()}{text[1:]}. Median gap to iid: {by_split}.",
        {"proxies": len(by_proxy), "steps": steps, "median_gaps": medians},
    )


def _by_split(rows: Sequence[dict[str, Any]]) -> dict[str, Estimate]:
    """The numbers of some rows by split; "iid" is that of training's kind, whatever its name."""
    return {"iid" if r["role"] == "iid" else r["split"]: Estimate.of(r) for r in rows}


def uneven(t: Tables) -> Finding:
    """C10: looked at is, of every family, the smallest proxy that looks right and has a gap.

    Proxies of single heads are left to the third part. Each part must be true of most families or
    methods; all three make the claim.
    """
    unseen = languages(t)
    if not unseen or t.facets.is_empty():
        return UNTESTED, "The study has no unseen languages, or no kinds of prediction.", {}
    if t.contrasts.is_empty():
        return UNTESTED, "The study has no contrasts to judge this by.", {}
    single = single_heads(t.results, t.spec["model"])
    iid = t.low_dimensional(t.cells("same_prediction", role="iid")).filter(
        pl.col("method") != "identity", ~pl.col("simplification").is_in(list(single))
    )
    right = [family.filter(pl.col("value") >= t.looks_right)[:1] for family in families(iid)]
    worse = t.verdicts().filter(pl.col("split").is_in(unseen), change=WORSE)["simplification"]
    names = [name for some in right for name in some["simplification"] if name in set(worse)]
    if not names:
        return UNTESTED, "No proxy that looks right on iid is less faithful on a language.", {}
    found = {name: _parts(t, name, unseen) for name in names}
    kinds, copies = (
        most([part[key] for part in found.values()]) for key in ("uneven", "copying_carries")
    )
    heads = _heads(t, unseen)
    induction = most([row["with_it"] for row in heads]) if heads else UNTESTED
    statuses = (kinds, copies, induction)
    status = FAILS if FAILS in statuses else UNTESTED if UNTESTED in statuses else HOLDS
    return (
        status,
        f"Kinds of prediction differ: {kinds}; copying carries more than its share: {copies}; the "
        f"more a head is an induction head, the more so: {induction}. "
        f"{' '.join(part['said'] for part in found.values())} Rank correlation, within layers, of "
        "a head's induction score with how much more it loses where copying is right: "
        f"{'; '.join(row['said'] for row in heads) or NO_HEADS}.",
        {"proxies": found, "heads": heads},
    )


def _parts(t: Tables, name: str, unseen: Sequence[str]) -> dict[str, Any]:
    """What a proxy says on the first two parts, in numbers and in words."""
    kinds, copying = (_by_level(t, name, facet, unseen) for facet in ("token kind", "copying"))
    common = {k: level for k, level in kinds.items() if level["share"] >= LEAST_SHARE}
    wide = at_once(max(1, len(common)))
    gaps = {k: Estimate(x["gap"], x["low"], x["high"]).widened(wide) for k, x in common.items()}
    top, bottom = (f(gaps, key=lambda k: gaps[k].value, default=None) for f in (max, min))
    each = list(_copying(t, name, unseen).values())
    more = over_models(each) if each else None
    repeated = copying.get(RIGHT, {"carried": 0.0, "share": 0.0})
    apart = gaps[top].low > gaps[bottom].high if top is not None and bottom is not None else None
    said = f"{name}, mean of the unseen languages:"
    if top is not None and bottom is not None:
        said += f" gap by kind from {top} {gaps[top]} to {bottom} {gaps[bottom]};"
    carries = None if more is None else True if more.low > 0 else False if more.high <= 0 else None
    if more is not None:
        said += f" the gap where copying is right less that elsewhere is {more};"
    said += f" such characters are {repeated['share']:.0%} of all and carry "
    said += f"{repeated['carried']:.0%} of the gap."
    numbers = {"kinds": kinds, "copying": copying, "more": None if more is None else more._asdict()}
    return numbers | {"uneven": apart, "copying_carries": carries, "said": said}


def _copying(t: Tables, name: str, unseen: Sequence[str]) -> dict[int, Estimate]:
    """By model the gap where copying is right less that elsewhere; those that were measured."""
    where = {"facet": "copying", "level": RIGHT, "metric": "same_prediction"}
    rows = t.contrasts.filter(simplification=name, **where).drop_nulls("seed")
    found = {}
    for (seed,), some in rows.group_by("seed", maintain_order=True):
        of = _by_split(some.to_dicts())
        far = [of[split] for split in unseen if split in of]
        if "iid" in of and far:
            found[int(number(seed))] = of["iid"].minus(mean(far))
    return found


def _by_level(
    t: Tables, name: str, facet: str, unseen: Sequence[str]
) -> dict[str, dict[str, float]]:
    """By level: gap with interval, share of the characters, and share of the gap it carries.

    Of several languages the means, all against one iid, and of several models the means. What a
    level carries is its disagreement times its share of the characters, on the languages less on
    iid, over the sum of that over the facet's levels.
    """
    gaps: dict[str, list[Estimate]] = {}
    found: dict[str, dict[str, float]] = {}
    where = {"simplification": name, "metric": "same_prediction"}
    whole = t.of_each(**where).select("seed", "split", of_split="tokens")
    models = whole["seed"].n_unique()
    rows = t.seeds.filter(facet=facet, **where).join(whole, on=["seed", "split"])
    rows = rows.with_columns(share=pl.col("tokens") / pl.col("of_split"))
    for (_, level), some in rows.group_by("seed", "level", maintain_order=True):
        of = _by_split(some.to_dicts())
        share = dict(zip(of, some["share"], strict=True))
        far = [split for split in unseen if split in of]
        if "iid" not in of or not far:
            continue
        gap = of["iid"].minus(mean([of[split] for split in far]))
        gaps.setdefault(str(level), []).append(gap)
        lost = sum(share[split] * (1 - of[split].value) for split in far) / len(unseen)
        sums = found.setdefault(str(level), {"share": 0.0, "carried": 0.0})
        sums["share"] += sum(share[split] for split in far) / len(unseen) / models
        sums["carried"] += (lost - share["iid"] * (1 - of["iid"].value)) / models
    total = sum(f["carried"] for f in found.values())
    for level, f in found.items():
        gap = over_models(gaps[level])
        f |= {"gap": gap.value, "low": gap.low, "high": gap.high}
        f["carried"] = f["carried"] / total if total > 0 else 0.0
    return found


def _heads(t: Tables, unseen: Sequence[str]) -> list[dict[str, Any]]:
    """By method, over the heads of all models: how their loss by copying goes with induction.

    All heads are looked at with one size: the smallest at which every one looks right on iid.
    """
    single = single_heads(t.results, t.spec["model"])
    if t.scores is None or not single:
        return []
    columns = ("seed", "layer", "head", "induction")
    scores = {tuple(at): score for *at, score in t.scores.select(columns).iter_rows()}
    methods: dict[str, dict[float, list[dict[str, Any]]]] = {}
    for row in t.of_each("same_prediction", role="iid").to_dicts():
        edited = single.get(row["simplification"])
        if edited is not None and not edited.shared:
            method = f"{method_label(row['method'])} · {', '.join(edited.kinds)}"
            size = float("inf") if row["size"] is None else row["size"]
            place = (row["seed"], edited.layer, edited.head)
            sizes = methods.setdefault(method, {})
            sizes.setdefault(size, []).append(row | {"place": place})
    found = []
    for method, sizes in methods.items():
        right = [s for s, rows in sizes.items() if all(r["value"] >= t.looks_right for r in rows)]
        if not right:
            continue
        rows = sizes[min(right)]
        named = rows[0]["size_name"]
        at = f" at {named} {min(right):g}" if named else ""
        known = []
        for row in rows:
            more = _copying(t, row["simplification"], unseen).get(row["seed"])
            if more is not None and row["place"] in scores:
                known.append((*row["place"][:2], scores[row["place"]], more.value))
        of_method = _within_layers(known)
        if of_method is not None:
            value, chance = of_method
            said = f"{method}{at} {value:+.2f} (p {chance:.4f}, {len(known)} heads)"
            numbers = {"method": method, "size": rows[0]["size"], "value": value, "p_value": chance}
            with_it = value > 0 and chance < CHANCE
            found.append(numbers | {"heads": len(known), "with_it": with_it, "said": said})
    return found


def _within_layers(points: Sequence[tuple[int, int, float, float]]) -> tuple[float, float] | None:
    """Spearman's correlation with ranks taken within each layer of each model, and its chance.

    Args:
        points: seed, layer and two numbers a head.

    Returns:
        the correlation, and the share of shuffles of heads within their layers that reach it; None
        if there are too few heads, or they are alike.
    """
    groups: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for seed, layer, x, y in points:
        groups.setdefault((seed, layer), []).append((x, y))
    rng = np.random.default_rng(0)
    real, drawn = 0.0, np.zeros(SHUFFLES)
    squares = np.zeros(2)
    for some in groups.values():
        found = pl.DataFrame(some, schema=["x", "y"], orient="row").select(pl.all().rank())
        ranks: NDArray[np.float64] = found.to_numpy() - (len(some) + 1) / 2
        x, y = ranks.T
        squares += (ranks**2).sum(0)
        real += float(x @ y)
        drawn += x[rng.random((SHUFFLES, len(some))).argsort(1)] @ y
    if len(points) < FEWEST_HEADS or not squares.all():
        return None
    reached = int((drawn >= real - 1e-9).sum())
    return real / float(np.sqrt(squares.prod())), (1 + reached) / (1 + SHUFFLES)


CLAIMS = (
    Claim(
        "C9",
        CODE,
        "Code: proxies of a next-character model are less faithful on unseen languages than on "
        "unseen repositories, and there less than in distribution.",
        "From iid to unseen repositories, and from there to the mean of the unseen languages, "
        "agreement falls for more proxies than it rises for, counting differences whose 95 % "
        "interval excludes 0.",
        farther,
    ),
    Claim(
        "C10",
        CODE,
        "Code: the gap is uneven over kinds of prediction; repeated words and the induction heads "
        "behind them carry much of it.",
        "Of most families the smallest proxy that looks right on iid and has a gap on unseen "
        "languages loses more on one kind of character than on another, and more where copying the "
        "last repetition is right than elsewhere (95 % intervals); and of most methods, at the "
        "smallest size at which every single head looks right, heads lose more by copying the "
        "higher they score as induction heads (ranks within layers, p < .025).",
        uneven,
    ),
)
