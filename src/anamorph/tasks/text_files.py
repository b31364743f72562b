"""Documents from JSONL, Parquet, plain text and folders, or from Python objects, one at a time.

A source can be read from its beginning; one that can be counted cheaply can also be asked for the
documents with certain numbers, so that a few are drawn at random without all being read.
"""

import codecs
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anamorph.errors import AnamorphError
from anamorph.tasks.text_rows import Document, Fields, listed, to_document

Numbers = NDArray[np.int64]

TABLES = (".jsonl", ".jsonl.gz", ".parquet")  # files with a document a row
ROWS = 16_384  # of a Parquet file in memory at a time


class Source(Protocol):
    """Documents in a fixed order."""

    def __iter__(self) -> Iterator[Document]: ...

    def count(self) -> int | None:
        """The number of documents, blank lines included; None if counting means reading all."""
        ...

    def pick(self, numbers: Numbers) -> Iterator[Document]:
        """The documents with these numbers, from 0, ascending; blank lines are skipped."""
        ...


def open_source(source: object, fields: Fields) -> Source:
    """Find out what a source is; nothing but its beginning is read.

    Args:
        source: the path of a JSONL or Parquet file (a document a row), of a plain text file (one
            document) or of a folder; or strings, or mappings, such as a `datasets.Dataset`.
            JSONL and text may be compressed, with `.gz` at the end of the name. In a folder every
            file is a document, in the order of the paths, unless all files are JSONL or Parquet:
            then these are read as such. Names that begin with a dot are passed over.
        fields: the names of the text and of the spans in a row.

    Raises:
        AnamorphError: if there is no such file, or the object is none of these.
    """
    if isinstance(source, (str, Path)):
        return _open_path(Path(source), fields)
    unordered = isinstance(source, (Mapping, Set))
    if unordered or not isinstance(source, Iterable):
        keys = f" with the keys {listed(source)}" if isinstance(source, Mapping) else ""
        raise AnamorphError(
            f"A source of text must be a path, or a list or other iterable of strings or of "
            f"mappings with {fields.text!r}; got a {type(source).__name__}{keys}."
        )
    if hasattr(source, "__len__") and hasattr(source, "__getitem__"):
        return _Rows(cast(Sequence[object], source), fields)
    return _Stream(source, fields)


def _open_path(path: Path, fields: Fields) -> Source:
    if not path.exists():
        raise AnamorphError(
            f"There is no file or folder {str(path)!r}; give a .jsonl, .parquet or text file, or a "
            "folder of text files."
        )
    if not path.is_dir():
        return _open_file(path, fields)
    inside = (file.relative_to(path).parts for file in path.rglob("*") if file.is_file())
    shown = sorted(parts for parts in inside if not any(p.startswith(".") for p in parts))
    if not shown:
        raise AnamorphError(
            f"The folder {str(path)!r} has no file in it; give a folder of text files."
        )
    files = [path.joinpath(*parts) for parts in shown]
    if all(file.name.endswith(TABLES) for file in files):
        return _Shards([_open_file(file, fields) for file in files])
    return _Files(files, fields)


def _open_file(path: Path, fields: Fields) -> Source:
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return _Lines(path, fields)
    if path.name.endswith(".parquet"):
        return _Table(path, fields)
    return _Files([path], fields)


class _Lines:
    """JSONL: a document a line."""

    def __init__(self, path: Path, fields: Fields) -> None:
        self.path, self.fields = path, fields

    def __iter__(self) -> Iterator[Document]:
        start = 0
        with _reading(self.path) as file:
            for number, line in enumerate(file):
                if line.strip():
                    yield self._document(line, number, start)
                start += len(line)

    def count(self) -> int | None:
        return None if self.path.suffix == ".gz" else len(self._starts) - 1

    def pick(self, numbers: Numbers) -> Iterator[Document]:
        with _reading(self.path) as file:
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
        with _reading(self.path) as file:
            while block := file.read(1 << 22):
                ends = np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == ord("\n"))
                found.append(ends + size + 1)
                size += len(block)
        starts = np.concatenate(found)
        return starts if starts[-1] == size else np.append(starts, size)

    def _document(self, line: bytes, number: int, start: int) -> Document:
        where = f"{self.path}:{number + 1}"
        text = _decode(line, self.path, start)
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:  # the second if it is nested too deeply
            reason = getattr(error, "msg", None) or error
            raise AnamorphError(
                f"{where} is no JSON ({reason}); in a .jsonl file every line is an object with the "
                f"field {self.fields.text!r}."
            ) from error
        return to_document(row, self.fields, where)


