"""Files that are read value by value; where each lies is kept, so that some are found again."""

import codecs
from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from anamorph.errors import AnamorphError
from anamorph.tasks.text.content import countable, reading
from anamorph.tasks.text.rows import Document, Fields, to_document
from anamorph.tasks.text.sources import Numbers, Source

BLOCK = 1 << 20  # bytes that are read at a time
NOTHING = object()  # what a scan gives for blanks and the like, which hold no value

Placed = tuple[Any, int, int]  # a value, its first byte and the one behind it
Scan = Callable[[str, int, bool], tuple[Any, int] | None]
"""Reads one value of a text, from a place on, and gives it with the place behind it; None if the
value may go on behind the text. The flag says that no more text comes: then None means that no
value is left. A ValueError says what is wrong."""


class PlacedFile(Source):
    """A file with a document for every value."""

    broken: ClassVar[str]  # what an error says of a value that cannot be read

    def __init__(self, path: Path, fields: Fields) -> None:
        self.path, self.fields = path, fields
        self.paths = (path,)

    @abstractmethod
    def _values(self) -> Iterator[Placed]:
        """Every value; little of the file is in memory."""

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
                    raise self._broken(reason, self._line(place)) from error
                if found is None:
                    return
                value, stop = found
                end = place + len(text[at:stop].encode())
                if value is not NOTHING:
                    yield value, place, end
                at, place, size = stop, end, BLOCK

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
