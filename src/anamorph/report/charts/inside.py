"""Figures from inside the models: attended depth, key and query space, attention maps."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import altair as alt
import polars as pl

from anamorph.analysis.findings import IDENTITY, Findings
from anamorph.analysis.words import split_label
from anamorph.report.charts import parts
from anamorph.report.figure import TABLE, Choice, Figure, natural, slug
from anamorph.tasks.about import About

MOST_PROXIES = 4  # in a menu
MOST_SPLITS = 4  # side by side
MOST_POINTS = 220  # a site and split
MOST_SENTENCES = 10
MOST_TOKENS = 80  # of a sentence
LEAST_WEIGHT = 0.005  # of attention that is drawn
MODEL, PROXY = "model", "proxy"  # of whom the attention is
AXES = ("true_level", "attended_level")  # rows and columns of attention by level

Axis = TypeVar("Axis", alt.X, alt.Y)


def attended(run: Findings) -> Figure | None:
    """Which level a head attends to, from positions of each level: model above, proxy below."""
    table = run.pictures.get("attended")
    proxies = _proxies(run, table)
    if table is None or proxies is None:
        return None
    facet = str(table["facet"][0])
    splits = _telling_splits(run, table)
    shown = pl.col("split").is_in(splits), pl.col("simplification").is_in(list(proxies.codes))
    table = table.filter(*shown, facet=facet)
    levels = natural([*table["attended_level"].to_list(), *table["true_level"].to_list()])
    rows = natural(table["true_level"].to_list())
    keys = ["simplification", "split", "layer", "head", "true_level"]
    frame = (
        table.with_columns(share=pl.col("mass") / pl.col("mass").sum().over(keys))
        .filter(pl.col("share") >= LEAST_WEIGHT)
        .select(*AXES, "share", **_whose(proxies), split=parts.SPLIT)
    )
    border = About.of(run.spec).borders.get(facet)
    layers, note = [_level_cells(facet, levels, rows)], ""
    if border in levels and border in rows:
        layers += _border_lines(border, levels, rows)
        note = f" The dashed lines mark {facet} {border}, the last that training has."
    step = max(5.0, min(14.0, 190 / len(levels)))
    width = max(step * len(levels), min(145.0, 7.0 * max(map(len, splits))))  # a split's name fits
    chart = (
        alt.layer(*layers, data=TABLE)
        .properties(width=width, height=step * len(rows))
        .facet(
            column=parts.side_by_side(splits, step * len(levels)),
            row=alt.Row("who:N", sort=[MODEL, PROXY], title=None),
            spacing=14,
        )
    )
    return Figure(
        name=f"attended_{slug(facet)}",
        title=f"Where attention goes, by {facet}",
        caption=f"From scored positions of each true {facet} (rows), the share of attention that "
        f"goes to tokens of each {facet} (columns; – has none, such as the start). A head that "
        f"matches tokens by {facet} shows a diagonal. Compare the model (above) with the proxy "
        f"(below), within what training had and beyond it.{note}{_of_seed(run)}",
        chart=chart,
        data=frame,
        choices=[proxies, _heads(frame, table, proxies)],
        values={"levels": levels},
        stills={f"_{slug(text)}": {"proxy": code} for code, text in proxies.options[1:3]},
    )


def _level_cells(facet: str, levels: Sequence[str], rows: Sequence[str]) -> alt.Chart:
    """A cell for each pair of a true level (rows) and an attended one (columns)."""
    every = max(1, len(levels) // 8)
    label = f"indexof(levels, datum.value) % {every} == 0 ? datum.value : ''"

    def along(channel: type[Axis], field: str, levels: Sequence[str], angle: int) -> Axis:
        """An axis of levels; labels of some only where there are many."""
        axis = alt.Axis(**parts.QUIET, labelLimit=60, labelExpr=label, labelAngle=angle)
        scale = alt.Scale(domain=list(levels))
        title = f"{field.removesuffix('_level')} {facet}"
        return channel(f"{field}:N", sort=list(levels), scale=scale, title=title, axis=axis)

    cells: alt.Chart = alt.Chart().mark_rect(color="var(--heat)")
    return cells.encode(
        x=along(alt.X, "attended_level", levels, -90 if max(map(len, levels)) > 3 else 0),
        y=along(alt.Y, "true_level", rows, 0),
        opacity=_attention("share", "share of attention"),
        tooltip=parts.tips(
            ("true_level:N", f"true {facet}"),
            ("attended_level:N", f"attended {facet}"),
            ("share:Q", "share of attention", ".1%"),
        ),
    )


def _border_lines(border: str, levels: Sequence[str], rows: Sequence[str]) -> list[alt.Chart]:
    """Dashed lines behind a level, on both axes."""
    once = alt.Chart().transform_aggregate(n="count()", groupby=["split", "who"])
    rule: dict[str, Any] = {"color": "var(--split-4)", "strokeDash": [4, 3], "strokeWidth": 1.2}
    x = alt.X("attended_level:N", sort=list(levels), bandPosition=1)
    y = alt.Y("true_level:N", sort=list(rows), bandPosition=1)
    return [
        once.transform_calculate(attended_level=f"'{border}'").mark_rule(**rule).encode(x=x),
        once.transform_calculate(true_level=f"'{border}'").mark_rule(**rule).encode(y=y),
    ]


def _attention(column: str, title: str) -> alt.Opacity:
    """Shares of attention as shades."""
    return alt.Opacity(
        f"{column}:Q",
        scale=alt.Scale(domain=[0, 1], range=[0, 1], type="sqrt"),
        legend=parts.squares(
            title=title,
            format=".0%",
            symbolFillColor="var(--heat)",
            values=[0.05, 0.25, 0.5, 1],
        ),
    )


def key_query(run: Findings) -> Figure | None:
    """Keys and queries on their first two components, a panel a split."""
    table = run.pictures.get("scatter")
    if table is None or table.is_empty():
        return None
    fixed = {"layer", "head", "kind", "split", "sequence", "position", "token"}
    facets = [n for n, kind in table.schema.items() if n not in fixed and kind == pl.String]
    keys = ["layer", "head", "kind", "split"]
    table = table.filter(pl.int_range(pl.len()).shuffle(seed=0).over(keys) < MOST_POINTS)
    table = table.with_columns(position_bin=_bins(table))
    colourings = {**{name: name for name in facets}, "token": "token", "position": "position_bin"}
    frame = table.select(
        *_colours(table, list(colourings.values())),
        "token",
        "position",
        site=pl.format("{}.{}.{}", "layer", "head", "kind"),
        split=parts.SPLIT,
        x="component_1",
        y="component_2",
    )
    sites = sorted(frame["site"].unique(), key=lambda s: (s.split(".")[:2], s.endswith("key")))
    last = sites[-1].rpartition(".")[0]  # the last layer's query first: it holds what is asked for
    sites.sort(key=lambda s: not s.startswith(last))
    colouring = Choice(
        "colouring", "Colour by", [(str(i), name) for i, name in enumerate(colourings)]
    )
    stills = {"_key": {"site": f"{last}.key"}} if f"{last}.key" in sites else {}
    return Figure(
        name="key_query",
        title="What keys and queries encode",
        caption="Activations of a site on its first two singular directions, a point a token. If "
        "colours that are ordered within the trained range fold back, crowd or scatter on another "
        f"split, two components do not carry what they seemed to. Grey: without a "
        f"label.{_of_seed(run)}",
        chart=parts.panels(
            _points(facets), order=run.splits, height=parts.PANEL - 50, spacing=22
        ).transform_calculate(
            shade="datum['c' + colouring]", place="toNumber(datum['o' + colouring])"
        ),
        data=frame,
        choices=[Choice("site", "Site", [(site, site) for site in sites]), colouring],
        heading=f"site + ', coloured by ' + {colouring.shown}",
        panel=parts.SPACED,
        stills=stills,
    )


def _colours(table: pl.DataFrame, sources: Sequence[str]) -> list[pl.Expr]:
    """Of each column, by its number: the level `c0`, and its place among the levels `o0`."""
    columns = []
    for i, source in enumerate(sources):
        levels = natural(table[source].drop_nulls().to_list())
        place = pl.col(source).replace_strict({v: n for n, v in enumerate(levels)}, default=None)
        columns += [
            pl.col(source).fill_null("none").alias(f"c{i}"),
            place.fill_null(len(levels)).alias(f"o{i}"),
        ]
    return columns


def _points(facets: Sequence[str]) -> alt.Chart:
    axis = alt.Axis(tickCount=4, grid=False)
    scale = alt.Scale(zero=False, nice=False, padding=6)
    color = alt.Color(
        "shade:N",
        sort=alt.EncodingSortField("place", op="min"),
        scale=alt.Scale(scheme=alt.SchemeParams(name="viridis", extent=[0.25, 0.95])),
        title=None,
        legend=alt.Legend(
            columns=10,
            symbolLimit=60,
            symbolOpacity=1,
            labelLimit=64,
            columnPadding=6,
            symbolSize=60,
        ),
    )
    points: alt.Chart = alt.Chart(TABLE).mark_circle(
        size=26, opacity=1, fillOpacity=0.85, stroke="var(--page)", strokeWidth=0.3
    )
    levels = ((f"c{i}:N", name) for i, name in enumerate(facets))
    return points.encode(
        x=alt.X("x:Q", title="component 1", axis=axis, scale=scale),
        y=alt.Y("y:Q", title="component 2", axis=axis, scale=scale),
        color=alt.condition("datum.shade === 'none'", alt.value("var(--soft)"), color),
        tooltip=parts.tips("token:N", "position:N", *levels),
    )


def attention_maps(run: Findings) -> Figure | None:
    """The attention pattern of a sentence, model beside proxy."""
    table, sentences = run.pictures.get("patterns"), run.pictures.get("sentences")
    proxies = _proxies(run, table)
    if table is None or sentences is None or proxies is None:
        return None
    lengths = sentences.group_by("split", "sequence", maintain_order=True).len()
    kept = lengths.filter(pl.col("len") <= MOST_TOKENS).sort("sequence", maintain_order=True)
    kept = kept.head(MOST_SENTENCES)  # of every split the first before a second
    kept = kept.with_columns(sentence=pl.format("s{}", pl.int_range(pl.len())))
    if kept.is_empty():
        return None
    frame = (
        table.join(kept, on=["split", "sequence"], maintain_order="left")
        .filter(
            pl.col("weight") >= LEAST_WEIGHT,
            pl.col("simplification").is_in(list(proxies.codes)),
        )
        .select("sentence", "query", "key", "weight", **_whose(proxies))
    )
    keys, queries, options = _token_names(sentences, kept)
    axis: dict[str, Any] = {**parts.QUIET, "labelLimit": 70, "labelFontSize": 9.5}
    axis |= {"labelOverlap": False, "labelPadding": 2}
    x_axis = alt.Axis(labelAngle=-90, labelExpr="key_names[sentence][datum.value]", **axis)
    y_axis = alt.Axis(labelExpr="query_names[sentence][datum.value]", **axis)
    cells = alt.Chart(TABLE).mark_rect(color="var(--heat)")
    cells = cells.encode(
        x=alt.X("key:O", title="attended token (key)", axis=x_axis),
        y=alt.Y("query:O", title="from token (query)", axis=y_axis),
        opacity=_attention("weight", "attention weight"),
        tooltip=parts.tips("query:O", "key:O", ("weight:Q", "", ".1%")),
    )
    step: dict[str, Any] = dict.fromkeys(("width", "height"), alt.Step(11))
    return Figure(
        name="attention",
        title="Attention, sentence by sentence",
        caption="A row is a token that looks back, a column what it looks at. An arrow in a row's "
        "name marks a scored prediction and the token that was to come. Look for rows where the "
        f"model's one dark cell moves or spreads in the proxy.{_of_seed(run)}",
        chart=parts.panels(cells, by="who", order=[MODEL, PROXY], columns=2, **step),
        data=frame,
        choices=[Choice("sentence", "Sentence", options), proxies, _heads(frame, table, proxies)],
        values={"key_names": keys, "query_names": queries},
        panel=parts.SPACED,
    )


def _proxies(run: Findings, table: pl.DataFrame | None) -> Choice | None:
    """A menu of the most telling proxies of a table, beside which the model is always shown.

    First stand those whose attention is not the model's own: there is nothing to see of the others.
    """
    if table is None:
        return None
    present = set(table["simplification"])
    changed = set(_changed(table)["simplification"])
    telling = [p.simplification for p in run.telling(len(run.proxies), among=present)]
    chosen = sorted(telling, key=lambda name: name not in changed)[:MOST_PROXIES]
    menu = parts.proxy_menu(run, chosen)
    codes: Mapping[str, str] = {IDENTITY: MODEL, **menu.codes}
    return replace(menu, codes=codes, always=[MODEL]) if chosen else None


def _whose(proxies: Choice) -> dict[str, pl.Expr]:
    """Columns that say of which head and of whom the attention in a row is."""
    of_model = pl.col("simplification") == IDENTITY
    return {
        "head": pl.format("{}.{}", "layer", "head"),
        "proxy": proxies.code("simplification"),
        "who": pl.when(of_model).then(pl.lit(MODEL)).otherwise(pl.lit(PROXY)),
    }


def _changed(table: pl.DataFrame) -> pl.DataFrame:
    """Proxies and heads whose attention is not the model's own: simplification, layer, head."""
    share = "weight" if "weight" in table.columns else "mass"
    keys = [name for name in table.columns if name not in ("simplification", "argmax", share)]
    own = table.filter(simplification=IDENTITY).select(*keys, own=share)
    beside = table.filter(pl.col("simplification") != IDENTITY).join(own, on=keys)
    most = pl.max_horizontal(share, "own", pl.lit(1.0))  # masses are sums over many positions
    found = beside.filter((pl.col(share) - pl.col("own")).abs() > LEAST_WEIGHT * most)
    return found.select("simplification", "layer", "head").unique(maintain_order=True)


