"""Colours, type and the Vega configuration, one source for the page's CSS and every figure.

Figures name colours as CSS variables, so that on the page they follow light, dark and print
without being drawn again; for files the light values are put in their place.
"""

import re
from collections.abc import Sequence
from typing import Any

import altair as alt

from anamorph.analysis.words import split_label

# By name, in light and in dark. Splits: Okabe and Ito's palette, safe for colour-blind readers; the
# reference in ink.
COLOURS = {
    "page": ("#ffffff", "#161617"),
    "panel": ("#f6f5f1", "#1f1f21"),
    "ink": ("#1b1b1a", "#ecebe7"),
    "soft": ("#5c5a55", "#a9a7a1"),
    "line": ("#d9d6ce", "#3b3b3d"),
    "grid": ("#ebe9e3", "#2a2a2c"),
    "accent": ("#0a5a8c", "#7cc0ee"),
    "split-0": ("#2b2b2b", "#f0efeb"),
    "split-1": ("#0072b2", "#4ea3dc"),
    "split-2": ("#009e73", "#2fbf95"),
    "split-3": ("#c58300", "#f0b432"),
    "split-4": ("#d55e00", "#f0803a"),
    "split-5": ("#c2629b", "#df8bbd"),
    "split-6": ("#3c98cf", "#8fd0f7"),
    "split-7": ("#8c6d3f", "#bd9b68"),
    "split-8": ("#7a6fd0", "#a79df2"),
    "faithful": ("#d5e8e2", "#1f3d35"),
    "on-faithful": ("#1c3b33", "#bfe3d7"),
    "under": ("#b0432c", "#bd4f37"),
    "over": ("#4b4fa3", "#6468c6"),
    "mixed": ("#8d5485", "#96598d"),
    # The same as text on the page
    "under-text": ("#b0432c", "#e88a74"),
    "over-text": ("#4b4fa3", "#a3a6ec"),
    "mixed-text": ("#8d5485", "#d19cc8"),
    "on-illusion": ("#ffffff", "#ffffff"),
    "unfaithful": ("#e4e1da", "#343436"),
    "on-unfaithful": ("#5c5a55", "#a9a7a1"),
    "degrades": ("#d5cfc4", "#474441"),
    "on-degrades": ("#43403a", "#d8d4cc"),
    "undecided": ("#f7e8b5", "#4a3d10"),
    "on-undecided": ("#5f4a00", "#f3dfa0"),
    "untestable": ("#f6f5f1", "#1f1f21"),
    "on-untestable": ("#5c5a55", "#a9a7a1"),
    "open": ("#d9a514", "#c79a1e"),
    "both-right": ("#9cc7ba", "#3f7a6b"),
    "other-error": ("#d3b95f", "#b79a3d"),
    "same-error": ("#cdc9c0", "#55534f"),
    "heat": ("#0b3c6f", "#9fd0ff"),
}
LIGHT, DARK = ({name: pair[i] for name, pair in COLOURS.items()} for i in (0, 1))
FONT = '"Helvetica Neue", Helvetica, Arial, "Liberation Sans", sans-serif'
MONO = 'ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace'

SHAPES = (
    *("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-left"),
    "triangle-right",
    "M0.00,-1.00L0.26,-0.36L0.95,-0.31L0.43,0.14L0.59,0.81L0.00,0.45"  # a star
    "L-0.59,0.81L-0.43,0.14L-0.95,-0.31L-0.26,-0.36Z",
)

CONFIG: dict[str, Any] = {
    "font": FONT,
    "background": "transparent",
    "view": {"stroke": "transparent"},
    "axis": {
        "labelColor": "var(--soft)",
        "titleColor": "var(--ink)",
        "gridColor": "var(--grid)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "labelFontSize": 11,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "labelPadding": 4,
    },
    "header": {
        "labelColor": "var(--ink)",
        "titleColor": "var(--soft)",
        "labelFontSize": 12,
        "labelFontWeight": "bold",
        "titleFontWeight": "normal",
        "labelLimit": 320,
    },
    "legend": {
        "labelColor": "var(--ink)",
        "titleColor": "var(--soft)",
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "orient": "top",
        "direction": "horizontal",
        "symbolStrokeWidth": 2,
        "symbolOpacity": 1,
        "labelLimit": 240,
        "padding": 4,
    },
    "title": {
        "color": "var(--ink)",
        "fontSize": 12.5,
        "fontWeight": "bold",
        "anchor": "start",
        "offset": 10,
    },
    "text": {"color": "var(--ink)"},
    # To a screen reader a rule says nothing that the point on it does not.
    "rule": {"color": "var(--soft)", "aria": False},
}


def css(colours: dict[str, str]) -> str:
    """Declarations of all variables."""
    return "".join(f"--{name}:{value};" for name, value in colours.items())


def in_light(text: str) -> str:
    """Put the light values in place of all our variables; others are text from outside."""
    return re.sub(r"var\(--([\w-]+)\)", lambda found: LIGHT.get(found[1], found[0]), text)


def split_scale(splits: Sequence[str]) -> alt.Scale:
    """The fixed colour of each split, the reference first."""
    colours = [f"var(--split-{i if i < 9 else 1 + (i - 1) % 8})" for i in range(len(splits))]
    return alt.Scale(domain=[split_label(name) for name in splits], range=colours)


def split_shapes(splits: Sequence[str]) -> alt.Scale:
    """The fixed point shape of each split, so that colour is not needed to tell them apart."""
    shapes = [SHAPES[i % len(SHAPES)] for i in range(len(splits))]
    return alt.Scale(domain=[split_label(name) for name in splits], range=shapes)
