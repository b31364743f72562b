"""What kind of prediction every character of a function is."""

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

PARTS = ("first", "later")
COPIES = ("copying is right", "copying is wrong", "nothing to copy")
FAR = (0, 21, 81)  # characters back to the last occurrence, lower ends
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
_CLOSES = {")": "(", "]": "[", "}": "{"}
_NO_CODE = (STRING, COMMENT, WHITESPACE, INDENTATION)


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
    kind, depth = (
        np.repeat(np.array(x, np.int16), spans.lengths)[:size] for x in (spans.kinds, spans.depths)
    )
    part, identifier, closing, copying = (np.full(size, NOT_APPLICABLE, np.int16) for _ in range(4))
    last: dict[str, int] = {}
    opened: list[tuple[str, int]] = []
    start = 0
    for length, of in zip(spans.lengths, spans.kinds, strict=True):
        stop = min(start + length, size)
        if start >= size:
            break
        if of not in (WHITESPACE, INDENTATION):
            part[start + 1 : stop] = 1
            part[start] = 0
        if of == IDENTIFIER:
            name = text[start : start + length]
            back = start - last[name] if name in last else 0
            identifier[start:stop] = np.searchsorted(FAR, back, side="right") if back else 0
            last[name] = start
        elif of not in _NO_CODE:
            _brackets(text, start, stop, opened, closing)
        start += length
    after: dict[str, str] = {}
    for at in range(copied, size):
        context = text[at - copied : at]
        followed = after.get(context)
        copying[at] = 2 if followed is None else int(followed != text[at])
        after[context] = text[at]
    return {
        "token kind": kind,
        "token part": part,
        "identifier": identifier,
        "copying": copying,
        "closing distance": closing,
        "tree depth": binned(depth, DEPTH_BINS),
        "position": binned(np.arange(1, size + 1), POSITION_BINS),
    }


def _brackets(
    text: str,
    start: int,
    stop: int,
    opened: list[tuple[str, int]],
    closing: NDArray[np.int16],
) -> None:
    for at in range(start, stop):
        character = text[at]
        if character in "([{":
            opened.append((character, at))
        elif opened and _CLOSES.get(character) == opened[-1][0]:
            distance = at - opened.pop()[1]
            closing[at] = np.searchsorted(CLOSING_BINS, distance, side="right") - 1
