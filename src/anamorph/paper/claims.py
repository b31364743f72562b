"""The paper's claims C1–C10 as a study measures them: rule, direction, size and interval.

Each claim is a function of the tables alone, with a rule that was written down from what the paper
says. It *holds* or *does not hold* by that rule, is *not tested here* where the study has not what
it needs, and *not testable here* where the model has not learnt its task; and it gives its numbers.
Source of the claims: Friedman et al. 2023, arXiv 2312.03656.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

from anamorph.analysis.words import UNTESTABLE, UNTESTED, listing
from anamorph.faithfulness.metrics import all_metrics
from anamorph.paper import both as claims_both
from anamorph.paper import code as claims_code
from anamorph.paper import dyck as claims_dyck
from anamorph.paper.tables import Finding, Tables, not_learnt


class Claim(NamedTuple):
    """One of the paper's.

    Attributes:
        id: C1 to C10.
        tasks: the tasks that it speaks of.
        text: what the paper says.
        rule: when that counts as true of a study.
        judge: applies the rule.
    """

    id: str
    tasks: tuple[str, ...]
    text: str
    rule: str
    judge: Callable[[Tables], Finding]


DYCK, CODE = ("dyck",), ("code",)
BOTH = (*DYCK, *CODE)
TASKS = {"dyck": "Dyck languages", "code": "code completion"}

CLAIMS = (
    Claim(
        "C1",
        DYCK,
        "The model generalizes: near-perfect on seen and unseen structures, less on new depths.",
        "The model's accuracy is at least .98 on seen structures and on short and long unseen ones "
        "(the whole 95 % interval), and on unseen depth below all of these (no intervals overlap).",
        claims_dyck.generalizes,
    ),
    Claim(
        "C2",
        BOTH,
        "Faithfulness grows with the size of the simplification.",
        "Of the steps from one size of a family to the next, on every split, at most one in ten "
        "makes the proxy less faithful and more make it more faithful, by same prediction and by "
        "attention divergence; steps between sizes that both agree fully are not counted.",
        claims_both.grows,
    ),
    Claim(
        "C3",
        BOTH,
        "Proxies are less faithful on the systematic-generalization splits than in distribution.",
        "On each split of unseen depth, or of an unseen language, more proxies are less faithful "
        "than on iid than are more faithful, counting changes beyond the tolerance that are "
        "significant after correction.",
        claims_both.less_faithful,
    ),
    Claim(
        "C4",
        BOTH,
        "The gap goes both ways: some proxies fail where the model generalizes, some succeed where "
        "it fails.",
        "Among proxies that agree with the model on at least half of the positions, out of "
        "distribution, there is one that is right less often than the model where the two differ, "
        "and one that is right more often, by more than chance would give over all cells.",
        claims_both.both_ways,
    ),
    Claim(
        "C5",
        DYCK,
        "A simplification that is not fitted to data (one-hot attention) shows a gap too.",
        "One-hot attention that looks right on iid is less faithful on unseen depth, beyond the "
        "tolerance and significantly after correction.",
        claims_dyck.one_hot,
    ),
    Claim(
        "C6",
        DYCK,
        "The curves of iid and of unseen structure beyond 32 brackets nearly coincide.",
        "Same prediction on iid and on long unseen structures differs by at most .05 in at least "
        "90 % of the proxies.",
        claims_dyck.coincide,
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
        claims_dyck.departs,
    ),
    Claim(
        "C8",
        DYCK,
        "Clustering keys and queries behaves like truncating them.",
        "At every site where both were run, at least half of the pairs of a k-means and an SVD "
        "proxy that agree with the model equally on iid (within .05, and on at least half of the "
        "positions) have the same gap on unseen depth within .05, and it is not so that one of the "
        "two looks right on iid at some size and the other at none.",
        claims_dyck.clusters,
    ),
    Claim(
        "C9",
        CODE,
        "Code: proxies of a next-character model are less faithful on unseen languages than on "
        "unseen repositories, and there less than in distribution.",
        "From iid to unseen repositories, and from there to the mean of the unseen languages, "
        "agreement falls for more proxies than it rises for, counting differences whose 95 % "
        "interval excludes 0.",
        claims_code.farther,
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
        claims_code.uneven,
    ),
)


def measure(
    results: pl.DataFrame,
    gaps: pl.DataFrame,
    spec: Mapping[str, Any],
    scores: pl.DataFrame | None = None,
    contrasts: pl.DataFrame | None = None,
    matching: pl.DataFrame | None = None,
) -> list[dict[str, Any]]:
    """All claims: id, claim, rule, status, finding, numbers.

    Args:
        results: of a run.
        gaps: of a run.
        spec: of a run.
        scores: of its heads, all seeds together, if there are any.
        contrasts: of a run; without them C7 and C10 are not tested.
        matching: of a run, all seeds together; without it C7 is not tested.
    """
    tables = Tables(results, gaps, spec, scores, contrasts, matching)
    ignorant = not_learnt(tables)
    found = []
    for claim in CLAIMS:
        finding: Finding
        if spec["task"]["name"] not in claim.tasks:
            about = listing([TASKS[task] for task in claim.tasks])
            finding = UNTESTED, f"The claim is about {about}; this study is of another task.", {}
        elif ignorant is not None:
            finding = UNTESTABLE, ignorant, {}
        else:
            finding = claim.judge(tables)
        status, text, numbers = finding
        row = {"id": claim.id, "claim": claim.text, "rule": claim.rule}
        found.append({**row, "status": status, "finding": text, "numbers": numbers})
    return found


def self_checks(results: pl.DataFrame, noise: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The worst numbers of the identity proxy, and the noise floor.

    Args:
        results: of a run.
        noise: of each seed `anamorph.auditing.noise.noise_floor`, as `floor`, and `rounding`.

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
    return {
        name: metric.worst(values[name])
        for name, metric in all_metrics().items()
        if name in values and metric.about == "both" and metric.better
    }
