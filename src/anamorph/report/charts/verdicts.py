"""Figures of the verdicts: the matrix of proxies and splits, and the gaps with their intervals."""

import json
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

import altair as alt
import polars as pl

from anamorph.analysis.controls import beside_views
from anamorph.analysis.findings import Findings
from anamorph.analysis.words import SIGNS, sequences, some_of, split_label, threshold
from anamorph.faithfulness import gaps
from anamorph.faithfulness.metrics import find_metric
from anamorph.report.charts import parts
from anamorph.report.figure import TABLE, Figure
from anamorph.report.theme import split_scale, split_shapes

# Verdict: fill, text on it, short form. What decides nothing is neither green nor red.
VERDICTS = {
    gaps.FAITHFUL: ("faithful", "on-faithful", "faithful"),
    gaps.UNDER: ("under", "on-illusion", "under-generalizes"),
    gaps.OVER: ("over", "on-illusion", "over-generalizes"),
    gaps.MIXED: ("mixed", "on-illusion", "illusion, mixed"),
    gaps.DEGRADES: ("degrades", "on-degrades", "degrades"),
    gaps.UNFAITHFUL: ("unfaithful", "on-unfaithful", "unfaithful"),
    gaps.UNDECIDED: ("undecided", "on-undecided", "undecided"),
    gaps.NOT_TESTABLE: ("untestable", "on-untestable", "not testable here"),
}
REFERENCE = {
    gaps.LOOKS_RIGHT: "",
    gaps.LOOKS_WRONG: "× ",
    gaps.UNCLEAR: "? ",
}  # signs in the first column
NUMBERS = ("gap", "low", "high", "p_value")
COLUMNS = ("family", "place", "row", "proxy", "level", "split", "verdict", "why", "text", "value")
P_TIP = ("p_value:Q", "p of no gap (adjusted)", ".3g")
LINE = 16  # pixels of a line of a title
WIDEST = 136  # pixels of a column
LABELS = 560  # pixels of the names of proxies, beside their gaps
MOST_GAPS = 40  # proxies in the figure of gaps; the table on the page has them all


def matrix(run: Findings) -> Figure | None:
    """Proxies × splits: the share of same predictions as text, the verdict as colour."""
    families = run.telling_families
    cells = _cells(run)
    if cells.is_empty():
        return None
    tables = [_family(run, n, title) for n, title in enumerate(families)]
    longest = max(len(wrap(title, _letters(run))) for title in families)
    rest = some_of(len(families), len(run.families), "families of proxies; the table has all")
    return Figure(
        name="verdicts",
        title="Verdicts, proxy by proxy and split by split",
        caption="A row is a proxy, a column a split, and the number the share of same predictions, "
        f"in per cent. {_how_to_read(run)}{rest}",
        chart=alt.vconcat(
            *tables, spacing=32 + LINE * (longest - 1), data=TABLE, bounds="flush"
        ).resolve_scale(fill="shared", color="shared"),
        data=cells,
    )


def _how_to_read(run: Findings) -> str:
    """What colours and signs say, if there are any."""
    if set(run.judged["verdict"]) == {gaps.NOT_TESTABLE}:
        return "Nothing is judged, as the model has not learnt the task."
    return (
        f"The first column is {split_label(run.reference)}, which has no verdict: × stands where a "
        f"proxy does not look right there (below {threshold(run.thresholds.faithful)}), ? where "
        "that is open. Elsewhere colour and sign are the verdict: ▼, ▲ and ◆ are illusions, views "
        "that hold on data like those they were fitted on and not here; × and ↓ are views that do "
        "not look right even there, whatever their number here; ? needs more data (point at it for "
        "how many)."
    )


def _cells(run: Findings) -> pl.DataFrame:
    """A row a cell of the matrix; the reference is the first cell of a proxy."""
    rows = []
    for number, proxies in enumerate(run.telling_families.values()):
        for place, proxy in enumerate(proxies):
            cells = {cell["split"]: cell for cell in run.cells.get(proxy.simplification, ())}
            for split in filter(cells.get, run.ood):
                cell = cells[split]
                verdict = cell["verdict"] or "not judged"
                level = verdict if verdict == gaps.NOT_TESTABLE else cell["level"]
                where = (number, place, proxy.row, proxy.simplification, level)
                if split == run.ood[0]:
                    text = f"{REFERENCE.get(level, '')}{100 * cell['iid']:.1f}"
                    at_first = (split_label(run.reference), "reference", "", text, cell["iid"])
                    rows.append((*where, *at_first, *[None] * len(NUMBERS)))
                text = f"{SIGNS.get(verdict, '')} {100 * cell['ood']:.1f}".strip()
                here = (split_label(split), verdict, open_question(run, cell), text, cell["ood"])
                rows.append((*where, *here, *(cell[key] for key in NUMBERS)))
    return pl.DataFrame(rows, [*COLUMNS, *NUMBERS], orient="row", infer_schema_length=None)


