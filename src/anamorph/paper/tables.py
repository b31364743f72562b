"""What the claims are measured from: look-ups in a run's tables, and sums with intervals."""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import stdev
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from anamorph.analysis.words import FAILS, HOLDS, UNTESTED, views_of
from anamorph.faithfulness.intervals import LEVEL, quantile, student
from anamorph.runs.folder import Run

Finding = tuple[str, str, dict[str, Any]]  # status, sentence, numbers


class Tables:
    """Look-ups in the tables of a run.

    Attributes:
        results, facets: the rows over all seeds, of whole splits and of levels.
        seeds: the rows of single seeds.
        gaps: over all seeds.
        contrasts: of all seeds together and of each; empty if there are none.
        matching: seed, layer, head, split, value and positions; empty if it was not measured.
        scores: of the heads, all seeds together; None if they were not measured.
        splits, ood: names of splits.
    """

    def __init__(
        self,
        results: pl.DataFrame,
        gaps: pl.DataFrame,
        spec: Mapping[str, Any],
        scores: pl.DataFrame | None = None,
        contrasts: pl.DataFrame | None = None,
        matching: pl.DataFrame | None = None,
    ) -> None:
        pooled = results.filter(pl.col("seed").is_null())
        self.results = pooled.filter(pl.col("facet").is_null())
        self.facets = pooled.filter(pl.col("facet").is_not_null())
        self.seeds = results.filter(pl.col("seed").is_not_null())
        self.gaps = gaps.filter(pl.col("seed").is_null())
        self.contrasts = pl.DataFrame() if contrasts is None else contrasts
        self.matching = pl.DataFrame() if matching is None else matching
        self.scores = scores
        self.spec = spec
        self.splits = self.results["split"].unique(maintain_order=True).to_list()
        self.ood = self.gaps["split"].unique(maintain_order=True).to_list()

    @classmethod
    def of(cls, run: Run) -> "Tables":
        """Of the views in a run, whose claims need not be measured yet."""
        results, gaps, contrasts = map(views_of, (run.results, run.gaps, run.contrasts))
        return cls(results, gaps, run.spec, run.heads, contrasts, run.matching)

    @property
    def looks_right(self) -> float:
        """The `same_prediction` from which a proxy looks right."""
        return number(self.spec["audit"]["thresholds"]["faithful"])

    @property
    def tolerance(self) -> float:
        """A fall of up to this size does not count."""
        return number(self.spec["audit"]["thresholds"]["tolerance"])

    def cells(self, metric: str, **where: str) -> pl.DataFrame:
        """The rows of one metric over whole splits."""
        return self.results.filter(metric=metric, **where)

    def of_each(self, metric: str, **where: str) -> pl.DataFrame:
        """The same of single models, one seed after another."""
        return self.seeds.filter(pl.col("facet").is_null(), metric=metric, **where)

    def verdicts(self) -> pl.DataFrame:
        """The gap rows that carry a verdict."""
        return self.gaps.filter(pl.col("verdict").is_not_null())

    def low_dimensional(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Without SVD and PCA of as many directions as a head has, which leave all as it is."""
        model = self.spec["model"]
        whole = model["width"] / model["heads"]
        return rows.filter(~pl.col("method").is_in(["svd", "pca"]) | (pl.col("size") < whole))


class Claim(NamedTuple):
    """What somebody says, and how a study judges it.

    Attributes:
        id: a letter and a number; the paper's are C1 to C10.
        tasks: the names of the tasks that it is about.
        text: what is said.
        rule: when that counts as true of a study.
        judge: applies the rule.
    """

    id: str
    tasks: tuple[str, ...]
    text: str
    rule: str
    judge: Callable[[Tables], Finding]


DYCK, CODE = ("dyck",), ("code",)  # tasks of claims
BOTH = (*DYCK, *CODE)


def not_learnt(t: Tables) -> str | None:
    """A sentence if some model has not learnt its task, by the accuracy that the spec asks for."""
    least = t.spec["audit"].get("learnt")
    values = [
        value
        for rows in (t.cells, t.of_each)
        for value in rows("model_accuracy", method="identity", role="iid")["value"]
    ]
    if least is None or not values or min(values) > least:
        return None
    return (
        f"The model has not learnt its task: its accuracy on iid is {min(values):.3f}, and must "
        f"be above {least:.3g}. What holds of it says nothing about the claim."
    )


def most(answers: Sequence[bool | None]) -> str:
    """The status of a claim that must be true of most of several; None is undecided."""
    yes, unsure = answers.count(True), answers.count(None)
    if yes > len(answers) / 2:
        return HOLDS
    return UNTESTED if yes + unsure > len(answers) / 2 else FAILS


class Estimate(NamedTuple):
    """A number with its 95 % interval, which may be longer on one side."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, row: Mapping[str, Any], value: str = "value") -> "Estimate":
        """From a row of a table; without an interval it is taken for exact."""
        ends = (value, value) if row["low"] is None else ("low", "high")
        return cls(*(number(row[name]) for name in (value, *ends)))

    def __str__(self) -> str:
        """The number, and its interval where it is not exact."""
        exact = self.low == self.high
        return f"{self.value:.3f}" + ("" if exact else f" [{self.low:.3f}, {self.high:.3f}]")

    def minus(self, other: "Estimate") -> "Estimate":
        """The difference of two independent numbers.

        Source: Zou and Donner (2008), "Construction of confidence limits about effect measures":
        each end takes the sides of the two intervals that lie its way.
        """
        value = self.value - other.value
        down = math.hypot(self.value - self.low, other.high - other.value)
        up = math.hypot(self.high - self.value, other.value - other.low)
        return Estimate(value, value - down, value + up)

    def widened(self, factor: float) -> "Estimate":
        """With an interval that many times as long."""
        down, up = self.value - self.low, self.high - self.value
        return Estimate(self.value, self.value - factor * down, self.value + factor * up)


def mean(found: Sequence[Estimate]) -> Estimate:
    """The mean of independent numbers."""
    value = sum(x.value for x in found) / len(found)
    down = math.hypot(*(x.value - x.low for x in found)) / len(found)
    up = math.hypot(*(x.high - x.value for x in found)) / len(found)
    return Estimate(value, value - down, value + up)


def over_models(found: Sequence[Estimate]) -> Estimate:
    """The mean over models of a number that was measured of each.

    Its interval is Student's from the spread of the models, or what their own intervals say if that
    is longer: models may be alike by chance.
    """
    within = mean(found)
    if len(found) == 1:
        return within
    spread = stdev(x.value for x in found) / math.sqrt(len(found))
    t = student(np.array(quantile(LEVEL)), np.array(len(found) - 1.0))
    half = float(t) * spread
    return Estimate(
        within.value, min(within.low, within.value - half), max(within.high, within.value + half)
    )


def at_once(count: int) -> float:
    """By what to widen 95 % intervals that are to hold for so many numbers at once (Bonferroni)."""
    return quantile(1 - (1 - LEVEL) / count) / quantile(LEVEL)


def number(value: Any) -> float:
    """What polars calls a literal of any type, as the number that it is."""
    return float(value)
