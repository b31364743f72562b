"""Documents from JSON: a line each, or in any other arrangement that holds rows."""

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from anamorph.errors import AnamorphError
from anamorph.tasks.text.content import HEAD, cut_off, reading
from anamorph.tasks.text.placed import BLOCK, NOTHING, Placed, PlacedFile
from anamorph.tasks.text.rows import Document, Fields, listed, to_document
from anamorph.tasks.text.sources import Numbers, decode

_DECODER = json.JSONDecoder()
_GAP = re.compile(r"[ \t\r\n,]+")


class Lines(PlacedFile):
    """JSONL: a document a line."""

    broken = "JSON ({reason}); in a .jsonl file every line is an object with the field {field!r}."

    def _values(self) -> Iterator[Placed]:
        start = 0
        with reading(self.path) as file:
            for line in file:
                yield line, start, start + len(line)
                start += len(line)

    @cached_property
    def _places(self) -> Numbers:
        ends, size = [np.zeros(1, dtype=np.int64)], 0
        with reading(self.path) as file:
            while block := file.read(BLOCK):
                newlines = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n"))
                ends.append(newlines + size + 1)
                size += len(block)
        found = np.concatenate(ends)
        return sliding_window_view(found if found[-1] == size else np.append(found, size), 2)

    def _parse(self, data: bytes) -> bytes:
        return data

    def _document(self, value: bytes, number: int, start: int) -> Document | None:
        if not value.strip():
            return None
        text = decode(value, self.path, start)
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self._broken(_reason(error), number + 1) from error
        return to_document(row, self.fields, f"{self.path}:{number + 1}")


class Json(PlacedFile):
    """An array, or values one after the other."""

    broken = (
        "JSON ({reason}); expected an array of objects with the field {field!r}, or such an "
        "object a line."
    )

    def _values(self) -> Iterator[Placed]:
        return self._scanned(_Scan())

    def _parse(self, data: bytes) -> Any:
        return json.loads(data)

    def single_object(self) -> dict[str, Any] | None:
        """What the file holds, if that is one object and not an array."""
        with reading(self.path) as file:
            if file.read(HEAD).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
                return None
        first = [value for value, _, _ in islice(self._values(), 2)]
        return first[0] if len(first) == 1 and isinstance(first[0], dict) else None


class _Scan:
    """Reads the values of an array, or those of a file without one."""

    def __init__(self) -> None:
        self.within = "start"  # of the file; or in an array, behind it, or in a file without one

    def __call__(self, text: str, at: int, ended: bool) -> tuple[Any, int] | None:
        """The next value; see `anamorph.tasks.text.placed.Scan`."""
        if self.within == "end":
            if rest := text[at:].strip():
                raise ValueError(f"{rest[:20]!r} follows the array")
            return None
        if gap := _GAP.match(text, at):
            return NOTHING, gap.end()
        if at == len(text):
            if ended and self.within == "array":
                raise ValueError("the array does not end")
            return None
        if (text[at], self.within) in (("[", "start"), ("]", "array")):
            self.within = "array" if text[at] == "[" else "end"
            return NOTHING, at + 1
        try:
            found = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            if isinstance(error, json.JSONDecodeError) and not ended and cut_off(error, text):
                return None
            raise ValueError(_reason(error)) from error
        if self.within == "start":
            self.within = "file"
        return found


def _reason(error: ValueError | RecursionError) -> str:
    """What is wrong with JSON, without the place."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def is_single_object(path: Path) -> bool:
    """Whether a JSON file is one object, such as a configuration, or hardly JSON at all."""
    try:
        return Json(path, Fields()).single_object() is not None
    except AnamorphError:  # comments in it, as in configurations
        return True


def rows_in(value: Mapping[str, Any], field: str, path: Path) -> list[Any]:
    """The rows that a single object holds, if it can be read in one way only.

    Raises:
        AnamorphError: if it cannot be read as rows, or in more than one way.
    """
    columns = list(value.values())
    text = value.get(field)
    if isinstance(text, str):
        return [value]
    if isinstance(text, list) and all(isinstance(c, list) for c in columns):
        if {len(c) for c in columns} == {len(text)}:
            return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
    elif isinstance(text, dict) and all(isinstance(c, dict) for c in columns):  # as pandas writes
        if {tuple(c) for c in columns} == {tuple(text)}:
            return [{name: column[key] for name, column in value.items()} for key in text]
    elif text is None:
        tables = [c for c in columns if isinstance(c, list) and c and isinstance(c[0], dict)]
        if len(tables) == 1:
            return tables[0]
    raise AnamorphError(
        f"{path} is one JSON object (with {listed(value)}), and it is not clear which rows it "
        f"holds; write a row a line, each with the field {field!r} (another is named with "
        "text_field), as pandas does with frame.to_json(path, orient='records', lines=True)."
    )
