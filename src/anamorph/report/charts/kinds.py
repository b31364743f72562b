"""The gap by kind of prediction, beside how common each kind is."""

import altair as alt
import polars as pl

from anamorph.analysis.data import Run
from anamorph.analysis.words import facet_label, split_label, threshold
from anamorph.faithfulness.levels import level_gaps
from anamorph.report.figure import DETAILED, TABLE, Figure, by_facet_and_proxy, natural, slug
from anamorph.report.theme import split_scale

PANEL, ROOM = 160, 32  # pixels; of the second the shares at the right of a panel
COMMON = 0.01  # share of the positions from which on a kind's interval is drawn whole


def gap_by_kind(run: Run) -> Figure | None:
    """Agreement on iid minus that on each ood split, by the level of a facet."""
    frame = level_gaps(run.results).drop_nulls(["low", "high"])
    if frame.is_empty():
        return None
    proxies = [p for p in run.telling(DETAILED) if p.simplification in set(frame["simplification"])]
    numbers = {p.simplification: f"p{i}" for i, p in enumerate(proxies)}
    facets = frame["facet"].unique(maintain_order=True).to_list()
    codes = {name: f"f{i}" for i, name in enumerate(facets)}
    order = natural(frame["level"].to_list())
    shown = (
        _cut(frame)
        .filter(pl.col("simplification").is_in(list(numbers)))
        .select(
            "level",
            *("gap", "low", "high", "near", "far", "share"),
            text=(100 * pl.col("share")).round(0).cast(pl.Int64).cast(pl.String) + " %",
            facet=pl.col("facet").replace_strict(codes),
            proxy=pl.col("simplification").replace_strict(numbers),
            split=pl.col("split").str.replace_all("_", " "),
        )
    )
    y = alt.Y("level:N", sort=order, title=None, axis=alt.Axis(ticks=False, domain=False))
    tooltip = [
        alt.Tooltip("level:N"),
        alt.Tooltip("split:N"),
        *(alt.Tooltip(f"{name}:Q", format=".4f") for name in ("gap", "low", "high")),
        alt.Tooltip("share:Q", title="share of positions", format=".1%"),
    ]
    points = alt.Axis(tickCount=3, labelExpr="format(100 * datum.value, '~g')")
    base = alt.Chart().encode(y=y, tooltip=tooltip)
    color = alt.Color("split:N", scale=split_scale(run.splits), legend=None)
    bars = base.mark_rule(strokeWidth=2, strokeOpacity=0.6).encode(
        x=alt.X("near:Q", title=None), x2="far:Q", color=color
    )
    dots = base.mark_point(filled=True, opacity=1).encode(
        x=alt.X("gap:Q", title=None, axis=points),
        color=color,
        size=alt.Size("share:Q", scale=alt.Scale(domain=[0, 0.5], range=[8, 260]), legend=None),
    )
    shares = base.mark_text(align="right", color="var(--soft)", fontSize=10).encode(
        x=alt.value(PANEL + ROOM), text="text:N"
    )
    ood = [split_label(name) for name in run.ood]
    chart = (
        alt.layer(bars, dots, shares, data=TABLE)
        .properties(width=PANEL, height=alt.Step(19))
        .facet(
            facet=alt.Facet("split:N", sort=ood, title=None),
            columns=4,
            spacing={"row": 16, "column": ROOM + 14},
        )
        .transform_filter("datum.facet == facet && datum.proxy == proxy")
        .properties(title=alt.TitleParams(alt.ExprRef("heading")))
    )
    task = run.spec.get("task", {}).get("name")
    named = {code: facet_label(name, task) for name, code in codes.items()}
    options = [(numbers[p.simplification], run.label(p.simplification)) for p in proxies]
    return Figure(
        name="gap_by_kind",
        title="What kind of prediction breaks",
        caption="How many points less proxy and model agree than on iid, by a label of the scored "
        "positions, with a 95 % interval a level (of twenty levels, one may lie outside its own). "
        "Points are as large as the kind is common; its share of the split's positions stands at "
        "the right, as a large gap in a rare kind counts for little. Intervals "
        f"of kinds below {threshold(COMMON)} are cut where the others end.",
        chart=chart,
        data=shown,
        **by_facet_and_proxy(named, options),
        panel=PANEL + 75,
        stills={"": {}} | {f"_{slug(name)}": {"facet": code} for name, code in codes.items()},
    )


def _cut(frame: pl.DataFrame) -> pl.DataFrame:
    """With `near` and `far`: the intervals, of rare kinds no farther out than the others go."""
    common = pl.col("share") >= COMMON
    least, most = pl.col("low").filter(common).min(), pl.col("high").filter(common).max()
    near = pl.max_horizontal("low", pl.min_horizontal("gap", least))
    far = pl.min_horizontal("high", pl.max_horizontal("gap", most))
    return frame.with_columns(
        near=near.over("facet", "simplification"), far=far.over("facet", "simplification")
    )
