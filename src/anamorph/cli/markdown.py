"""A run's numbers as Markdown, for documents."""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from anamorph.analysis.edited_heads import single_heads
from anamorph.analysis.findings import read
from anamorph.analysis.summary import evidence, headline, notices, standings
from anamorph.analysis.words import SIGNS, UNTESTED
from anamorph.cli.tables import LEGEND
from anamorph.runs.folder import Run
from anamorph.tasks.about import About


def markdown(run: Run) -> str:
    """How good the models are, faithfulness and verdict of every proxy, and the claims.

    Of several seeds, proxies of a single head are summed up: the heads of two models have nothing
    to do with each other.
    """
    results = run.results.filter(pl.col("facet").is_null())
    pooled = results.filter(pl.col("seed").is_null())
    splits = pooled["split"].unique(maintain_order=True).to_list()
    names = [split.replace("_", " ") for split in splits]
    several = len(run.spec["seeds"]) > 1
    heads_of = single_heads(run.results, run.spec["model"]) if several else {}
    single = {
        name: name.replace(f"@{head.layer}.{head.head}.", "@layer.head.")
        for name, head in heads_of.items()
    }
    parts = []
    if checksum := About.of(run.spec).checksum:
        parts.append(f"Checksum of the data: `{checksum}`.")
    for title, metric, digits in (
        ("Accuracy of the models at scored positions", "model_accuracy", 4),
        ("Cross-entropy of the models at scored positions, bits", "model_cross_entropy", 3),
    ):
        models = _models(results.filter(metric=metric, method="identity"), splits, digits)
        parts += [f"{title}:", _table(["seed", *names], models)]

    verdicts = {
        (row["simplification"], row["split"]): row["verdict"]
        for row in run.gaps.filter(
            pl.col("seed").is_null() & (pl.col("metric") == "same_prediction")
        ).iter_rows(named=True)
    }
    same = results.filter(pl.col("metric") == "same_prediction", pl.col("method") != "identity")
    proxies = []
    rows_of = same.filter(pl.col("seed").is_null()).group_by("simplification", maintain_order=True)
    for (name,), rows in rows_of:
        if name in single:
            continue
        values = dict(zip(rows["split"], rows["value"], strict=True))
        marks = [SIGNS.get(verdicts.get((str(name), s)) or "", "") for s in splits]
        cells = [f"{values[s]:.3f} {m}".strip() for s, m in zip(splits, marks, strict=True)]
        proxies.append([f"`{name}`", *cells])
    parts += _summary(run)
    parts += [
        "Share of predictions that proxy and model have in common, over all seeds "
        f"({LEGEND}; no mark: faithful):",
        _table(["proxy", *names], proxies),
    ]
    if single:
        heads = _heads(same.drop_nulls("seed"), single, splits)
        parts += [
            "The same for proxies of a single head: median over the heads of all models, and the "
            "lowest and the highest:",
            _table(["proxy of one head", *names], heads),
        ]
    tested = [claim for claim in run.claims if claim["status"] != UNTESTED]
    if tested:
        claims = [
            [c["id"], c["claim"], c.get("rule") or "–", f"**{c['status']}**", c["finding"]]
            for c in tested
        ]
        parts.append(_table(["", "claim", "judged by", "here", "finding"], claims))
    if others := [claim["id"] for claim in run.claims if claim["status"] == UNTESTED]:
        parts.append(f"Not tested here: {', '.join(others)}.")
    return "\n\n".join(parts)


def _summary(run: Run) -> list[str]:
    """Which views hold, on what evidence, and what must be known before."""
    content = read(run.path)
    counted = headline(content)
    parts = [f"**{notice.title}.** {notice.text}" for notice in notices(content)]
    parts += [f"**{counted.sentence}** {evidence(content).sentence}"]
    if content.ood and counted.untestable < counted.proxies:
        heads = ["view", "trust", "do not trust", "needs more data (of each split)"]
        found = [s for s in standings(content) if s.title in content.telling_families]
        rows = [[s.title, *("<br>".join(texts) or "–" for texts in s[1:])] for s in found]
        parts.append(_table(heads, rows))
    return parts


def _models(rows: pl.DataFrame, splits: Sequence[str], digits: int) -> list[list[str]]:
    """A row a seed, and one over all with 95 % intervals."""
    found = []
    for (seed,), some in rows.group_by("seed", maintain_order=True):
        of = {row["split"]: row for row in some.iter_rows(named=True)}
        cells = [f"{of[split]['value']:.{digits}f}" for split in splits]
        if seed is None:
            for place, split in enumerate(splits):
                low, high = of[split]["low"], of[split]["high"]
                if low is not None:
                    cells[place] += f" ({low:.{digits}f} to {high:.{digits}f})"
        found.append(["all" if seed is None else str(seed), *cells])
    return found


def _heads(rows: pl.DataFrame, single: Mapping[str, str], splits: Sequence[str]) -> list[list[str]]:
    """A row a method and size: median, lowest and highest over the heads of all models."""
    of_one = rows.filter(pl.col("simplification").is_in(list(single))).with_columns(
        name=pl.col("simplification").replace_strict(single)
    )
    found = []
    for (name,), some in of_one.group_by("name", maintain_order=True):
        cells = []
        for split in splits:
            values = some.filter(split=split)["value"].to_numpy()
            low, middle, high = np.quantile(values, (0, 0.5, 1))
            cells.append(f"{middle:.3f} ({low:.3f} to {high:.3f})")
        found.append([f"`{name}`", *cells])
    return found


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