def open_question(run: Findings, cell: Mapping[str, Any]) -> str:
    """Which of the two judgements is open in a cell, and what would decide; "" if none is."""
    said = []
    if cell["level"] == gaps.UNCLEAR:
        said.append(f"whether it looks right on {split_label(run.reference)}")
    if said and cell["verdict"] in (*gaps.ILLUSIONS, gaps.DEGRADES):
        return f"{said[0]}; the number there is taken for it"
    if cell["verdict"] != gaps.UNDECIDED:
        return ""
    if cell["change"] == gaps.UNDECIDED:
        said.append("whether it is worse here")
    if cell["needed"] is None:
        return f"{' and '.join(said)}; more sequences alone would not decide"
    return f"{' and '.join(said)}; about {sequences(cell['needed'])} of each split would decide"


def _label(verdict: str) -> str:
    return f"{SIGNS[verdict]} {VERDICTS[verdict][2]}".strip()


def _step(run: Findings) -> float:
    """Pixels of a column."""
    names = (len(split_label(name)) for name in run.splits)
    return max(64, min(WIDEST, parts.LETTER * max(names)))


def _letters(run: Findings) -> int:
    """Of a title, in a line above the table."""
    return max(24, int(_step(run) * len(run.splits) / parts.BOLD))


def _family(run: Findings, number: int, title: str) -> alt.LayerChart | alt.FacetChart:
    """The rows of a family; names of splits stand above the first."""
    columns, first = [split_label(name) for name in run.splits], number == 0
    step = _step(run)
    axis: dict[str, Any] = {**parts.QUIET, "labels": first, "labelAngle": 0}
    x_axis = alt.Axis(**axis, **parts.on_top(columns, step))
    extent = max(84, *(parts.LETTER * len(p.row) for p in run.proxies))
    y_axis = alt.Axis(**parts.QUIET, minExtent=extent, maxExtent=extent, labelLimit=extent)
    lines = wrap(title, _letters(run))
    by_place = alt.EncodingSortField("place", op="min")
    shown = [v for v in VERDICTS if v in set(run.judged["verdict"])]
    named = json.dumps({v: _label(v) for v in shown})
    fill = alt.Fill(
        "verdict:N",
        scale=alt.Scale(domain=shown, range=[f"var(--{VERDICTS[v][0]})" for v in shown]),
        legend=parts.squares(title=None, labelExpr=f"({named})[datum.label]"),
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
            tooltip=parts.tips(
                *("proxy:N", "split:N"),
                ("value:Q", "same prediction", ".2%"),
                ("level:N", "on iid"),
                "verdict:N",
                ("why:N", "what is open"),
                *parts.GAP_TIPS,
                P_TIP,
            ),
        )
    )
    cells = base.transform_filter("datum.verdict != 'reference'").mark_rect(
        stroke="var(--page)", strokeWidth=2, cornerRadius=2
    )
    texts = base.mark_text(fontSize=11.5).encode(text="text:N", color=ink)
    return alt.layer(cells.encode(fill=fill), texts).properties(
        width=alt.Step(step),
        height=alt.Step(23),
        title=alt.TitleParams(lines, orient="top", frame="group", offset=6 if not first else 8),
    )


