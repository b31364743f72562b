"""Figures from inside the models: attended depth, key and query space, attention maps, training."""

from typing import Any

import altair as alt
import polars as pl

from anamorph.analysis.data import IDENTITY, Run
from anamorph.analysis.words import split_label
from anamorph.report.figure import TABLE, Choice, Figure, lookup, natural, slug

PANEL = 285  # pixels
MOST_PROXIES = 4  # in a menu
MOST_SPLITS = 4  # side by side
MOST_POINTS = 220  # a site and split
MOST_SENTENCES = 6
MOST_TOKENS = 80  # of a sentence
LEAST_WEIGHT = 0.005  # of attention that is drawn


def attended(run: Run) -> Figure | None:
    """Which level a head attends to, from positions of each level: model above, proxy below."""
    view = run.views.get("attended")
    proxies = _viewed(run, view)
    if view is None or not proxies:
        return None
    facet = str(view["facet"][0])
    splits = _telling_splits(run, view)
    view = view.filter(
        pl.col("facet") == facet,
        pl.col("split").is_in(splits),
        pl.col("simplification").is_in([IDENTITY, *proxies]),
    )
    levels = natural([*view["attended_level"].to_list(), *view["true_level"].to_list()])
    rows = natural(view["true_level"].to_list())
    keys = ["simplification", "split", "layer", "head", "true_level"]
    frame = view.with_columns(
        share=pl.col("mass") / pl.col("mass").sum().over(keys),
        count=pl.col("mass").sum().over(keys),
    ).filter(pl.col("share") >= LEAST_WEIGHT)
    frame = frame.select(
        "true_level",
        "attended_level",
        "share",
        head=pl.format("{}.{}", "layer", "head"),
        proxy=pl.col("simplification").replace_strict(_numbers(proxies)),
        who=pl.when(pl.col("simplification") == IDENTITY)
        .then(pl.lit("model"))
        .otherwise(pl.lit("proxy")),
        split=pl.col("split").str.replace_all("_", " "),
    )
    every = max(1, len(levels) // 8)
    wide = max(map(len, levels)) > 3
    axis = alt.Axis(
        labelAngle=0,
        ticks=False,
        domain=False,
        labelLimit=60,
        labelExpr=f"indexof(levels, datum.value) % {every} == 0 ? datum.value : ''",
    )
    x = alt.X(
        "attended_level:N",
        sort=levels,
        scale=alt.Scale(domain=levels),
        title=f"attended {facet}",
        axis=alt.Axis(**(axis.to_dict() | ({"labelAngle": -90} if wide else {}))),
    )
    y = alt.Y(
        "true_level:N",
        sort=rows,
        scale=alt.Scale(domain=rows),
        title=f"true {facet}",
        axis=axis,
    )
    cells = alt.Chart().mark_rect(color="var(--heat)").encode(
        x=x,
        y=y,
        opacity=alt.Opacity(
            "share:Q",
            scale=alt.Scale(domain=[0, 1], range=[0, 1], type="sqrt"),
            legend=alt.Legend(title="share of attention", format=".0%", symbolType="square",
                              symbolFillColor="var(--heat)", symbolStrokeWidth=0,
                              values=[0.05, 0.25, 0.5, 1]),
        ),
        tooltip=[
            alt.Tooltip("true_level:N", title=f"true {facet}"),
            alt.Tooltip("attended_level:N", title=f"attended {facet}"),
            alt.Tooltip("share:Q", title="share of attention", format=".1%"),
        ],
    )  # fmt: skip
    layers: list[alt.Chart] = [cells]
    deepest = run.spec.get("task", {}).get("m")
    border = str(deepest) if isinstance(deepest, int) else ""
    note = ""
    if facet == "depth" and border in levels and border in rows:
        once = alt.Chart().transform_aggregate(n="count()", groupby=["split", "who"])
        rule: dict[str, Any] = {"color": "var(--split-4)", "strokeDash": [4, 3], "strokeWidth": 1.2}
        layers.append(
            once.transform_calculate(attended_level=f"'{border}'")
            .mark_rule(**rule)
            .encode(x=alt.X("attended_level:N", sort=levels, bandPosition=1))
        )
        layers.append(
            once.transform_calculate(true_level=f"'{border}'")
            .mark_rule(**rule)
            .encode(y=alt.Y("true_level:N", sort=rows, bandPosition=1))
        )
        note = f" The dashed lines mark depth {border}, the deepest in training."
    step = max(5.0, min(14.0, 190 / len(levels)))
    chart = (
        alt.layer(*layers, data=TABLE)
        .properties(width=step * len(levels), height=step * len(rows))
        .facet(
            column=alt.Column("split:N", sort=[split_label(s) for s in splits], title=None),
            row=alt.Row("who:N", sort=["model", "proxy"], title=None),
            spacing=14,
        )
        .transform_filter(
            f"(datum.proxy == '{MODEL}' || datum.proxy == proxy) && datum.head == head"
        )
    )
    heads = _heads(frame)
    return Figure(
        name="attended_depth" if facet == "depth" else "attended",
        title=f"Where attention goes, by {facet}",
        caption=f"From scored positions of each true {facet} (rows), the share of attention that "
        f"goes to tokens of each {facet} (columns; – has none, such as the start). A head that "
        "matches brackets by depth shows a diagonal. Compare the model (above) with the proxy "
        f"(below), within what training had and beyond it.{note}{_of_seed(run)}",
        chart=chart,
        data=frame,
        always=[MODEL],
        choices=[_proxy_menu(run, proxies), Choice("head", "Layer.head", heads)],
        values={"levels": levels},
        stills={"": {}}
        | {f"_{slug(run.label(p))}": {"proxy": _numbers(proxies)[p]} for p in proxies[1:3]},
    )


def key_query(run: Run) -> Figure | None:
    """Keys and queries on their first two components, a panel a split."""
    view = run.views.get("scatter")
    if view is None or view.is_empty():
        return None
    fixed = {"layer", "head", "kind", "split", "sequence", "position", "token"}
    facets = [n for n, kind in view.schema.items() if n not in fixed and kind == pl.String]
    keys = ["layer", "head", "kind", "split"]
    view = view.filter(pl.int_range(pl.len()).shuffle(seed=0).over(keys) < MOST_POINTS)
    view = view.with_columns(position_bin=_bins(view))
    colourings = {**{name: name for name in facets}, "token": "token", "position": "position_bin"}
    columns = []
    for i, source in enumerate(colourings.values()):
        levels = natural(view[source].drop_nulls().to_list())
        place = pl.col(source).replace_strict({v: n for n, v in enumerate(levels)}, default=None)
        columns += [
            pl.col(source).fill_null("none").alias(f"c{i}"),
            place.fill_null(len(levels)).alias(f"o{i}"),
        ]
    frame = view.select(
        *columns,
        "token",
        "position",
        site=pl.format("{}.{}.{}", "layer", "head", "kind"),
        split=pl.col("split").str.replace_all("_", " "),
        x="component_1",
        y="component_2",
    )
    tooltip = [alt.Tooltip("token:N"), alt.Tooltip("position:N")]
    tooltip += [
        alt.Tooltip(f"c{i}:N", title=name)
        for i, name in enumerate(colourings)
        if name not in ("token", "position")
    ]
    axis = alt.Axis(tickCount=4, grid=False)
    scale = alt.Scale(zero=False, nice=False, padding=6)
    chart = (
        alt.Chart(TABLE)
        .mark_circle(size=26, opacity=1, fillOpacity=0.85, stroke="var(--page)", strokeWidth=0.3)
        .encode(
            x=alt.X("x:Q", title="component 1", axis=axis, scale=scale),
            y=alt.Y("y:Q", title="component 2", axis=axis, scale=scale),
            color=alt.Color(
                "shade:N",
                sort=alt.EncodingSortField("place", op="min"),
                scale=alt.Scale(scheme=alt.SchemeParams(name="viridis", extent=[0.25, 0.95])),
                title=None,
                legend=alt.Legend(columns=10, symbolLimit=60, symbolOpacity=1, labelLimit=64,
                                  columnPadding=6, symbolSize=60),
            ),
            tooltip=tooltip,
        )
        .properties(width=PANEL, height=PANEL - 50)
        .facet(
            facet=alt.Facet("split:N", sort=[split_label(s) for s in run.splits], title=None),
            columns=3,
            spacing=22,
        )
        .transform_filter("datum.site == site")
        .transform_calculate(
            shade="datum['c' + colouring]",
            place="toNumber(datum['o' + colouring])",
        )
        .properties(title=alt.TitleParams(alt.ExprRef("site + ', coloured by ' + colour_name")))
    )  # fmt: skip
    sites = sorted(frame["site"].unique(), key=lambda s: (s.split(".")[:2], s.endswith("key")))
    last = sites[-1].rpartition(".")[0]  # the last layer's query first: it holds what is asked for
    sites.sort(key=lambda s: not s.startswith(last))
    menu = [(str(i), name) for i, name in enumerate(colourings)]
    stills = {"": {}, "_key": {"site": f"{last}.key"}}
    return Figure(
        name="key_query",
        title="What keys and queries encode",
        caption="Activations of a site on its first two singular directions, a point a token. If "
        "colours that are ordered within the trained range fold back, crowd or scatter on another "
        f"split, two components do not carry what they seemed to.{_of_seed(run)}",
        chart=chart,
        data=frame,
        choices=[
            Choice("site", "Site", [(site, site) for site in sites]),
            Choice("colouring", "Colour by", menu),
        ],
        values={"colour_name": lookup(dict(menu), "colouring")},
        panel=PANEL + 30,
        stills=stills if f"{last}.key" in sites else {"": {}},
    )


def attention_maps(run: Run) -> Figure | None:
    """The attention pattern of a sentence, model beside proxy."""
    view, sentences = run.views.get("patterns"), run.views.get("sentences")
    proxies = _viewed(run, view)
    if view is None or sentences is None or not proxies:
        return None
    lengths = sentences.group_by("split", "sequence", maintain_order=True).len()
    kept = lengths.filter(pl.col("len") <= MOST_TOKENS).sort("sequence", maintain_order=True)
    kept = kept.head(MOST_SENTENCES)  # of every split the first before a second
    kept = kept.with_columns(sentence=pl.format("s{}", pl.int_range(pl.len())))
    if kept.is_empty():
        return None
    frame = (
        view.join(kept, on=["split", "sequence"], maintain_order="left")
        .filter(
            pl.col("weight") >= LEAST_WEIGHT,
            pl.col("simplification").is_in([IDENTITY, *proxies]),
        )
        .select(
            "sentence",
            "query",
            "key",
            "weight",
            head=pl.format("{}.{}", "layer", "head"),
            proxy=pl.col("simplification").replace_strict(_numbers(proxies)),
            who=pl.when(pl.col("simplification") == IDENTITY)
            .then(pl.lit("model"))
            .otherwise(pl.lit("proxy")),
        )
    )
    keys, queries, options = _token_names(sentences, kept)
    cell = 11
    axis: dict[str, Any] = {"ticks": False, "domain": False, "labelLimit": 70, "labelFontSize": 9.5}
    axis |= {"labelOverlap": False, "labelPadding": 2}
    x_axis = alt.Axis(labelAngle=-90, labelExpr="key_names[sentence][datum.value]", **axis)
    y_axis = alt.Axis(labelExpr="query_names[sentence][datum.value]", **axis)
    chart = (
        alt.Chart(TABLE)
        .mark_rect(color="var(--heat)")
        .encode(
            x=alt.X("key:O", title="attended token (key)", axis=x_axis),
            y=alt.Y("query:O", title="from token (query)", axis=y_axis),
            opacity=alt.Opacity(
                "weight:Q",
                scale=alt.Scale(domain=[0, 1], range=[0, 1], type="sqrt"),
                legend=alt.Legend(title="attention weight", format=".0%", symbolType="square",
                                  symbolFillColor="var(--heat)", symbolStrokeWidth=0,
                                  values=[0.05, 0.25, 0.5, 1]),
            ),
            tooltip=[
                alt.Tooltip("query:O"),
                alt.Tooltip("key:O"),
                alt.Tooltip("weight:Q", format=".1%"),
            ],
        )
        .properties(width=alt.Step(cell), height=alt.Step(cell))
        .facet(facet=alt.Facet("who:N", sort=["model", "proxy"], title=None), columns=2, spacing=24)
        .transform_filter(
            f"(datum.proxy == '{MODEL}' || datum.proxy == proxy) && datum.head == head "
            "&& datum.sentence == sentence"
        )
    )  # fmt: skip
    return Figure(
        name="attention",
        title="Attention, sentence by sentence",
        caption="A row is a token that looks back, a column what it looks at. An arrow in a row's "
        "name marks a scored prediction and the token that was to come. Look for rows where the "
        f"model's one dark cell moves or spreads in the proxy.{_of_seed(run)}",
        chart=chart,
        data=frame,
        always=[MODEL],
        choices=[
            Choice("sentence", "Sentence", options),
            _proxy_menu(run, proxies),
            Choice("head", "Layer.head", _heads(frame)),
        ],
        values={"key_names": keys, "query_names": queries},
        panel=PANEL + 30,
    )


MODEL = "model"  # how the identity is called in the data of these figures


def _viewed(run: Run, view: pl.DataFrame | None) -> list[str]:
    """The proxies of a view, the most telling first, no more than a menu takes."""
    if view is None:
        return []
    present = set(view["simplification"])
    return [proxy.simplification for proxy in run.telling(MOST_PROXIES, among=present)]


def _numbers(proxies: list[str]) -> dict[str, str]:
    return {IDENTITY: MODEL} | {name: f"p{i}" for i, name in enumerate(proxies)}


def _proxy_menu(run: Run, proxies: list[str]) -> Choice:
    return Choice(
        "proxy", "Proxy", [(_numbers(proxies)[name], run.label(name)) for name in proxies]
    )


def _heads(frame: pl.DataFrame) -> list[tuple[str, str]]:
    """The last layer first: its attention decides the prediction."""
    heads = sorted(frame["head"].unique(), key=lambda h: (-int(h.split(".")[0]), h))
    return [(head, head) for head in heads]


def _telling_splits(run: Run, view: pl.DataFrame) -> list[str]:
    """The reference, and the ood splits with the largest gaps among proxies that look right."""
    right = run.judged.filter(pl.col("iid") >= run.thresholds["faithful"])
    worst = dict(right.group_by("split").agg(pl.col("gap").max()).iter_rows())
    present = set(view["split"].unique())
    ood = sorted((s for s in run.ood if s in present), key=lambda s: -worst.get(s, 0))
    chosen = {run.reference, *ood[: MOST_SPLITS - 1]}
    return [split for split in run.splits if split in chosen & present]


def _bins(view: pl.DataFrame) -> pl.Series:
    """Positions in bins that double: 0, 1, 2–3, 4–7, ..."""
    if view["position"].dtype == pl.String:
        return view["position"].fill_null("0")

    def name(position: int) -> str:
        low = 1 << (position.bit_length() - 1) if position else 0
        return str(low) if low < 2 else f"{low}–{2 * low - 1}"

    return view["position"].map_elements(name, return_dtype=pl.String)


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
        options.append((sentence, f"{split_label(split)}, {length} tokens (number {sequence})"))
    return keys, queries, options


def _of_seed(run: Run) -> str:
    return f" Seed {run.view_seed} only." if len(run.seeds) > 1 else ""
