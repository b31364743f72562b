"""Figures of the results: faithfulness against size, accuracies, and who is right."""

from collections.abc import Collection, Mapping
from typing import TypeVar

import altair as alt
import polars as pl

from anamorph.analysis.controls import RANDOM, beside_views
from anamorph.analysis.findings import IDENTITY, Findings, NamedProxy
from anamorph.analysis.words import listing, method_label, size_label, some_of, threshold
from anamorph.faithfulness.metrics import JUDGED, find_metric
from anamorph.report.charts import parts
from anamorph.report.figure import TABLE, Choice, Figure
from anamorph.report.theme import split_scale, split_shapes
from anamorph.tasks.fitted_on import HALF, ORACLE

HEIGHT = 170  # pixels of a panel of `against_size`

PARTS = {
    "both right": "both-right",
    "model only": "under",
    "proxy only": "over",
    "different errors": "other-error",
    "same error": "same-error",
}


def against_size(run: Findings) -> Figure | None:
    """A metric against rank or clusters: a line a split with its band, a panel a family."""
    every = {title: [p for p in some if p.size_name] for title, some in run.families.items()}
    several = {title for title, some in every.items() if len({p.size for p in some}) > 1}
    families = {title: every[title] for title in run.telling_families if title in several}
    with_size = {p.simplification: p for some in families.values() for p in some}
    if not with_size:
        return None
    titles = {name: p.title for name, p in with_size.items()}
    metrics = run.shown_metrics
    frame = run.whole.filter(
        pl.col("simplification").is_in(list(with_size)), pl.col("metric").is_in(metrics)
    )
    if len(run.seeds) == 1:
        frame = frame.filter(pl.col("seed").is_null())
    frame = frame.select(
        "metric",
        "size",
        *("value", "low", "high"),
        family=pl.col("simplification").replace_strict(titles),
        split=parts.SPLIT,
        seed=pl.col("seed").cast(pl.String).fill_null("all"),
        kind=pl.lit("view"),
    )
    beside = beside_views(run).filter(
        pl.col("view").is_in(list(with_size)), pl.col("metric").is_in(metrics)
    )
    kinds = beside["kind"].unique(maintain_order=True).to_list()
    sizes_of = {name: p.size for name, p in with_size.items()}
    thin = beside.select(
        *("metric", "value", "kind"),
        size=pl.col("view").replace_strict(sizes_of, return_dtype=pl.Float64),
        family=pl.col("view").replace_strict(titles, return_dtype=pl.String),
        split=parts.SPLIT,
        seed=pl.lit("all"),
    )
    frame = pl.concat([frame, thin, _blank(frame, thin)], how="diagonal")
    names = dict.fromkeys(size_label(str(p.size_name)) for p in with_size.values())
    sizes = " or ".join(names) if len(names) <= 2 else "size"
    layers = _size_lines(run, sizes, kinds)
    seeds = " Thin lines are single seeds." if len(run.seeds) > 1 else ""
    rest = some_of(len(families), len(several), "families of proxies")
    return Figure(
        name="faithfulness",
        title="Faithfulness against size",
        caption="A line a split, with its 95 % band; the dashed line is the threshold of "
        f"{threshold(run.thresholds.faithful)} for looking right. Look for splits that stay "
        f"apart from iid (dark) at a size where iid has already come close.{seeds}"
        f"{_of_controls(kinds)} Choose a split in the legend to single it out.{rest}",
        chart=parts.panels(*layers, by="family", order=titles.values(), height=HEIGHT)
        .add_params(alt.selection_point(fields=["split"], bind="legend", name="pick"))
        .resolve_scale(x="independent"),
        data=frame,
        **parts.metric_menu(
            metrics, {m: f"{find_metric(m).label} ({find_metric(m).direction})" for m in metrics}
        ),
        panel=parts.SPACED,
        stills={f"_{m}": {"metric": m} for m in ("attention_jsd", "output_jsd") if m in metrics},
    )


def _of_controls(kinds: Collection[str]) -> str:
    """What the thin lines of controls are, with a space in front; empty without any."""
    said = {
        ORACLE: "dashed where it is fitted on the split itself",
        HALF: "dash-dotted where it is fitted on a part of the training data",
        RANDOM: "dotted where nothing is learnt",
    }
    found = [said[kind] for kind in said if kind in kinds]
    return f" Thin lines behind are controls of the same view: {listing(found)}." if found else ""


DASHES = {ORACLE: [5, 3], HALF: [7, 2, 1, 2], RANDOM: [1, 3]}


def _blank(views: pl.DataFrame, controls: pl.DataFrame) -> pl.DataFrame:
    """An empty row where a family has no control of a kind: no axis is without extent then."""
    return (
        views.unique(["metric", "family"], keep="first", maintain_order=True)
        .select("metric", "family", "size", "split", seed=pl.lit("all"))
        .join(controls.select("kind").unique(maintain_order=True), how="cross")
        .join(controls, on=["metric", "family", "kind"], how="anti")
    )


