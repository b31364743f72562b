"""What several charts are made of: panels, tooltips, axes, legends and columns."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import polars as pl

from anamorph.analysis.findings import Findings
from anamorph.faithfulness.metrics import find_metric
from anamorph.report.figure import TABLE, Choice, lookup

PANEL = 285  # pixels
SPACED = PANEL + 30  # pixels of a panel with the space beside it
QUIET: dict[str, Any] = {"ticks": False, "domain": False}  # of an axis whose labels are enough
POINTS = "format(100 * datum.value, '~g')"  # the label of a share, in points
SPLIT = pl.col("split").str.replace_all("_", " ")  # the column, as it is shown


def panels(
    *layers: alt.Chart,
    by: str,
    order: Sequence[str],
    width: float | alt.Step = PANEL,
    height: float | alt.Step,
    columns: int = 3,
    spacing: Any = 24,
) -> alt.FacetChart:
    """A panel for each value of a column, in rows.

    Args:
        layers: what is drawn in each panel.
        by: the column.
        order: its values, in the order of the panels.
        width: in pixels, of a panel.
        height: likewise.
        columns: panels in a row.
        spacing: in pixels, between panels; of row and column if they differ.
    """
    drawn = alt.layer(*layers, data=TABLE) if len(layers) > 1 else layers[0].properties(data=TABLE)
    facet = alt.Facet(f"{by}:N", sort=list(order), title=None)
    drawn = drawn.properties(width=width, height=height)
    return drawn.facet(facet=facet, columns=columns, spacing=spacing)


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
