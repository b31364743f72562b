"""Figures of the verdicts: the matrix of proxies and splits, and the gaps with their intervals."""

import json
from collections.abc import Mapping
from typing import Any

import altair as alt
import polars as pl

from anamorph.analysis.data import Run
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
from anamorph.report.figure import TABLE, Choice, Figure, lookup
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
WIDEST = 124  # pixels of a column
MOST_GAPS = 40  # proxies in the figure of gaps; the table on the page has them all


def matrix(run: Run) -> Figure | None:
    """Proxies × splits: the share of same predictions as text, the verdict as colour."""
    rows = []
    cells = {(r["simplification"], r["split"]): r for r in run.judged.iter_rows(named=True)}
    families = run.telling_families
    for number, proxies in enumerate(families.values()):
        for place, proxy in enumerate(proxies):
            for split in run.ood:
                cell = cells.get((proxy.simplification, split))
                if cell is None:
                    continue
                where = {"family": number, "place": place, "row": proxy.row}
                where |= {"proxy": proxy.simplification}
                if split == run.ood[0]:
                    sign = REFERENCE.get(cell["level"], "")
                    rows.append(
                        where
                        | {"split": split_label(run.reference), "verdict": "reference"}
                        | {"text": f"{sign}{100 * cell['iid']:.1f}", "value": cell["iid"]}
                        | {"level": cell["level"], "why": ""}
                        | dict.fromkeys(("gap", "low", "high", "p_value"))
                    )
                verdict = cell["verdict"] or "not judged"
                sign = SIGNS.get(verdict, "")
                rows.append(
                    where
                    | {"split": split_label(split), "verdict": verdict}
                    | {"text": f"{sign} {100 * cell['ood']:.1f}".strip(), "value": cell["ood"]}
                    | {"level": cell["level"], "why": open_question(run, cell)}
                    | {k: cell[k] for k in ("gap", "low", "high", "p_value")}
                )
    if not rows:
        return None
    frame = pl.DataFrame(rows, infer_schema_length=None)
    parts = [_family(run, n, title, n == 0) for n, title in enumerate(families)]
    level = threshold(run.thresholds["faithful"])
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
        data=frame,
    )


def open_question(run: Run, cell: Mapping[str, Any]) -> str:
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


def _family(run: Run, number: int, title: str, first: bool) -> alt.LayerChart | alt.FacetChart:
    columns = [split_label(name) for name in run.splits]
    x = alt.X(
        "split:N",
        sort=columns,
        scale=alt.Scale(domain=columns),
        title=None,
        axis=alt.Axis(
            orient="top",
            domain=False,
            ticks=False,
            labels=first,
            labelAngle=0,
            labelLimit=WIDEST - 4,
            labelPadding=8,
        ),
    )
    y = alt.Y(
        "row:N",
        sort=alt.EncodingSortField("place", op="min"),
        title=None,
        axis=alt.Axis(domain=False, ticks=False, minExtent=84, maxExtent=84),
    )
    names = list(VERDICTS)
    shown = [v for v in names if v in set(run.judged["verdict"])]
    fill = alt.Fill(
        "verdict:N",
        scale=alt.Scale(domain=shown, range=[f"var(--{VERDICTS[v][0]})" for v in shown]),
        legend=alt.Legend(
            title=None,
            symbolType="square",
            symbolStrokeWidth=0,
            labelExpr=f"({json.dumps({v: _label(v) for v in shown})})[datum.label]",
        ),
    )
    ink = alt.Color(
        "verdict:N",
        scale=alt.Scale(
            domain=[*shown, "reference", "not judged"],
            range=[*(f"var(--{VERDICTS[v][1]})" for v in shown), "var(--ink)", "var(--ink)"],
        ),
        legend=None,
    )
    tooltip = [
        alt.Tooltip("proxy:N"),
        alt.Tooltip("split:N"),
        alt.Tooltip("value:Q", title="same prediction", format=".2%"),
        alt.Tooltip("level:N", title="on iid"),
        alt.Tooltip("verdict:N"),
        alt.Tooltip("why:N", title="what is open"),
        alt.Tooltip("gap:Q", format=".4f"),
        alt.Tooltip("low:Q", title="gap, low", format=".4f"),
        alt.Tooltip("high:Q", title="gap, high", format=".4f"),
        alt.Tooltip("p_value:Q", title="p of no gap (adjusted)", format=".3g"),
    ]
    base = alt.Chart().transform_filter(f"datum.family == {number}").encode(x=x, y=y)
    cells = base.transform_filter("datum.verdict != 'reference'").mark_rect(
        stroke="var(--page)", strokeWidth=2, cornerRadius=2
    )
    texts = base.mark_text(fontSize=11.5).encode(text="text:N", color=ink, tooltip=tooltip)
    return alt.layer(cells.encode(fill=fill, tooltip=tooltip), texts).properties(
        width=alt.Step(max(64, min(WIDEST, 6 * max(map(len, columns))))),
        height=alt.Step(23),
        title=alt.TitleParams(title, orient="top", frame="group", offset=6 if not first else 8),
    )