class _Table:
    """Parquet: a document a row."""

    def __init__(self, path: Path, fields: Fields) -> None:
        self.path, self.fields = path, fields
        with self._polars() as frame:
            columns = frame.collect_schema().names()
        for name in self._columns:
            if name not in columns:
                raise AnamorphError(
                    f"{path} has no column {name!r}; its columns are: {', '.join(columns)}. Name "
                    f"the right one with {'text_field' if name == fields.text else 'spans_field'}."
                )

    def __iter__(self) -> Iterator[Document]:
        for start in range(0, self.count(), ROWS):
            with self._polars() as frame:
                rows = frame.select(self._columns).slice(start, ROWS).collect(engine="streaming")
            for number, row in enumerate(rows.iter_rows(named=True), start):
                yield self._document(row, number)

    def count(self) -> int:
        with self._polars() as frame:
            return int(frame.select(pl.len()).collect().item())

    def pick(self, numbers: Numbers) -> Iterator[Document]:
        chosen = pl.col("").is_in(numbers.tolist())  # no column of the file is called ""
        with self._polars() as frame:
            rows = frame.select(self._columns).with_row_index("").filter(chosen)
            found = rows.collect(engine="streaming")
        for row in found.iter_rows(named=True):
            yield self._document(row, row[""])

    @property
    def _columns(self) -> list[str]:
        return [name for name in self.fields if name is not None]

    @contextmanager
    def _polars(self) -> Iterator[pl.LazyFrame]:
        try:
            yield pl.scan_parquet(self.path, glob=False)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise AnamorphError(
                f"Cannot read {self.path} as Parquet: {error}. Give a whole Parquet file."
            ) from error

    def _document(self, row: Mapping[str, Any], number: int) -> Document:
        return to_document(row, self.fields, f"{self.path}, row {number}")


class _Files:
    """Plain text: a file is a document."""

    def __init__(self, paths: Sequence[Path], fields: Fields) -> None:
        if fields.spans is not None:
            raise AnamorphError(
                f"{paths[0]} is plain text and has no field {fields.spans!r}; spans_field needs "
                "JSONL, Parquet, or mappings."
            )
        self.paths = paths

    def __iter__(self) -> Iterator[Document]:
        return self.pick(np.arange(len(self.paths)))

    def count(self) -> int:
        return len(self.paths)

    def pick(self, numbers: Numbers) -> Iterator[Document]:
        for number in numbers.tolist():
            path = self.paths[number]
            with _reading(path) as file:
                text = _decode(file.read(), path, 0)
            yield Document(text, (), str(path))


class _Shards:
    """Several tables as one."""

    def __init__(self, shards: Sequence[Source]) -> None:
        self.shards = shards

    def __iter__(self) -> Iterator[Document]:
        for shard in self.shards:
            yield from shard

    def count(self) -> int | None:
        return None if self._sizes is None else sum(self._sizes)

    def pick(self, numbers: Numbers) -> Iterator[Document]:
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
            size = shard.count()
            if size is None:
                return None
            sizes.append(size)
        return sizes


class _Rows:
    """A Python object with a length, whose items are strings or mappings."""

    def __init__(self, rows: Sequence[object], fields: Fields) -> None:
        self.rows, self.fields = rows, fields

    def __iter__(self) -> Iterator[Document]:
        return self.pick(np.arange(len(self.rows)))

    def count(self) -> int:
        return len(self.rows)

    def pick(self, numbers: Numbers) -> Iterator[Document]:
        for number in numbers.tolist():
            yield to_document(self.rows[number], self.fields, f"row {number}")


class _Stream:
    """Any other iterable; it is gone through once."""

    def __init__(self, rows: Iterable[object], fields: Fields) -> None:
        self.rows, self.fields = rows, fields

    def __iter__(self) -> Iterator[Document]:
        for number, row in enumerate(self.rows):
            yield to_document(row, self.fields, f"row {number}")

    def count(self) -> None:
        return None

    def pick(self, numbers: Numbers) -> Iterator[Document]:
        raise NotImplementedError("a stream cannot be counted, so nobody asks it for numbers")


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield cast(BinaryIO, file)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise AnamorphError(f"Cannot read {path}: {reason}. Give a whole, readable file.") from (
            error
        )


def _decode(data: bytes, path: Path, start: int) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        unpacked = " of what it unpacks to" if path.suffix == ".gz" else ""
        raise AnamorphError(
            f"{path} is not UTF-8 at byte {start + error.start}{unpacked}; convert it, or leave "
            "it out."
        ) from error
    return text.removeprefix(codecs.BOM_UTF8.decode()) if start == 0 else text
