"""What changes along an axis, in words."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import polars as pl

from anamorph.analysis.along import CELL, Along, Row
from anamorph.analysis.words import listing, points, split_label
from anamorph.faithfulness import gaps
from anamorph.runs.varied import setting_text

MOST_STEPS = 4  # changes of a verdict that are told one by one


class Change(NamedTuple):
    """What becomes of a view along the axis.

    Attributes:
        title: the view.
        texts: on which splits which verdicts, and the trends that are more than noise.
        tone: faithful, illusion, unfaithful, undecided or untestable: of its worst verdict.
    """

    title: str
    texts: list[str]
    tone: str


TONES: dict[str | None, str] = {
    **dict.fromkeys(gaps.ILLUSIONS, "illusion"),
    gaps.DEGRADES: "unfaithful",
    gaps.UNFAITHFUL: "unfaithful",
    gaps.UNDECIDED: "undecided",
    gaps.FAITHFUL: "faithful",
    gaps.NOT_TESTABLE: "untestable",
    None: "undecided",
}
"""From the worst to the best, with what cannot be told last."""


def headline(found: Along) -> str:
    """How many verdicts change, and how many gaps have a trend, in a sentence or two."""
    count = len(found.trends)
    if not count:
        return f"Along {where(found)}, nothing was judged."
    changing = int((found.trends["verdicts"] > 1).sum())
    if count == 1:
        said = (
            f"the verdict on the one view and split {'changes' if changing else 'stays the same'}"
        )
    else:
        said = f"the verdict changes for {changing or 'none'} of {count} views and splits"
    said = f"Along {where(found)}, {said}."
    values = len(found.axis.values)
    learnt = found.judged.filter(pl.col("verdict") != gaps.NOT_TESTABLE)["at"].n_unique()
    if learnt < values:
        said += f" The models have learnt the task at {learnt or 'none'} of {values} values."
    tested = int(found.trends["p_value"].is_not_null().sum())
    if not tested:
        return said
    clear = found.trends.filter("differs")
    ways = {
        "grows": clear.filter(pl.col("change") > 0),
        "shrinks": clear.filter(pl.col("change") <= 0),
    }
    told = [f"{way} for {len(rows)}" for way, rows in ways.items() if len(rows)]
    if not told:
        return f"{said} No trend of a gap is more than noise ({tested} tested)."
    return f"{said} By more than noise, the gap {listing(told)} of the {tested} that were tested."


def where(found: Along) -> str:
    """The axis and its ends: "training.steps from 100 to 500 (3 values)"."""
    texts = [setting_text(value) for value in found.axis.values]
    if len(texts) == 1:
        return f"{found.axis.name} (one value, {texts[0]})"
    if not found.axis.numeric or not found.axis.ordered:
        return f"{found.axis.name} ({len(texts)} values)"
    return f"{found.axis.name} from {texts[0]} to {texts[-1]} ({len(texts)} values)"


def changes(found: Along) -> list[Change]:
    """What becomes of every view that was judged, those that change first."""
    told = []
    for view in found.telling(len(found.labels)):
        said: dict[str, list[str]] = {}
        verdicts = []
        for split in found.splits:
            if cells := found.cells.get((*view, split)):
                said.setdefault(path(cells, found.axis.ordered), []).append(split_label(split))
                verdicts += [cell["verdict"] for cell in cells]
        every = len(said) == 1 and len(next(iter(said.values()))) > 1
        texts = [
            f"On {'every split' if every else listing(on)}: {text}." for text, on in said.items()
        ]
        tone = TONES[min(verdicts, key=list(TONES).index)]
        told.append(Change(found.labels[view], texts + _trends(found, view), tone))
    return told


def path(cells: Sequence[Row], ordered: bool = True) -> str:
    """The verdicts of a view on a split along the axis.

    Such as "faithful up to 300, illusion (under-generalizes) from 500".

    Args:
        cells: rows with `at` and `verdict`, in the order of the axis.
        ordered: whether that order means anything.
    """
    named = [(setting_text(cell["at"]), cell["verdict"] or "not judged") for cell in cells]
    every = list(dict.fromkeys(verdict for _, verdict in named))
    if len(every) == 1:
        return every[0] if len(named) == 1 else f"{every[0]} throughout"
    steps = [(verdict, [at for at, _ in some]) for verdict, some in groupby(named, lambda x: x[1])]
    if not ordered or len(steps) > MOST_STEPS:
        counts = {v: sum(verdict == v for _, verdict in named) for v in every}
        texts = [f"{verdict} at {n} of {len(named)} values" for verdict, n in counts.items()]
        turns = f" (it changes {len(steps) - 1} times)" if ordered else ""
        return f"{', '.join(texts)}{turns}"
    texts = []
    for place, (verdict, at) in enumerate(steps):
        if place == 0:
            span = f"up to {at[-1]}" if len(at) > 1 else f"at {at[0]}"
        elif place == len(steps) - 1:
            span = f"from {at[0]}" if len(at) > 1 else f"at {at[0]}"
        else:
            span = f"from {at[0]} to {at[-1]}" if len(at) > 1 else f"at {at[0]}"
        texts.append(f"{verdict} {span}")
    return ", ".join(texts)


def _trends(found: Along, view: tuple[str, str]) -> list[str]:
    """The trends of a view that are more than noise; of seeds, how far gaps lie apart."""
    rest, name = view
    rows = found.trends.filter(rest=rest, simplification=name)
    if not found.axis.ordered:
        widest = _widest(found, view)
        return [widest] if widest else []
    texts = []
    for row in rows.filter("differs").iter_rows(named=True):
        way = "grows" if row["change"] > 0 else "shrinks"
        p = row["p_corrected"]
        p = "p < 0.0001" if p < 0.0001 else f"p {p:.4f}"
        ends = sorted((abs(row["low"]), abs(row["high"])))
        texts.append(
            f"The gap on {split_label(row['split'])} {way} by {points(abs(row['change']))} points "
            f"[{points(ends[0])}, {points(ends[1])}] from {setting_text(row['first'])} to "
            f"{setting_text(row['last'])}, which is more than noise ({p})."
        )
    return texts


def _widest(found: Along, view: tuple[str, str]) -> str:
    """The split on which the gaps of seeds lie furthest apart."""
    rest, name = view
    rows = found.judged.filter(rest=rest, simplification=name)
    spans = rows.group_by("split", maintain_order=True).agg(
        low=pl.col("gap").min(), high=pl.col("gap").max(), count=pl.len()
    )
    spans = spans.filter(pl.col("count") > 1).sort(pl.col("high") - pl.col("low"), descending=True)
    if spans.is_empty():
        return ""
    row = spans.row(0, named=True)
    return (
        f"The gaps lie furthest apart on {split_label(row['split'])}: from {points(row['low'])} to "
        f"{points(row['high'])} points."
    )


def notes(found: Along) -> list[str]:
    """What must be known to read it, a sentence each."""
    said = list(found.axis.notes)
    alone = all(len(point.side.seeds) == 1 for point in found.axis.points)
    if found.trends["p_value"].is_not_null().any():
        said.append(
            "A trend is tested as if the gaps of the first half of the axis erred together, and "
            "those of the second half, since all are mostly measured on the same sequences. "
            "P-values are corrected over all views and splits (Benjamini–Hochberg). Values whose "
            "model has not learnt the task are left out."
        )
        if alone:
            said.append(
                "There is one model at each value, so that a trend is one of these models: another "
                "training may show another. Several seeds a value tell that (--seeds)."
            )
    missing = _missing(found)
    if missing:
        said.append(missing)
    return said


def _missing(found: Along) -> str:
    """That some views do not stand at every value."""
    values = found.table.group_by(CELL).agg(pl.col("at").n_unique())
    per_rest = found.table.group_by("rest").agg(pl.col("at").n_unique().alias("of"))
    some = values.join(per_rest, on="rest").filter(pl.col("at") < pl.col("of"))
    count = some.select("rest", "simplification").n_unique()
    if not count:
        return ""
    return f"{count} view{'s do' if count > 1 else ' does'} not stand at every value."


def as_objects(found: Along) -> dict[str, Any]:
    """All of it for JSON."""
    said = {"axis": found.axis.name, "headline": headline(found)}
    tables = {name: vars(found)[name].to_dicts() for name in ("models", "trends", "table")}
    told = [change._asdict() for change in changes(found)]
    return {**said, "changes": told, "notes": notes(found), **tables}
