"""Figures that break numbers down: by the level of a facet, and by time in training."""

import json
from collections.abc import Mapping

import altair as alt
import polars as pl

from anamorph.analysis.data import Run
from anamorph.analysis.words import facet_label, split_label
from anamorph.faithfulness.metrics import find_metric
from anamorph.report.figure import (
    DETAILED,
    TABLE,
    Choice,
    Figure,
    by_facet_and_proxy,
    natural,
    slug,
)
from anamorph.report.theme import split_scale

PANEL = 285  # pixels
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


def by_facet(run: Run) -> Figure | None:
    """Same prediction and both accuracies, or same attention, by a facet, a panel a split."""
    proxies = run.telling(DETAILED)
    frame = run.results.filter(
        pl.col("seed").is_null(),
        pl.col("facet").is_not_null(),
        pl.col("metric").is_in(list(LINES)),
        pl.col("simplification").is_in([p.simplification for p in proxies]),
    )
    if frame.is_empty():
        return None
    facets = frame["facet"].unique(maintain_order=True).to_list()
    places = {
        (facet, level): place
        for facet in facets
        for place, level in enumerate(natural(frame.filter(facet=facet)["level"].to_list()))
    }
    keys = pl.DataFrame(
        [(f, level, place) for (f, level), place in places.items()],
        schema=["facet", "level", "place"],
        orient="row",
    )
    numbers = {p.simplification: f"p{i}" for i, p in enumerate(proxies)}
    frame = frame.join(keys, on=["facet", "level"], how="left", maintain_order="left").select(
        "level",
        "place",
        *("value", "low", "high"),
        facet=pl.col("facet").replace_strict({name: f"f{i}" for i, name in enumerate(facets)}),
        proxy=pl.col("simplification").replace_strict(numbers),
        split=pl.col("split").str.replace_all("_", " "),
        line=pl.col("metric").replace_strict({name: find_metric(name).label for name in LINES}),
        lines=pl.col("metric").replace_strict(
            {name: lines for lines, (_, names) in SHOWN.items() for name in names}
        ),
    )
    labels = [
        find_metric(name).label for name in LINES if find_metric(name).label in set(frame["line"])
    ]
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
    x = alt.X(
        "level:N",
        sort=alt.EncodingSortField("place", op="min"),
        title=None,
        axis=alt.Axis(labelAngle=0, labelOverlap=True, labelSeparation=5, ticks=False),
    )
    base = alt.Chart().encode(x=x, color=color)
    band = base.mark_area(opacity=1, fillOpacity=0.13).encode(
        y=alt.Y("low:Q", title=None, axis=alt.Axis(format=".0%", tickCount=4)), y2="high:Q"
    )
    # Kinds have no order: points count, and a faint line only guides the eye.
    ordered = [f"f{i}" for i, name in enumerate(facets) if _ordered(places, name)]
    opacity = alt.expr(f"indexof({json.dumps(ordered)}, facet) < 0 ? 0.25 : 1")
    line = base.mark_line(
        strokeWidth=2, strokeOpacity=opacity, point=alt.OverlayMarkDef(size=24, strokeOpacity=1)
    ).encode(
        y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
        strokeDash=alt.StrokeDash(
            "line:N",
            scale=alt.Scale(domain=labels, range=[styles[label][1] for label in labels]),
            title=None,
        ),
        tooltip=[
            alt.Tooltip("line:N", title="metric"),
            alt.Tooltip("level:N"),
            *(alt.Tooltip(f"{name}:Q", format=".2%") for name in ("value", "low", "high")),
        ],
    )
    layers = [band, line]
    border = run.spec.get("task", {}).get("m")
    if "depth" in facets and isinstance(border, int):
        layers.append(
            alt.Chart()
            .transform_filter(f"datum.facet == 'f{facets.index('depth')}'")
            .transform_filter(f"datum.level == '{border}'")
            .transform_aggregate(place="min(place)", groupby=["split", "level"])
            .mark_rule(color="var(--soft)", strokeDash=[2, 3])
            .encode(x=x)
        )
        note = f" The dotted line stands at depth {border}, the deepest seen in training."
    else:
        note = ""
    chart = (
        alt.layer(*layers, data=TABLE)
        .properties(width=PANEL, height=150)
        .facet(
            facet=alt.Facet("split:N", sort=[split_label(s) for s in run.splits], title=None),
            columns=3,
            spacing=24,
        )
        .transform_filter("datum.facet == facet && datum.proxy == proxy && datum.lines == lines")
        .resolve_scale(x="independent")
        .properties(title=alt.TitleParams(alt.ExprRef("heading")))
    )
    task = run.spec.get("task", {}).get("name")
    named = {f"f{i}": facet_label(name, task) for i, name in enumerate(facets)}
    shown = [(lines, text) for lines, (text, _) in SHOWN.items() if lines in set(frame["lines"])]
    options = [(numbers[p.simplification], run.label(p.simplification)) for p in proxies]
    chosen = by_facet_and_proxy(named, options)
    return Figure(
        name="facets",
        title="Where on a split it fails",
        caption="Agreement with the model, and the accuracy of both, by a label of the scored "
        "positions, with a 95 % interval a level. Where the solid line falls while the model's "
        "accuracy holds, the proxy loses what the model knows; where the proxy's accuracy lies "
        f"above the model's, it hides a failure.{note}",
        chart=chart,
        data=frame,
        choices=[*chosen["choices"], Choice("lines", "Shown", shown)],
        values=chosen["values"],
        panel=PANEL + 30,
        stills={"": {}}
        | {f"_{slug(text)}": {"proxy": value} for value, text in options[1:3]}
        | {f"_{lines}": {"lines": lines} for lines, _ in shown[1:]},
    )