def _size_lines(run: Findings, sizes: str, kinds: Collection[str]) -> list[alt.Chart]:
    """Bands, the threshold, controls, single seeds, lines and points.

    Args:
        run: what was found.
        sizes: what the axis counts.
        kinds: of the controls that there are.
    """
    x = alt.X(
        "size:Q",
        scale=alt.Scale(type="log", base=2, nice=False, padding=10),
        title=f"{sizes} (log scale)",
        axis=alt.Axis(labels=False, ticks=False, grid=False, titlePadding=24),
    )
    formats = "unit_shown == 'share' ? format(datum.value, '.0%') : format(datum.value, '~g')"
    y = alt.Y(
        "value:Q",
        scale=alt.Scale(zero=False, nice=True),
        title=None,
        axis=alt.Axis(tickCount=5, labelExpr=formats),
    )
    legend = parts.split_legend(run.splits)
    color = alt.Color("split:N", scale=split_scale(run.splits), title=None, legend=legend)
    of_all = alt.Chart().encode(x=x, color=color)
    base = of_all.transform_filter("datum.kind == 'view'")
    everything = base.transform_filter("datum.seed == 'all'")
    controls = [
        of_all.transform_filter(f"datum.kind == '{kind}'")
        .mark_line(strokeWidth=1, strokeDash=DASHES[kind])
        .encode(y=y, strokeOpacity=_highlight(alt.StrokeOpacity, 0.8, 0.1))
        for kind in kinds
    ]
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
        shape=alt.Shape("split:N", scale=split_shapes(run.splits), title=None, legend=legend),
        tooltip=parts.tips("split:N", ("size:Q", sizes), *parts.interval(".4f", "value"), "seed:N"),
    )
    single = (
        base.transform_filter("datum.seed != 'all'")
        .mark_line(strokeWidth=0.7)
        .encode(y=y, detail="seed:N", strokeOpacity=_highlight(alt.StrokeOpacity, 0.45, 0.08))
    )
    seeds = [single] if len(run.seeds) > 1 else []
    return [
        *_measured(x),
        band,
        _looks_right(run),
        *controls,
        *seeds,
        line,
        dots,
    ]


def _looks_right(run: Findings) -> alt.Chart:
    """The threshold. Of other metrics it lies, unseen, where their numbers are."""
    judged = f"metric == '{JUDGED}'"
    lines = (
        alt.Chart()
        .transform_aggregate(least="min(value)", groupby=["family"])
        .transform_calculate(line=f"{judged} ? {run.thresholds.faithful} : datum.least")
    )
    seen = alt.condition(judged, alt.value(1), alt.value(0))
    drawn: alt.Chart = parts.dashed(lines).encode(y=alt.Y("line:Q", title=None), strokeOpacity=seen)
    return drawn


def _measured(x: alt.X) -> list[alt.Chart]:
    """A panel's own sizes below it, where an axis would have the same numbers in all panels."""
    sizes = alt.Chart().transform_aggregate(rows="count()", groupby=["family", "size"])
    texts = sizes.mark_text(baseline="top", fontSize=11, color="var(--soft)")
    ticks = sizes.mark_tick(size=6, thickness=1, color="var(--line)")
    return [
        texts.encode(x=x, y=alt.value(HEIGHT + 8), text=alt.Text("size:Q", format="~g")),
        ticks.encode(x=x, y=alt.value(HEIGHT + 3)),
    ]


Channel = TypeVar("Channel", alt.FillOpacity, alt.StrokeOpacity)


def _highlight(channel: type[Channel], on: float, off: float) -> Channel:
    """Full strength for what is picked in the legend, or for everything if nothing is.

    Of fill or stroke, not of the whole mark: that would make a layer of each, slow to rasterize.
    """
    return channel(condition={"param": "pick", "value": on}, value=off)


