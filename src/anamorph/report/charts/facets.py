"""Figures that break numbers down: by the level of a facet, and by time in training."""

import json
from collections.abc import Sequence

import altair as alt
import polars as pl

from anamorph.analysis.findings import Findings
from anamorph.faithfulness.metrics import find_metric
from anamorph.report.charts import parts
from anamorph.report.figure import DETAILED, TABLE, Choice, Figure, natural, slug
from anamorph.report.theme import split_scale
from anamorph.tasks.about import About

LINES = {
    "same_prediction": ("var(--split-0)", [1, 0]),
    "model_accuracy": ("var(--split-1)", [6, 3]),
    "proxy_accuracy": ("var(--split-4)", [2, 2]),
    "same_attention": ("var(--split-2)", [1, 0]),
}
SHOWN = {
    "predictions": ("same prediction, and both accuracies", list(LINES)[:3]),
    "attention": ("same attention target", ["same_attention"]),
}


def by_facet(run: Findings) -> Figure | None:
    """Same prediction and both accuracies, or same attention, by a facet, a panel a split."""
    proxies = [p.simplification for p in run.telling(DETAILED)]
    frame = run.results.filter(
        pl.col("seed").is_null(),
        pl.col("facet").is_not_null(),
        pl.col("metric").is_in(list(LINES)),
        pl.col("simplification").is_in(proxies),
    )
    if frame.is_empty():
        return None
    levels = {
        facet: natural(some["level"].to_list())
        for (facet,), some in frame.group_by("facet", maintain_order=True)
    }
    places = [(facet, x, i) for facet, every in levels.items() for i, x in enumerate(every)]
    keys = pl.DataFrame(places, ["facet", "level", "place"], orient="row")
    facet = parts.facet_menu(run, levels)
    proxy = parts.proxy_menu(run, proxies)
    frame = frame.join(keys, on=["facet", "level"], how="left", maintain_order="left").select(
        "level",
        "place",
        *("value", "low", "high"),
        facet=facet.code("facet"),
        proxy=proxy.code("simplification"),
        split=parts.SPLIT,
        line=pl.col("metric").replace_strict({name: find_metric(name).label for name in LINES}),
        lines=pl.col("metric").replace_strict(
            {name: lines for lines, (_, names) in SHOWN.items() for name in names}
        ),
    )
    shown = [(lines, text) for lines, (text, _) in SHOWN.items() if lines in set(frame["lines"])]
    known = About.of(run.spec).borders
    borders = {name: level for name, level in known.items() if name in levels}
    note = "".join(
        f" The dotted line stands at {name} {level}, the last that training has."
        for name, level in borders.items()
    )
    # Kinds have no order: points count, and a faint line only guides the eye.
    ordered = [facet.codes[name] for name, every in levels.items() if _ordered(every)]
    layers = _lines(set(frame["line"]), ordered)
    layers += [_border(facet.codes[name], level) for name, level in borders.items()]
    return Figure(
        name="facets",
        title="Where on a split it fails",
        caption="Agreement with the model, and the accuracy of both, by a label of the scored "
        "positions, with a 95 % interval a level. Where the solid line falls while the model's "
        "accuracy holds, the proxy loses what the model knows; where the proxy's accuracy lies "
        f"above the model's, it hides a failure.{note}",
        chart=parts.panels(*layers, order=run.splits, height=150).resolve_scale(x="independent"),
        data=frame,
        choices=[facet, proxy, Choice("lines", "Shown", shown)],
        heading=f"{facet.shown} + ' — ' + {proxy.shown}",
        panel=parts.SPACED,
        stills={f"_{slug(text)}": {"proxy": value} for value, text in proxy.options[1:3]}
        | {f"_{lines}": {"lines": lines} for lines, _ in shown[1:]},
    )


def _ordered(levels: Sequence[str]) -> bool:
    """Whether most levels are numbers or ranges of them."""
    return 2 * sum(any(map(str.isdigit, level)) for level in levels) > len(levels)


