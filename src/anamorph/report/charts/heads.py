"""Figures of single heads: the smallest faithful size, the gap, and the gap against head scores."""

from collections.abc import Sequence

import altair as alt
import polars as pl

from anamorph.analysis.data import Run
from anamorph.analysis.head_scores import SCORES
from anamorph.analysis.heads import HEAD, LEASTS, NONE, OPEN, Heads
from anamorph.analysis.words import points, split_label, threshold
from anamorph.report.figure import TABLE, Choice, Figure, lookup

PANEL = 285  # pixels
CELL = (9, 30)  # pixels, the narrowest and the widest
LEGIBLE = 21  # pixels of a cell that holds a number
ACROSS = 940  # pixels of the panels of a row
BETWEEN = 18  # pixels
LETTER = 6  # pixels of a panel's name
LARGEST = "largest"  # among the sizes of a menu: of all of them
LESS, MORE = "less faithful than on iid", "more faithful than on iid"
SCORE_LABELS = {
    "previous_token": "previous-token score",
    "induction": "induction score",
    "copying": "copying score",
    "positional": "positional score",
}


def smallest(run: Run) -> Figure | None:
    """Layer × head, a panel a split: the smallest size that is faithful."""
    heads = run.heads
    if heads is None:
        return None
    tried = sorted({size for _, size in heads.sizes if size is not None})
    levels = [f"{size:g}" for size in tried]
    levels += [x for x in ("yes", OPEN, NONE) if x in set(heads.smallest["text"])]
    number = {level: i for i, level in enumerate(levels)}
    shown = {OPEN: "undecided", NONE: "under"}  # beside the shades of sizes
    sizes = max(1, len(set(levels) - set(shown)))
    shades = [0.12 + 0.88 * i / max(1, sizes - 1) for i in range(sizes)]
    frame = heads.smallest.select(
        *_keys(heads),
        *("layer", "head", "text", "value", "low", "high"),
        least=pl.format("l{}", (100 * pl.col("least")).round().cast(pl.Int64)),
        split=pl.col("split").str.replace_all("_", " "),
        dark=pl.col("text")
        .replace_strict(number, return_dtype=pl.Int64)
        .is_between((sizes + 1) / 2, sizes - 1),
    )
    legend = alt.Legend(symbolType="square", symbolStrokeWidth=0, titleLimit=400)
    title = "smallest size"
    asked = [
        (f"l{100 * x:.0f}", f"{threshold(x)} same predictions")
        for x in sorted(LEASTS, key=lambda x: (x != heads.least, -x))
    ]
    fills = [f"var(--{shown.get(level, 'heat')})" for level in levels]
    opacity = [1.0 if level in shown else shades[i] for i, level in enumerate(levels)]
    tooltip = [
        alt.Tooltip("layer:O"),
        alt.Tooltip("head:O"),
        alt.Tooltip("split:N"),
        alt.Tooltip("text:N", title="smallest size"),
        alt.Tooltip("value:Q", title="same prediction", format=".2%"),
        alt.Tooltip("low:Q", format=".2%"),
        alt.Tooltip("high:Q", format=".2%"),
    ]
    grid = _Grid(frame, run.splits)
    cells = grid.base.mark_rect(opacity=1, stroke="var(--page)", strokeWidth=1).encode(
        fill=alt.Fill(
            "text:O", scale=alt.Scale(domain=levels, range=fills), title=title, legend=legend
        ),
        opacity=alt.Opacity(
            "text:O",
            scale=alt.Scale(type="ordinal", domain=levels, range=opacity),
            title=title,
            legend=legend,
        ),
        tooltip=tooltip,
    )
    layers = [cells]
    if grid.legible:
        texts = grid.base.transform_filter(f"datum.text != '{NONE}'").mark_text(fontSize=10)
        ink = alt.condition("datum.dark", alt.value("var(--page)"), alt.value("var(--ink)"))
        layers.append(texts.encode(text="text:N", color=ink, tooltip=tooltip))
    sizeless = " “yes” stands for a simplification that has no size." if "yes" in levels else ""
    by = "number" if grid.legible else "colour (point at it for the number)"
    return Figure(
        name="heads_size",
        title="How much of a head is needed",
        caption=f"Each cell is a head that is simplified alone. Its {by} is the smallest size that "
        f"is shown to leave at least {threshold(heads.least)} (or what is chosen) of the model’s "
        "predictions as they were: sizes are tried from the largest down, as long as the lower end "
        "of the 95 % interval is at least that, so that the size named is too small with "
        "probability at most 2.5 %. “?” where the data cannot say, red where even the largest size "
        "is shown not to be enough. Look for heads that need more on "
        "another split than on iid (first). A head that needs little need not be simple: it may "
        f"just not matter for what is predicted here.{sizeless}",
        chart=grid.chart(layers).transform_filter("datum.least == least"),
        data=frame,
        choices=[*_menus(heads), Choice("least", "At least", asked)],
        values={"heading": lookup(dict(asked), "least")},
        panel=grid.panel,
    )


