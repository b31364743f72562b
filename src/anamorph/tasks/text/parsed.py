"""JSON and CSV: files that are read value by value, and where each lies, to find some again."""

import codecs
import json
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from anamorph.errors import AnamorphError
from anamorph.tasks.text.content import HEAD, Kind, countable, cut_off, reading
from anamorph.tasks.text.rows import Document, Fields, listed, to_document
from anamorph.tasks.text.sources import Numbers, Source, decode

BLOCK = 1 << 20  # bytes that are read at a time
NOTHING = object()  # what a scan gives for blanks and the like, which hold no value
_DECODER = json.JSONDecoder()
_GAP = re.compile(r"[ \t\r\n,]+")
_SEPARATORS: dict[Kind, str] = {"csv": ",;\t|", "tsv": "\t,;|"}  # the first one that fits
_QUOTED = re.compile(r'"([^"]*+(?:""[^"]*+)*+)"')  # takes all it can, or a cut would end it
_UNQUOTED = {s: re.compile(rf"[^{re.escape(s)}\r\n]*") for s in _SEPARATORS["csv"]}
_LINE_END = re.compile(r"\r\n|\n|\r")

Placed = tuple[Any, int, int]  # a value, where it begins and the place behind it
Scan = Callable[[str, int, bool], Placed | None]
"""Reads one value of a text, from a place on, and gives it with its own place; None if the value
may go on behind the text. The flag says that no more text comes: then None means that no value is
left. A ValueError says what is wrong."""


class PlacedFile(Source):
    """A file with a document for every value."""

    broken: ClassVar[str]  # what an error says of a value that cannot be read

    def __init__(self, path: Path, fields: Fields) -> None:
        self.path, self.fields = path, fields
        self.paths = (path,)

    @abstractmethod
    def _values(self) -> Iterator[Placed]:
        """Every value and its bytes; little of the file is in memory."""

    @abstractmethod
    def _parse(self, data: bytes) -> Any:
        """The value that the bytes hold."""

    def _document(self, value: Any, number: int, start: int) -> Document | None:
        """The document of a value, with its number and its first byte; None for a blank line."""
        return to_document(value, self.fields, f"{self.path}, row {number}")

    def __iter__(self) -> Iterator[Document]:
        for number, (value, start, _) in enumerate(self._values()):
            if document := self._document(value, number, start):
                yield document

    def count(self) -> int | None:
        """The number of documents."""
        return len(self._places) if countable(self.path) else None

    def pick(self, numbers: Numbers) -> Iterator[Document]:
        """The documents with these numbers."""
        with reading(self.path) as file:
            for number in numbers.tolist():
                start, stop = self._places[number].tolist()
                file.seek(start)
                value = self._parse(file.read(stop - start))
                if document := self._document(value, number, start):
                    yield document

    @cached_property
    def _places(self) -> Numbers:
        """[values, 2] where each begins and ends, in bytes."""
        ends = chain.from_iterable((start, stop) for _, start, stop in self._values())
        return np.fromiter(ends, dtype=np.int64).reshape(-1, 2)

    def _scanned(self, scan: Scan) -> Iterator[Placed]:
        """Every value that a scan finds in the text of the file.

        Raises:
            AnamorphError: if it finds something else, or the file is not UTF-8; names the line.
        """
        utf8 = codecs.getincrementaldecoder("utf-8")()
        text, at, place = "", 0, 0  # what is in memory; how far it is used, in characters and bytes
        size, ended = BLOCK, False
        with reading(self.path) as file:
            if file.read(3) == codecs.BOM_UTF8:
                place = 3
            else:
                file.seek(0)
            while True:
                try:
                    found = scan(text, at, ended)
                    if found is None and not ended:
                        block = file.read(size)
                        size, ended = size * 2, not block
                        text, at = text[at:] + utf8.decode(block, final=ended), 0
                        continue
                except ValueError as error:
                    reason = str(error)
                    if isinstance(error, UnicodeDecodeError):
                        reason = f"not UTF-8: {error.reason}"
                    gap = len(text) - at - len(text[at:].lstrip(" \t\r\n,"))
                    raise self._broken(reason, self._line(place + gap)) from error
                if found is None:
                    return
                value, start, stop = found
                first = place + start - at  # what is passed over has a byte a character
                at, place, size = stop, first + len(text[start:stop].encode()), BLOCK
                if value is not NOTHING:
                    yield value, first, place

    def _broken(self, reason: str, line: int) -> AnamorphError:
        said = self.broken.format(reason=reason, field=self.fields.text)
        return AnamorphError(f"{self.path}:{line} is not {said}")

    def _line(self, place: int) -> int:
        """The number of the line, from 1, in which a byte lies."""
        line = 1
        with reading(self.path) as file:
            while place > 0 and (block := file.read(min(place, BLOCK))):
                line, place = line + block.count(b"\n"), place - len(block)
        return line


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
        found = found if found[-1] == size else np.append(found, size)
        return np.stack([found[:-1], found[1:]], axis=1)

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

    def __call__(self, text: str, at: int, ended: bool) -> Placed | None:
        """The next value; see `Scan`."""
        if self.within == "end":
            if rest := text[at:].strip():
                raise ValueError(f"{rest[:20]!r} follows the array")
            return None
        if gap := _GAP.match(text, at):
            at = gap.end()
        if at == len(text):
            if ended and self.within == "array":
                raise ValueError("the array does not end")
            return None
        if (text[at], self.within) in (("[", "start"), ("]", "array")):
            self.within = "array" if text[at] == "[" else "end"
            return NOTHING, at, at + 1
        try:
            value, stop = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            if isinstance(error, json.JSONDecodeError) and not ended and cut_off(error, text):
                return None
            raise ValueError(_reason(error)) from error
        if self.within == "start":
            self.within = "file"
        return value, at, stop


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


