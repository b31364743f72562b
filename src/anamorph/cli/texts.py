"""A text in the terminal, with the positions marked at which model and proxy part most."""

from collections.abc import Collection, Mapping
from typing import Any

import polars as pl
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

MARKED = 3  # positions of a text
AROUND = 60  # tokens that are shown before and behind a marked one
LEAST = 0.005  # bits of divergence that are marked at all
STYLE = "bold reverse red"


def worst_positions(text: pl.DataFrame) -> pl.DataFrame:
    """The scored positions of a text with the largest divergences, in the order of the text."""
    return (
        text.filter(pl.col("scored"), pl.col("jsd") >= LEAST)
        .top_k(MARKED, by="jsd")
        .sort("position")
    )


def print_text(
    row: Mapping[str, Any], text: pl.DataFrame | None, space: str, console: Console
) -> None:
    """Print a sequence: what it is called, its numbers, and its text if there is one.

    Args:
        row: of the table that `anamorph.analysis.worst.worst` gives.
        text: what `anamorph.analysis.worst.positions` gives of it, or None.
        space: what stands between tokens.
        console: where to.
    """
    number = row["sequence"] if row["number"] is None else row["number"]
    console.print()
    console.print(
        f"{row['id'] or f'sequence {number}'}: {row['value']:.4f}, "
        f"{row['same_prediction']:.1%} same predictions, "
        f"{row['scored']:,} scored of {row['length']:,} tokens",
        markup=False,
        style="cyan",
    )
    if text is None:
        return
    marked = worst_positions(text)
    in_colour = console.color_system is not None and not console.no_color
    places = set(marked["position"])
    console.print(Padding(_marked(text, places, space, in_colour), (0, 0, 0, 2)))
    differing = text.filter(pl.col("scored"), ~pl.col("same").fill_null(True))
    others = differing.filter(~pl.col("position").is_in(list(places)))
    for each in marked.iter_rows(named=True):
        right = [f"{who} {_right(each[f'{who}_right'])}" for who in ("model", "proxy")]
        console.print(
            f"  token {each['position']} {_shown(each['token'])}: {each['jsd']:.3f} bits; "
            f"{right[0]}: {_best(each, 'model')}; {right[1]}: {_best(each, 'proxy')}",
            markup=False,
        )
    if len(others):
        console.print(f"  and {len(others)} more where they predict different tokens", markup=False)


def _marked(text: pl.DataFrame, places: Collection[int], space: str, in_colour: bool) -> Text:
    """The tokens near those that are marked; … where others are left out."""
    near = {i for place in places for i in range(place - AROUND, place + AROUND + 1)}
    near = near or {int(text["position"][0]) + i for i in range(AROUND)}
    shown = Text()
    before = -1
    for position, token in text.select("position", "token").iter_rows():
        if position not in near:
            continue
        if position != before + 1:
            shown.append("… ")
        plain = token if in_colour or position not in places else f"«{token}»"
        shown.append(plain, style=STYLE if position in places else "")
        shown.append(space)
        before = position
    if before < text["position"][-1]:
        shown.append(" …")
    return shown


def _right(right: bool) -> str:
    return "right" if right else "wrong"


def _best(row: Mapping[str, Any], who: str) -> str:
    """The likeliest tokens with their probabilities."""
    pairs = zip(row[who], row[f"{who}_p"], strict=True)
    return ", ".join(f"{_shown(token)} {share:.1%}" for token, share in pairs)


def _shown(token: str) -> str:
    """A token in quotes, with line ends and tabs as signs."""
    return '"' + token.replace("\n", "⏎").replace("\t", "⇥") + '"'
