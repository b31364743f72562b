"""Documents that are found again in a file by where they begin and end."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anamorph.tasks.text.content import countable, reading
from anamorph.tasks.text.rows import Document, Fields

Numbers = NDArray[np.int64]

BLOCK = 1 << 20  # bytes that are read at a time


class Placed(ABC):
    """A file that is read value by value, a document each."""

    def __init__(self, path: Path, fields: Fields) -> None:
        self.path, self.fields = path, fields
        self.paths = (path,)

    @abstractmethod
    def values(self) -> Iterator[tuple[Any, int, int]]:
        """Every value, its first byte and the one behind it."""

    @abstractmethod
    def parse(self, data: bytes) -> Any:
        """The value that the bytes hold."""

    @abstractmethod
    def document(self, value: Any, number: int) -> Document:
        """The document of a value, with its number in the file."""

    def __iter__(self) -> Iterator[Document]:
        for number, (value, _, _) in enumerate(self.values()):
            yield self.document(value, number)

    def count(self) -> int | None:
        """The number of documents; None if counting takes too long."""
        return len(self._places) if countable(self.path) else None

    def pick(self, numbers: Numbers) -> Iterator[Document]:
        """The documents with these numbers, ascending."""
        with reading(self.path) as file:
            for number in numbers.tolist():
                start, stop = self._places[number].tolist()
                file.seek(start)
                yield self.document(self.parse(file.read(stop - start)), number)

    @cached_property
    def _places(self) -> Numbers:
        """[values, 2] where each begins and ends, in bytes."""
        found = np.fromiter((place for _, *two in self.values() for place in two), dtype=np.int64)
        return found.reshape(-1, 2)


def line_of(path: Path, place: int) -> int:
    """The number of the line, from 1, in which a byte of a file stands."""
    line = 1
    with reading(path) as file:
        while place > 0 and (block := file.read(min(place, BLOCK))):
            line, place = line + block.count(b"\n"), place - len(block)
    return line