class Csv(PlacedFile):
    """A document for every record; the first record names the columns."""

    broken = (
        "a record ({reason}). Fields with separators, quotes or line ends must be in quotes, and "
        "a quote in them must be written twice."
    )

    def __init__(self, path: Path, fields: Fields, kind: Kind) -> None:
        super().__init__(path, fields)
        found: dict[str, list[str]] = {}
        for separator in _SEPARATORS[kind]:
            with suppress(AnamorphError):  # of quoted names, with another separator between them
                found[separator] = self._names(separator)
        if not found:
            self._names(_SEPARATORS[kind][0])  # says what is wrong
        asked = {*fields.asked}
        self._separator = max(found, key=lambda s: (asked <= {*found[s]}, len(found[s])))
        self._columns = found[self._separator]
        fields.check(path, self._columns)

    def _values(self) -> Iterator[Placed]:
        records = self._scanned(partial(_record, self._separator))
        for record, start, stop in islice(records, 1, None):
            if len(record) != len(self._columns):
                reason = f"{len(record)} field(s) for {len(self._columns)} columns"
                raise self._broken(reason, self._line(start))
            yield record, start, stop

    def _parse(self, data: bytes) -> Any:
        found = _record(self._separator, data.decode(), 0, True)
        assert found is not None
        return found[0]

    def _document(self, value: list[str], number: int, start: int) -> Document | None:
        return super()._document(dict(zip(self._columns, value, strict=True)), number, start)

    def _names(self, separator: str) -> list[str]:
        return next((record for record, *_ in self._scanned(partial(_record, separator))), [])


def _record(separator: str, text: str, at: int, ended: bool) -> Placed | None:
    """The fields of a record, unless it is a blank line; see `Scan`."""
    if at >= len(text):
        return None
    start = at
    fields: list[str] = []
    while True:
        quotes = text[at : at + 1] == '"'
        found = (_QUOTED if quotes else _UNQUOTED[separator]).match(text, at)
        if (found is None or found.end() >= len(text) - 1) and not ended:
            return None
        if found is None:
            raise ValueError("a quote is not closed")
        fields.append(found[1].replace('""', '"') if quotes else found[0])
        at = found.end()
        if text[at : at + 1] == separator:
            at += 1
            continue
        line_end = _LINE_END.match(text, at)
        if line_end is None and at < len(text):
            raise ValueError(f"{text[at : at + 10]!r} follows a closing quote")
        stop = at if line_end is None else line_end.end()
        return (NOTHING if fields == [""] else fields), start, stop
