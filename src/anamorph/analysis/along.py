"""Many models side by side along an axis: numbers, gaps, verdicts, and how these change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from anamorph.analysis.axes import Axis, Point
from anamorph.analysis.findings import IDENTITY
from anamorph.analysis.tables import GAP, NUMBER, PROXY, tidy
from anamorph.errors import AnamorphError
from anamorph.faithfulness.gaps import NOT_TESTABLE, Thresholds, benjamini_hochberg
from anamorph.faithfulness.intervals import LEVEL, Ends
from anamorph.faithfulness.metrics import JUDGED, SUFFIX, find_metric
from anamorph.faithfulness.trend import trend

VIEW = ["rest", "simplification"]
CELL = [*VIEW, "split"]
COLUMNS = [
    *("axis", "at", "rest", "run", "seed", *PROXY, "split", "role", "metric", *NUMBER),
    *(*GAP.values(), "accuracy", "accuracy_reference"),
]
Row = dict[str, Any]


@dataclass(frozen=True)
class Along:
    """What many models show along an axis.

    Attributes:
        axis: its name, and the models in its order.
        table: a row a value of the axis, view, split and metric: `axis` (its name), `at` (the
            value: a number, or text), `rest` (other settings that differ, in words; "" if there are
            none), `run` (its folder), `seed` (null: all models of the run), the columns of a view,
            `split`, `role`, `metric`, `value` with `low`, `high` and `interval` (95 %), `tokens`,
            `sequences`, `reference`, `gap` with `gap_low` and `gap_high`, `p_value`, `verdict`,
            `needed`, and the share of right predictions of the model itself: `accuracy` on the
            split and `accuracy_reference`.
        models: a row a value and split: `at`, `rest`, `run`, `split`, `role`, and the model's own
            `accuracy` with `low` and `high`.
        trends: a row a view and `ood` split that was judged: `rest`, `simplification`, `split`,
            `values` (how many there are), `verdicts` (how many different ones, of models that have
            learnt the task), `tested` (values with such models), `first` and `last` of these,
            `change` of the gap from there to there, on the straight line through the gaps, with
            `low` and `high` (95 %) and `p_value` of "none", `p_corrected` (Benjamini and
            Hochberg's, over all rows), and `differs` (p_corrected < 0.05). Null where there is
            none: of seeds, which have no order.
    """

    axis: Axis
    table: pl.DataFrame
    models: pl.DataFrame
    trends: pl.DataFrame

    @classmethod
    def of(cls, axis: Axis) -> "Along":
        """Read the runs.

        Raises:
            AnamorphError: if no two of them have a view in common.
            RunFolderError: if one is not finished, or damaged.
        """
        models = pl.concat([_of_models(point) for point in axis.points])
        table = pl.concat([_of_views(axis, point) for point in axis.points])
        judged = table.filter(pl.col("gap").is_not_null(), metric=JUDGED)
        counts = table.group_by(VIEW).agg(pl.col("at").n_unique())["at"]
        if counts.is_empty() or (len(axis.values) > 1 and counts.max() == 1):
            raise AnamorphError(
                f"No view stands at two values of {axis.name}, so nothing can be seen along it. "
                "Give runs with the same simplifications."
            )
        return cls(axis, table, models, _trends(axis, judged))

    def __repr__(self) -> str:
        views, values = len(self.labels), len(self.axis.values)
        return f"Along {self.axis.name}: {values} values, {views} views; .table and .trends"

    @property
    def thresholds(self) -> Thresholds:
        """Where the lines between verdicts were drawn, in the first run."""
        return self.axis.points[0].side.run.thresholds

    @property
    def reference(self) -> str:
        """The split that gaps are measured against."""
        return self.axis.points[0].found.reference

    @cached_property
    def splits(self) -> list[str]:
        """Of all runs, the reference first."""
        return list(dict.fromkeys(s for point in self.axis.points for s in point.found.splits))

    @cached_property
    def labels(self) -> dict[tuple[str, str], str]:
        """What a view is called, by `rest` and spec string."""
        named = {
            proxy.simplification: point.found.label(proxy.simplification)
            for point in self.axis.points
            for proxy in point.found.proxies
        }
        found = self.table.select(VIEW).unique(maintain_order=True).iter_rows()
        return {(rest, name): " · ".join(filter(None, (rest, named[name]))) for rest, name in found}

    @cached_property
    def judged(self) -> pl.DataFrame:
        """Of `table` the rows with a verdict, of the metric that is judged."""
        return self.table.filter(pl.col("gap").is_not_null(), metric=JUDGED)

    @cached_property
    def cells(self) -> dict[tuple[str, str, str], list[Row]]:
        """By `rest`, view and split the rows of `judged`, along the axis."""
        return _grouped(self.judged)

    def telling(self, most: int) -> list[tuple[str, str]]:
        """The views to show where there is room for a few, as (`rest`, spec string).

        First those with a trend beyond noise, then those whose verdict changes, the largest gap
        first.
        """
        ranked = self.trends.group_by(VIEW, maintain_order=True).agg(
            pl.col("differs").fill_null(False).any(), pl.col("verdicts").max()
        )
        largest = self.judged.group_by(VIEW).agg(pl.col("gap").max())
        ranked = ranked.join(largest, on=VIEW, how="left", maintain_order="left")
        ranked = ranked.sort("differs", "verdicts", "gap", descending=True, maintain_order=True)
        order = [(rest, name) for rest, name, *_ in ranked.iter_rows()]
        return (order or list(self.labels))[:most]


def _of_models(point: Point) -> pl.DataFrame:
    """The accuracy of the models of a point, a row a split."""
    rows = point.found.whole.filter(
        pl.col("seed").eq_missing(point.seed), metric="model_accuracy", method=IDENTITY
    )
    columns = ("split", "role", pl.col("value").alias("accuracy"), "low", "high")
    return rows.select(*_place(point), *columns)


def _of_views(axis: Axis, point: Point) -> pl.DataFrame:
    """The rows of `Along.table` of a point."""
    rows = tidy(point.found).filter(
        pl.col("seed").eq_missing(point.seed), pl.col("method") != IDENTITY
    )
    names = rows["metric"].unique().to_list()
    kept = [m for m in names if not m.endswith(SUFFIX) and find_metric(m).about != "model"]
    right = dict(_of_models(point).select("split", "accuracy").iter_rows())

    def accuracy(splits: pl.Expr) -> pl.Expr:
        return splits.replace_strict(right, default=None, return_dtype=pl.Float64)

    rows = rows.filter(pl.col("metric").is_in(kept)).with_columns(
        *_place(point),
        axis=pl.lit(axis.name),
        accuracy=accuracy(pl.col("split")),
        accuracy_reference=pl.lit(right.get(point.found.reference), pl.Float64),
    )
    return rows.select(COLUMNS)


def _place(point: Point) -> list[pl.Expr]:
    """Where the numbers of a point stand, and are from."""
    kind = pl.String if isinstance(point.value, str) else pl.Float64
    run = str(point.side.run.path)
    return [
        pl.lit(point.value, kind).alias("at"),
        pl.lit(point.rest).alias("rest"),
        pl.lit(run).alias("run"),
    ]


def _grouped(judged: pl.DataFrame) -> dict[tuple[str, str, str], list[Row]]:
    cells: dict[tuple[str, str, str], list[Row]] = {}
    for row in judged.iter_rows(named=True):
        cells.setdefault((row["rest"], row["simplification"], row["split"]), []).append(row)
    return cells


def _trends(axis: Axis, judged: pl.DataFrame) -> pl.DataFrame:
    """See `Along.trends`."""
    rows = []
    for key, cells in _grouped(judged).items():
        row: Row = dict(zip(CELL, key, strict=True))
        verdicts = {cell["verdict"] for cell in cells} - {NOT_TESTABLE}
        row |= {"values": len(cells), "verdicts": len(verdicts)}
        rows.append(row | (_trend(cells) if axis.ordered else {}))
    at = judged.schema["at"]
    schema: dict[str, Any] = {
        **dict.fromkeys(CELL, pl.String),
        "values": pl.Int64,
        "verdicts": pl.Int64,
    }
    schema |= {"tested": pl.Int64, "first": at, "last": at}
    schema |= dict.fromkeys(("change", "low", "high", "p_value"), pl.Float64)
    table = pl.DataFrame(rows, schema=schema)
    raw = table["p_value"].fill_null(np.nan).to_numpy()
    corrected = pl.Series(benjamini_hochberg(raw)).fill_nan(None)
    table = table.with_columns(p_corrected=corrected)
    return table.with_columns(differs=pl.col("p_corrected") < 1 - LEVEL)


def _trend(cells: Sequence[Mapping[str, Any]]) -> Row:
    """The change of the gap; empty if fewer than two of its values can carry one."""
    used = [c for c in cells if c["gap_low"] is not None and c["verdict"] != NOT_TESTABLE]
    if len(used) < 2:
        return {}
    gaps, low, high = (
        np.array([cell[name] for cell in used]) for name in ("gap", "gap_low", "gap_high")
    )
    found = trend(gaps, Ends(low, high))
    return {
        "tested": len(used),
        "first": used[0]["at"],
        "last": used[-1]["at"],
        "change": float(found.value),
        "low": float(found.ends.low),
        "high": float(found.ends.high),
        "p_value": float(found.p_value),
    }
