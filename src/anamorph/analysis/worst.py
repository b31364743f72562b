"""Where a proxy and its model part most: the sequences, from sums; the positions, from texts.

Which sequences are the worst follows from the works of a run, for every proxy, split and metric.
What both predict at each position, a run holds of a few: `views/worst.parquet`, which
`anamorph.analysis.examples` makes.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple, get_args

import polars as pl

from anamorph.analysis.findings import Findings
from anamorph.analysis.words import split_label
from anamorph.errors import AnamorphError, require
from anamorph.faithfulness.metrics import JUDGED, find_metric
from anamorph.runs.folder import Run
from anamorph.runs.sums import SplitSums

By = Literal["mean", "sum"]

METRIC = "output_jsd"
NEAR = 4  # names in an error
LEAST = 1e-3  # bits of divergence, in the mean over a split, of a proxy that parts from the model
GOT_BY = "`anamorph audit {run} --simplify '{proxy}' --out OTHER` looks at it alone, and has them."

LISTS = ["token", "scored", "jsd", "same", "model_right", "proxy_right"]
LISTS += ["model", "model_p", "proxy", "proxy_p"]
"""The columns of `views/worst.parquet` with an entry a token."""


class Chosen(NamedTuple):
    """Of which cell something is asked.

    Attributes:
        proxy: its spec string.
        split: the name of the split.
        seed: of the model.
    """

    proxy: str
    split: str
    seed: int


def chosen(run: Run, proxy: str, split: str, seed: int | None = None) -> Chosen:
    """The cell that is meant.

    Args:
        run: a finished run.
        proxy: its spec string; spaces in it do not matter.
        split: the name of the split, or what a report calls it.
        seed: of the model; the first by default, which is the one that the run has texts of.

    Raises:
        AnamorphError: if the run has no such proxy, split or seed; names those that are near.
    """
    proxies, splits = (
        run.results[name].unique(maintain_order=True) for name in ("simplification", "split")
    )
    proxy = {name.replace(" ", ""): name for name in proxies}.get(proxy.replace(" ", ""), proxy)
    split = split if split in splits else {split_label(s): s for s in splits}.get(split, split)
    _require_among("proxy", proxy, proxies, run)
    _require_among("split", split, splits, run)
    if seed is not None and seed not in run.seeds:
        raise AnamorphError(
            f"There is no model with seed {seed} in {run.path}; its seeds are: "
            f"{', '.join(map(str, run.seeds))}."
        )
    return Chosen(proxy, split, run.seeds[0] if seed is None else seed)


def parting(run: Findings) -> list[str]:
    """The views that part from their model on some split, the most telling first; or else all."""
    found = run.pooled.filter(pl.col("value") >= LEAST, metric=METRIC)
    telling = [p.simplification for p in run.telling(len(run.proxies))]
    parted = set(found["simplification"])
    return [name for name in telling if name in parted] or telling


def usual(run: Findings, proxy: str | None = None) -> tuple[str, str]:
    """What to look at first: the most telling proxy, or the given one, and its worst split.

    The worst split is the one with the largest gap; without gaps it is the reference.
    """
    name = parting(run)[0] if proxy is None else proxy
    gaps = {row["split"]: row["gap"] for row in run.cells.get(name, ())}
    known = {split: gap for split, gap in gaps.items() if gap is not None}
    return name, max(known, key=known.__getitem__, default=run.reference)


def worst(
    run: Run, cell: Chosen, n: int | None = 10, metric: str = METRIC, by: By = "mean"
) -> pl.DataFrame:
    """The sequences of a cell on which proxy and model part most.

    Args:
        run: a finished run.
        cell: as `chosen` gives it.
        n: how many at most; None for all that were seen.
        metric: by which they part: where lower values are better or nothing is, the largest are
            the worst, and where higher values are better the smallest.
        by: the `mean` over the scored positions of a sequence, or their `sum`, in which long
            sequences weigh more.

    Returns:
        a row a sequence, the worst first, and of equal ones the first: `sequence` (its place among
        those that were scored), `number` (its place in the task's split), `id` (what its source
        calls it, or null), `length` in tokens, `scored` positions, `value`, `same_prediction` (the
        share of scored positions) and `text`, null where the run holds none.

    Raises:
        AnamorphError: if an argument is out of range, the metric was not measured, or the run was
            made by an earlier version that did not write down which sequences it scored.
    """
    require("by", by, among=get_args(By))
    if n is not None:
        require("n", n, whole=True, least=1)
    kept = SplitSums(run, cell.seed, cell.split)
    about, sums = kept.sequences, kept.of(cell.proxy)
    if metric not in sums.columns:
        raise AnamorphError(
            f"There is no metric {metric!r} of {cell.proxy} in {run.path}; there are: "
            f"{', '.join(sums.columns)}."
        )
    count = pl.col("scored") if by == "mean" else pl.lit(1)
    ranked = (
        about.with_columns(
            value=sums[metric] / about.select(count).to_series(),
            same_prediction=sums[JUDGED] / about["scored"],
        )
        .drop_nulls("value")  # sequences that a cell which stopped early has not seen
        .sort("value", descending=find_metric(metric).better != "higher", maintain_order=True)
        .head(len(about) if n is None else n)
    )
    texts = {row["sequence"]: _text(row) for row in texts_of(run, cell).iter_rows(named=True)}
    text = pl.Series("text", [texts.get(number) for number in ranked["sequence"]], pl.String)
    columns = ("sequence", "number", "id", "length", "scored", "value", "same_prediction")
    return ranked.select(*columns).with_columns(text)


def positions(run: Run, cell: Chosen, sequence: int) -> pl.DataFrame:
    """What model and proxy predict at every position of a sequence of which the run has the text.

    Args:
        run: a finished run.
        cell: as `chosen` gives it.
        sequence: as `worst` names it.

    Returns:
        a row a token: `position`; `token`, as it is written; whether its prediction is `scored`;
        `jsd` in bits, of both predictions of this token; `same` (whether they are the same token)
        and whether `model_right` and `proxy_right`, null where it is not scored; and `model`,
        `model_p`, `proxy` and `proxy_p`, the likeliest tokens and their probabilities. All are null
        where nothing is predicted.

    Raises:
        AnamorphError: if the run has no text of it; says which it has, and how to get others.
    """
    rows = texts_of(run, cell).filter(sequence=sequence)
    if rows.is_empty():
        raise AnamorphError(f"There is no text of sequence {sequence}: {without_texts(run, cell)}")
    table = rows.select("start", *LISTS).explode(LISTS)
    return table.select(pl.int_range(pl.len()).alias("position") + pl.col("start"), *LISTS)


def texts_of(run: Run, cell: Chosen) -> pl.DataFrame:
    """The rows of `views/worst.parquet` of a cell; empty if there are none."""
    table = run.pictures.get("worst")
    if table is None or run.picture_seed != cell.seed:
        return pl.DataFrame(schema={"sequence": pl.Int64})
    return table.filter(simplification=cell.proxy, split=cell.split)


def without_texts(run: Run, cell: Chosen) -> str:
    """Of what the run has texts, and how to get others."""
    table = run.pictures.get("worst")
    again = GOT_BY.format(run=run.path, proxy=cell.proxy)
    if run.spec.get("source") is None and not run.trained:  # nobody can load that model again
        again = f"am.audit_given with the model, its task and {cell.proxy!r} alone has them."
    if table is None:
        return (
            f"{run.path} holds no texts: it is not finished, or was made by an earlier version. "
            + again
        )
    if texts_of(run, cell).is_empty():
        names = table["simplification"].unique(maintain_order=True)
        return (
            f"{run.path} holds texts of seed {run.picture_seed} and of these proxies: "
            f"{'; '.join(names)}. {again}"
        )
    return f"{run.path} holds texts of the worst sequences alone, by output_jsd."


def _text(row: Mapping[str, Any]) -> str:
    """The text in a row of texts, with … where it is cut."""
    shown = len(row["token"])
    before = "… " if row["start"] else ""
    behind = " …" if row["start"] + shown < row["length"] else ""
    return f"{before}{(' ' if row['separate'] else '').join(row['token'])}{behind}"


def _require_among(what: str, given: str, names: Iterable[str], run: Run) -> None:
    known = list(names)
    if given not in known:
        near = get_close_matches(given, known, NEAR, 0.5) or known[:NEAR]
        others = len(known) - len(near)
        more = f", and {others} more: `anamorph show {run.path}` lists them" if others else ""
        raise AnamorphError(
            f"There is no {what} {given!r} in {run.path}; there are: {'; '.join(near)}{more}."
        )
