"""The verdicts at a glance: proxies by splits, with the share of same predictions."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from anamorph.faithfulness import gaps
from anamorph.faithfulness.metrics import JUDGED
from anamorph.showing import MOST, Card, Cell

TINTS = {
    gaps.FAITHFUL: "good",
    gaps.UNDER: "bad",
    gaps.OVER: "other",
    gaps.MIXED: "both",
    gaps.DEGRADES: "poor",
    gaps.UNFAITHFUL: "poor",
    gaps.UNDECIDED: "open",
    gaps.NOT_TESTABLE: "",
}
AT_REFERENCE = {gaps.LOOKS_WRONG: "× ", gaps.UNCLEAR: "? "}  # before the number there
MODEL = "accuracy of the model"


class Matrix(NamedTuple):
    """The verdicts of an audit, over all models.

    Attributes:
        heads: of the columns: what a row is, and the splits, the reference first.
        rows: the accuracy of the model, then a row a view. A number is the share of same
            predictions, with the sign of the verdict; on the reference × says that a view does not
            look right there, ? that this is open. Where there are more than `MOST`, those with the
            largest gaps stand first.
        views: how many views there are.
        controls: how many controls, which have no row.
        verdicts: how many cells have each verdict, in the order of `gaps.VERDICTS`.
    """

    heads: list[str]
    rows: list[tuple[str, list[Cell]]]
    views: int
    controls: int
    verdicts: dict[str, int]

    @property
    def counted(self) -> str:
        """Such as "12 cells: 5 faithful, 3 ▼ illusion (under-generalizes), 4 ? undecided."; or "".

        It is the legend too: it names the sign of every verdict that there is.
        """
        total = sum(self.verdicts.values())
        counts = ", ".join(
            f"{count:,} {gaps.SIGNS[verdict]} {verdict}".replace("  ", " ")
            for verdict, count in self.verdicts.items()
        )
        return f"{total:,} cell{'s' if total != 1 else ''}: {counts}." if total else ""

    def card(self, what: str, *notes: str, lines: Sequence[str] = ()) -> Card:
        """It, with the counts in front and what it shows behind.

        Args:
            what: an audit or a run.
            notes: more sentences behind it.
            lines: sentences in front of it, in place of the counts.
        """
        views = f"{self.views} view{'s' if self.views != 1 else ''}"
        controls = (
            f" (and {self.controls} control{'s' if self.controls > 1 else ''})"
            if self.controls
            else ""
        )
        splits = len(self.heads) - 1
        shown = "Numbers are shares of predictions that proxy and model have in common."
        return Card(
            f"{what}: {views}{controls} on {splits} split{'s' if splits != 1 else ''}",
            lines=[*lines, *filter(None, [self.counted])],
            heads=self.heads,
            rows=self.rows,
            total=f"{self.views} views, those with the largest gaps",
            notes=[shown, *notes],
        )

    @classmethod
    def of(cls, results: pl.DataFrame, judged: pl.DataFrame) -> "Matrix":
        """Made of the tables of an audit or a run, which may have controls.

        Args:
            results: as `anamorph.faithfulness.tabulate` makes it.
            judged: its gaps.
        """
        whole = results.filter(pl.col("facet").is_null(), pl.col("seed").is_null())
        same, right = (whole.filter(metric=name) for name in (JUDGED, "model_accuracy"))
        control = pl.col("control").is_not_null()
        judged = judged.filter(pl.col("seed").is_null(), ~control, metric=JUDGED)
        roles = dict(same.select("split", "role").iter_rows())
        splits = sorted(roles, key=lambda name: roles[name] != "iid")
        views = same.filter(~control, pl.col("method") != "identity")
        names = views["simplification"].unique(maintain_order=True).to_list()
        if len(names) >= MOST:
            worst = dict(judged.group_by("simplification").agg(pl.col("gap").max()).iter_rows())
            names.sort(key=lambda name: -worst.get(name, 0.0))
        accuracy = dict(right.filter(method="identity").select("split", "value").iter_rows())
        model = [Cell(f"{accuracy[s]:.3f}" if s in accuracy else "–") for s in splits]
        counts = Counter(judged["verdict"].drop_nulls())
        return cls(
            ["proxy", *(name.replace("_", " ") for name in splits)],
            [(MODEL, model), *_rows(names, splits, views, judged)],
            len(names),
            same.filter(control)["simplification"].n_unique(),
            {verdict: counts[verdict] for verdict in gaps.VERDICTS if counts[verdict]},
        )


def _rows(
    names: Sequence[str], splits: Sequence[str], views: pl.DataFrame, judged: pl.DataFrame
) -> list[tuple[str, list[Cell]]]:
    columns = ("simplification", "split")
    values = {key[:2]: key[2] for key in views.select(*columns, "value").iter_rows()}
    found = judged.select(*columns, "verdict").iter_rows()
    verdicts = {(name, split): verdict for name, split, verdict in found}
    levels = dict(judged.select("simplification", "level").iter_rows())
    rows = []
    for name in names:
        at_first = AT_REFERENCE.get(levels.get(name, ""), "")
        if gaps.NOT_TESTABLE in (verdicts.get((name, split)) for split in splits):
            at_first = ""
        first = Cell(f"{at_first}{_number(values.get((name, splits[0])))}")
        others = (
            _cell(values.get((name, split)), verdicts.get((name, split))) for split in splits[1:]
        )
        rows.append((name, [first, *others]))
    return rows


def _cell(value: float | None, verdict: str | None) -> Cell:
    if verdict is None:
        return Cell(_number(value))
    return Cell(f"{gaps.SIGNS[verdict]} {_number(value)}".strip(), TINTS[verdict])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