def gap_lines(run: Findings) -> Figure | None:
    """The generalization gap of every proxy on every ood split, the largest at the top."""
    metrics = run.shown_metrics
    frame = run.gaps.filter(pl.col("seed").is_null(), pl.col("metric").is_in(metrics))
    if frame.is_empty():
        return None
    largest = (
        run.judged.with_columns(right=pl.col("level") == gaps.LOOKS_RIGHT)
        .group_by("simplification", maintain_order=True)
        .agg(pl.col("gap").max(), pl.col("right").first())
        .sort("right", "gap", descending=True, maintain_order=True)
    )
    shown = largest.head(MOST_GAPS).sort("gap", descending=True, maintain_order=True)
    labels = {name: run.label(name) for name in shown["simplification"]}
    frame = frame.filter(pl.col("simplification").is_in(list(labels))).select(
        "metric",
        *("gap", "low", "high", "low_all", "high_all", "p_value"),
        cut_low=pl.col("low_all").clip(pl.col("low").min().over("metric")),
        cut_high=pl.col("high_all").clip(upper_bound=pl.col("high").max().over("metric")),
        proxy=pl.col("simplification").replace_strict(labels),
        split=parts.SPLIT,
        kind=pl.lit("view"),
    )
    lost = _lost(run, labels, metrics)
    frame = pl.concat([frame, lost], how="diagonal")
    level = run.thresholds.level
    units = {m: "points" if find_metric(m).share else find_metric(m).unit for m in metrics}
    headings = {m: f"Gap in {find_metric(m).label}, {unit}" for m, unit in units.items()}
    rest = some_of(len(shown), len(largest), "proxies")
    width = max(96, 700 // max(1, len(run.ood)))
    return Figure(
        name="gaps",
        title="The generalization gap",
        caption="How much less faithful each proxy is on a split than on iid; to the right of zero "
        "is worse. Thick lines are 95 % intervals of single gaps; thin lines hold for all gaps of "
        "the metric at once, and are cut where the longest thick one ends: read those where you "
        "pick a gap because it is large. Filled points "
        f"differ from zero (p of no gap, corrected over views and splits, below {level:g})."
        f"{UPRIGHT if len(lost) else ''} Rows are sorted by the largest gap in same "
        f"predictions.{rest}",
        chart=alt.layer(*_intervals(run, list(labels.values()), len(lost) > 0), data=TABLE)
        .properties(width=width, height=alt.Step(18))
        .facet(column=parts.side_by_side(run.ood, width), spacing=14),
        data=frame,
        **parts.metric_menu(metrics, headings),
        stills={f"_{m}": {"metric": m} for m in metrics if m == "attention_jsd"},
    )


UPRIGHT = (
    " Thin upright lines are what controls of the proxy lose there, against what the proxy has on "
    "iid: coloured where it is fitted on the split itself, grey where it is fitted on a part of "
    "the training data, or nothing is learnt (point at them)."
)


def _lost(run: Findings, labels: Mapping[str, str], metrics: Sequence[str]) -> pl.DataFrame:
    """What controls lose beside the proxies that are shown, as `gap` has it."""
    of_reference = run.pooled.filter(split=run.reference).select(
        "metric", view="simplification", iid="value"
    )
    lower = [m for m in metrics if find_metric(m).better != "higher"]
    sign = pl.when(pl.col("metric").is_in(lower)).then(-1).otherwise(1)
    return (
        beside_views(run)
        .filter(
            pl.col("view").is_in(list(labels)),
            pl.col("metric").is_in(metrics),
            pl.col("split").is_in(run.ood),
        )
        .join(of_reference, on=["view", "metric"], maintain_order="left")
        .select(
            *("metric", "kind"),
            gap=sign * (pl.col("iid") - pl.col("value")),
            proxy=pl.col("view").replace_strict(labels, return_dtype=pl.String),
            split=parts.SPLIT,
        )
    )


def _intervals(run: Findings, proxies: Sequence[str], controlled: bool) -> list[alt.Chart]:
    """Zero, both intervals, what controls lose if there are any, and the points, a row a proxy."""
    y_axis = alt.Axis(labelLimit=LABELS, **parts.QUIET, grid=True)
    scale, shapes = split_scale(run.splits), split_shapes(run.splits)
    of_all = alt.Chart().encode(
        y=alt.Y("proxy:N", sort=list(proxies), title=None, axis=y_axis),
        color=alt.Color("split:N", scale=scale, legend=None),
        tooltip=parts.tips(
            *("proxy:N", "split:N"),
            *parts.interval(".4f", "gap"),
            ("low_all:Q", "low, of all at once", ".4f"),
            ("high_all:Q", "high, of all at once", ".4f"),
            P_TIP,
        ),
    )
    base = of_all.transform_filter("datum.kind == 'view'")
    uprights = of_all.transform_filter("datum.kind != 'view'").mark_tick(thickness=1, size=14)
    controls = uprights.encode(
        x=alt.X("gap:Q", title=None),
        color=alt.condition(
            "datum.kind == 'oracle'",
            alt.Color("split:N", scale=scale, legend=None),
            alt.value("var(--soft)"),
        ),
        tooltip=parts.tips("proxy:N", "split:N", ("kind:N", "control"), ("gap:Q", "loses", ".4f")),
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
        .encode(x=alt.X("cut_low:Q", title=None), x2="cut_high:Q")
    )
    formats = f"unit_shown == 'share' ? {parts.POINTS} : format(datum.value, '~g')"
    certain = f"isValid(datum.p_value) && datum.p_value < {run.thresholds.level}"
    dots = base.mark_point(size=42, strokeWidth=1.6, opacity=1).encode(
        x=alt.X(
            "gap:Q", title=None, axis=alt.Axis(tickCount=4, labelExpr=formats, labelSeparation=6)
        ),
        fill=alt.Fill("split:N", scale=scale, legend=None),
        fillOpacity=alt.condition(certain, alt.value(1), alt.value(0)),
        shape=alt.Shape("split:N", scale=shapes, legend=None),
    )
    return [zero, wide, *([controls] if controlled else []), bars, dots]