def _level_axis() -> alt.X:
    return alt.X(
        "level:N",
        sort=alt.EncodingSortField("place", op="min"),
        title=None,
        axis=alt.Axis(labelAngle=0, labelOverlap=True, labelSeparation=5, ticks=False),
    )


def _lines(present: set[str], ordered: Sequence[str]) -> list[alt.Chart]:
    """Bands and lines of the metrics that are `present`, faint if a facet is not `ordered`."""
    labels = [find_metric(name).label for name in LINES if find_metric(name).label in present]
    styles = {find_metric(name).label: style for name, style in LINES.items()}
    by_lines = {
        lines: [find_metric(name).label for name in names] for lines, (_, names) in SHOWN.items()
    }
    color = alt.Color(
        "line:N",
        scale=alt.Scale(domain=labels, range=[styles[label][0] for label in labels]),
        title=None,
        legend=alt.Legend(
            symbolType="stroke",
            symbolSize=300,
            values=alt.ExprRef(f"({json.dumps(by_lines)})[lines]"),
        ),
    )
    base = alt.Chart().encode(x=_level_axis(), color=color)
    band = base.mark_area(opacity=1, fillOpacity=0.13).encode(
        y=alt.Y("low:Q", title=None, axis=alt.Axis(format=".0%", tickCount=4)), y2="high:Q"
    )
    opacity = alt.expr(f"indexof({json.dumps(list(ordered))}, facet) < 0 ? 0.25 : 1")
    line = base.mark_line(
        strokeWidth=2, strokeOpacity=opacity, point=alt.OverlayMarkDef(size=24, strokeOpacity=1)
    ).encode(
        y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
        strokeDash=alt.StrokeDash(
            "line:N",
            scale=alt.Scale(domain=labels, range=[styles[label][1] for label in labels]),
            title=None,
        ),
        tooltip=parts.tips(("line:N", "metric"), "level:N", *parts.interval(".2%", "value")),
    )
    return [band, line]


def _border(facet: str, level: str) -> alt.Chart:
    """A dotted line at a level of a facet."""
    line: alt.Chart = (
        alt.Chart()
        .transform_filter(f"datum.facet == '{facet}'")
        .transform_filter(f"datum.level == '{level}'")
        .transform_aggregate(place="min(place)", groupby=["split", "level"])
        .mark_rule(color="var(--soft)", strokeDash=[2, 3])
    )
    return line.encode(x=_level_axis())


def training(run: Findings) -> Figure | None:
    """Accuracy and cross entropy of each split while the model was trained."""
    if run.history is None:
        return None
    frame = run.history.filter(pl.col("split").is_in(run.splits))
    index = ["tokens", "split", "seed"]
    frame = frame.unpivot(["accuracy", "cross_entropy"], index=index, variable_name="curve")
    millions, seed = pl.col("tokens") / 1e6, pl.format("seed {}", "seed")
    frame = frame.with_columns(split=parts.SPLIT, tokens=millions, seed=seed)
    y_axis = alt.Axis(
        tickCount=5,
        labelExpr="curve == 'accuracy' ? format(datum.value, '.0%') : datum.label",
    )
    lines = (
        alt.Chart(TABLE)
        .mark_line(strokeWidth=1.8)
        .encode(
            x=alt.X("tokens:Q", title="training tokens, millions", axis=alt.Axis(tickCount=5)),
            y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False), axis=y_axis),
            color=alt.Color("split:N", scale=split_scale(run.splits), title=None),
            tooltip=parts.tips("split:N", "tokens:Q", ("value:Q", "", ".4f")),
        )
    )
    seeds = frame["seed"].unique(maintain_order=True).to_list()
    curves = [("accuracy", "accuracy"), ("cross_entropy", "cross entropy (bits)")]
    return Figure(
        name="training",
        title="How the models came to generalize",
        caption="The model's own accuracy on each split during training. Splits that come late or "
        "stay low are those on which a proxy has most room to differ.",
        chart=parts.panels(lines, by="seed", order=seeds, height=170),
        data=frame,
        choices=[Choice("curve", "Curve", curves)],
        panel=parts.SPACED,
    )