def gaps(run: Run) -> Figure | None:
    """Layer × head, a panel an ood split: the gap at a size, or the largest of all sizes."""
    heads = run.heads
    if heads is None or heads.gaps.is_empty():
        return None
    frame = _by_size(heads, [*HEAD, "split"]).select(
        *_keys(heads),
        *("layer", "head", "at", "size_text", "gap", "low", "high", "p_value", "verdict"),
        split=pl.col("split").str.replace_all("_", " "),
        height=pl.col("gap").abs(),
        way=pl.when(pl.col("gap") >= 0).then(pl.lit(LESS)).otherwise(pl.lit(MORE)),
        text=pl.col("gap").map_elements(_short, return_dtype=pl.String),
        sure=_sure(run),
    )
    tooltip = [
        alt.Tooltip("layer:O"),
        alt.Tooltip("head:O"),
        alt.Tooltip("split:N"),
        alt.Tooltip("size_text:N", title="size"),
        alt.Tooltip("gap:Q", format=".4f"),
        alt.Tooltip("low:Q", title="gap, low", format=".4f"),
        alt.Tooltip("high:Q", title="gap, high", format=".4f"),
        alt.Tooltip("p_value:Q", title="p (adjusted)", format=".3g"),
        alt.Tooltip("verdict:N"),
    ]
    top = max(0.01, *frame["height"])
    grid = _Grid(frame, run.ood)
    cells = grid.base.mark_rect().encode(
        fill=alt.Fill(
            "way:N",
            scale=alt.Scale(domain=[LESS, MORE], range=["var(--under)", "var(--heat)"]),
            title=None,
            legend=alt.Legend(symbolType="square", symbolStrokeWidth=0),
        ),
        opacity=alt.Opacity(
            "height:Q",
            scale=alt.Scale(domain=[0, top], range=[0.03, 1], type="sqrt"),
            legend=alt.Legend(
                title="gap, points", symbolType="square", symbolStrokeWidth=0, tickCount=4,
                symbolFillColor="var(--soft)", labelExpr="format(100 * datum.value, '~g')",
            ),
        ),
        tooltip=tooltip,
    )  # fmt: skip
    ring = grid.base.transform_filter("datum.sure").mark_rect(
        filled=False, stroke="var(--ink)", strokeWidth=1.2
    )
    layers = [cells, ring]
    if grid.legible:
        dark = f"datum.height > {0.55 * top}"
        ink = (
            alt.when(f"{dark} && datum.gap > 0")
            .then(alt.value("var(--on-illusion)"))
            .when(dark)
            .then(alt.value("var(--page)"))
            .otherwise(alt.value("var(--ink)"))
        )
        texts = grid.base.mark_text(fontSize=10).encode(text="text:N", color=ink, tooltip=tooltip)
        layers.append(texts)
    chart = grid.chart(layers).transform_filter("datum.at == at")
    return Figure(
        name="heads_gap",
        title="Where simplifying a head costs more",
        caption="How many points fewer predictions stay as they were than on iid, when this head "
        "alone is simplified. Framed cells differ significantly from zero (adjusted p < "
        f"{run.thresholds['level']:g}); the largest of several sizes does if the interval that "
        "holds for all gaps at once lies to one side of zero.",
        chart=chart,
        data=frame,
        choices=[*_menus(heads), _size_menu(heads)],
        values={"heading": lookup(dict(_size_menu(heads).options), "at")},
        panel=grid.panel,
    )