def _ordered(places: Mapping[tuple[str, str], int], facet: str) -> bool:
    """Whether most of a facet's levels are numbers or ranges of them."""
    levels = [level for name, level in places if name == facet]
    return 2 * sum(any(map(str.isdigit, level)) for level in levels) > len(levels)


def training(run: Run) -> Figure | None:
    """Accuracy and cross entropy of each split while the model was trained."""
    if run.history is None:
        return None
    frame = run.history.filter(pl.col("split").is_in(run.splits))
    frame = frame.unpivot(
        on=["accuracy", "cross_entropy"], index=["tokens", "split", "seed"], variable_name="curve"
    ).with_columns(
        pl.col("split").str.replace_all("_", " "),
        tokens=pl.col("tokens") / 1e6,
        seed=pl.format("seed {}", "seed"),
    )
    chart = (
        alt.Chart(TABLE)
        .mark_line(strokeWidth=1.8)
        .encode(
            x=alt.X("tokens:Q", title="training tokens, millions", axis=alt.Axis(tickCount=5)),
            y=alt.Y(
                "value:Q",
                title=None,
                scale=alt.Scale(zero=False),
                axis=alt.Axis(
                    tickCount=5,
                    labelExpr="curve == 'accuracy' ? format(datum.value, '.0%') : datum.label",
                ),
            ),
            color=alt.Color("split:N", scale=split_scale(run.splits), title=None),
            tooltip=["split:N", "tokens:Q", alt.Tooltip("value:Q", format=".4f")],
        )
        .properties(width=PANEL, height=170)
        .facet(facet=alt.Facet("seed:N", title=None), columns=3, spacing=24)
        .transform_filter("datum.curve == curve")
    )
    return Figure(
        name="training",
        title="How the models came to generalize",
        caption="The model's own accuracy on each split during training. Splits that come late or "
        "stay low are those on which a proxy has most room to differ.",
        chart=chart,
        data=frame,
        choices=[
            Choice(
                "curve",
                "Curve",
                [("accuracy", "accuracy"), ("cross_entropy", "cross entropy (bits)")],
            )
        ],
        panel=PANEL + 30,
    )
