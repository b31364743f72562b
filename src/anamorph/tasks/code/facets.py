"""What kind of prediction every character of a function is."""

import re

import numpy as np
from numpy.typing import NDArray

from anamorph.corpora.token_kinds import (
    COMMENT,
    IDENTIFIER,
    INDENTATION,
    KINDS,
    STRING,
    WHITESPACE,
    Spans,
)
from anamorph.tasks.base import NOT_APPLICABLE
from anamorph.tasks.bins import bin_names, binned
from anamorph.tasks.ragged import Rows

PARTS = ("first", "later")
COPIES = ("copying is right", "copying is wrong", "nothing to copy")
FAR = (1, 21, 81)  # characters back to the last occurrence, lower ends
IDENTIFIERS = ("new", "seen 1–20 back", "seen 21–80 back", "seen 81– back")
CLOSING_BINS = (1, 8, 32, 128)  # characters back to the bracket that is closed, lower ends
DEPTH_BINS = (0, 4, 7, 10, 13)
POSITION_BINS = (1, 16, 64, 128, 256)
SEEN = ("seen in training", "not seen or rare")
LEVELS = {
    "token kind": KINDS,
    "token part": PARTS,
    "identifier": IDENTIFIERS,
    "copying": COPIES,
    "closing distance": bin_names(CLOSING_BINS),
    "tree depth": bin_names(DEPTH_BINS),
    "character": SEEN,
    "position": bin_names(POSITION_BINS),
}
_NO_BRACKETS = (STRING, COMMENT, IDENTIFIER)
_BRACKET = re.compile(r"[()\[\]{}]")


def label(text: str, spans: Spans, copied: int, most: int) -> dict[str, NDArray[np.int16]]:
    """The facets of a function's first characters, but for `character`.

    *token kind*: see `anamorph.corpora.token_kinds`. *token part*: first or later character of a
    token. *identifier*: whether the function has had the identifier before, and how many characters
    back it began. *copying*: whether the last `copied` characters have occurred before, and if so
    whether this character followed them the last time. *closing distance*: of a bracket, from the
    one that it closes. *tree depth*: of the token, counted from the function.

    Args:
        text: of the function.
        spans: of its text.
        copied: characters that must have occurred before.
        most: only so many characters are labelled, the first.

    Returns:
        by facet [characters] codes of its `LEVELS`.
    """
    size = min(len(text), most)
    rows = Rows.of(spans.lengths)
    kind, depth = (
        np.repeat(np.array(x, np.int16), rows.lengths)[:size] for x in (spans.kinds, spans.depths)
    )
    white = np.isin(kind, (WHITESPACE, INDENTATION))
    part = np.where(white, NOT_APPLICABLE, np.minimum(rows.position[:size], 1))
    return {
        "token kind": kind,
        "token part": part.astype(np.int16),
        "identifier": _identifiers(text, spans, size),
        "copying": _copies(text[:size], copied),
        "closing distance": _closers(text[:size], kind),
        "tree depth": binned(depth, DEPTH_BINS),
        "position": binned(np.arange(1, size + 1), POSITION_BINS),
    }


def _identifiers(text: str, spans: Spans, size: int) -> NDArray[np.int16]:
    codes = np.full(size, NOT_APPLICABLE, np.int16)
    last: dict[str, int] = {}
    start = 0
    for kind, part in spans.texts(text):
        if kind == IDENTIFIER and start < size:
            back = start - last.get(part, start)
            codes[start : start + len(part)] = np.searchsorted(FAR, back, side="right")
            last[part] = start
        start += len(part)
    return codes


def _copies(text: str, copied: int) -> NDArray[np.int16]:
    codes = np.full(len(text), NOT_APPLICABLE, np.int16)
    after: dict[str, str] = {}
    for at in range(copied, len(text)):
        context = text[at - copied : at]
        followed = after.get(context)
        codes[at] = 2 if followed is None else int(followed != text[at])
        after[context] = text[at]
    return codes


def _closers(text: str, kind: NDArray[np.int16]) -> NDArray[np.int16]:
    back = np.zeros(len(text), np.int64)
    opened: list[int] = []
    for at in (found.start() for found in _BRACKET.finditer(text)):
        if kind[at] in _NO_BRACKETS:
            continue
        if text[at] in "([{":
            opened.append(at)
        elif opened and text[opened[-1]] + text[at] in ("()", "[]", "{}"):
            back[at] = at - opened.pop()
    return binned(back, CLOSING_BINS)
