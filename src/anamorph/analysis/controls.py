"""Controls beside the views that they are for: what they lose, and what that means."""

import re
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any, NamedTuple

import polars as pl

from anamorph.analysis.findings import KEPT, Findings, NamedProxy
from anamorph.analysis.words import points, split_label
from anamorph.faithfulness import gaps
from anamorph.faithfulness.metrics import JUDGED
from anamorph.tasks.fitted_on import HALF, ORACLE, FittedOn

RANDOM = "random"
LEARNT = {"rank": "directions", "clusters": "centres", "features": "features", "k": "features"}
"""What a view has learnt, by what its size is called."""


class Control(NamedTuple):
    """A control, and the view that it stands beside.

    Attributes:
        simplification: its spec string.
        kind: "oracle", "half" or "random".
        on: what it is fitted on, as `on=` has it.
        view: alike but for what makes it a control; of the same size.
    """

    simplification: str
    kind: str
    on: str
    view: NamedProxy

    @property
    def split(self) -> str | None:
        """The one split other than train that it is fitted on; None if it is not one."""
        splits = FittedOn.read(self.on).splits
        return splits[0] if len(splits) == 1 else None


def controls(run: Findings) -> list[Control]:
    """Every control beside every view of its size that it is for.

    An oracle or a half is for the family that it stands in, random ones for all views at the same
    sites whose sizes have the same name, and that leave the same positions.
    """
    columns = ("simplification", "control", "family", "sites", "size_name", "size")
    sites = dict(run.results.select("simplification", "sites").unique().iter_rows())
    found = []
    for name, kind, family, at, size_name, size in (
        run.controls.select(columns).unique(maintain_order=True).iter_rows()
    ):
        named = re.search(r"[( ]on=([^,)]+)", name)
        for view in run.proxies:
            alike = (sites[view.simplification], view.size_name) == (at, size_name)
            alike &= re.findall(KEPT, view.simplification) == re.findall(KEPT, name)
            if view.size == size and (alike if kind == RANDOM else view.family == family):
                found.append(Control(name, kind, named[1] if named else "train", view))
    return found


def beside_views(run: Findings) -> pl.DataFrame:
    """What controls have, over all models, beside each of their views; an oracle on its own split.

    Returns:
        view (its spec string), kind, split, metric, value.
    """
    columns = {"view": pl.String, "kind": pl.String, "simplification": pl.String, "own": pl.String}
    named = pl.DataFrame(
        [
            (c.view.simplification, c.kind, c.simplification, c.split if c.kind == ORACLE else None)
            for c in controls(run)
        ],
        columns,
        orient="row",
    )
    pooled = run.controls.filter(pl.col("seed").is_null())
    return (
        named.join(pooled, on="simplification", maintain_order="left")
        .filter((pl.col("kind") != ORACLE) | (pl.col("own") == pl.col("split")))
        .select("view", "kind", "split", "metric", "value")
    )


def said(run: Findings) -> dict[str, str]:
    """By the title of a family of views, what its controls say of it; no family without any."""
    by_family: dict[str, list[Control]] = {}
    for control in controls(run):
        by_family.setdefault(control.view.title, []).append(control)
    texts = {title: _of_family(run, title, some) for title, some in by_family.items()}
    return {title: text for title, text in texts.items() if text}


def _of_family(run: Findings, title: str, some: Sequence[Control]) -> str:
    """Of the largest fall that a control says something of, illusions first; or of what holds."""
    rows = [row for p in run.families[title] for row in run.cells.get(p.simplification, ())]
    worse = [r for r in rows if r["verdict"] in (*gaps.ILLUSIONS, gaps.DEGRADES)]
    for row in sorted(worse, key=lambda row: (row["verdict"] == gaps.DEGRADES, -row["gap"])):
        beside = [c for c in some if c.view.simplification == row["simplification"]]
        if text := _of_fall(run, row, beside):
            return text
    return _of_faithful(run, rows, some)


