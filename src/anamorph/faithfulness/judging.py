"""From gaps to verdicts: p-values corrected for many cells, and the two judgements a row."""

from typing import Any

import numpy as np
import polars as pl

from anamorph.faithfulness.gaps import (
    NOT_TESTABLE,
    UNDECIDED,
    Thresholds,
    benjamini_hochberg,
    change_of,
    level_of,
    needed,
    verdict,
)

JUDGED = "same_prediction"
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
"""Columns that `judge` takes and drops."""


def judge(gaps: pl.DataFrame, thresholds: Thresholds, learnt: float | None) -> pl.DataFrame:
    """Correct the p-values over the rows of one seed and metric, and give the verdicts.

    Args:
        gaps: with the columns `FOR_VERDICTS`: the ends of the reference's interval, the p-value of
            "the gap is at most the tolerance", who alone is right on the split, the model's
            accuracy on the reference, and the sequences of both splits, 0 where more of them need
            not decide.
        thresholds: where the lines are drawn.
        learnt: accuracy that a model must be above for verdicts on it to mean anything.

    Returns:
        the table with `level`, `change`, `verdict` and `needed`, without `FOR_VERDICTS`.
    """
    for column in ("p_value", "worse"):
        adjusted = np.full(len(gaps), np.nan)
        for rows in gaps.with_row_index().group_by("seed", "metric").agg("index")["index"]:
            adjusted[rows] = benjamini_hochberg(gaps[column].gather(rows).to_numpy())
        gaps = gaps.with_columns(pl.Series(column, adjusted, dtype=pl.Float64))
    made = [_judgement(row, thresholds, learnt) for row in gaps.iter_rows(named=True)]
    levels, changes, verdicts, counts = zip(*made, strict=True) if made else ((), (), (), ())
    return gaps.with_columns(
        pl.Series("level", levels, dtype=pl.String),
        pl.Series("change", changes, dtype=pl.String),
        pl.Series("verdict", verdicts, dtype=pl.String),
        pl.Series("needed", counts, dtype=pl.Int64),
        pl.col("low", "high", "low_all", "high_all", "p_value").fill_nan(None),
    ).drop(FOR_VERDICTS)


Judgement = tuple[str | None, str | None, str | None, int | None]


def _judgement(row: dict[str, Any], thresholds: Thresholds, learnt: float | None) -> Judgement:
    ends = row["iid_low"], row["iid_high"], row["low"], row["high"]
    if row["metric"] != JUDGED or np.isnan(ends).any():
        return None, None, None, None
    level = level_of(row["iid_low"], row["iid_high"], thresholds)
    worse = 1.0 if np.isnan(row["worse"]) else row["worse"]
    change = change_of(row["low"], row["high"], worse, thresholds)
    if learnt is not None and row["accuracy"] <= learnt:
        return level, change, NOT_TESTABLE, None
    sides = row["model_only_right"], row["proxy_only_right"]
    found = verdict(row["iid"], level, change, *sides, thresholds)
    if found != UNDECIDED or not row["iid_sequences"]:
        return level, change, found, None
    count = needed(
        (row["iid_sequences"], row["ood_sequences"]),
        level,
        (row["iid"], row["iid_low"], row["iid_high"]),
        change,
        (row["gap"], row["low"], row["high"]),
        row["low_all"],
        thresholds,
    )
    return level, change, found, count
