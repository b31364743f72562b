"""The gap by kind of prediction, beside how common each kind is."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from anamorph.analysis.findings import Findings
from anamorph.analysis.words import facet_label, listing, percent, split_label, threshold
from anamorph.faithfulness.levels import level_gaps
from anamorph.report.charts import parts
from anamorph.report.figure import DETAILED, Figure, natural, slug
from anamorph.report.theme import split_scale
from anamorph.tasks.about import About

PANEL, ROOM = 160, 32  # pixels; of the second the shares at the right of a panel
COMMON = 0.01  # share of the positions from which on a kind's interval is drawn whole


def gap_by_kind(run: Findings) -> Figure | None:
    """Agreement on iid minus that on each ood split, by the level of a facet."""
    frame = level_gaps(run.results).drop_nulls(["low", "high"])
    if frame.is_empty():
        return None
    present = set(frame["simplification"])
    names = [p.simplification for p in run.telling(DETAILED) if p.simplification in present]
    proxy = parts.proxy_menu(run, names)
    facet = parts.facet_menu(run, frame["facet"].unique(maintain_order=True))
    shown = (
        _cut(frame)
        .filter(pl.col("simplification").is_in(names))
        .select(
            "level",
            *("gap", "low", "high", "near", "far", "share"),
            text=(100 * pl.col("share")).round(0).cast(pl.Int64).cast(pl.String) + " %",
            facet=facet.code("facet"),
            proxy=proxy.code("simplification"),
            split=parts.SPLIT,
        )
    )
    return Figure(
        name="gap_by_kind",
        title="What kind of prediction breaks",
        caption="How many points less proxy and model agree than on iid, by a label of the scored "
        "positions, with a 95 % interval a level (of twenty levels, one may lie outside its own). "
        "Points are as large as the kind is common; its share of the split's positions stands at "
        "the right, as a large gap in a rare kind counts for little. Intervals "
        f"of kinds below {threshold(COMMON)} are cut where the others end.{_left_out(run)}",
        chart=parts.panels(
            *_layers(run, natural(frame["level"].to_list())),
            order=run.ood,
            width=PANEL,
            height=alt.Step(19),
            columns=4,
            spacing={"row": 16, "column": ROOM + 14},
        ),
        data=shown,
        choices=[facet, proxy],
        heading=f"{facet.shown} + ' — ' + {proxy.shown}",
        panel=PANEL + 75,
        stills={f"_{slug(name)}": {"facet": code} for name, code in facet.codes.items()},
    )


def _left_out(run: Findings) -> str:
    """How much of which splits is not shown, as iid has no such level."""
    shares = (
        level_gaps(run.results)
        .group_by("simplification", "split", "facet", maintain_order=True)
        .agg(pl.col("share").sum(), left=pl.col("share").filter(pl.col("iid").is_null()).sum())
        .filter(pl.col("left") > COMMON)
        .unique(["split", "facet"], keep="first", maintain_order=True)
    )
    if shares.is_empty():
        return ""
    about = About.of(run.spec)
    told = [
        f"{percent(left)} of {split_label(split)} by {facet_label(facet, about.labels)}"
        for split, facet, left in shares.select("split", "facet", "left").iter_rows()
    ]
    return (
        " A kind that iid lacks has no gap; it is not here, but in the next figure: "
        f"{listing(told)}."
    )


def _layers(run: Findings, order: Sequence[str]) -> list[alt.Chart]:
    """Intervals, points and shares, a row a level."""
    base = alt.Chart().encode(
        y=alt.Y("level:N", sort=list(order), title=None, axis=alt.Axis(**parts.QUIET)),
        tooltip=parts.tips(
            "level:N",
            "split:N",
            *parts.interval(".4f", "gap"),
            ("share:Q", "share of positions", ".1%"),
        ),
    )
    color = alt.Color("split:N", scale=split_scale(run.splits), legend=None)
    bars = base.mark_rule(strokeWidth=2, strokeOpacity=0.6).encode(
        x=alt.X("near:Q", title=None), x2="far:Q", color=color
    )
    dots = base.mark_point(filled=True, opacity=1).encode(
        x=alt.X("gap:Q", title=None, axis=alt.Axis(tickCount=3, labelExpr=parts.POINTS)),
        color=color,
        size=alt.Size("share:Q", scale=alt.Scale(domain=[0, 0.5], range=[8, 260]), legend=None),
    )
    shares = base.mark_text(align="right", color="var(--soft)", fontSize=10).encode(
        x=alt.value(PANEL + ROOM), text="text:N"
    )
    return [bars, dots, shares]


def _cut(frame: pl.DataFrame) -> pl.DataFrame:
    """With `near` and `far`: the intervals, those of rare kinds cut where the others end."""
    common = pl.col("share") >= COMMON
    least, most = pl.col("low").filter(common).min(), pl.col("high").filter(common).max()
    near = pl.max_horizontal("low", pl.min_horizontal("gap", least))
    far = pl.min_horizontal("high", pl.max_horizontal("gap", most))
    return frame.with_columns(
        near=near.over("facet", "simplification"), far=far.over("facet", "simplification")
    )
