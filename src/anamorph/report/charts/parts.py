"""What several charts are made of: panels, tooltips, axes, legends and columns."""

import json
from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap
from typing import Any

import altair as alt
import polars as pl

from anamorph.analysis.findings import Findings
from anamorph.analysis.words import facet_label, split_label
from anamorph.faithfulness.metrics import find_metric
from anamorph.report.figure import TABLE, Choice, lookup
from anamorph.tasks.about import About

PANEL = 285  # pixels
SPACED = PANEL + 30  # pixels of a panel with the space beside it
QUIET: dict[str, Any] = {"ticks": False, "domain": False}  # of an axis whose labels are enough
POINTS = "format(100 * datum.value, '~g')"  # the label of a share, in points
GAP_TIPS = [
    ("gap:Q", "", ".4f"),
    ("low:Q", "gap, low", ".4f"),
    ("high:Q", "gap, high", ".4f"),
]  # for `tips`
BOLD, LETTER, MARK = 7.4, 6.6, 36  # pixels: of most letters, and of a mark in a legend
ACROSS = 3 * SPACED  # pixels
SPLIT = pl.col("split").str.replace_all("_", " ")  # the column, as it is shown


def panels(
    *layers: alt.Chart,
    order: Iterable[str],
    by: str = "split",
    width: float | alt.Step = PANEL,
    height: float | alt.Step,
    columns: int = 3,
    spacing: Any = 24,
) -> alt.FacetChart:
    """A panel for each value of a column, in rows.

    Args:
        layers: what is drawn in each panel.
        order: the column's values, in the order of the panels; of splits their names.
        by: the column.
        width: in pixels, of a panel.
        height: likewise.
        columns: panels in a row.
        spacing: in pixels, between panels; of row and column if they differ.
    """
    drawn = alt.layer(*layers, data=TABLE) if len(layers) > 1 else layers[0].properties(data=TABLE)
    shown = list(map(split_label, order) if by == "split" else dict.fromkeys(order))
    header = alt.Undefined if isinstance(width, alt.Step) else heads(shown, width)
    facet = alt.Facet(f"{by}:N", sort=shown, title=None, header=header)
    drawn = drawn.properties(width=width, height=height)
    return drawn.facet(facet=facet, columns=columns, spacing=spacing)


def side_by_side(splits: Sequence[str], width: float) -> alt.Column:
    """The splits side by side, in panels of a width in pixels."""
    shown = list(map(split_label, splits))
    return alt.Column("split:N", sort=shown, title=None, header=heads(shown, width))


def heads(labels: Sequence[str], width: float) -> alt.Header:
    """The names of panels, on several lines where they are wider than these."""
    lines = {label: _lines(label, width, BOLD) for label in labels}
    named = json.dumps({label: some for label, some in lines.items() if len(some) > 1})
    return alt.Header(labelExpr=f"({named})[datum.value] || datum.value", labelLimit=width + 20)


def on_top(labels: Sequence[str], width: float) -> dict[str, Any]:
    """For an axis above columns: their names, on several lines where they are wider than these.

    Lines of text go down from where a label stands, so all have as many, and start so much higher.
    """
    lines = [_lines(label, width, LETTER) for label in labels]
    tallest = max(map(len, lines))
    blank = "\N{NO-BREAK SPACE}"
    named = {
        label: [blank] * (tallest - len(some)) + some
        for label, some in zip(labels, lines, strict=True)
    }
    return {
        "orient": "top",
        "labelLimit": width + 8,
        "labelPadding": 8 + 12 * (tallest - 1),
        "labelLineHeight": 12,
        "labelExpr": f"({json.dumps(named)})[datum.value]" if tallest > 1 else "datum.value",
    }


def _lines(label: str, width: float, letter: float) -> list[str]:
    return wrap(label, max(6, int(width / letter))) or [label]


def split_legend(splits: Sequence[str]) -> alt.Legend:
    """The legend of splits; in columns where they are too many for a line."""
    widths = [LETTER * len(split_label(name)) + MARK for name in splits]
    if sum(widths) <= ACROSS:
        return alt.Legend()
    return alt.Legend(columns=max(1, int(ACROSS / max(widths))), labelLimit=ACROSS - MARK)


def tips(*shown: str | tuple[str, ...]) -> list[alt.Tooltip]:
    """What a reader is shown of a mark under the pointer.

    Args:
        shown: fields such as "split:N"; or a field and its title; or field, title ("" if it is the
            field's name) and format.
    """
    found = []
    for each in shown:
        field, title, form = (*((each,) if isinstance(each, str) else each), "", "")[:3]
        given: dict[str, Any] = {"title": title, "format": form}
        found.append(alt.Tooltip(field, **{key: text for key, text in given.items() if text}))
    return found


def interval(form: str, *fields: str) -> list[tuple[str, str, str]]:
    """For `tips`: the fields, then `low` and `high`, all in one format."""
    return [(f"{name}:Q", "", form) for name in (*fields, "low", "high")]


def squares(**more: Any) -> alt.Legend:
    """A legend of filled areas."""
    return alt.Legend(symbolType="square", symbolStrokeWidth=0, **more)


def dashed(chart: alt.Chart) -> alt.Chart:
    """Lines to compare with."""
    lines: alt.Chart = chart.mark_rule(color="var(--soft)", strokeDash=[3, 3])
    return lines


def proxy_menu(run: Findings, simplifications: Sequence[str]) -> Choice:
    """The proxies to choose from, in words."""
    return Choice.coded("proxy", "Proxy", {name: run.label(name) for name in simplifications})


def facet_menu(run: Findings, facets: Iterable[str]) -> Choice:
    """The facets to choose from, as the task calls them."""
    labels = About.of(run.spec).labels
    return Choice.coded("facet", "By", {name: facet_label(name, labels) for name in facets})


def metric_menu(metrics: Sequence[str], headings: Mapping[str, str]) -> dict[str, Any]:
    """The choices, heading and values of a figure whose reader chooses a metric.

    Args:
        metrics: to choose from.
        headings: of each.
    """
    return {
        "choices": [Choice("metric", "Metric", [(m, find_metric(m).label) for m in metrics])],
        "heading": lookup(headings, "metric"),
        "values": {"unit_shown": lookup({m: find_metric(m).unit for m in metrics}, "metric")},
    }
