"""Figures of the results: faithfulness against size, accuracies, who is right, by facet."""

from typing import TypeVar

import altair as alt
import polars as pl

from anamorph.analysis.data import Run
from anamorph.analysis.words import method_label, some_of, split_label, threshold
from anamorph.faithfulness.metrics import find_metric
from anamorph.report.figure import TABLE, Choice, Figure, lookup
from anamorph.report.theme import split_scale, split_shapes

PANEL = 285  # pixels
PARTS = {
    "both right": "both-right",
    "model only": "under",
    "proxy only": "over",
    "different errors": "other-error",
    "same error": "same-error",
}


def against_size(run: Run) -> Figure | None:
    """A metric against rank or clusters: a line a split with its band, a panel a family."""
    families = run.telling_families
    sized = {p.simplification: p for some in families.values() for p in some if p.size_name}
    if not sized:
        return None
    metrics = [m for m in run.metrics if find_metric(m).about != "model"]
    frame = run.whole.filter(
        pl.col("simplification").is_in(list(sized)), pl.col("metric").is_in(metrics)
    )
    if len(run.seeds) == 1:
        frame = frame.filter(pl.col("seed").is_null())
    frame = frame.select(
        "metric",
        "size",
        *("value", "low", "high"),
        family=pl.col("simplification").replace_strict({k: p.title for k, p in sized.items()}),
        split=pl.col("split").str.replace_all("_", " "),
        seed=pl.col("seed").cast(pl.String).fill_null("all"),
    )
    titles = list(dict.fromkeys(p.title for p in sized.values()))
    sizes = " or ".join(dict.fromkeys(p.size_name for p in sized.values()))
    color = alt.Color("split:N", scale=split_scale(run.splits), title=None)
    pick = alt.selection_point(fields=["split"], bind="legend", name="pick")
    tooltip = [
        alt.Tooltip("split:N"),
        alt.Tooltip("size:Q", title=sizes),
        alt.Tooltip("value:Q", format=".4f"),
        alt.Tooltip("low:Q", format=".4f"),
        alt.Tooltip("high:Q", format=".4f"),
        alt.Tooltip("seed:N"),
    ]
    x = alt.X(
        "size:Q",
        scale=alt.Scale(type="log", base=2, nice=False, padding=10),
        title=f"{sizes} (log scale)",
        axis=alt.Axis(format="d", tickCount=6, grid=False),
    )
    y = alt.Y(
        "value:Q",
        scale=alt.Scale(zero=False, nice=True),
        title=None,
        axis=alt.Axis(tickCount=5, labelExpr="unit_shown == 'share' ? format(datum.value, '.0%') : "
                      "format(datum.value, '~g')"),
    )  # fmt: skip
    base = alt.Chart().encode(x=x, color=color)
    everything = base.transform_filter("datum.seed == 'all'")
    band = everything.mark_area(opacity=1).encode(
        y=alt.Y("low:Q", title=None),
        y2="high:Q",
        fillOpacity=_highlight(alt.FillOpacity, 0.14, 0.03),
    )
    line = everything.mark_line(strokeWidth=2).encode(
        y=y, strokeOpacity=_highlight(alt.StrokeOpacity, 1, 0.15)
    )
    dots = everything.mark_point(size=34, filled=True, opacity=1).encode(
        y=y,
        fillOpacity=_highlight(alt.FillOpacity, 1, 0.15),
        shape=alt.Shape("split:N", scale=split_shapes(run.splits), title=None),
        tooltip=tooltip,
    )
    single = (
        base.transform_filter("datum.seed != 'all'")
        .mark_line(strokeWidth=0.7)
        .encode(y=y, detail="seed:N", strokeOpacity=_highlight(alt.StrokeOpacity, 0.45, 0.08))
    )
    looks_right = (
        alt.Chart()
        .transform_filter("datum.metric == 'same_prediction'")
        .transform_aggregate(rows="count()", groupby=["family"])
        .mark_rule(strokeDash=[3, 3], color="var(--soft)")
        .encode(y=alt.YDatum(run.thresholds["faithful"]))
    )
    layers = [band, looks_right, *([single] if len(run.seeds) > 1 else []), line, dots]
    chart = (
        alt.layer(*layers, data=TABLE)
        .add_params(pick)
        .properties(width=PANEL, height=170)
        .facet(facet=alt.Facet("family:N", sort=titles, title=None), columns=3, spacing=24)
        .transform_filter("datum.metric == metric")
        .resolve_scale(x="independent")
        .properties(title=alt.TitleParams(alt.ExprRef("heading")))
    )
    seeds = " Thin lines are single seeds." if len(run.seeds) > 1 else ""
    rest = some_of(len(families), len(run.families), "families of proxies")
    return Figure(
        name="faithfulness",
        title="Faithfulness against size",
        caption="A line a split, with its 95 % band; the dashed line is the threshold of "
        f"{threshold(run.thresholds['faithful'])} for looking right. Look for splits that stay "
        f"apart from iid (dark) at a size where iid has already come close.{seeds} Choose a split "
        f"in the legend to single it out.{rest}",
        chart=chart,
        data=frame,
        choices=[Choice("metric", "Metric", [(m, find_metric(m).label) for m in metrics])],
        values={
            "heading": lookup(
                {m: f"{find_metric(m).label} ({find_metric(m).direction})" for m in metrics},
                "metric",
            ),
            "unit_shown": lookup({m: find_metric(m).unit for m in metrics}, "metric"),
        },
        panel=PANEL + 30,
        stills={"": {}}
        | {f"_{m}": {"metric": m} for m in ("attention_jsd", "output_jsd") if m in metrics},
    )


