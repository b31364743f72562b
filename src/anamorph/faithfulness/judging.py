"""From gaps to verdicts: p-values corrected for many cells, and two judgements of each row."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from anamorph.faithfulness.gaps import (
    ILLUSIONS,
    NOT_TESTABLE,
    UNDECIDED,
    UNDER,
    Thresholds,
    agreed,
    benjamini_hochberg,
    change_of,
    level_of,
    needed,
    verdict,
)
from anamorph.faithfulness.metrics import JUDGED

FOR_VERDICTS = (
    "iid_low",
    "iid_high",
    "worse",
    "model_only_right",
    "proxy_only_right",
    "accuracy",
    "iid_sequences",
    "ood_sequences",
)
"""Columns that `judge` uses and drops."""


def judge(gaps: pl.DataFrame, thresholds: Thresholds, learnt: float | None) -> pl.DataFrame:
    """Correct the p-values over the rows of one seed and metric, and give the verdicts.

    Views are corrected for one another and controls for one another, so that what is said of a view
    does not depend on the controls that are put beside it.

    Every model is judged by itself. Over several, the verdict is what all of them agree on. The
    interval of their mean is not used: it says what to expect of another model, about which a few
    models tell little.

    Args:
        gaps: rows over models stand after those of single ones. `FOR_VERDICTS` are the ends of the
            reference's interval, the p-value of "the gap is at most the tolerance", how often the
            model or the proxy alone is right on the split, the model's accuracy on the reference,
            and the sequences of both splits, 0 where more of them might not decide.
        thresholds: where the lines are drawn.
        learnt: accuracy that a model must exceed for verdicts on it to mean anything.

    Returns:
        the table with `level`, `change`, `verdict` and `needed`, without `FOR_VERDICTS`.
    """
    return judged(gaps.with_columns(corrected(gaps)), thresholds, learnt)


TO_CORRECT = "seed", "metric", "control", "p_value", "worse"
"""What `corrected` looks at."""


def corrected(gaps: pl.DataFrame) -> pl.DataFrame:
    """The columns `p_value` and `worse`, corrected over the rows of one seed and metric."""
    columns = []
    alike = "seed", "metric", pl.col("control").is_null()
    groups = gaps.with_row_index().group_by(*alike).agg("index")["index"]
    for column in ("p_value", "worse"):
        adjusted = np.full(len(gaps), np.nan)
        for rows in groups:
            adjusted[rows] = benjamini_hochberg(gaps[column].gather(rows).to_numpy())
        columns.append(pl.Series(column, adjusted, dtype=pl.Float64))
    return pl.DataFrame(columns)


def judged(gaps: pl.DataFrame, thresholds: Thresholds, learnt: float | None) -> pl.DataFrame:
    """As `judge`, of rows whose p-values are corrected: all those of a proxy and split, or more."""
    some = gaps.with_row_index("row").filter(metric=JUDGED)
    made = _judgements(some.iter_rows(named=True), thresholds, learnt)
    columns = {"level": pl.String, "change": pl.String, "verdict": pl.String, "needed": pl.Int64}
    found = pl.DataFrame(made, columns, orient="row").with_columns(row=some["row"])
    return (
        gaps.with_row_index("row")
        .join(found, on="row", how="left", maintain_order="left")
        .with_columns(pl.col("low", "high", "low_all", "high_all", "p_value").fill_nan(None))
        .drop("row", *FOR_VERDICTS)
    )


class Judgement(NamedTuple):
    """The columns that `judge` adds; all None where nothing is judged."""

    level: str | None = None
    change: str | None = None
    verdict: str | None = None
    needed: int | None = None


Row = dict[str, Any]


def _judgements(
    rows: Iterable[Row], thresholds: Thresholds, learnt: float | None
) -> list[Judgement]:
    """Of every row; over models, what all of them agree on."""
    found: list[Judgement] = []
    of_models: dict[tuple[str, str], list[Judgement]] = {}
    for row in rows:
        each = of_models.setdefault((row["simplification"], row["split"]), [])
        if row["seed"] is not None:
            each.append(_of_model(row, thresholds, learnt))
            found.append(each[-1])
        else:
            found.append(each[0] if len(each) == 1 else _over_models(row, each, thresholds))
    return found


def _of_model(row: Row, thresholds: Thresholds, learnt: float | None) -> Judgement:
    if np.isnan([row["iid_low"], row["iid_high"], row["low"], row["high"]]).any():
        return Judgement()
    level = level_of(row["iid_low"], row["iid_high"], thresholds)
    worse = 1.0 if np.isnan(row["worse"]) else row["worse"]
    change = change_of(row["low"], row["high"], worse, thresholds)
    if learnt is not None and row["accuracy"] <= learnt:
        return Judgement(level, change, NOT_TESTABLE)
    found = _verdict(row, level, change, thresholds)
    if found != UNDECIDED or not row["iid_sequences"]:
        return Judgement(level, change, found)
    count = needed(
        (row["iid_sequences"], row["ood_sequences"]),
        level,
        (row["iid"], row["iid_low"], row["iid_high"]),
        change,
        (row["gap"], row["low"], row["high"]),
        row["low_all"],
        thresholds,
    )
    return Judgement(level, change, found, count)


def _over_models(row: Row, each: list[Judgement], thresholds: Thresholds) -> Judgement:
    judged = [(j.level, j.change) for j in each if j.level is not None and j.change is not None]
    if len(judged) < len(each):
        return Judgement()
    level, change = agreed(judged)
    if NOT_TESTABLE in (j.verdict for j in each):
        return Judgement(level, change, NOT_TESTABLE)
    found = _verdict(row, level, change, thresholds)
    counts = [j.needed for j in each if j.verdict == UNDECIDED]
    # Where decided models contradict each other, more sequences do not help.
    decided = {UNDER if j.verdict in ILLUSIONS else j.verdict for j in each} - {UNDECIDED}
    known = [count for count in counts if count is not None]
    if found == UNDECIDED and counts and len(known) == len(counts) and len(decided) <= 1:
        return Judgement(level, change, found, max(known))
    return Judgement(level, change, found)


def _verdict(row: Row, level: str, change: str, thresholds: Thresholds) -> str:
    sides = row["model_only_right"], row["proxy_only_right"]
    return verdict(row["iid"], level, change, *sides, thresholds)
