"""A document, read from a string or from a row with named fields."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from anamorph.errors import AnamorphError

Span = tuple[int, int, str]  # start, end and label, in characters; the end is exclusive


_CHAT = (
    "Write each conversation as one string, as with tokenizer.apply_chat_template(messages, "
    "tokenize=False), in a field of its own."
)


class Document(NamedTuple):
    """A text with its labelled spans; `where` it comes from is said in errors."""

    text: str
    spans: tuple[Span, ...]
    where: str


class Fields(NamedTuple):
    """The names under which a row holds its text and, if they are asked for, its spans."""

    text: str = "text"
    spans: str | None = None

    @property
    def asked(self) -> list[str]:
        """The names that a row must have."""
        return [name for name in self if name is not None]

    def argument(self, name: str) -> str:
        """The argument of a text task that gives the name."""
        return "text_field" if name == self.text else "spans_field"

    def check(self, path: Path, columns: Sequence[str]) -> None:
        """Whether a table has every column once.

        Raises:
            AnamorphError: if it has not.
        """
        for name in self.asked:
            if columns.count(name) != 1:
                raise AnamorphError(
                    f"{path} has {'more than one' if name in columns else 'no'} column {name!r}; "
                    f"its columns are: {', '.join(columns) or 'none'}. Name the right one with "
                    f"{self.argument(name)}."
                )


def to_document(row: object, fields: Fields, where: str) -> Document:
    """Read a string, or a mapping with the fields.

    Raises:
        AnamorphError: if a field is missing or not what it should be; names `where`.
    """
    if isinstance(row, str) and fields.spans is None:
        row = {fields.text: row}
    if not isinstance(row, Mapping):
        raise AnamorphError(
            f"{where} is a {type(row).__name__}; expected an object with the field {fields.text!r}"
            + (f" and {fields.spans!r}." if fields.spans else ".")
        )
    for name in fields:
        if name is not None and name not in row:
            chat = next((key for key, value in row.items() if _is_chat(value)), None)
            hint = "" if chat is None else f" {chat!r} holds a conversation: {_CHAT}"
            raise AnamorphError(
                f"{where} has no field {name!r}; its fields are: {listed(row)}. Name the right "
                f"one with {fields.argument(name)}.{hint}"
            )
    text = row[fields.text]
    if not isinstance(text, str):
        advice = "Join each list to one string." if _is_list(text) else "Leave such rows out."
        raise AnamorphError(
            f"{where}: the field {fields.text!r} must be a string; got {type(text).__name__}. "
            f"{_CHAT if _is_chat(text) else advice}"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise AnamorphError(
            f"{where}: the text holds half of a surrogate pair at character {error.start}, which "
            "no tokenizer takes; replace it."
        ) from error
    spans = () if fields.spans is None else _read_spans(row[fields.spans], len(text), where)
    return Document(text, spans, where)


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple, np.ndarray))


def _is_chat(value: Any) -> bool:
    """Whether a value is a list of messages, each with who says what."""
    first = value[0] if _is_list(value) and len(value) else None
    return isinstance(first, Mapping) and bool({"content", "value"} & set(first))


def _read_spans(given: object, length: int, where: str) -> tuple[Span, ...]:
    if not isinstance(given, Iterable) or isinstance(given, (str, Mapping)):
        raise AnamorphError(f"{where}: spans must be a list of [start, end, label]; got {given!r}.")
    spans = sorted(_read_span(span, length, where) for span in given)
    for (_, end, first), (start, _, second) in pairwise(spans):
        if start < end:
            raise AnamorphError(
                f"{where}: the spans {first!r} and {second!r} overlap at character {start}; a "
                "character can have one label in a facet."
            )
    return tuple(spans)


def _read_span(span: object, length: int, where: str) -> Span:
    match span:
        case {"start": start, "end": end, "label": label} | [start, end, label]:
            pass  # the first as Parquet holds them
        case _:
            start = end = label = None
    if not (type(start) is int and type(end) is int and isinstance(label, str)):
        raise AnamorphError(
            f"{where}: a span must be [start, end, label], two whole numbers and a string; got "
            f"{span!r}."
        )
    if not 0 <= start < end <= length:
        raise AnamorphError(
            f"{where}: the span {span!r} is out of range; expected 0 <= start < end <= {length}, "
            "the number of characters."
        )
    return start, end, label


def listed(row: Mapping[Any, Any]) -> str:
    """The names of a row's fields, for an error."""
    return ", ".join(map(str, row)) or "none"
