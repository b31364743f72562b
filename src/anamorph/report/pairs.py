"""The numbers of several audits of one model side by side: a table, and a page in Markdown."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from anamorph.analysis.findings import IDENTITY, Findings
from anamorph.analysis.words import SIGNS, points, split_label
from anamorph.faithfulness.metrics import JUDGED
from anamorph.runs.folder import Run

LEGEND = ", ".join(f"{sign} {verdict}" for verdict, sign in SIGNS.items() if sign)
NOTE = (
    "Every pair has intervals of its own: p-values are corrected over the proxies of a pair, not "
    "over pairs."
)


def table(runs: Mapping[str, Run]) -> pl.DataFrame:
    """The gaps of all pairs.

    Args:
        runs: by the name of the pair, which is that of its only `ood` split.

    Returns:
        a row a pair, proxy and metric, over all seeds: `pair`, then the columns of `gaps.parquet`.
    """
    return pl.concat(
        run.gaps.filter(pl.col("seed").is_null()).select(pl.lit(name).alias("pair"), pl.all())
        for name, run in runs.items()
    )


def accuracies(runs: Mapping[str, Run]) -> dict[str, tuple[float, float]]:
    """By pair the share of right predictions of the model itself: in distribution, and out."""
    found = {}
    for name, run in runs.items():
        seen = Findings(run.path, run.spec)
        rows = seen.pooled.filter(metric="model_accuracy", method=IDENTITY)
        by_split = dict(rows.select("split", "value").iter_rows())
        found[name] = by_split[seen.reference], by_split[name]
    return found


def matrix(gaps: pl.DataFrame) -> dict[str, dict[str, dict[str, Any]]]:
    """By spec string and pair the row of `same_prediction`."""
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for row in gaps.filter(metric=JUDGED).iter_rows(named=True):
        rows.setdefault(row["simplification"], {})[row["pair"]] = row
    return rows


def change(row: Mapping[str, Any]) -> str:
    """A gap in points with its interval, and the sign of its verdict: "7.1 (5.0 to 9.2) ▼"."""
    numbers = f"{points(row['gap'])} ({points(row['low'])} to {points(row['high'])})"
    return f"{numbers} {SIGNS[row['verdict']]}".strip()


def page(runs: Mapping[str, Run], packages: Mapping[str, Mapping[str, Any]]) -> str:
    """What was found of all pairs, in Markdown.

    Args:
        runs: by the name of the pair.
        packages: that were fetched: for each what its archive is.
    """
    cells, names = matrix(table(runs)), list(runs)
    first = next(iter(runs.values()))
    accuracy = [f"{a:.3f} → {b:.3f}" for a, b in accuracies(runs).values()]
    same = [
        [f"`{name}`", *(f"{row[p]['iid']:.3f} → {row[p]['ood']:.3f}" for p in names)]
        for name, row in cells.items()
    ]
    gaps = [[f"`{name}`", *(change(row[p]) for p in names)] for name, row in cells.items()]
    sizes = [
        [split_label(name), *_sizes(run), f"[report]({name}/report.html)"]
        for name, run in runs.items()
    ]
    columns = ["", *map(split_label, names)]
    parts = [
        f"# {first.spec['model']['name']}, in distribution and out of it",
        "\n".join(
            f"- `{name}`: `{about['file']}`, sha256 `{about['sha256']}`"
            for name, about in packages.items()
        ),
        f"{first.spec['task']['made']} Every token but the first of a sequence is scored. Views "
        "are fitted, pair by pair, on other texts in distribution than those that are audited.",
        _table(
            [
                "pair",
                "fitted on",
                "in distribution",
                "out of it",
                "",
            ],
            sizes,
        ),
        "Share of predictions that proxy and model have in common, in distribution → out of it:",
        _table(columns, [["accuracy of the model", *accuracy], *same]),
        f"What is lost of it, in points, with its 95 % interval ({LEGEND}; no sign: faithful):",
        _table(columns, gaps),
        NOTE,
    ]
    return "\n\n".join(parts) + "\n"


def _sizes(run: Run) -> list[str]:
    """Sequences and tokens of every split."""
    splits = run.spec["task"]["splits"].values()
    return [f"{split['sequences']:,} texts, {split['tokens']:,} tokens" for split in splits]


def _table(heads: list[str], lines: list[list[str]]) -> str:
    every = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in every)
