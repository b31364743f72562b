"""The paper's claims on Dyck languages, C1 and C5 to C8, as a study measures them.

Source of the claims: Friedman et al. 2023, arXiv 2312.03656.
"""

from typing import Any

import polars as pl

from anamorph.analysis.edited_heads import sites_of
from anamorph.analysis.words import FAILS, HOLDS, UNTESTED, families, split_label
from anamorph.faithfulness.gaps import LOOKS_RIGHT, UNDECIDED, WORSE
from anamorph.models.sites import match_sites
from anamorph.paper.both import HALF
from anamorph.paper.tables import DYCK, Claim, Estimate, Finding, Tables, most, number
from anamorph.tasks.dyck.task import TRAINED_DEPTH, WITHIN

STRUCTURE = ("seen_structure", "unseen_short", "unseen_long")
NEAR_PERFECT = 0.98  # accuracy
COINCIDE = 0.05  # of same_prediction, between two curves
MATCHES = 0.9  # of the scored positions, at which a head attends most to the opener
AGREEMENTS = ("same_attention", "same_prediction")


def generalizes(t: Tables) -> Finding:
    """C1: "no more than so much" and "at least" are judged by the ends of the intervals."""
    rows = t.cells("model_accuracy", method="identity").to_dicts()
    found = {row["split"]: Estimate.of(row) for row in rows}
    structure = [found[s] for s in STRUCTURE if s in found]
    if not structure or "unseen_depth" not in found:
        return UNTESTED, "The study has no structure and depth splits.", {}
    short = any(x.high < NEAR_PERFECT for x in structure)
    lower = found["unseen_depth"].high < min(x.low for x in structure)
    sure = all(x.low >= NEAR_PERFECT for x in structure)
    text = ", ".join(f"{split_label(s)} {x}" for s, x in found.items())
    text = f"Accuracy of the model: {text}. The paper reports about .75 to .80 on unseen depth."
    if lower and not short and not sure:
        text += f" Too few sequences to tell whether all structures are above {NEAR_PERFECT}."
    status = FAILS if short or not lower else HOLDS if sure else UNTESTED
    return status, text, {s: x._asdict() for s, x in found.items()}


def one_hot(t: Tables) -> Finding:
    """C5: of the one-hot proxies that look right, one has to be worse on unseen depth."""
    rows = t.verdicts().filter(method="onehot", split="unseen_depth", level=LOOKS_RIGHT)
    if rows.is_empty():
        return UNTESTED, "No one-hot attention that looks right on iid was run on unseen depth.", {}
    changes = rows["change"].to_list()
    by_name = {row["simplification"]: row for row in rows.to_dicts()}
    text = "; ".join(
        f"{name}: gap {Estimate.of(row, 'gap')}, {row['verdict']}" for name, row in by_name.items()
    )
    kept = ("gap", "low", "high", "p_value", "change")
    numbers = {name: {key: row[key] for key in kept} for name, row in by_name.items()}
    status = HOLDS if WORSE in changes else UNTESTED if UNDECIDED in changes else FAILS
    unsure = " Too few sequences to tell." if status == UNTESTED else ""
    return status, f"On unseen depth: {text}.{unsure}", numbers


def coincide(t: Tables) -> Finding:
    """C6: of the proxies, 90 % have to have a gap of at most .05, either way."""
    rows = t.verdicts().filter(split="unseen_long")
    if rows.is_empty():
        return UNTESTED, "The study has no split of long unseen structures.", {}
    off = rows["gap"].abs()
    median, largest, share = map(number, (off.median(), off.max(), (off <= COINCIDE).mean()))
    return (
        HOLDS if share >= 0.9 else FAILS,
        f"The two differ by {median:.3f} in the median proxy and {largest:.3f} at most; "
        f"{share:.0%} of proxies within {COINCIDE}. Pooled over tokens they must: nearly all far "
        "closers of an iid sample stand in unseen skeletons longer than 32.",
        {"median": median, "max": largest, "share_within": share},
    )