def accuracies(run: Findings) -> Figure | None:
    """The proxy's accuracy against the model's, a panel a method."""
    names = ("model_accuracy", "proxy_accuracy")
    wide = run.pooled.filter(pl.col("metric").is_in(names), pl.col("method") != IDENTITY).pivot(
        on="metric", index=["simplification", "split"], values=["value", "low", "high"]
    )
    if not {f"value_{name}" for name in names} <= set(wide.columns):
        return None
    methods = {p.simplification: method_label(p.method) for p in run.proxies}
    wide = wide.select(
        model=pl.col("value_model_accuracy"),
        proxy=pl.col("value_proxy_accuracy"),
        low=pl.col("low_proxy_accuracy"),
        high=pl.col("high_proxy_accuracy"),
        split=parts.SPLIT,
        method=pl.col("simplification").replace_strict(methods),
        name="simplification",
    )
    axis = alt.Axis(format=".0%", tickCount=4)
    scale = alt.Scale(zero=False, nice=False, padding=8)
    x = alt.X("model:Q", title="model accuracy", axis=axis, scale=scale)
    y = alt.Y("proxy:Q", title="proxy accuracy", axis=axis, scale=scale)
    legend = parts.split_legend(run.splits)
    color = alt.Color("split:N", scale=split_scale(run.splits), title=None, legend=legend)
    base = alt.Chart().encode(x=x, color=color)
    diagonal = parts.dashed(
        alt.Chart().transform_aggregate(a="min(model)", b="max(model)", groupby=["method"])
    ).encode(x="a:Q", y="a:Q", x2="b:Q", y2="b:Q")
    bars = base.mark_rule(strokeOpacity=0.35, strokeWidth=1.5).encode(
        y=alt.Y("low:Q", title="proxy accuracy"), y2="high:Q"
    )
    dots = base.mark_point(size=46, strokeWidth=1.6, opacity=1).encode(
        y=y,
        shape=alt.Shape("split:N", scale=split_shapes(run.splits), title=None, legend=legend),
        tooltip=parts.tips(
            ("name:N", "proxy"),
            "split:N",
            *((f"{whose}:Q", f"{whose} accuracy", ".2%") for whose in ("model", "proxy")),
            *(("low:Q", "", ".2%"), ("high:Q", "", ".2%")),
        ),
    )
    return Figure(
        name="accuracy",
        title="Is the proxy as good as the model?",
        caption="A point a proxy and split, with the proxy's 95 % interval. On the dashed line "
        "both are equally accurate; points above it are proxies that do better than the model they "
        "stand for, which hides the model's failures.",
        chart=parts.panels(
            *(diagonal, bars, dots), by="method", order=methods.values(), height=parts.PANEL - 30
        ),
        data=wide,
        panel=parts.SPACED,
    )


def who_is_right(run: Findings) -> Figure | None:
    """Stacked: both right, one only, different errors, the same error; a panel a split."""
    names = ["model_accuracy", "model_only_right", "proxy_only_right", "different_errors"]
    frame = run.pooled.filter(pl.col("metric").is_in(names))
    wide = frame.pivot(on="metric", index=["simplification", "split"], values="value")
    if not set(names) <= set(wide.columns):
        return None
    x_axis = alt.Axis(labelAngle=0, ticks=False)
    colours = alt.Scale(domain=list(PARTS), range=[f"var(--{name})" for name in PARTS.values()])
    bars = (
        alt.Chart(TABLE)
        .mark_bar(stroke="var(--page)", strokeWidth=0.5, clip=True)
        .encode(
            x=alt.X(
                "row:N", sort=alt.EncodingSortField("place", op="min"), title=None, axis=x_axis
            ),
            y=alt.Y(
                "value:Q",
                title="scored positions",
                scale=alt.Scale(domain=[0, 1]),
                axis=alt.Axis(format=".0%", tickCount=5),
            ),
            color=alt.Color("part:N", scale=colours, title=None, legend=parts.squares()),
            order=alt.Order("stack:Q"),
            tooltip=parts.tips("part:N", ("value:Q", "", ".2%"), "split:N", "row:N"),
        )
    )
    telling = [p.title for p in run.telling(1)]
    families = sorted(run.families, key=lambda title: title not in telling)
    return Figure(
        name="who_is_right",
        title="Who is right?",
        caption="What proxy and model make of each scored position, by size from left to right. "
        "Where they part ways, “model only” is knowledge that the proxy lost and “proxy only” is "
        "a failure of the model that the proxy hides.",
        chart=parts.panels(bars, order=run.splits, height=150),
        data=_shares(wide, {p.simplification: p for p in run.proxies}),
        choices=[Choice("family", "Proxies", [(title, title) for title in families])],
        heading="family",
        panel=parts.SPACED,
    )


def _shares(wide: pl.DataFrame, proxies: Mapping[str, NamedProxy]) -> pl.DataFrame:
    """The share of each of `PARTS`, a row a proxy and split, with its place in the figure."""
    both = pl.col("model_accuracy") - pl.col("model_only_right")
    one = pl.col("model_only_right"), pl.col("proxy_only_right"), pl.col("different_errors")
    shares = (both, *one, (1 - both - one[0] - one[1] - one[2]).clip(0, 1))
    rows = {name: f"{p.size:g}" if p.size_name else p.row for name, p in proxies.items()}
    of_proxy = pl.col("simplification")
    return (
        wide.filter(of_proxy.is_in(list(proxies)))
        .with_columns(**dict(zip(PARTS, shares, strict=True)))
        .unpivot(on=list(PARTS), index=["simplification", "split"], variable_name="part")
        .select(
            "part",
            "value",
            split=parts.SPLIT,
            family=of_proxy.replace_strict({name: p.title for name, p in proxies.items()}),
            row=of_proxy.replace_strict(rows),
            place=of_proxy.replace_strict({name: i for i, name in enumerate(proxies)}),
            stack=pl.col("part").replace_strict({part: i for i, part in enumerate(PARTS)}),
        )
    )
