"""Figures of the verdicts: the matrix of proxies and splits, and the gaps with their intervals."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import polars as pl

from anamorph.analysis.findings import Findings
from anamorph.analysis.words import SIGNS, sequences, some_of, split_label, threshold
from anamorph.faithfulness.gaps import (
    DEGRADES,
    FAITHFUL,
    LOOKS_RIGHT,
    LOOKS_WRONG,
    MIXED,
    NOT_TESTABLE,
    OVER,
    UNCLEAR,
    UNDECIDED,
    UNDER,
    UNFAITHFUL,
)
from anamorph.faithfulness.metrics import find_metric
from anamorph.report.charts.parts import (
    POINTS,
    QUIET,
    SPLIT,
    interval,
    metric_menu,
    squares,
    tips,
)
from anamorph.report.figure import TABLE, Figure
from anamorph.report.theme import split_scale, split_shapes

# Verdict: fill, text on it, short form. What decides nothing is neither green nor red.
VERDICTS = {
    FAITHFUL: ("faithful", "on-faithful", "faithful"),
    UNDER: ("under", "on-illusion", "under-generalizes"),
    OVER: ("over", "on-illusion", "over-generalizes"),
    MIXED: ("mixed", "on-illusion", "illusion, mixed"),
    DEGRADES: ("degrades", "on-degrades", "degrades"),
    UNFAITHFUL: ("unfaithful", "on-unfaithful", "unfaithful"),
    UNDECIDED: ("undecided", "on-undecided", "undecided"),
    NOT_TESTABLE: ("untestable", "on-untestable", "not testable here"),
}
REFERENCE = {LOOKS_RIGHT: "", LOOKS_WRONG: "× ", UNCLEAR: "? "}  # signs in the first column
NUMBERS = ("gap", "low", "high", "p_value")
GAP_TIPS = [
    ("gap:Q", "", ".4f"),
    ("low:Q", "gap, low", ".4f"),
    ("high:Q", "gap, high", ".4f"),
]  # for `tips`
P_TIP = ("p_value:Q", "p of no gap (adjusted)", ".3g")
WIDEST = 124  # pixels of a column
MOST_GAPS = 40  # proxies in the figure of gaps; the table on the page has them all


def matrix(run: Findings) -> Figure | None:
    """Proxies × splits: the share of same predictions as text, the verdict as colour."""
    families = run.telling_families
    rows = _cells(run)
    if not rows:
        return None
    parts = [_family(run, n, title) for n, title in enumerate(families)]
    level = threshold(run.thresholds.faithful)
    rest = some_of(len(families), len(run.families), "families of proxies; the table has all")
    return Figure(
        name="verdicts",
        title="Verdicts, proxy by proxy and split by split",
        caption="Numbers are same predictions in per cent; colours and signs are verdicts, beside "
        f"iid (first column; × below {level} there, ? perhaps). Look along a row: a cell with ▼, ▲ "
        "or ◆ is a view that held only where it was fitted; × and ↓ are views that do not look "
        "right even on iid, whatever the number says; ? needs more data (point at it for how "
        f"many).{rest}",
        chart=alt.vconcat(*parts, spacing=32, data=TABLE, bounds="flush").resolve_scale(
            fill="shared", color="shared"
        ),
        data=pl.DataFrame(rows, infer_schema_length=None),
    )


def _cells(run: Findings) -> list[dict[str, Any]]:
    """A row a cell of the matrix; the reference is the first cell of a proxy."""
    rows = []
    judged = {(r["simplification"], r["split"]): r for r in run.judged.iter_rows(named=True)}
    for number, proxies in enumerate(run.telling_families.values()):
        for place, proxy in enumerate(proxies):
            where = {"family": number, "place": place, "row": proxy.row}
            where |= {"proxy": proxy.simplification}
            for split in run.ood:
                cell = judged.get((proxy.simplification, split))
                if cell is None:
                    continue
                where["level"] = cell["level"]
                if split == run.ood[0]:
                    sign = REFERENCE.get(cell["level"], "")
                    rows.append(
                        where
                        | {"split": split_label(run.reference), "verdict": "reference", "why": ""}
                        | {"text": f"{sign}{100 * cell['iid']:.1f}", "value": cell["iid"]}
                        | dict.fromkeys(NUMBERS)
                    )
                verdict = cell["verdict"] or "not judged"
                text = f"{SIGNS.get(verdict, '')} {100 * cell['ood']:.1f}".strip()
                rows.append(
                    where
                    | {"split": split_label(split), "verdict": verdict}
                    | {"text": text, "value": cell["ood"], "why": open_question(run, cell)}
                    | {key: cell[key] for key in NUMBERS}
                )
    return rows


def open_question(run: Findings, cell: Mapping[str, Any]) -> str:
    """Which of the two judgements is open in a cell, and what would decide; "" if none is."""
    if cell["verdict"] != UNDECIDED:
        return ""
    said = []
    if cell["level"] == UNCLEAR:
        said.append(f"whether it looks right on {split_label(run.reference)}")
    if cell["change"] == UNDECIDED:
        said.append("whether it is worse here")
    if cell["needed"] is None:
        return f"{' and '.join(said)}; more sequences alone would not decide"
    return f"{' and '.join(said)}; about {sequences(cell['needed'])} of each split would decide"


def _label(verdict: str) -> str:
    return f"{SIGNS[verdict]} {VERDICTS[verdict][2]}".strip()


def _family(run: Findings, number: int, title: str) -> alt.LayerChart | alt.FacetChart:
    """The rows of a family; names of splits stand above the first."""
    columns, first = [split_label(name) for name in run.splits], number == 0
    x_axis = alt.Axis(
        orient="top",
        **QUIET,
        labels=first,
        labelAngle=0,
        labelLimit=WIDEST - 4,
        labelPadding=8,
    )
    y_axis = alt.Axis(**QUIET, minExtent=84, maxExtent=84)
    by_place = alt.EncodingSortField("place", op="min")
    shown = [v for v in VERDICTS if v in set(run.judged["verdict"])]
    named = json.dumps({v: _label(v) for v in shown})
    fill = alt.Fill(
        "verdict:N",
        scale=alt.Scale(domain=shown, range=[f"var(--{VERDICTS[v][0]})" for v in shown]),
        legend=squares(title=None, labelExpr=f"({named})[datum.label]"),
    )
    ink = alt.Color(
        "verdict:N",
        scale=alt.Scale(
            domain=[*shown, "reference", "not judged"],
            range=[*(f"var(--{VERDICTS[v][1]})" for v in shown), "var(--ink)", "var(--ink)"],
        ),
        legend=None,
    )
    base = (
        alt.Chart()
        .transform_filter(f"datum.family == {number}")
        .encode(
            x=alt.X(
                "split:N", sort=columns, scale=alt.Scale(domain=columns), title=None, axis=x_axis
            ),
            y=alt.Y("row:N", sort=by_place, title=None, axis=y_axis),
            tooltip=tips(
                *("proxy:N", "split:N"),
                ("value:Q", "same prediction", ".2%"),
                ("level:N", "on iid"),
                "verdict:N",
                ("why:N", "what is open"),
                *GAP_TIPS,
                P_TIP,
            ),
        )
    )
    cells = base.transform_filter("datum.verdict != 'reference'").mark_rect(
        stroke="var(--page)", strokeWidth=2, cornerRadius=2
    )
    texts = base.mark_text(fontSize=11.5).encode(text="text:N", color=ink)
    return alt.layer(cells.encode(fill=fill), texts).properties(
        width=alt.Step(max(64, min(WIDEST, 6 * max(map(len, columns))))),
        height=alt.Step(23),
        title=alt.TitleParams(title, orient="top", frame="group", offset=6 if not first else 8),
    )


def gaps(run: Findings) -> Figure | None:
    """The generalization gap of every proxy on every ood split, the largest at the top."""
    metrics = run.shown_metrics
    frame = run.gaps.filter(pl.col("seed").is_null(), pl.col("metric").is_in(metrics))
    if frame.is_empty():
        return None
    largest = (
        run.judged.with_columns(right=pl.col("level") == LOOKS_RIGHT)
        .group_by("simplification", maintain_order=True)
        .agg(pl.col("gap").max(), pl.col("right").first())
        .sort("right", "gap", descending=True, maintain_order=True)
    )
    shown = largest.head(MOST_GAPS).sort("gap", descending=True, maintain_order=True)
    labels = {name: run.label(name) for name in shown["simplification"]}
    frame = frame.filter(pl.col("simplification").is_in(list(labels))).select(
        "metric",
        *("gap", "low", "high", "low_all", "high_all", "p_value"),
        proxy=pl.col("simplification").replace_strict(labels),
        split=SPLIT,
    )
    level = run.thresholds.level
    units = {m: "points" if find_metric(m).share else find_metric(m).unit for m in metrics}
    headings = {m: f"Gap in {find_metric(m).label}, {unit}" for m, unit in units.items()}
    rest = some_of(len(shown), len(largest), "proxies")
    return Figure(
        name="gaps",
        title="The generalization gap",
        caption="How much less faithful each proxy is on a split than on iid; to the right of zero "
        "is worse. Thick lines are 95 % intervals of single gaps; thin lines hold for all gaps of "
        "the metric at once: read those where you pick a gap because it is large. Filled points "
        f"differ from zero (p of no gap, corrected over proxies and splits, below {level:g}). Rows "
        f"are sorted by the largest gap in same predictions.{rest}",
        chart=alt.layer(*_gap_lines(run, list(labels.values())), data=TABLE)
        .properties(width=max(96, 700 // max(1, len(run.ood))), height=alt.Step(18))
        .facet(
            column=alt.Column("split:N", sort=[split_label(name) for name in run.ood], title=None),
            spacing=14,
        ),
        data=frame,
        **metric_menu(metrics, headings),
        stills={"": {}} | {f"_{m}": {"metric": m} for m in metrics if m == "attention_jsd"},
    )


def _gap_lines(run: Findings, proxies: Sequence[str]) -> list[alt.Chart]:
    """Zero, both intervals and the points, a row a proxy."""
    y_axis = alt.Axis(labelLimit=300, **QUIET, grid=True)
    scale, shapes = split_scale(run.splits), split_shapes(run.splits)
    base = alt.Chart().encode(
        y=alt.Y("proxy:N", sort=list(proxies), title=None, axis=y_axis),
        color=alt.Color("split:N", scale=scale, legend=None),
        tooltip=tips(
            *("proxy:N", "split:N"),
            *interval(".4f", "gap"),
            ("low_all:Q", "low, of all at once", ".4f"),
            ("high_all:Q", "high, of all at once", ".4f"),
            P_TIP,
        ),
    )
    zero = (
        alt.Chart()
        .transform_aggregate(rows="count()", groupby=["split"])
        .mark_rule(strokeWidth=1, color="var(--soft)")
        .encode(x=alt.XDatum(0))
    )
    bars = base.mark_rule(strokeWidth=2, strokeOpacity=0.6).encode(
        x=alt.X("low:Q", title=None), x2="high:Q"
    )
    wide = (
        base.transform_filter("isValid(datum.low_all)")
        .mark_rule(strokeWidth=0.8, strokeOpacity=0.6)
        .encode(x=alt.X("low_all:Q", title=None), x2="high_all:Q")
    )
    formats = f"unit_shown == 'share' ? {POINTS} : format(datum.value, '~g')"
    certain = f"isValid(datum.p_value) && datum.p_value < {run.thresholds.level}"
    dots = base.mark_point(size=42, strokeWidth=1.6, opacity=1).encode(
        x=alt.X("gap:Q", title=None, axis=alt.Axis(tickCount=4, labelExpr=formats)),
        fill=alt.Fill("split:N", scale=scale, legend=None),
        fillOpacity=alt.condition(certain, alt.value(1), alt.value(0)),
        shape=alt.Shape("split:N", scale=shapes, legend=None),
    )
    return [zero, wide, bars, dots]