def against_scores(run: Run) -> Figure | None:
    """The gap of every head against what it looks like, a panel a score."""
    heads = run.heads
    if heads is None or heads.scores is None or heads.even is None or heads.gaps.is_empty():
        return None
    even = heads.even.unpivot(SCORES, index="seed", variable_name="score", value_name="even")
    frame = (
        heads.scores.unpivot(
            on=SCORES,
            index=HEAD,
            variable_name="score",
            value_name="has",
        )
        .drop_nulls("has")
        .join(_by_size(heads, HEAD), on=HEAD)
        .join(even, on=["seed", "score"], how="left")
        .select(
            *_keys(heads),
            *("at", "has", "even", "gap", "size_text"),
            name=pl.format("{}.{}", "layer", "head"),
            score=pl.col("score").replace_strict(SCORE_LABELS),
            split=pl.col("split").str.replace_all("_", " "),
            sure=_sure(run),
        )
    )
    if frame.is_empty():
        return None
    base = alt.Chart()
    rule = (
        base.transform_aggregate(even="mean(even)", groupby=["score"])
        .mark_rule(color="var(--soft)", strokeDash=[3, 3])
        .encode(x=alt.X("even:Q", title=None))
    )
    dots = base.mark_point(size=40, color="var(--accent)", strokeWidth=1.4, opacity=1).encode(
        x=alt.X("has:Q", title=None, axis=alt.Axis(tickCount=5, format="~g")),
        y=alt.Y(
            "gap:Q",
            title="largest gap, points",
            axis=alt.Axis(tickCount=5, labelExpr="format(100 * datum.value, '~g')"),
        ),
        fill=alt.value("var(--accent)"),
        fillOpacity=alt.condition("datum.sure", alt.value(1), alt.value(0)),
        tooltip=[
            alt.Tooltip("name:N", title="layer.head"),
            alt.Tooltip("has:Q", title="score", format=".3f"),
            alt.Tooltip("gap:Q", format=".4f"),
            alt.Tooltip("split:N"),
            alt.Tooltip("size_text:N", title="size"),
        ],
    )
    filters = ["datum.at == at", *(f"datum.{c.name} == {c.name}" for c in _menus(heads))]
    chart = (
        alt.layer(rule, dots, data=TABLE)
        .properties(width=PANEL - 25, height=190)
        .facet(
            facet=alt.Facet("score:N", sort=list(SCORE_LABELS.values()), title=None),
            columns=3,
            spacing=24,
        )
        .transform_filter(" && ".join(filters))
        .resolve_scale(x="independent")
    )
    return Figure(
        name="heads_scores",
        title="The gap against what a head looks like",
        caption="A point a head, at its largest gap over the splits; filled where that differs "
        "from zero, by the interval that holds for all gaps at once. The dashed line is the score "
        "of attention that is spread evenly. "
        "Scores describe the model’s own attention on iid; that two things go together does not "
        "make one the reason of the other.",
        chart=chart,
        data=frame,
        choices=[*_menus(heads), _size_menu(heads)],
        panel=PANEL + 30,
    )


def _keys(heads: Heads) -> list[pl.Expr]:
    """Columns by which the menus filter."""
    return [
        pl.col("method").replace_strict({m: f"m{i}" for i, m in enumerate(heads.methods)}),
        pl.format("s{}", "seed").alias("seed"),
    ]


