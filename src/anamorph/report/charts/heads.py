"""Figures of single heads: the smallest faithful size, the gap, and the gap against head scores."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl

from anamorph.analysis.findings import Findings
from anamorph.analysis.heads import HEAD, LARGEST, LEASTS, NONE, OPEN, SCORES, Heads
from anamorph.analysis.words import points, threshold
from anamorph.report.charts import parts
from anamorph.report.figure import Choice, Figure

CELL = (9, 30)  # pixels, the narrowest and the widest
LEGIBLE = 21  # pixels of a cell that holds a number
ACROSS = 940  # pixels of the parts.panels of a row
BETWEEN = 18  # pixels
LETTER = 6  # pixels of a panel's name
LESS, MORE = "less faithful than on iid", "more faithful than on iid"
HEAD_TIPS = ("layer:O", "head:O", "split:N")


def smallest(run: Findings) -> Figure | None:
    """Layer × head, a panel a split: the smallest size that is faithful."""
    heads = run.by_head
    if heads is None:
        return None
    tried = sorted({size for _, size in heads.sizes if size is not None})
    levels = [f"{size:g}" for size in tried]
    levels += [x for x in ("yes", OPEN, NONE) if x in set(heads.smallest["text"])]
    sizes = max(1, len(set(levels) - {OPEN, NONE}))
    leasts = sorted(LEASTS, key=lambda x: (x != heads.least, -x))
    menu = Choice.coded(
        "least", "At least", {x: f"{threshold(x)} same predictions" for x in leasts}
    )
    menus = _menus(heads)
    number = pl.col("text").replace_strict({level: i for i, level in enumerate(levels)})
    frame = heads.smallest.select(
        *(choice.code() for choice in (*menus, menu)),
        *("layer", "head", "text", "value", "low", "high"),
        split=parts.SPLIT,
        dark=number.is_between((sizes + 1) / 2, sizes - 1),
    )
    grid = _Grid(frame, run.splits)
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
        chart=grid.chart(_size_cells(grid, levels, sizes)),
        data=frame,
        choices=[*menus, menu],
        heading=menu.shown,
        panel=grid.panel,
    )


def _size_cells(grid: "_Grid", levels: Sequence[str], sizes: int) -> list[alt.Chart]:
    """A cell a head, the first `sizes` of the levels in shades; numbers where there is room."""
    shown = {OPEN: "undecided", NONE: "under"}  # beside the shades of sizes
    shades = [0.12 + 0.88 * i / max(1, sizes - 1) for i in range(sizes)]
    fills = [f"var(--{shown.get(level, 'heat')})" for level in levels]
    opacity = [1.0 if level in shown else shades[i] for i, level in enumerate(levels)]
    both: dict[str, Any] = {
        "title": "smallest size",
        "legend": parts.squares(titleLimit=400),
    }
    base = grid.base.encode(
        tooltip=parts.tips(
            *HEAD_TIPS,
            ("text:N", "smallest size"),
            ("value:Q", "same prediction", ".2%"),
            *parts.interval(".2%"),
        )
    )
    cells = base.mark_rect(opacity=1, stroke="var(--page)", strokeWidth=1).encode(
        fill=alt.Fill("text:O", scale=alt.Scale(domain=list(levels), range=fills), **both),
        opacity=alt.Opacity(
            "text:O",
            scale=alt.Scale(type="ordinal", domain=list(levels), range=opacity),
            **both,
        ),
    )
    ink = alt.condition("datum.dark", alt.value("var(--page)"), alt.value("var(--ink)"))
    return [cells, *grid.texts(base.transform_filter(f"datum.text != '{NONE}'"), ink)]


def gaps(run: Findings) -> Figure | None:
    """Layer × head, a panel an ood split: the gap at a size, or the largest of all sizes."""
    heads = run.by_head
    if heads is None or heads.gaps.is_empty():
        return None
    menus, sizes = _menus(heads), _size_menu(heads)
    level = run.thresholds.level
    frame = heads.by_size([*HEAD, "split"], level).select(
        *(choice.code() for choice in menus),
        *("layer", "head", "at", "size_text", "gap", "low", "high", "p_value", "verdict", "sure"),
        split=parts.SPLIT,
        height=pl.col("gap").abs(),
        way=pl.when(pl.col("gap") >= 0).then(pl.lit(LESS)).otherwise(pl.lit(MORE)),
        text=pl.col("gap").map_elements(_short, return_dtype=pl.String),
    )
    grid = _Grid(frame, run.ood)
    return Figure(
        name="heads_gap",
        title="Where simplifying a head costs more",
        caption="How many points fewer predictions stay as they were than on iid, when this head "
        "alone is simplified. Framed cells differ significantly from zero (adjusted p < "
        f"{level:g}); the largest of several sizes does if the interval that "
        "holds for all gaps at once lies to one side of zero.",
        chart=grid.chart(_gap_cells(grid, max(0.01, *frame["height"]))),
        data=frame,
        choices=[*menus, sizes],
        heading=sizes.shown,
        panel=grid.panel,
    )


def _gap_cells(grid: "_Grid", top: float) -> list[alt.Chart]:
    """A cell a head, the darker the larger its gap, up to `top`; framed where it is certain."""
    base = grid.base.encode(
        tooltip=parts.tips(
            *HEAD_TIPS,
            ("size_text:N", "size"),
            *parts.GAP_TIPS,
            ("p_value:Q", "p (adjusted)", ".3g"),
            "verdict:N",
        )
    )
    ways = alt.Scale(domain=[LESS, MORE], range=["var(--under)", "var(--heat)"])
    cells = base.mark_rect().encode(
        fill=alt.Fill("way:N", scale=ways, title=None, legend=parts.squares()),
        opacity=alt.Opacity(
            "height:Q",
            scale=alt.Scale(domain=[0, top], range=[0.03, 1], type="sqrt"),
            legend=parts.squares(
                title="gap, points",
                tickCount=4,
                symbolFillColor="var(--soft)",
                labelExpr=parts.POINTS,
            ),
        ),
    )
    ring = grid.base.transform_filter("datum.sure").mark_rect(
        filled=False, stroke="var(--ink)", strokeWidth=1.2
    )
    dark = f"datum.height > {0.55 * top}"
    ink = (
        alt.when(f"{dark} && datum.gap > 0")
        .then(alt.value("var(--on-illusion)"))
        .when(dark)
        .then(alt.value("var(--page)"))
        .otherwise(alt.value("var(--ink)"))
    )
    return [cells, ring, *grid.texts(base, ink)]


def against_scores(run: Findings) -> Figure | None:
    """The gap of every head against what it looks like, a panel a score."""
    heads = run.by_head
    if heads is None or heads.scores is None or heads.even is None or heads.gaps.is_empty():
        return None
    even = heads.even.unpivot(SCORES, index="seed", variable_name="score", value_name="even")
    labels = {name: f"{name.replace('_', '-')} score" for name in SCORES}
    menus, sizes = _menus(heads), _size_menu(heads)
    frame = (
        heads.scores.unpivot(SCORES, index=HEAD, variable_name="score", value_name="has")
        .drop_nulls("has")
        .join(heads.by_size(HEAD, run.thresholds.level), on=HEAD)
        .join(even, on=["seed", "score"], how="left")
        .select(
            *(choice.code() for choice in menus),
            *("at", "has", "even", "gap", "size_text", "sure"),
            name=pl.format("{}.{}", "layer", "head"),
            score=pl.col("score").replace_strict(labels),
            split=parts.SPLIT,
        )
    )
    if frame.is_empty():
        return None
    even_by_score = alt.Chart().transform_aggregate(even="mean(even)", groupby=["score"])
    rule = parts.dashed(even_by_score).encode(x=alt.X("even:Q", title=None))
    y_axis = alt.Axis(tickCount=5, labelExpr=parts.POINTS)
    dots = alt.Chart().mark_point(size=40, color="var(--accent)", strokeWidth=1.4, opacity=1)
    dots = dots.encode(
        x=alt.X("has:Q", title=None, axis=alt.Axis(tickCount=5, format="~g")),
        y=alt.Y("gap:Q", title="largest gap, points", axis=y_axis),
        fill=alt.value("var(--accent)"),
        fillOpacity=alt.condition("datum.sure", alt.value(1), alt.value(0)),
        tooltip=parts.tips(
            ("name:N", "layer.head"),
            ("has:Q", "score", ".3f"),
            ("gap:Q", "", ".4f"),
            "split:N",
            ("size_text:N", "size"),
        ),
    )
    return Figure(
        name="heads_scores",
        title="The gap against what a head looks like",
        caption="A point a head, at its largest gap over the splits; filled where that differs "
        "from zero, by the interval that holds for all gaps at once. The dashed line is the score "
        "of attention that is spread evenly. "
        "Scores describe the model’s own attention on iid; that two things go together does not "
        "make one the reason of the other.",
        chart=parts.panels(
            *(rule, dots), by="score", order=labels.values(), width=parts.PANEL - 25, height=190
        ).resolve_scale(x="independent"),
        data=frame,
        choices=[*menus, sizes],
        panel=parts.SPACED,
    )


def _menus(heads: Heads) -> list[Choice]:
    seeds = sorted(heads.smallest["seed"].unique())
    return [
        Choice.coded("method", "Simplified", {method: method for method in heads.methods}),
        Choice.coded("seed", "Seed", {seed: str(seed) for seed in seeds}),
    ]


def _size_menu(heads: Heads) -> Choice:
    sizes = list(dict.fromkeys(text for text in heads.sizes.values() if text))
    options = [(LARGEST, "the largest gap of all sizes")] if len(sizes) != 1 else []
    return Choice("at", "Size", [*options, *((text, text) for text in sizes)])


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
        axis = alt.Axis(**parts.QUIET, labelAngle=0, labelOverlap=True)
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

    def texts(self, base: alt.Chart, ink: Any) -> list[alt.Chart]:
        """The numbers, if there is room for them."""
        texts = base.mark_text(fontSize=10).encode(text="text:N", color=ink)
        return [texts] if self.legible else []

    def chart(self, layers: Sequence[alt.Chart]) -> alt.FacetChart:
        """The panels."""
        return parts.panels(
            *layers,
            order=self.splits,
            width=alt.Step(self.cell),
            height=alt.Step(max(11, min(18, self.cell))),
            columns=self.columns,
            spacing=BETWEEN,
        )