Channel = TypeVar("Channel", alt.FillOpacity, alt.StrokeOpacity)


def _highlight(channel: type[Channel], on: float, off: float) -> Channel:
    """Full strength for what is picked in the legend, or for everything if nothing is.

    Of fill or stroke, not of the whole mark: that would make a layer of each, slow to rasterize.
    """
    return channel(condition={"param": "pick", "value": on}, value=off)


def accuracies(run: Run) -> Figure | None:
    """The proxy's accuracy against the model's, a panel a method."""
    frame = run.whole.filter(pl.col("metric").is_in(["model_accuracy", "proxy_accuracy"]))
    frame = frame.filter(pl.col("seed").is_null(), pl.col("method") != "identity")
    wide = frame.pivot(
        on="metric", index=["simplification", "split"], values=["value", "low", "high"]
    )
    if "value_model_accuracy" not in wide.columns or "value_proxy_accuracy" not in wide.columns:
        return None
    proxies = {p.simplification: p for p in run.proxies}
    methods = list(dict.fromkeys(method_label(p.method) for p in run.proxies))
    wide = wide.select(
        model=pl.col("value_model_accuracy"),
        proxy=pl.col("value_proxy_accuracy"),
        low=pl.col("low_proxy_accuracy"),
        high=pl.col("high_proxy_accuracy"),
        split=pl.col("split").str.replace_all("_", " "),
        method=pl.col("simplification").replace_strict(
            {name: method_label(p.method) for name, p in proxies.items()}
        ),
        name="simplification",
    )
    axis = alt.Axis(format=".0%", tickCount=4)
    scale = alt.Scale(zero=False, nice=False, padding=8)
    x = alt.X("model:Q", title="model accuracy", axis=axis, scale=scale)
    y = alt.Y("proxy:Q", title="proxy accuracy", axis=axis, scale=scale)
    color = alt.Color("split:N", scale=split_scale(run.splits), title=None)
    base = alt.Chart().encode(x=x, color=color)
    diagonal = (
        alt.Chart()
        .transform_aggregate(a="min(model)", b="max(model)", groupby=["method"])
        .mark_rule(color="var(--soft)", strokeDash=[3, 3])
        .encode(x="a:Q", y="a:Q", x2="b:Q", y2="b:Q")
    )
    bars = base.mark_rule(strokeOpacity=0.35, strokeWidth=1.5).encode(
        y=alt.Y("low:Q", title="proxy accuracy"), y2="high:Q"
    )
    dots = base.mark_point(size=46, strokeWidth=1.6, opacity=1).encode(
        y=y,
        shape=alt.Shape("split:N", scale=split_shapes(run.splits), title=None),
        tooltip=[
            alt.Tooltip("name:N", title="proxy"),
            alt.Tooltip("split:N"),
            alt.Tooltip("model:Q", title="model accuracy", format=".2%"),
            alt.Tooltip("proxy:Q", title="proxy accuracy", format=".2%"),
        ],
    )
    chart = (
        alt.layer(diagonal, bars, dots, data=TABLE)
        .properties(width=PANEL, height=PANEL - 30)
        .facet(facet=alt.Facet("method:N", sort=methods, title=None), columns=3, spacing=24)
    )
    return Figure(
        name="accuracy",
        title="Is the proxy as good as the model?",
        caption="A point a proxy and split, with the proxy's 95 % interval. On the dashed line "
        "both are equally accurate; points above it are proxies that do better than the model they "
        "stand for, which hides the model's failures.",
        chart=chart,
        data=wide,
        panel=PANEL + 30,
    )  # fmt: skip


