"""The page."""

import json
from collections.abc import Sequence
from itertools import chain, product
from typing import Any

from anamorph.analysis import words
from anamorph.analysis.findings import IDENTITY, MOST_FAMILIES, Findings, read
from anamorph.analysis.heads import correlations, rows
from anamorph.analysis.reported import lines
from anamorph.analysis.summary import Standing, evidence, headline, notices, standings
from anamorph.analysis.verdicts import Sentence, sentences
from anamorph.errors import AnamorphError
from anamorph.faithfulness.metrics import all_metrics, find_metric
from anamorph.files import replacing
from anamorph.report.charts.sections import draw
from anamorph.report.figure import Figure
from anamorph.report.frame import embedded, filled, frame
from anamorph.report.stills import check_names, write_stills
from anamorph.report.text_view import text_view
from anamorph.store import Address, address_of
from anamorph.tasks.about import About

MOST_HEADS = 40  # rows of a table of heads that are not folded away
MOST_PRINTED = 60  # rows of a folded table that is printed all the same
CHOICES = ("What the paper leaves open, as chosen here", "What this audit assumes")
MOST_REPORTED = 8  # proxies of which it is said what is usually reported
MOST_MEANS = 3  # proxies whose pooled and per-sequence means stand side by side


def render(run: Address | str, names: Sequence[str] | None = None) -> Address:
    """See `anamorph.report.render`."""
    check_names(names or ())
    content = read(address_of(run))
    if not content.proxies:
        raise AnamorphError(
            f"{run} holds results of the model alone, without a proxy; there is nothing to judge. "
            "Give at least one simplification and run again."
        )
    figures = draw(content)
    write_stills(list(chain(*figures.values())), content.path / "figures", names)
    page = _page(content, figures)
    target = content.path / "report.html"
    with replacing(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return target


def _page(run: Findings, figures: dict[str, list[Figure]]) -> str:
    texts = text_view(run)
    parts = frame(list(chain(*figures.values())), () if texts is None else ("text_view.js",))
    return filled(
        "report.html.j2",
        **parts,
        **_content(run),
        texts=None if texts is None else embedded(texts),
        run=run,
        figures=figures,
    )


def _content(run: Findings) -> dict[str, Any]:
    """What the page says and lists."""
    hidden = ("about", "choices", "environment", "paper_steps", "source")
    spec = {key: value for key, value in run.spec.items() if key not in hidden}
    tested = [claim for claim in run.claims if claim["status"] != words.UNTESTED]
    given = run.spec.get("training") is None

    def telling_first(found: Sequence[Standing] | Sequence[Sentence]) -> list[Any]:
        return sorted(found, key=lambda of_family: of_family.title not in run.telling_families)

    return {
        "headline": headline(run),
        "notices": notices(run),
        "standings": telling_first(standings(run)),
        "evidence": evidence(run),
        "sentences": telling_first(sentences(run)),
        "most_families": MOST_FAMILIES,
        "most_printed": MOST_PRINTED,
        "cells": _cells(run),
        "signs": words.SIGNS,
        "heads": _heads(run),
        "correlations": correlations(run.by_head) if run.by_head else [],
        "head_faithful": run.by_head.least if run.by_head else None,
        "shared_keys": run.by_head is not None and run.by_head.shared_keys,
        "means": _means(run),
        "reported": lines(run)[:MOST_REPORTED],
        "averages": About.of(run.spec).averages,
        "checks": _checks(run),
        "rounding": words.rounding_sentence(run.checks.get("rounding")),
        "halved": words.halved_sentence(run.checks.get("halved", 0)),
        "facts": _facts(run),
        "metrics": {name: find_metric(name) for name in run.metrics},
        "words": words.WORDS,
        "tested": tested,
        "untested": [claim for claim in run.claims if claim not in tested],
        "choices_title": CHOICES[given or not tested],  # the paper knows nothing of other tasks
        "specification": json.dumps(spec, indent=2, ensure_ascii=False),
    }


def _cells(run: Findings) -> list[dict[str, Any]]:
    """Every proxy and ood split with its verdict, in the order of the matrix."""
    place = {proxy.simplification: i for i, proxy in enumerate(run.proxies)}
    rows = run.judged.to_dicts()
    return sorted(rows, key=lambda r: (place[r["simplification"]], run.splits.index(r["split"])))


def _heads(run: Findings) -> list[dict[str, Any]]:
    """A table a way of simplifying heads and seed: its title, and its rows in two parts."""
    if run.by_head is None:
        return []
    made = []
    for method, seed in product(run.by_head.methods, run.seeds):
        found = [row for row in rows(run.by_head, method, run.splits) if row["seed"] == seed]
        title = f"{method}, seed {seed}" if len(run.seeds) > 1 else method
        made.append({"title": title, "parts": (found[:MOST_HEADS], found[MOST_HEADS:])})
    return made


def _means(run: Findings) -> list[tuple[str, list[float | None], list[float | None]]]:
    """Pooled and per-sequence means by split: the model's accuracy, then telling proxies."""
    wanted = [("Model accuracy", IDENTITY, "model_accuracy")]
    wanted += [
        (f"Same prediction, {run.label(p.simplification)}", p.simplification, "same_prediction")
        for p in run.telling(MOST_MEANS)
    ]
    table = []
    for label, simplification, metric in wanted:
        rows = run.pooled.filter(simplification=simplification)
        kinds = [
            dict(rows.filter(metric=name).select("split", "value").iter_rows())
            for name in (metric, f"{metric}_per_sequence")
        ]
        if all(kinds):
            pooled, each = ([kind.get(split) for split in run.splits] for kind in kinds)
            table.append((label, pooled, each))
    return table


def _checks(run: Findings) -> list[tuple[str, Any, Any]]:
    """Metric, worst value of the identity, worst value at full size (None where not measured)."""
    identity = run.checks.get("identity") or {}
    floor = run.checks.get("noise_floor") or {}
    names = [name for name in all_metrics() if name in identity or name in floor]
    return [(find_metric(name).label, identity.get(name), floor.get(name)) for name in names]


def _facts(run: Findings) -> list[tuple[str, str]]:
    """What was run, in a line each."""
    spec, seeds = run.spec, run.seeds
    task, audit = spec.get("task", {}), spec.get("audit", {})
    arguments = list(About.of(spec).facts)
    if isinstance(task.get("train"), int):
        count = task.get("splits", {}).get("train", {}).get("functions", task["train"])
        arguments.append(f"{count:,} training sequences")
    facts = [("Task", ", ".join([str(spec.get("study", "unnamed")), *arguments]))]
    model = spec.get("model", {})
    shape = [
        f"{model[k]} {k if model[k] != 1 else k[:-1]}" for k in ("layers", "heads") if k in model
    ]
    shape += [f"width {model['width']}"] if "width" in model else []
    shape = [str(model["name"]), *shape] if "name" in model else shape
    if shape:
        facts.append(("Model", ", ".join(shape)))
    if spec.get("training"):
        facts.append(("Seeds", words.listing(seeds)))
    controls = run.controls["simplification"].n_unique()
    beside = f", and {controls} control{'s' if controls > 1 else ''}" if controls else ""
    facts.append(("Proxies", f"{len(run.proxies)} in {len(run.families)} families{beside}"))
    facts.append(("Splits", words.listing([words.split_label(name) for name in run.splits])))
    if "matmul_precision" in spec:
        device = spec.get("accelerator") or str(spec.get("device", "cpu")).upper()
        dtype = model.get("dtype", "float32")
        products = f", matrix products {spec['matmul_precision']}" if dtype == "float32" else ""
        facts.append(("Computed", f"in {dtype}{products}, on {device}"))
    if "fit_sequences" in audit:
        facts.append(("Fitted on", f"{audit['fit_sequences']:,} training sequences"))
    return facts