def departs(t: Tables) -> Finding:
    """C7: looked at is, of every SVD and PCA family in a matching layer, the smallest that passes.

    A layer matches if in every model one of its heads attends most to the opener in at least .9 of
    the scored positions of iid. The fall is the paired contrast of the facet "trained depth".
    """
    if t.contrasts.is_empty() or t.matching.is_empty():
        lacking = "contrasts" if t.contrasts.is_empty() else "how often heads attend the opener"
        return UNTESTED, f"The study has no {lacking} to judge this by.", {}
    matches = _matching_heads(t)
    right = t.cells("same_prediction", role="iid").filter(pl.col("method").is_in(["svd", "pca"]))
    picked = [
        family.filter(pl.col("value") >= t.looks_right).head(1)
        for family in families(t.low_dimensional(right))
        if _at_one_of(t, family["sites"][0], matches)
    ]
    numbers: dict[str, Any] = {}
    falls: list[bool | None] = []
    for name in [name for family in picked for name in family["simplification"]]:
        found = {metric: _by_depth(t, name, metric) for metric in AGREEMENTS}
        if all(found.values()):
            numbers[name] = found
            both = [Estimate.of(of["fall"]) for of in found.values()]
            yes, may = (all(x[end] > t.tolerance for x in both) for end in (1, 2))
            falls.append(True if yes else None if may else False)
    if not falls:
        return (
            UNTESTED,
            "No layer matches brackets, no low-dimensional view of one looks right on iid, or "
            "there are no sentences of unseen depth with the lengths of unseen_long.",
            {"matching": matches},
        )
    depth = t.spec["task"]["m"]
    text = "; ".join(
        f"{name}: "
        + ", ".join(
            f"{label} {of['iid']:.2f} on iid, {of['within']:.2f} up to depth {depth} and "
            f"{of['beyond']:.2f} beyond (fall {Estimate.of(of['fall'])})"
            for label, of in (("same key", n[AGREEMENTS[0]]), ("same prediction", n[AGREEMENTS[1]]))
        )
        for name, n in numbers.items()
    )
    where = ", ".join(f"{head} ({share:.0%} of the openers)" for head, share in matches.items())
    return (
        most(falls),
        f"Heads that match: {where}. On sentences of unseen depth, as long as others: {text}.",
        {"matching": matches, "proxies": numbers},
    )


def _matching_heads(t: Tables) -> dict[str, float]:
    """Heads ("1.0") that attend most to the opener on iid, in every model: the least share."""
    iid = t.cells("same_prediction", role="iid")["split"].to_list()
    rows = (
        t.matching.filter(pl.col("split").is_in(iid[:1]))
        .group_by("layer", "head", maintain_order=True)
        .agg(pl.col("value").min())
        .filter(pl.col("value") >= MATCHES)
    )
    return {f"{layer}.{head}": value for layer, head, value in rows.iter_rows()}


def _at_one_of(t: Tables, sites: str, heads: dict[str, float]) -> bool:
    """Whether a proxy edits keys and queries of one layer alone, and those of one of the heads."""
    of_model = sites_of(t.spec["model"])
    edited = [site for part in sites.split(";") for site in match_sites(part, of_model)]
    alone = len({s.layer for s in edited}) == 1 and {s.kind for s in edited} <= {"query", "key"}
    return alone and any(f"{s.layer}.{s.head}" in heads for s in edited)


def _by_depth(t: Tables, name: str, metric: str) -> dict[str, Any]:
    """Agreement on iid, on either side of the trained depth, and at each depth; and the fall.

    Empty where the fall was not measured.
    """
    where = {"simplification": name, "metric": metric, "split": "unseen_depth_matched"}
    of_all = t.contrasts.filter(pl.col("seed").is_null(), **where)
    fall = of_all.filter(facet=TRAINED_DEPTH, level=WITHIN).select("value", "low", "high")
    if fall.is_empty():
        return {}
    (iid,) = t.cells(metric, role="iid", simplification=name)["value"].to_list()
    here = t.facets.filter(**where)
    sides = dict(here.filter(facet=TRAINED_DEPTH).select("level", "value").iter_rows())
    return {
        "iid": iid,
        **sides,
        "fall": fall.row(0, named=True),
        "by_depth": dict(here.filter(facet="depth").select("level", "value").iter_rows()),
    }