def who_is_right(run: Run) -> Figure | None:
    """Stacked: both right, one only, different errors, the same error; a panel a split."""
    names = ["model_accuracy", "model_only_right", "proxy_only_right", "different_errors"]
    frame = run.whole.filter(pl.col("seed").is_null(), pl.col("metric").is_in(names))
    wide = frame.pivot(on="metric", index=["simplification", "split"], values="value")
    if not set(names) <= set(wide.columns):
        return None
    proxies = {p.simplification: (i, p) for i, p in enumerate(run.proxies)}
    model, model_only, proxy_only, different = (pl.col(name) for name in names)
    both = model - model_only
    long = (
        wide.filter(pl.col("simplification").is_in(list(proxies)))
        .with_columns(
            both.alias("both right"),
            model_only.alias("model only"),
            proxy_only.alias("proxy only"),
            different.alias("different errors"),
            (1 - both - model_only - proxy_only - different).clip(0, 1).alias("same error"),
        )
        .unpivot(on=list(PARTS), index=["simplification", "split"], variable_name="part")
        .select(
            "part",
            "value",
            split=pl.col("split").str.replace_all("_", " "),
            family=pl.col("simplification").replace_strict(
                {name: p.title for name, (_, p) in proxies.items()}
            ),
            row=pl.col("simplification").replace_strict(
                {name: f"{p.size:g}" if p.size_name else p.row for name, (_, p) in proxies.items()}
            ),
            place=pl.col("simplification").replace_strict(
                {name: i for name, (i, _) in proxies.items()}
            ),
            stack=pl.col("part").replace_strict({part: i for i, part in enumerate(PARTS)}),
        )
    )
    telling = [p.title for p in run.telling(1)]
    families = sorted(run.families, key=lambda title: title not in telling)
    chart = (
        alt.Chart(TABLE)
        .mark_bar(stroke="var(--page)", strokeWidth=0.5, clip=True)
        .encode(
            x=alt.X(
                "row:N",
                sort=alt.EncodingSortField("place", op="min"),
                title=None,
                axis=alt.Axis(labelAngle=0, ticks=False),
            ),
            y=alt.Y(
                "value:Q",
                title="scored positions",
                scale=alt.Scale(domain=[0, 1]),
                axis=alt.Axis(format=".0%", tickCount=5),
            ),
            color=alt.Color(
                "part:N",
                scale=alt.Scale(
                    domain=list(PARTS), range=[f"var(--{name})" for name in PARTS.values()]
                ),
                title=None,
                legend=alt.Legend(symbolType="square", symbolStrokeWidth=0),
            ),
            order=alt.Order("stack:Q"),
            tooltip=["part:N", alt.Tooltip("value:Q", format=".2%"), "split:N", "row:N"],
        )
        .properties(width=PANEL, height=150)
        .facet(
            facet=alt.Facet("split:N", sort=[split_label(name) for name in run.splits], title=None),
            columns=3,
            spacing=24,
        )
        .transform_filter("datum.family == family")
        .properties(title=alt.TitleParams(alt.ExprRef("family")))
    )
    return Figure(
        name="who_is_right",
        title="Who is right?",
        caption="What proxy and model make of each scored position, by size from left to right. "
        "Where they part ways, “model only” is knowledge that the proxy lost and “proxy only” is "
        "a failure of the model that the proxy hides.",
        chart=chart,
        data=long,
        choices=[Choice("family", "Proxies", [(title, title) for title in families])],
        panel=PANEL + 30,
    )  # fmt: skip
