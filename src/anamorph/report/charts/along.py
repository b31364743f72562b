"""Figures of many models along an axis: accuracy, faithfulness, gaps and verdicts."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import polars as pl

from anamorph.analysis.along import Along
from anamorph.analysis.words import SIGNS, points, some_of, split_label, threshold
from anamorph.faithfulness.metrics import JUDGED, all_metrics, find_metric
from anamorph.report.charts import parts
from anamorph.report.charts.verdicts import VERDICTS
from anamorph.report.figure import TABLE, Choice, Figure
from anamorph.report.theme import split_scale, split_shapes
from anamorph.runs.varied import setting_text

DECADES = 30  # from the lowest to the highest value: so far apart, the axis is logarithmic
MOST_PANELS = 12  # views with a panel each
MOST_ROWS = 40  # views in the strip of verdicts, and in the menu of gaps
MOST_SIGNS = 40  # values beside each other of which the signs can be read
HEIGHT = 170  # pixels of a panel
MOST_ROOM = 420  # pixels for the names of views
Chart = alt.FacetChart | alt.LayerChart
GAP_ENDS = {"low": pl.col("gap_low"), "high": pl.col("gap_high")}


def draw(found: Along) -> dict[str, list[Figure]]:
    """All figures, by the section of the page."""
    made: dict[str, list[Figure | None]] = {
        "verdicts": [strip(found)],
        "accuracy": [accuracies(found)],
        "faithfulness": [faithfulness(found)],
        "gaps": [gap_lines(found)],
    }
    return {section: [f for f in some if f is not None] for section, some in made.items()}


def strip(found: Along) -> Figure | None:
    """Views × values of the axis, coloured by verdict; a panel a split."""
    frame = found.judged.filter(pl.col("verdict").is_not_null())
    if frame.is_empty():
        return None
    views = found.telling(MOST_ROWS)
    frame = _of_views(found, frame, views)
    shown = [v for v in VERDICTS if v in set(frame["verdict"])]
    frame = frame.select(
        *("view", "split", "verdict", "gap", "at_text"),
        **GAP_ENDS,
        text=pl.col("verdict").replace_strict(SIGNS, return_dtype=pl.String),
    )
    values = [setting_text(value) for value in found.axis.values]
    signed = len(values) <= MOST_SIGNS
    width = len(values) * max(8, min(48, 640 // len(values)))
    labels = [found.labels[view] for view in views]
    room = min(MOST_ROOM, int(parts.LETTER * max(map(len, labels))))
    x = alt.X("at_text:N", sort=values, title=found.axis.name, axis=_named_axis(values, width))
    y = alt.Y("view:N", sort=labels, title=None, axis=alt.Axis(labelLimit=room, **parts.QUIET))
    cells, signs = _verdicts(found, shown, x, y)
    splits = [s for s in found.splits if split_label(s) in set(frame["split"])]
    return Figure(
        name="verdicts",
        title="Verdicts along the axis",
        caption=f"A row a view, a column a value of {found.axis.name}, a panel a split. The colour "
        "is the verdict, and so is the sign: ▼, ▲ and ◆ are illusions, × and ↓ do not look right "
        f"even on {split_label(found.reference)}, ? needs more data, – stands where the model has "
        "not learnt the task, and no sign where the view is faithful."
        f"{some_of(len(views), len(found.labels), 'views')}",
        chart=parts.panels(
            *([cells, signs] if signed else [cells]),
            order=splits,
            width=width,
            height=alt.Step(22),
            columns=2,
        ),
        data=frame,
        panel=width + room,
    )


def _verdicts(
    found: Along, shown: Sequence[str], x: alt.X, y: alt.Y
) -> tuple[alt.Chart, alt.Chart]:
    """Cells in the colours of the verdicts that are shown, and the signs on them."""
    colours, inks = ([f"var(--{VERDICTS[v][n]})" for v in shown] for n in (0, 1))
    fill = alt.Fill(
        "verdict:N",
        scale=alt.Scale(domain=shown, range=colours),
        legend=parts.squares(title=None, labelLimit=300),
    )
    told = parts.tips(
        "view:N", "split:N", ("at_text:N", found.axis.name), "verdict:N", *parts.GAP_TIPS
    )
    cells = alt.Chart().mark_rect(stroke="var(--page)", strokeWidth=1)
    scale = alt.Scale(domain=[*shown, ""], range=[*inks, "var(--ink)"])  # not that of `fill`
    ink = alt.Color("verdict:N", scale=scale, legend=None)
    signs = alt.Chart().mark_text(fontSize=11, aria=False)
    return (
        cells.encode(x=x, y=y, fill=fill, tooltip=told),
        signs.encode(x=x, y=y, text="text:N", color=ink),
    )


def accuracies(found: Along) -> Figure:
    """The accuracy of the models; a panel for each of the other settings."""
    frame = found.models.with_columns(at_text=_texts(), split=parts.SPLIT).drop("run", "role")
    panels = frame["rest"].unique(maintain_order=True).to_list()
    width = parts.PANEL if len(panels) > 1 else 2 * parts.PANEL
    x, y = _x(found, width), _y("accuracy", alt.Axis(format=".0%", tickCount=5))
    layers = _lines(found, x, y, [("accuracy:Q", "", ".4f"), *_ends(".4f")])
    if len(panels) > 1:
        chart: Chart = parts.panels(*layers, by="rest", order=panels, width=width, height=HEIGHT)
    else:
        chart = alt.layer(*layers, data=TABLE).properties(width=width, height=HEIGHT + 30)
    return Figure(
        name="accuracy",
        title="How good the models are",
        caption="The share of right predictions of the models themselves at scored positions, a "
        "line a split, with 95 % intervals. A view of a model that has not learnt its task says "
        "nothing.",
        chart=chart,
        data=frame,
        panel=parts.SPACED if len(panels) > 1 else 0,
    )


def faithfulness(found: Along) -> Figure:
    """A metric along the axis: a line a split, a panel a view."""
    views = found.telling(MOST_PANELS)
    metrics = [m for m in all_metrics() if m in set(found.table["metric"])]
    frame = _of_views(found, found.table, views).select(
        *("metric", "at", "at_text", "view", "split", "value", "low", "high")
    )
    formats = "unit_shown == 'share' ? format(datum.value, '.0%') : format(datum.value, '~g')"
    x, y = _x(found, parts.PANEL), _y("value", alt.Axis(labelExpr=formats, tickCount=5))
    judged = f"metric == '{JUDGED}'"
    asked = (
        alt.Chart()
        .transform_aggregate(least="min(value)", groupby=["view"])
        .transform_calculate(line=f"{judged} ? {found.thresholds.faithful} : datum.least")
    )
    seen = alt.condition(judged, alt.value(1), alt.value(0))
    line = parts.dashed(asked).encode(y=alt.Y("line:Q", title=None), strokeOpacity=seen)
    return Figure(
        name="faithfulness",
        title="How faithful each view is",
        caption="A panel a view, a line a split, with 95 % intervals; the dashed line is the "
        f"threshold of {threshold(found.thresholds.faithful)} for looking right. Look for splits "
        f"that part from {split_label(found.reference)} (dark)."
        f"{some_of(len(views), len(found.labels), 'views, those first that change most')}",
        chart=parts.panels(
            line,
            *_lines(found, x, y, [("value:Q", "", ".4f"), *_ends(".4f")]),
            by="view",
            order=[found.labels[view] for view in views],
            height=HEIGHT,
        ),
        data=frame,
        panel=parts.SPACED,
        **parts.metric_menu(
            metrics, {m: f"{find_metric(m).label} ({find_metric(m).direction})" for m in metrics}
        ),
    )


def gap_lines(found: Along) -> Figure | None:
    """The gap in same predictions along the axis with its intervals, a panel a split."""
    if found.judged.is_empty():
        return None
    views = found.telling(MOST_ROWS)
    menu = Choice.coded("view", "View", {found.labels[view]: found.labels[view] for view in views})
    frame = _of_views(found, found.judged, views)
    frame = frame.select(
        *("at", "at_text", "split", "verdict", "gap"), **GAP_ENDS, view=menu.code()
    )
    splits = [s for s in found.splits if split_label(s) in set(frame["split"])]
    x = _x(found, parts.PANEL)
    y = _y("gap", alt.Axis(labelExpr=parts.POINTS, tickCount=5))
    tolerance = found.thresholds.tolerance
    per_split = alt.Chart().transform_aggregate(rows="count()", groupby=["split"])
    zero = per_split.mark_rule(strokeWidth=1, color="var(--soft)").encode(y=alt.YDatum(0))
    allowed = parts.dashed(per_split).encode(y=alt.YDatum(tolerance))
    return Figure(
        name="gaps",
        title="The gap on each split",
        caption=f"How much less faithful the view is on a split than on "
        f"{split_label(found.reference)}, in points, with 95 % intervals; above zero is worse. The "
        f"dashed line is the tolerance of {points(tolerance)} points."
        f"{some_of(len(views), len(found.labels), 'views')}",
        chart=parts.panels(
            zero,
            allowed,
            *_lines(found, x, y, ["verdict:N", *parts.GAP_TIPS], legend=False),
            order=splits,
            height=HEIGHT,
        ),
        data=frame,
        choices=[menu],
        heading=menu.shown,
        panel=parts.SPACED,
    )


def _of_views(found: Along, frame: pl.DataFrame, views: Sequence[tuple[str, str]]) -> pl.DataFrame:
    """The rows of some views, with what views, splits and values are called."""
    keys = pl.DataFrame(views, ["rest", "simplification"], orient="row")
    frame = frame.join(keys, on=["rest", "simplification"], how="semi", maintain_order="left")
    labels = [found.labels[key] for key in frame.select("rest", "simplification").iter_rows()]
    return frame.with_columns(
        pl.Series("view", labels, pl.String),
        at_text=_texts(),
        split=parts.SPLIT,
    )


def _texts() -> pl.Expr:
    """Values of the axis as they are shown."""
    return pl.col("at").map_elements(setting_text, pl.String)


def _ends(form: str) -> list[tuple[str, str, str]]:
    return [("low:Q", "", form), ("high:Q", "", form)]


def _y(field: str, axis: alt.Axis) -> alt.Y:
    return alt.Y(f"{field}:Q", title=None, scale=alt.Scale(zero=False, nice=True), axis=axis)


def _x(found: Along, width: int) -> alt.X:
    """Numbers to scale, by their logarithm where they span decades; texts side by side."""
    name = found.axis.name
    if not (found.axis.numeric and found.axis.ordered):
        values = [setting_text(value) for value in found.axis.values]
        return alt.X("at_text:N", sort=values, title=name, axis=_named_axis(values, width))
    values_ = [float(value) for value in found.axis.values]
    by_log = min(values_) > 0 and max(values_) >= DECADES * min(values_)
    scale: Mapping[str, Any] = {"type": "log"} if by_log else {"zero": False}
    axis: dict[str, Any] = {"tickCount": 4 if by_log else 5, "grid": False, "labelOverlap": True}
    if len(values_) <= 6:
        axis |= {"values": values_}
    return alt.X(
        "at:Q",
        title=f"{name}{' (log scale)' if by_log else ''}",
        scale=alt.Scale(**scale, nice=False, padding=12),
        axis=alt.Axis(**axis, format="~s" if max(values_) >= 10_000 else "~r"),
    )


def _named_axis(values: Sequence[str], width: float) -> alt.Axis:
    """Labels stand upright where they do not fit beside each other."""
    room = width / max(1, len(values))
    fits = max(map(len, values)) * parts.LETTER <= room
    angle = 0 if fits else -90 if room < 30 else -40
    return alt.Axis(labelAngle=angle, labelLimit=120, ticks=False, labelOverlap=True)


def _lines(
    found: Along, x: alt.X, y: alt.Y, shown: Sequence[Any], legend: bool = True
) -> list[alt.Chart]:
    """Intervals, lines and points, a colour a split."""
    told = parts.split_legend(found.splits) if legend else None
    base = alt.Chart().encode(
        x=x, color=alt.Color("split:N", scale=split_scale(found.splits), title=None, legend=told)
    )
    bars = base.mark_rule(strokeWidth=1.5, strokeOpacity=0.45).encode(
        y=alt.Y("low:Q", title=None), y2="high:Q"
    )
    line = base.mark_line(strokeWidth=1.8).encode(y=y)
    dots = base.mark_point(size=34, filled=True, opacity=1).encode(
        y=y,
        shape=alt.Shape("split:N", scale=split_shapes(found.splits), title=None, legend=told),
        tooltip=parts.tips("split:N", ("at_text:N", found.axis.name), *shown),
    )
    return [bars, line, dots] if found.axis.ordered else [bars, dots]