def _heads(frame: pl.DataFrame, table: pl.DataFrame, proxies: Choice) -> Choice:
    """The last layer first: its attention decides the prediction; but what is changed before it."""
    code = proxies.options[0][0]
    changed = {
        f"{layer}.{head}"
        for name, layer, head in _changed(table).iter_rows()
        if proxies.codes.get(name) == code
    }
    heads = sorted(
        frame["head"].unique(), key=lambda h: (h not in changed, -int(h.split(".")[0]), h)
    )
    return Choice("head", "Layer.head", [(head, head) for head in heads])


def _telling_splits(run: Findings, table: pl.DataFrame) -> list[str]:
    """The reference, and the ood splits with the largest gaps among proxies that look right."""
    right = run.judged.filter(pl.col("iid") >= run.thresholds.faithful)
    worst = dict(right.group_by("split").agg(pl.col("gap").max()).iter_rows())
    present = set(table["split"].unique())
    ood = sorted((s for s in run.ood if s in present), key=lambda s: -worst.get(s, 0))
    chosen = {run.reference, *ood[: MOST_SPLITS - 1]}
    return [split for split in run.splits if split in chosen & present]


def _bins(table: pl.DataFrame) -> pl.Series:
    """Positions in bins that double: 0, 1, 2–3, 4–7, ..."""

    def name(position: int) -> str:
        low = 1 << (position.bit_length() - 1) if position else 0
        return str(low) if low < 2 else f"{low}–{2 * low - 1}"

    return table["position"].map_elements(name, return_dtype=pl.String)


def _token_names(
    sentences: pl.DataFrame, kept: pl.DataFrame
) -> tuple[dict[str, dict[str, str]], dict[str, dict[str, str]], list[tuple[str, str]]]:
    """Axis labels by sentence and position, and the menu of sentences."""
    keys: dict[str, dict[str, str]] = {}
    queries: dict[str, dict[str, str]] = {}
    options = []
    for split, sequence, length, sentence in kept.iter_rows():
        rows = sentences.filter(split=split, sequence=sequence)
        tokens, scored = rows["token"].to_list(), rows["scored"].to_list()
        keys[sentence] = {str(i): token for i, token in enumerate(tokens)}
        queries[sentence] = {
            str(i): f"{token} → {tokens[i + 1]}" if i + 1 < length and scored[i + 1] else token
            for i, token in enumerate(tokens)
        }
        worst = "worst" in rows.columns and rows["worst"].any()
        which = "where they part most" if worst else f"number {sequence}"
        options.append((sentence, f"{split_label(split)}, {length} tokens ({which})"))
    return keys, queries, options


def _of_seed(run: Findings) -> str:
    return f" Seed {run.picture_seed} only." if len(run.seeds) > 1 else ""
