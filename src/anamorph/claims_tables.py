"""What the claims are measured from: look-ups in a run's tables."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from anamorph.report.heads import Heads

Finding = tuple[str, str, dict[str, Any]]  # status, sentence, numbers


class Tables:
    """Look-ups in the rows over all seeds."""

    def __init__(
        self,
        results: pl.DataFrame,
        gaps: pl.DataFrame,
        spec: Mapping[str, Any],
        scores: pl.DataFrame | None = None,
    ) -> None:
        self.heads = Heads.of(results, gaps, spec["model"], scores)
        pooled = results.filter(pl.col("seed").is_null())
        self.results = pooled.filter(pl.col("facet").is_null())
        self.facets = pooled.filter(pl.col("facet").is_not_null())
        self.gaps = gaps.filter(pl.col("seed").is_null())
        self.seeds = results.filter(pl.col("seed").is_not_null())
        self.spec = spec
        self.splits = self.results["split"].unique(maintain_order=True).to_list()
        self.ood = self.gaps["split"].unique(maintain_order=True).to_list()

    def cells(self, metric: str, **where: str) -> pl.DataFrame:
        """The rows of one metric over whole splits."""
        rows = self.results.filter(pl.col("metric") == metric)
        return rows.filter(*(pl.col(key) == value for key, value in where.items()))

    def verdicts(self) -> pl.DataFrame:
        """The gap rows that carry a verdict."""
        return self.gaps.filter(pl.col("verdict").is_not_null())


def number(value: Any) -> float:
    """What polars calls a literal of any type, as the number that it is."""
    return float(value)


def of_interval(row: Mapping[str, Any], value: str = "value") -> str:
    """A number with its interval, if it has one, as text."""
    if row["low"] is None:
        return f"{row[value]:.3f}"
    return f"{row[value]:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