def _of_fall(run: Findings, row: Mapping[str, Any], beside: Sequence[Control]) -> str:
    """What a view loses on a split, and what its controls lose there."""
    tolerance, on = run.thresholds.tolerance, split_label(row["split"])
    there = {control: _Beside.of(run, control, row) for control in beside}
    parts = [
        f"fitted there it loses {each.lost}: {each.meaning(control.view)}"
        for control, each in there.items()
        if control.kind == ORACLE and control.split == row["split"]
    ]
    parts += [
        f"fitted on {control.on} it loses {each.lost}: it depends on the sequences that it is "
        "fitted on"
        for control, each in there.items()
        if control.kind == HALF and each.differs(tolerance)
    ]
    random = [each for control, each in there.items() if control.kind == RANDOM]
    if random and all(each.as_good(tolerance) for each in random):
        ends = [each.lost for each in sorted(random, key=lambda each: each.loss)]
        lost = " to ".join(dict.fromkeys((ends[0], ends[-1])))
        parts.append(f"random ones lose {lost}: nothing that counts there was learnt")
    if not parts:
        return ""
    size = f" at {beside[0].view.row}" if beside[0].view.row else ""
    return f"On {on}, it loses {points(row['gap'])} points{size}; {'; '.join(parts)}."


def _of_faithful(run: Findings, rows: Sequence[Mapping[str, Any]], some: Sequence[Control]) -> str:
    """Whether random ones do as well where a view is faithful."""
    sizes = []
    for control in (c for c in some if c.kind == RANDOM):
        cells = [row for row in rows if row["simplification"] == control.view.simplification]
        beside = (_Beside.of(run, control, row) for row in cells)
        if {row["verdict"] for row in cells} == {gaps.FAITHFUL} and all(
            each.as_good(run.thresholds.tolerance) for each in beside
        ):
            sizes.append(control.view.row)
    if not sizes:
        return ""
    return f"At {sizes[0]} random ones do as well on every split: nothing had to be learnt."


class _Beside(NamedTuple):
    """A control's same prediction beside a view's, on one split.

    Attributes:
        loss: of the control, over all models: how far it is below what the view has on the
            reference.
        seeds: of each model the view's fall and its value on the split, and the ends of the
            control's interval there, infinite where there is none.
    """

    loss: float
    seeds: list[tuple[float, float, float, float]]

    @classmethod
    def of(cls, run: Findings, control: Control, row: Mapping[str, Any]) -> "_Beside":
        """Of a row of `judged`."""
        key = {"metric": JUDGED, "split": row["split"]}
        theirs = run.controls.filter(simplification=control.simplification, **key)
        ours = run.gaps.filter(simplification=row["simplification"], **key)
        by_seed = {s: (gap, ood) for s, gap, ood in ours.select("seed", "gap", "ood").iter_rows()}
        found = theirs.select("seed", "value", "low", "high")
        (value,) = (value for seed, value, *_ in found.iter_rows() if seed is None)
        seeds = [
            (*by_seed[seed], -inf if low is None else low, inf if high is None else high)
            for seed, _, low, high in found.iter_rows()
            if seed is not None
        ]
        return cls(row["iid"] - value, seeds)

    @property
    def lost(self) -> str:
        """What it loses, in points; or "nothing"."""
        return points(self.loss) if self.loss >= 0.0005 else "nothing"

    def meaning(self, view: NamedProxy) -> str:
        """What it means that a view, fitted where it falls, loses so much.

        It is decided where, in every model, the interval of what comes back of the fall lies on one
        side of a half; if it lies below zero, the fit there says nothing of the view.
        """
        back = [((low - ood) / gap, (high - ood) / gap) for gap, ood, low, high in self.seeds]
        if all(low > 0.5 for low, _ in back):
            learnt = LEARNT.get(view.size_name or "")
            what = f"the {learnt} exist" if learnt else "what it needs exists"
            return f"{what}, training data did not show {'them' if learnt else 'it'}"
        if all(high < 0 for _, high in back):
            return "there is too little to fit on there"
        if all(high < 0.5 for _, high in back):
            return "the view is too small"
        return "whether it is too small, or fitted in the wrong place, is open"

    def as_good(self, tolerance: float) -> bool:
        """Whether the control is no worse than the view, up to the tolerance, in every model."""
        return all(low >= ood - tolerance for _, ood, low, _ in self.seeds)

    def differs(self, tolerance: float) -> bool:
        """Whether it differs by more than the tolerance, to the same side in every model."""
        above = all(low > ood + tolerance for _, ood, low, _ in self.seeds)
        return above or all(high < ood - tolerance for _, ood, _, high in self.seeds)