def _menus(heads: Heads) -> list[Choice]:
    seeds = sorted(heads.smallest["seed"].unique())
    return [
        Choice("method", "Simplified", [(f"m{i}", m) for i, m in enumerate(heads.methods)]),
        Choice("seed", "Seed", [(f"s{seed}", str(seed)) for seed in seeds]),
    ]


def _size_menu(heads: Heads) -> Choice:
    sizes = list(dict.fromkeys(text for text in heads.sizes.values() if text))
    options = [(LARGEST, "the largest gap of all sizes")] if len(sizes) != 1 else []
    return Choice("at", "Size", [*options, *((text, text) for text in sizes)])


def _by_size(heads: Heads, keys: Sequence[str]) -> pl.DataFrame:
    """The largest gap by `keys` at every size, and of all: `at` is the size, or `LARGEST`.

    Where it is `picked` among several, `low` and `high` are those that hold for all gaps at once.
    """
    texts = [heads.sizes[key] for key in heads.gaps.select("method", "size").iter_rows()]
    frame = heads.gaps.with_columns(size_text=pl.Series(texts, dtype=pl.String))
    frame = pl.concat([frame.with_columns(at=at) for at in (pl.lit(LARGEST), pl.col("size_text"))])
    frame = frame.with_columns(picked=pl.len().over(*keys, "at") > 1).with_columns(
        pl.when("picked").then(f"{end}_all").otherwise(end).alias(end) for end in ("low", "high")
    )
    frame = frame.sort("gap", descending=True, maintain_order=True)
    return frame.group_by(*keys, "at", maintain_order=True).first().sort("layer", "head")


def _sure(run: Run) -> pl.Expr:
    """Whether a gap differs from zero: by its p-value, or by its interval if it was picked."""
    away = (pl.col("low") > 0) | (pl.col("high") < 0)
    certain = pl.col("p_value") < run.thresholds["level"]
    return pl.when("picked").then(away).otherwise(certain).fill_null(False)


def _short(gap: float) -> str:
    """A gap in points, in as little room as possible."""
    text = points(gap) if abs(gap) < 0.0995 else f"{100 * gap:.0f}".replace("-", "−")
    return text if text.strip("−0.") else "0"


class _Grid:
    """A heat map of layers and heads, a panel a split: as many in a row as leave legible cells."""

    def __init__(self, frame: pl.DataFrame, splits: Sequence[str]) -> None:
        self.heads, self.splits = int(frame["head"].n_unique()), splits
        named = LETTER * max(map(len, splits)) // self.heads + 1  # or panels' names would touch
        wanted = range(len(splits), 1, -1)
        fitting = (n for n in wanted if self._cell(n) >= max(LEGIBLE, named))
        self.columns = next(fitting, min(2, len(splits)))
        self.cell = max(CELL[0], min(max(CELL[1], named), self._cell(self.columns)))
        axis = alt.Axis(ticks=False, domain=False, labelAngle=0, labelOverlap=True)
        self.base = alt.Chart().encode(
            x=alt.X("head:O", title="head", axis=axis), y=alt.Y("layer:O", title="layer", axis=axis)
        )

    @property
    def legible(self) -> bool:
        """Whether a cell has room for a number."""
        return self.cell >= LEGIBLE

    @property
    def panel(self) -> int:
        """Pixels of a panel, with the space between two."""
        return self.heads * self.cell + BETWEEN

    def _cell(self, columns: int) -> int:
        return (ACROSS // columns - BETWEEN) // self.heads

    def chart(self, layers: Sequence[alt.Chart]) -> alt.FacetChart:
        """The panels."""
        labels = [split_label(split) for split in self.splits]
        return (
            alt.layer(*layers, data=TABLE)
            .properties(width=alt.Step(self.cell), height=alt.Step(max(11, min(18, self.cell))))
            .facet(
                facet=alt.Facet("split:N", sort=labels, title=None),
                columns=self.columns,
                spacing=BETWEEN,
            )
            .transform_filter("datum.method == method && datum.seed == seed")
            .properties(title=alt.TitleParams(alt.ExprRef("heading")))
        )
