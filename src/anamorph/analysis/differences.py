"""What differs between two runs, in words."""

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from anamorph.analysis.findings import IDENTITY
from anamorph.analysis.sides import Side
from anamorph.analysis.words import listing, points, split_label
from anamorph.faithfulness.metrics import JUDGED

SECTIONS = ("task", "model", "training", "audit")  # of a specification
NAMES = ("model.name", "task.name")  # of what is compared, which says them anyway
MOST_CHANGED = 4  # settings that a note names


def headline(
    first: Side, second: Side, values: pl.DataFrame, gaps: pl.DataFrame, verdicts: pl.DataFrame
) -> str:
    """A sentence of same predictions: of views, not of controls or of the model itself.

    Args:
        first: what was compared.
        second: with what.
        values: as `Comparison` has them.
        gaps: likewise.
        verdicts: likewise.
    """
    view = pl.col("control").is_null() & (pl.col("method") != IDENTITY)
    of_values, of_gaps = (table.filter(view, metric=JUDGED) for table in (values, gaps))
    changed = verdicts.filter(view, changed=True)
    every = pl.concat([values, gaps])
    if every.filter(pl.col("difference") != 0).is_empty() and changed.is_empty():
        exact = " to the last digit" if set(every["interval"]) == {"exact"} else ""
        return (
            f"Nothing differs: all {len(values):,} values and {len(gaps):,} gaps are equal{exact} "
            f"in {first.name} and {second.name}."
        )
    of_verdicts = f"{len(changed) or 'no'} verdict{'s' if len(changed) > 1 else ''} changed"
    tested = [x for x in (of_gaps, of_values) if x["interval"].is_not_null().any()]
    if not tested:
        return f"No interval can be given for what differs; {of_verdicts}."
    counts = {"gap": of_gaps, "value": of_values}
    said = "; ".join(_count(name, table) for name, table in counts.items() if len(table))
    sentence = f"{said[0].upper()}{said[1:]}; {of_verdicts}."
    if any(table["differs"].any() for table in tested):
        return sentence
    room = max(_room(table) for table in tested)
    return f"{sentence} The intervals leave room for differences of up to {points(room)} points."


def _count(name: str, table: pl.DataFrame) -> str:
    """How many differ, and the largest, with its interval."""
    some = table.filter("differs")
    count = len(some)
    differ = "differs" if count == 1 else "differ"
    text = f"{count or 'none'} of {len(table):,} {name}s of same prediction {differ}"
    if not count:
        return text
    row = some.sort(pl.col("difference").abs(), maintain_order=True).row(-1, named=True)
    return f"{text}, {'the largest ' if count > 1 else ''}by {largest(row)}"


def largest(row: Mapping[str, Any]) -> str:
    """A difference in points, with its interval and where it is."""
    numbers = f"{points(row['difference'])} points [{points(row['low'])}, {points(row['high'])}]"
    both = f"{points(row['a'])} → {points(row['b'])}"
    return f"{numbers} ({row['simplification']} on {split_label(row['split'])}: {both})"


def _room(table: pl.DataFrame) -> float:
    ends = table.select(pl.max_horizontal(pl.col("low", "high").abs())).to_series()
    return float(ends.max() or 0.0)  # type: ignore[arg-type]


def _asked(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for of task, model, training and audit: texts and numbers, by their names."""
    found: dict[str, Any] = {}
    for section in SECTIONS:
        values = spec.get(section) or {}
        plain = {k: v for k, v in values.items() if isinstance(v, str | int | float | None)}
        found |= {f"{section}.{key}": value for key, value in plain.items()}
    return found


def _otherwise(first: Side, second: Side) -> str:
    """In what the specifications differ, such as "training.steps 300 → 1500"; "" if in nothing."""
    before, now = _asked(first.run.spec), _asked(second.run.spec)
    changed = [
        f"{name} {before.get(name)} → {now.get(name)}"
        for name in {**before, **now}
        if before.get(name) != now.get(name) and name not in NAMES
    ]
    more = f" and {len(changed) - MOST_CHANGED} more" if len(changed) > MOST_CHANGED else ""
    return ", ".join(changed[:MOST_CHANGED]) + more


def notes_of(first: Side, second: Side, pairs: pl.DataFrame, apart: str) -> Iterator[str]:
    """What must be known to read a comparison.

    Args:
        first: what was compared.
        second: with what.
        pairs: of proxies.
        apart: why some splits were not paired; "" if all were.
    """
    for one, other in ((first, second), (second, first)):
        if alone := [name for name in one.splits if name not in other.splits]:
            yield f"Only {one.name} has the splits {listing(alone)}."
        metrics = [set(side.results["metric"]) for side in (one, other)]
        if more := sorted(metrics[0] - metrics[1]):
            yield f"Only {one.name} has {listing(more)}."
        column = "simplification" if one is first else "simplification_b"
        if unmatched := [name for name in one.proxies if name not in set(pairs[column])]:
            proxies = f"{len(unmatched)} prox{'y' if len(unmatched) == 1 else 'ies'} of {one.name}"
            yield f"Left out: {proxies} without one of the same spec in {other.name}."
    if first.reference != second.reference:
        yield (
            f"Gaps are measured against {first.reference} in {first.name} and against "
            f"{second.reference} in {second.name}; they are compared as they are."
        )
    if stopped := [side.name for side in (first, second) if side.stopped]:
        yield (
            f"No interval is given: cells of {listing(stopped)} were stopped early (--until), and "
            "one is valid only for a number of sequences that does not depend on the data. Audit "
            "without --until to compare."
        )
    elif apart:
        yield f"Compared as independent samples, as {apart}."
    if len(first.seeds) > 1 and first.seeds == second.seeds:
        yield (
            f"Numbers are means over {len(first.seeds)} models; intervals allow for what differs "
            "between models too, of which a few tell little. Of one: "
            f"{first.run.seed(first.seeds[0])}."
        )
    if first.run.spec.get("anamorph") != second.run.spec.get("anamorph"):
        versions = [f"{s.name} by {s.run.spec.get('anamorph')}" for s in (first, second)]
        yield f"Of two versions of anamorph: {listing(versions)}."
    if first.run.thresholds != second.run.thresholds:
        yield "Verdicts were drawn with other thresholds; a change may be due to these alone."
    if changed := _otherwise(first, second):
        yield f"What was asked for differs from {first.name} to {second.name}: {changed}."
