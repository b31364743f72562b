"""Documents one at a time: from objects in memory, plain text, Parquet and Arrow, or several.

A source can be read from its beginning; one that can be counted cheaply can also be asked for the
documents with certain numbers, so that a few are drawn at random without all being read.
"""

import codecs
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anamorph.errors import AnamorphError
from anamorph.tasks.text.content import Kind, is_packed, reading
from anamorph.tasks.text.rows import Document, Fields, to_document

Numbers = NDArray[np.int64]

ROWS = 16_384  # of a table, in memory at a time
NUMBER = ""  # the column with a row's number; no column that is asked for has this name


class Source(ABC):
    """Documents in a fixed order.

    Attributes:
        paths: of the files that are read; empty for objects in memory.
    """

    paths: Sequence[Path] = ()

    def __iter__(self) -> Iterator[Document]:
        return self.pick(np.arange(self.count() or 0))

    @abstractmethod
    def count(self) -> int | None:
        """The number of documents, blank lines included; None if counting takes too long."""

    @abstractmethod
    def pick(self, numbers: Numbers) -> Iterator[Document]:
        """The documents with these numbers, from 0, ascending; blank lines are left out."""


class TextFiles(Source):
    """Plain text: a file is a document."""

    def __init__(self, paths: Sequence[Path], fields: Fields) -> None:
        if fields.spans is not None:
            raise AnamorphError(
                f"{paths[0]} is plain text and has no field {fields.spans!r}; spans_field needs "
                "JSON, Parquet, Arrow, or mappings."
            )
        self.paths = paths

    def count(self) -> int:
        """The number of documents."""
        return len(self.paths)

    def pick(self, numbers: Numbers) -> Iterator[Document]:
        """The documents with these numbers."""
        for number in numbers.tolist():
            path = self.paths[number]
            with reading(path) as file:
                yield Document(decode(file.read(), path, 0), (), str(path))


class Rows(Source):
    """A Python object with a length, whose items are strings or mappings."""

    def __init__(self, rows: Sequence[object], fields: Fields, path: Path | None = None) -> None:
        self.rows, self.fields = rows, fields
        self.paths = () if path is None else (path,)

    def count(self) -> int:
        """The number of documents."""
        return len(self.rows)

    def pick(self, numbers: Numbers) -> Iterator[Document]:
        """The documents with these numbers."""
        for number in numbers.tolist():
            where = ", ".join([*map(str, self.paths), f"row {number}"])
            try:
                row = self.rows[number]
            except (LookupError, TypeError) as error:  # such as a pandas series with its own index
                raise AnamorphError(
                    f"{where} cannot be read from a {type(self.rows).__name__}: {error!r}; give a "
                    "list."
                ) from error
            yield to_document(row, self.fields, where)


class Stream(Source):
    """Any other iterable; it can be read only once."""

    def __init__(self, rows: Iterable[object], fields: Fields) -> None:
        self.rows, self.fields = rows, fields

    def __iter__(self) -> Iterator[Document]:
        for number, row in enumerate(self.rows):
            yield to_document(row, self.fields, f"row {number}")

    def count(self) -> None:
        """None, as counting would use it up."""
        return None

    def pick(self, numbers: Numbers) -> Iterator[Document]:
        """Nothing, as it was not counted."""
        raise NotImplementedError("a stream cannot be counted, so nobody asks it for numbers")


class Table(Source):
    """A document a row."""

    def __init__(self, path: Path, fields: Fields, kind: Kind) -> None:
        self.path, self.fields, self.kind = path, fields, kind
        self.paths = (path,)
        with self._telling():
            names = self._frame().collect_schema().names()
        fields.check(path, names)

    def __iter__(self) -> Iterator[Document]:
        return self._documents(True)

    def count(self) -> int:
        """The number of documents."""
        with self._telling():
            return int(self._frame().select(pl.len()).collect().item())

    def pick(self, numbers: Numbers) -> Iterator[Document]:
        """The documents with these numbers."""
        return self._documents(pl.col(NUMBER).is_in(numbers.tolist()))

    def _documents(self, wanted: pl.Expr | bool) -> Iterator[Document]:
        with self._telling():
            rows = self._frame().select(self.fields.asked).with_row_index(NUMBER).filter(wanted)
            for batch in rows.collect_batches(chunk_size=ROWS, maintain_order=True):
                for row in batch.iter_rows(named=True):
                    yield to_document(row, self.fields, f"{self.path}, row {row.pop(NUMBER)}")

    def _frame(self) -> pl.LazyFrame:
        if self.kind == "parquet":
            return pl.scan_parquet(self.path, glob=False)
        if self.kind == "arrow":
            return pl.scan_ipc(self.path, glob=False)
        return pl.read_ipc_stream(self.path).lazy()  # such a file cannot be read in part

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pl.exceptions.PolarsError) as error:
            name = "Parquet" if self.kind == "parquet" else "Arrow"
            raise AnamorphError(
                f"Cannot read {self.path} as {name}: {error}. Give a whole {name} file."
            ) from error


class Shards(Source):
    """Several tables as one."""

    def __init__(self, shards: Sequence[Source]) -> None:
        self.shards = shards
        self.paths = [path for shard in shards for path in shard.paths]

    def __iter__(self) -> Iterator[Document]:
        for shard in self.shards:
            yield from shard

    def count(self) -> int | None:
        """The number of documents."""
        return None if self._sizes is None else sum(self._sizes)

    def pick(self, numbers: Numbers) -> Iterator[Document]:
        """The documents with these numbers."""
        start = 0
        for shard, size in zip(self.shards, self._sizes or (), strict=True):
            here = numbers[(numbers >= start) & (numbers < start + size)]
            if len(here):
                yield from shard.pick(here - start)
            start += size

    @cached_property
    def _sizes(self) -> list[int] | None:
        sizes: list[int] = []
        for shard in self.shards:
            if (size := shard.count()) is None:
                return None
            sizes.append(size)
        return sizes


def decode(data: bytes, path: Path, start: int) -> str:
    """Text from UTF-8, without the mark that a file may begin with.

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
