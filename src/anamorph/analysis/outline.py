"""A run in a few kilobytes, for programs: what was asked for, and what was found."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import polars as pl

from anamorph.analysis import controls
from anamorph.analysis.findings import IDENTITY, Findings, NamedProxy
from anamorph.analysis.summary import headline, notices
from anamorph.faithfulness.gaps import VERDICTS
from anamorph.faithfulness.metrics import JUDGED

MOST_CELLS = 100  # (view, split), for which there is room
MOST_SPECS = 20  # that were asked for
LONGEST = 200  # letters of a text of the specification
DIGITS = 4  # that count
VALUES = (JUDGED, "output_jsd", "output_kl", "proxy_accuracy")
OF_MODEL = ("model_accuracy", "model_cross_entropy")
VERSIONS = ("python", "torch", "numpy", "polars", "transformers", "commit", "machine")

Numbers = dict[tuple[str, str], dict[str, list[float | None]]]
"""By proxy and split, by metric: value, low and high."""


def outline(found: Findings) -> dict[str, Any]:
    """What a run found, in short.

    Returns:
        JSON values only, and none that is not a number. A number with an interval is a list of
        value, low and high, rounded to `DIGITS` digits that count; low and high are null where
        there is no interval. `views` has the most telling views, as many as `MOST_CELLS` allows;
        `shown` says how many these are. All counts are of all views.
    """
    counted = headline(found)._asdict()
    for name in ("hit", "spared", "reference"):
        del counted[name]
    shown = found.telling(max(1, MOST_CELLS // max(1, len(found.splits))))
    names = [IDENTITY, *(proxy.simplification for proxy in shown)]
    numbers = _numbers(found, names)
    floor = found.checks.get("noise_floor") or {}
    return {
        "complete": True,
        "run": str(found.path),
        "headline": headline(found).sentence,
        "notices": [f"{notice.title}. {notice.text}" for notice in notices(found)],
        "counts": counted,
        "verdicts": {split: _counts(found, split) for split in found.ood},
        "specification": specification(found),
        "splits": [_split(found, split) for split in found.splits],
        "model": {split: numbers.get((IDENTITY, split), {}) for split in found.splits},
        "views": [_view(found, proxy, numbers) for proxy in shown],
        "shown": {"views": len(shown), "of": len(found.proxies)},
        "controls": found.controls["simplification"].n_unique(),
        "of_controls": {
            title: said
            for title, said in controls.said(found).items()
            if title in found.telling_families
        },
        "claims": [{"id": claim["id"], "status": claim["status"]} for claim in found.claims],
        "noise_floor": {name: floor[name] for name in VALUES if name in floor},
        "report": str(found.report) if found.report.exists() else None,
    }


def specification(found: Findings) -> dict[str, Any]:
    """What was asked for, in short; `spec.json` has all of it."""
    spec = found.spec
    environment = spec.get("environment") or {}
    asked = [*spec.get("simplify", ()), *spec.get("each_layer", ()), *spec.get("each_head", ())]
    audit = spec.get("audit") or {}
    training = spec.get("training")
    return {
        "study": spec.get("study"),
        "preset": spec.get("preset"),
        "task": _plain(spec.get("task") or {}),
        "facts": list((spec.get("about") or {}).get("facts", ())),
        "model": _plain(spec.get("model") or {}),
        "training": _plain(training, ("steps", "batch_tokens", "optimizer")) if training else None,
        "seeds": found.seeds,
        "simplify": asked[:MOST_SPECS],
        "specs": len(asked),
        "audit": _plain(audit, ("by", "sequences", "fit_sequences", "until", "learnt")),
        "thresholds": vars(found.thresholds),
        "device": spec.get("device"),
        "versions": {"anamorph": spec.get("anamorph"), **_plain(environment, VERSIONS)},
    }


def _plain(values: Mapping[str, Any], names: tuple[str, ...] | None = None) -> dict[str, Any]:
    """Of some values the texts and numbers; long texts and what holds others are left out."""
    kept = {name: values[name] for name in names or values if name in values}
    texts = {name: value for name, value in kept.items() if isinstance(value, str)}
    numbers = {name for name, value in kept.items() if isinstance(value, int | float | None)}
    short = {name for name, text in texts.items() if len(text) <= LONGEST}
    return {name: value for name, value in kept.items() if name in numbers | short}


def _split(found: Findings, split: str) -> dict[str, Any]:
    """Name, role, and how much of it was seen, at most by any proxy."""
    rows = found.pooled.filter(split=split)
    return {
        "name": split,
        "role": rows["role"].first(),
        "sequences": rows["sequences"].max(),
        "scored": rows.filter(metric=JUDGED)["tokens"].max(),
    }


def _counts(found: Findings, split: str) -> dict[str, int]:
    """How often each verdict was given on a split; those that were not are left out."""
    counted = Counter(found.judged.filter(split=split)["verdict"].to_list())
    return {verdict: counted[verdict] for verdict in VERDICTS if counted[verdict]}


def _numbers(found: Findings, names: list[str]) -> Numbers:
    """The numbers of whole splits, over all models."""
    numbers: Numbers = {}
    rows = found.pooled.filter(
        pl.col("simplification").is_in(names), pl.col("metric").is_in([*VALUES, *OF_MODEL])
    ).select("simplification", "split", "metric", "value", "low", "high")
    for name, split, metric, *number in rows.iter_rows():
        if metric in (OF_MODEL if name == IDENTITY else VALUES):
            numbers.setdefault((name, split), {})[metric] = _short(*number)
    return numbers


def _view(found: Findings, proxy: NamedProxy, numbers: Numbers) -> dict[str, Any]:
    """A view: on every split its numbers, and on those beside the reference gap and verdict."""
    name = proxy.simplification
    judged = {row["split"]: row for row in found.cells.get(name, ())}
    splits = {}
    for split in found.splits:
        cell: dict[str, Any] = {}
        if split in judged:
            row = judged[split]
            cell = {"verdict": row["verdict"], "gap": _short(row["gap"], row["low"], row["high"])}
            if row["needed"] is not None:
                cell["needed"] = row["needed"]
        splits[split] = cell | numbers.get((name, split), {})
    return {"simplification": name, "splits": splits}


def _short(*numbers: float | None) -> list[float | None]:
    return [None if x is None else float(f"{x:.{DIGITS}g}") for x in numbers]
