"""A run's numbers as Markdown, for documents."""

from collections.abc import Sequence

import polars as pl

from anamorph.cli.tables import LEGEND, MARK
from anamorph.runs import Run


def markdown(run: Run) -> str:
    """Accuracy of the models, faithfulness and verdict of every proxy, and the claims."""
    results = run.results.filter(pl.col("facet").is_null())
    pooled = results.filter(pl.col("seed").is_null())
    splits = pooled["split"].unique(maintain_order=True).to_list()
    heads = [split.replace("_", " ") for split in splits]

    accuracy = results.filter(
        (pl.col("metric") == "model_accuracy") & (pl.col("method") == "identity")
    )
    models = []
    for (seed,), rows in accuracy.group_by("seed", maintain_order=True):
        values = dict(zip(rows["split"], rows["value"], strict=True))
        name = "all" if seed is None else str(seed)
        models.append([name, *(f"{values[s]:.4f}" for s in splits)])

    verdicts = {
        (row["simplification"], row["split"]): row["verdict"]
        for row in run.gaps.filter(
            pl.col("seed").is_null() & (pl.col("metric") == "same_prediction")
        ).iter_rows(named=True)
    }
    proxies = []
    same = pooled.filter((pl.col("metric") == "same_prediction") & (pl.col("method") != "identity"))
    for (name,), rows in same.group_by("simplification", maintain_order=True):
        values = dict(zip(rows["split"], rows["value"], strict=True))
        marks = [MARK.get(verdicts.get((str(name), s)) or "", "") for s in splits]
        cells = [f"{values[s]:.3f} {m}".strip() for s, m in zip(splits, marks, strict=True)]
        proxies.append([f"`{name}`", *cells])

    claims = [[c["id"], c["claim"], f"**{c['status']}**", c["finding"]] for c in run.claims]
    return "\n\n".join(
        (
            "Accuracy of the models at scored positions:",
            _table(["seed", *heads], models),
            "Share of predictions that proxy and model have in common, over all seeds "
            f"({LEGEND}; no mark: faithful):",
            _table(["proxy", *heads], proxies),
            _table(["", "claim", "here", "finding"], claims),
        )
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
