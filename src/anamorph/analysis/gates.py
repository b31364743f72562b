"""Gates: what makes a command of a CI fail, and the cells that do.

A gate looks at `same_prediction` of views, over all models; controls never fail one. It goes by the
number, not by its interval: what may lie on the wrong side by chance fails too, and more sequences
make the number surer.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Self

import polars as pl

from anamorph.analysis.compare import Comparison
from anamorph.analysis.findings import IDENTITY, Findings
from anamorph.errors import require
from anamorph.faithfulness import gaps
from anamorph.faithfulness.metrics import JUDGED
from anamorph.runs.folder import Run

VERDICTS: dict[str, tuple[str, ...]] = {
    "illusion": gaps.ILLUSIONS,
    "under-generalizes": (gaps.UNDER,),
    "over-generalizes": (gaps.OVER,),
    "mixed": (gaps.MIXED,),
    "degrades": (gaps.DEGRADES,),
    "unfaithful": (gaps.UNFAITHFUL,),
    "undecided": (gaps.UNDECIDED,),
    "untestable": (gaps.NOT_TESTABLE,),
    "any": tuple(verdict for verdict in gaps.VERDICTS if verdict != gaps.FAITHFUL),
}
"""What `--fail-on` takes, and the verdicts that it stands for; `any` also for a missing one."""

DIFFERENCE, CHANGED = "difference", "verdict"  # of a comparison
NO_VERDICT = "no verdict"


@dataclass(frozen=True)
class Gates:
    """When to fail.

    Attributes:
        below: by how much the share of same predictions may lie below what it is compared with: of
            a run that on the reference, of a comparison that in the first run.
        under: of a run, the share of same predictions that is the least to pass.
        on: words of `VERDICTS`; of a comparison also `DIFFERENCE` and `CHANGED`.
    """

    below: float | None = None
    under: float | None = None
    on: tuple[str, ...] = ()

    @classmethod
    def of_run(cls, below: float | None, under: float | None, on: Sequence[str]) -> Self:
        """Gates of a run.

        Raises:
            AnamorphError: if one cannot be meant so.
        """
        if under is not None:
            require("--fail-under", under, least=0, most=1)
        return cls._checked(below, under, on, VERDICTS)

    @classmethod
    def of_comparison(cls, below: float | None, on: Sequence[str]) -> Self:
        """Gates of a comparison.

        Raises:
            AnamorphError: if one cannot be meant so.
        """
        return cls._checked(below, None, on, [DIFFERENCE, CHANGED, *VERDICTS])

    @classmethod
    def _checked(
        cls, below: float | None, under: float | None, on: Sequence[str], words: Collection[str]
    ) -> Self:
        if below is not None:
            require("--fail-below", below, least=0, most=1)
        for word in on:
            require("--fail-on", word, among=words)
        return cls(below, under, tuple(on))

    @property
    def given(self) -> bool:
        """Whether there is anything to look at."""
        return self.below is not None or self.under is not None or bool(self.on)

    def wants(self, verdict: str | None) -> bool:
        """Whether a verdict is one to fail on."""
        found = {each for word in self.on if word in VERDICTS for each in VERDICTS[word]}
        return verdict in found or (verdict is None and "any" in self.on)


class _Cells(dict[str, list[str]]):
    """Why cells fail, by proxy and split."""

    def add(self, row: dict[str, Any], why: str) -> None:
        self.setdefault(f"{row['simplification']} on {row['split']}", []).append(why)

    def lines(self) -> list[str]:
        return [f"{cell}: {'; '.join(why)}" for cell, why in self.items()]


def failing(run: Run, gates: Gates) -> list[str]:
    """The cells of a run that fail, a line each: proxy, split, and why."""
    found, cells = Findings(run.path, run.spec), _Cells()
    if gates.under is not None:
        values = found.pooled.filter(pl.col("method") != IDENTITY, metric=JUDGED)
        for row in values.filter(pl.col("value") < gates.under).iter_rows(named=True):
            cells.add(row, f"same prediction {row['value']:.4f}, under {gates.under:g}")
    for row in found.judged.iter_rows(named=True):
        if gates.below is not None and row["gap"] > gates.below:
            here = f"same prediction {row['ood']:.4f}, {row['gap']:.4f} below {row['reference']}"
            cells.add(row, f"{here}, more than {gates.below:g}")
        if gates.wants(row["verdict"]):
            cells.add(row, row["verdict"] or NO_VERDICT)
    return cells.lines()


def failing_between(found: Comparison, gates: Gates) -> list[str]:
    """The cells of a comparison that fail, a line each: a number that fell, a verdict that came."""
    cells = _Cells()
    view = pl.col("control").is_null() & (pl.col("method") != IDENTITY)
    values, of_gaps = (t.filter(view, metric=JUDGED) for t in (found.values, found.gaps))
    for row in values.iter_rows(named=True):
        if gates.below is not None and row["difference"] < -gates.below:
            cells.add(row, f"same prediction {_change(row)}, by more than {gates.below:g}")
    if DIFFERENCE in gates.on:
        for name, table in (("same prediction", values), ("gap", of_gaps)):
            untold = pl.col("interval").is_null() & (pl.col("difference") != 0)
            for row in table.filter(pl.col("differs") | untold).iter_rows(named=True):
                how = "differs" if row["interval"] else "may differ (there is no interval)"
                cells.add(row, f"{name} {how}, {_change(row)}")
    for row in found.verdicts.filter(view, changed=True).iter_rows(named=True):
        if CHANGED in gates.on or (gates.wants(row["b"]) and not gates.wants(row["a"])):
            cells.add(row, f"{row['a'] or NO_VERDICT} → {row['b'] or NO_VERDICT}")
    return cells.lines()


def _change(row: dict[str, Any]) -> str:
    return f"{row['a']:.4f} → {row['b']:.4f}"
