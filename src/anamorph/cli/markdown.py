"""A run's numbers as Markdown, for documents."""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from anamorph.analysis.edited_heads import single_heads
from anamorph.analysis.findings import Findings
from anamorph.analysis.formats import markdown_of
from anamorph.analysis.summary import evidence, headline, notices
from anamorph.analysis.words import SIGNS, UNTESTED, split_label
from anamorph.cli.rows import (
    REPORTED,
    STANDING,
    Number,
    legend,
    of_controls,
    of_models,
    of_proxies,
    of_reported,
    of_views,
)
from anamorph.faithfulness.metrics import JUDGED
from anamorph.runs.folder import Run
from anamorph.tasks.about import About


def markdown(run: Run) -> str:
    """How good the models are, faithfulness and verdict of every proxy, and the claims.

    Of several seeds, proxies of a single head are summed up: the heads of two models have nothing
    to do with each other.
    """
    found = Findings(run.path, run.spec)
    several = len(found.seeds) > 1
    heads_of = single_heads(found.results, found.spec["model"]) if several else {}
    single = {
        name: name.replace(f"@{head.layer}.{head.head}.", "@layer.head.")
        for name, head in heads_of.items()
    }
    names = [split_label(split) for split in found.splits]
    parts = _summary(found)
    if checksum := About.of(run.spec).checksum:
        parts.append(f"Checksum of the data: `{checksum}`.")
    for title, metric, digits in (
        ("Accuracy of the models at scored positions", "model_accuracy", 4),
        ("Cross-entropy of the models at scored positions, bits", "model_cross_entropy", 3),
    ):
        numbers = of_models(found, metric)
        wanted = numbers if several else [None]
        lines = [_of_model(seed, numbers[seed], digits) for seed in wanted]
        parts += [f"{title}:", markdown_of(["seed", *names], lines)]
    proxies = [
        [f"`{name}`", *(f"{x:.3f} {SIGNS.get(verdict or '', '')}".strip() for x, verdict in cells)]
        for name, cells in of_proxies(found).items()
        if name not in single
    ]
    parts += [
        "Share of predictions that proxy and model have in common, over all seeds "
        f"({legend(found)}):",
        markdown_of(["proxy", *names], proxies),
    ]
    if told := of_reported(found):
        lines = [[name and f"`{name}`", called, *texts] for name, called, texts in told]
        parts += [f"{REPORTED}:", markdown_of(["proxy", "", *names], lines)]
    if single:
        parts += [
            "The same for proxies of a single head: median over the heads of all models, and the "
            "lowest and the highest:",
            markdown_of(["proxy of one head", *names], _heads(found, single)),
        ]
    tested = [claim for claim in found.claims if claim["status"] != UNTESTED]
    if tested:
        claims = [
            [c["id"], c["claim"], c.get("rule") or "–", f"**{c['status']}**", c["finding"]]
            for c in tested
        ]
        parts.append(markdown_of(["", "claim", "judged by", "here", "finding"], claims))
    if others := [claim["id"] for claim in found.claims if claim["status"] == UNTESTED]:
        parts.append(f"Not tested here: {', '.join(others)}.")
    return "\n\n".join(parts)


def _summary(found: Findings) -> list[str]:
    """Which views hold, on what evidence, and what must be known before."""
    parts = [f"**{notice.title}.** {notice.text}" for notice in notices(found)]
    parts += [f"**{headline(found).sentence}** {evidence(found).sentence}"]
    if views := of_views(found):
        parts.append(
            markdown_of(STANDING, [["<br>".join(each) or "–" for each in v] for v in views])
        )
    parts += of_controls(found)
    return parts


def _of_model(seed: int | None, numbers: Sequence[Number], digits: int) -> list[str]:
    """A row of a seed, or of all seeds, which has 95 % intervals."""
    cells = [f"{x.value:.{digits}f}" for x in numbers]
    if seed is not None:
        return [str(seed), *cells]
    ends = [
        "" if x.low is None else f" ({x.low:.{digits}f} to {x.high:.{digits}f})" for x in numbers
    ]
    return ["all", *map("".join, zip(cells, ends, strict=True))]


def _heads(found: Findings, single: Mapping[str, str]) -> list[list[str]]:
    """A row a method and size: median, lowest and highest over the heads of all models."""
    of_one = found.whole.drop_nulls("seed").filter(
        pl.col("simplification").is_in(list(single)), metric=JUDGED
    )
    named = pl.col("simplification").replace_strict(single)
    lines = []
    for (name,), some in of_one.group_by(named, maintain_order=True):
        values = (some.filter(split=split)["value"].to_numpy() for split in found.splits)
        cells = (f"{np.median(x):.3f} ({x.min():.3f} to {x.max():.3f})" for x in values)
        lines.append([f"`{name}`", *cells])
    return lines