def clusters(t: Tables) -> Finding:
    """C8: at a site, each k-means proxy is compared with the SVD proxy nearest to it on iid.

    Both must agree with the model on at least half of iid, within .05 of each other. Where the one
    looks right at no size that was run and the other does, they do not behave alike.
    """
    iid = t.cells("same_prediction", role="iid")
    rows = t.verdicts().filter(split="unseen_depth").select("simplification", "gap")
    iid = iid.join(rows, on="simplification", maintain_order="left")
    places: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in iid.filter(pl.col("method").is_in(["kmeans", "svd"])).to_dicts():
        shared = row["family"].removeprefix(row["method"]).removeprefix("@")  # site and options
        places.setdefault(shared, {"kmeans": [], "svd": []})[row["method"]].append(row)
    numbers: dict[str, Any] = {
        place: _alike(t, **of) for place, of in places.items() if of["kmeans"] and of["svd"]
    }
    judged = {place: n["alike"] for place, n in numbers.items() if n["alike"] is not None}
    if not judged:
        return (
            UNTESTED,
            "k-means and SVD were not run at one site, with the same options and on unseen depth, "
            "at sizes that agree with the model equally on iid.",
            numbers,
        )
    text = "; ".join(f"{place}: {n['said']}" for place, n in numbers.items())
    return HOLDS if all(judged.values()) else FAILS, f"{text}.", numbers


def _alike(t: Tables, kmeans: list[dict[str, Any]], svd: list[dict[str, Any]]) -> dict[str, Any]:
    """Whether two curves at a site are alike (None: undecided), in numbers and in words."""
    curves = {"k-means": kmeans, "SVD": svd}
    best = {method: max(row["value"] for row in rows) for method, rows in curves.items()}
    found: dict[str, Any] = {"best_on_iid": best, "pairs": []}
    poor, good = sorted(best, key=lambda method: best[method])
    if best[poor] < t.looks_right <= best[good]:
        said = f"{poor} looks right on iid at no size ({best[poor]:.2f} at best) and {good} does"
        return found | {"alike": False, "said": f"{said} ({best[good]:.2f}): not alike"}
    for row in kmeans:
        near = min(svd, key=lambda other: abs(other["value"] - row["value"]))
        if min(row["value"], near["value"]) < HALF or None in (row["gap"], near["gap"]):
            continue
        if abs(near["value"] - row["value"]) <= COINCIDE:
            found["pairs"].append({"kmeans_gap": row["gap"], "svd_gap": near["gap"]})
    alike = sum(abs(p["kmeans_gap"] - p["svd_gap"]) <= COINCIDE for p in found["pairs"])
    if not found["pairs"]:
        return found | {"alike": None, "said": "no two sizes agree with the model equally on iid"}
    return found | {
        "alike": alike >= len(found["pairs"]) / 2,
        "said": f"{alike} of {len(found['pairs'])} k-means proxies have the gap on unseen depth "
        f"(within {COINCIDE}) of the SVD proxy that agrees as well on iid",
    }


CLAIMS = (
    Claim(
        "C1",
        DYCK,
        "The model generalizes: near-perfect on seen and unseen structures, less on new depths.",
        "The model's accuracy is at least .98 on seen structures and on short and long unseen ones "
        "(the whole 95 % interval), and on unseen depth below all of these (no intervals overlap).",
        generalizes,
    ),
    Claim(
        "C5",
        DYCK,
        "A simplification that is not fitted to data (one-hot attention) shows a gap too.",
        "One-hot attention that looks right on iid is less faithful on unseen depth, beyond the "
        "tolerance and significantly after correction.",
        one_hot,
    ),
    Claim(
        "C6",
        DYCK,
        "The curves of iid and of unseen structure beyond 32 brackets nearly coincide.",
        "Same prediction on iid and on long unseen structures differs by at most .05 in at least "
        "90 % of the proxies.",
        coincide,
    ),
    Claim(
        "C7",
        DYCK,
        "A low-dimensional proxy shares the model's errors within the trained depth and departs "
        "from them beyond it.",
        "In layers that match brackets (a head attends most to the opener at 90 % of the positions "
        "of iid or more), the smallest rank of most SVD and PCA families that looks right on iid "
        "agrees with the model less beyond the trained depth than within it, on deep sentences of "
        "ordinary length, by the most attended key and by the prediction, each by more than the "
        "tolerance (95 % interval of the paired difference).",
        departs,
    ),
    Claim(
        "C8",
        DYCK,
        "Clustering keys and queries behaves like truncating them.",
        "At every site where both were run, at least half of the pairs of a k-means and an SVD "
        "proxy that agree with the model equally on iid (within .05, and on at least half of the "
        "positions) have the same gap on unseen depth within .05, and it is not so that one of the "
        "two looks right on iid at some size and the other at none.",
        clusters,
    ),
)