def gaps(run: Run) -> Figure | None:
    """The generalization gap of every proxy on every ood split, the largest at the top."""
    metrics = [m for m in run.metrics if find_metric(m).about != "model"]
    frame = run.gaps.filter(pl.col("seed").is_null(), pl.col("metric").is_in(metrics))
    if frame.is_empty():
        return None
    worst = (
        run.judged.with_columns(right=pl.col("level") == LOOKS_RIGHT)
        .group_by("simplification")
        .agg(pl.col("gap").max(), pl.col("right").first())
        .sort("right", "gap", descending=True)["simplification"]
        .to_list()
    )
    shown = sorted(
        worst[:MOST_GAPS],
        key=lambda name: -run.judged.filter(simplification=name)["gap"].to_numpy().max(),
    )
    labels = {name: run.label(name) for name in shown}
    frame = frame.filter(pl.col("simplification").is_in(shown)).select(
        "metric",
        *("gap", "low", "high", "low_all", "high_all", "p_value"),
        proxy=pl.col("simplification").replace_strict(labels),
        split=pl.col("split").str.replace_all("_", " "),
    )
    level = run.thresholds["level"]
    y = alt.Y(
        "proxy:N",
        sort=[labels[name] for name in shown],
        title=None,
        axis=alt.Axis(labelLimit=300, ticks=False, domain=False, grid=True),
    )
    x = alt.X("gap:Q", title=None, axis=alt.Axis(tickCount=4, labelExpr=_number("datum.value")))
    color = alt.Color("split:N", scale=split_scale(run.splits), legend=None)
    tooltip = [
        alt.Tooltip("proxy:N"),
        alt.Tooltip("split:N"),
        alt.Tooltip("gap:Q", format=".4f"),
        alt.Tooltip("low:Q", format=".4f"),
        alt.Tooltip("high:Q", format=".4f"),
        alt.Tooltip("low_all:Q", title="low, of all at once", format=".4f"),
        alt.Tooltip("high_all:Q", title="high, of all at once", format=".4f"),
        alt.Tooltip("p_value:Q", title="p of no gap (adjusted)", format=".3g"),
    ]
    base = alt.Chart().encode(y=y)
    zero = (
        alt.Chart()
        .transform_aggregate(rows="count()", groupby=["split"])
        .mark_rule(strokeWidth=1, color="var(--soft)")
        .encode(x=alt.XDatum(0))
    )
    bars = base.mark_rule(strokeWidth=2, strokeOpacity=0.6).encode(
        x=alt.X("low:Q", title=None), x2="high:Q", color=color, tooltip=tooltip
    )
    wide = (
        base.transform_filter("isValid(datum.low_all)")
        .mark_rule(strokeWidth=0.8, strokeOpacity=0.6)
        .encode(x=alt.X("low_all:Q", title=None), x2="high_all:Q", color=color, tooltip=tooltip)
    )
    dots = base.mark_point(size=42, strokeWidth=1.6, opacity=1).encode(
        x=x,
        color=color,
        fill=alt.Fill("split:N", scale=split_scale(run.splits), legend=None),
        fillOpacity=alt.condition(
            f"isValid(datum.p_value) && datum.p_value < {level}", alt.value(1), alt.value(0)
        ),
        shape=alt.Shape("split:N", scale=split_shapes(run.splits), legend=None),
        tooltip=tooltip,
    )
    ood = [split_label(name) for name in run.ood]
    chart = (
        alt.layer(zero, wide, bars, dots, data=TABLE)
        .properties(width=max(96, 700 // max(1, len(ood))), height=alt.Step(18))
        .facet(column=alt.Column("split:N", sort=ood, title=None), spacing=14)
        .transform_filter("datum.metric == metric")
        .properties(title=alt.TitleParams(alt.ExprRef("heading")))
    )
    rest = some_of(len(shown), len(worst), "proxies")
    return Figure(
        name="gaps",
        title="The generalization gap",
        caption="How much less faithful each proxy is on a split than on iid; to the right of zero "
        "is worse. Thick lines are 95 % intervals of single gaps; thin lines hold for all gaps of "
        "the metric at once: read those where you pick a gap because it is large. Filled points "
        f"differ from zero (p of no gap, corrected over proxies and splits, below {level:g}). Rows "
        f"are sorted by the largest gap in same predictions.{rest}",
        chart=chart,
        data=frame,
        choices=[Choice("metric", "Metric", [(m, find_metric(m).label) for m in metrics])],
        values={
            "heading": lookup({m: f"Gap in {_with_unit(m)}" for m in metrics}, "metric"),
            "unit_shown": lookup({m: find_metric(m).unit for m in metrics}, "metric"),
        },
        stills={"": {}} | {f"_{m}": {"metric": m} for m in metrics if m == "attention_jsd"},
    )


def _with_unit(metric: str) -> str:
    unit = "points" if find_metric(metric).unit == "share" else "bits"
    return f"{find_metric(metric).label}, {unit}"


def _number(value: str) -> str:
    """A Vega expression: shares in points, bits as they are."""
    return f"unit_shown == 'share' ? format(100 * {value}, '~g') : format({value}, '~g')"
