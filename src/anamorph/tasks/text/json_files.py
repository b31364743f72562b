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

from anamorph.errors import AnamorphError
from anamorph.tasks.text.content import HEAD, countable, cut_off, is_packed, reading
from anamorph.tasks.text.places import BLOCK, Numbers, Placed, line_of
from anamorph.tasks.text.rows import Document, Fields, listed, to_document

_DECODER = json.JSONDecoder()
_GAP = re.compile(r"[ \t\r\n,]*")


class Lines:
    """JSONL: a document a line."""

    def __init__(self, path: Path, fields: Fields) -> None:
        self.path, self.fields = path, fields
        self.paths = (path,)

    def __iter__(self) -> Iterator[Document]:
        start = 0
        with reading(self.path) as file:
            for number, line in enumerate(file):
                if line.strip():
                    yield self._document(line, number, start)
                start += len(line)

    def count(self) -> int | None:
        """The number of documents, blank lines included."""
        return len(self._starts) - 1 if countable(self.path) else None

    def pick(self, numbers: Numbers) -> Iterator[Document]:
        """The documents with these numbers, ascending."""
        with reading(self.path) as file:
            for number in numbers.tolist():
                start, stop = self._starts[number : number + 2].tolist()
                file.seek(start)
                line = file.read(stop - start)
                if line.strip():
                    yield self._document(line, number, start)

    @cached_property
    def _starts(self) -> Numbers:
        """Where each line begins, in bytes, and the file's end; finding line ends costs little."""
        found, size = [np.zeros(1, dtype=np.int64)], 0
        with reading(self.path) as file:
            while block := file.read(4 * BLOCK):
                ends = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n"))
                found.append(ends + size + 1)
                size += len(block)
        starts = np.concatenate(found)
        return starts if starts[-1] == size else np.append(starts, size)

    def _document(self, line: bytes, number: int, start: int) -> Document:
        where = f"{self.path}:{number + 1}"
        text = decode(line, self.path, start)
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:  # the second if it is nested too deeply
            reason = getattr(error, "msg", None) or error
            raise AnamorphError(
                f"{where} is no JSON ({reason}); in a .jsonl file every line is an object with the "
                f"field {self.fields.text!r}."
            ) from error
        return to_document(row, self.fields, where)


class Json(Placed):
    """An array, or values one after the other."""

    def parse(self, data: bytes) -> Any:
        """The value that the bytes hold."""
        return json.loads(data)

    def document(self, value: Any, number: int) -> Document:
        """The document of a value."""
        return to_document(value, self.fields, f"{self.path}, row {number}")

    def single_object(self) -> dict[str, Any] | None:
        """What the file holds, if that is one object and no array."""
        with reading(self.path) as file:
            if file.read(HEAD).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
                return None
        first = [value for value, _, _ in islice(self.values(), 2)]
        return first[0] if len(first) == 1 and isinstance(first[0], dict) else None

    def values(self) -> Iterator[tuple[Any, int, int]]:
        """Every value, its first byte and the one behind it; little of the file is in memory."""
        utf8 = codecs.getincrementaldecoder("utf-8")()
        text, at, place = "", 0, 0  # what is in memory; how far it is used, in characters and bytes
        size, ended = BLOCK, False
        array: bool | None = None  # not known before something comes
        with reading(self.path) as file:
            if file.read(3) != codecs.BOM_UTF8:
                file.seek(0)
            else:
                place = 3
            while True:
                begin = _GAP.match(text, at).end()  # type: ignore[union-attr]  # it matches all
                place += begin - at  # blanks and commas are a byte each
                at = begin
                if text[at : at + 1] == "[" and array is None:
                    at, place, array = at + 1, place + 1, True
                    continue
                if text[at : at + 1] == "]" and array:
                    self._check_end(text[at + 1 :] + utf8.decode(file.read(BLOCK)), place)
                    return
                if at == len(text) and ended:
                    if array:
                        raise self._broken("the array does not end", place)
                    return
                try:
                    value, stop = _DECODER.raw_decode(text, at)
                except RecursionError as error:
                    raise self._broken("it is nested too deeply", place) from error
                except json.JSONDecodeError as error:
                    if ended or not cut_off(error, text):
                        raise self._broken(error.msg, place) from error
                    text, at = text[at:], 0
                    block = file.read(size)
                    size, ended = size * 2, not block
                    try:
                        text += utf8.decode(block, final=ended)
                    except UnicodeDecodeError as wrong:
                        raise self._broken(f"not UTF-8: {wrong.reason}", place) from wrong
                    continue
                end = place + len(text[at:stop].encode())
                yield value, place, end
                at, place, size, array = stop, end, BLOCK, bool(array)

    def _check_end(self, rest: str, place: int) -> None:
        if rest.strip():
            raise self._broken(f"behind the array stands {rest.strip()[:20]!r}", place)

    def _broken(self, reason: object, place: int) -> AnamorphError:
        return AnamorphError(
            f"{self.path}:{line_of(self.path, place)} is no JSON ({reason}); expected an array of "
            f"objects with the field {self.fields.text!r}, or such an object a line."
        )


def is_single_object(path: Path) -> bool:
    """Whether a JSON file is one object, such as a configuration, or hardly JSON at all."""
    try:
        return Json(path, Fields()).single_object() is not None
    except AnamorphError:  # comments in it, as in configurations
        return True


def rows_in(value: Mapping[str, Any], field: str, path: Path) -> list[Any]:
    """The rows that a single object holds, if there is one way only to see them.

    Raises:
        AnamorphError: if there is none, or more than one.
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
        f"{path} is one JSON object (with {listed(value)}), and which rows it holds is not plain; "
        f"write a row a line, each with the field {field!r} (another is named with text_field), as "
        "pandas does with frame.to_json(path, orient='records', lines=True)."
    )


def decode(data: bytes, path: Path, start: int) -> str:
    """Text from UTF-8; a mark at the beginning of the file is no part of it.

    Raises:
        AnamorphError: if it is not UTF-8; names the byte, counted from `start`.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        unpacked = " of what it unpacks to" if is_packed(path) else ""
        raise AnamorphError(
            f"{path} is not UTF-8 at byte {start + error.start}{unpacked}; convert it, or leave "
            "it out."
        ) from error
    return text.removeprefix(codecs.BOM_UTF8.decode()) if start == 0 else text
