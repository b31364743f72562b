"""Documents from files and folders, or from Python objects, one at a time.

A source can be read from its beginning; one that can be counted cheaply can also be asked for the
documents with certain numbers, so that a few are drawn at random without all being read.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import cached_property, partial
from os.path import expanduser
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from anamorph.errors import AnamorphError
from anamorph.tasks.text.content import HEAD, Kind, check_text, kind_of, reading
from anamorph.tasks.text.csv_files import Csv
from anamorph.tasks.text.folders import files_of_folder, files_of_pattern
from anamorph.tasks.text.json_files import Json, Lines, decode, rows_in
from anamorph.tasks.text.rows import Document, Fields, listed, to_document
from anamorph.tasks.text.tables import Table

Numbers = NDArray[np.int64]


class Source(Protocol):
    """Documents in a fixed order."""

    @property
    def paths(self) -> Sequence[Path]:
        """The files that are read; none for objects in memory."""
        ...

    def __iter__(self) -> Iterator[Document]: ...

    def count(self) -> int | None:
        """The number of documents, blank lines included; None if counting takes too long."""
        ...

    def pick(self, numbers: Numbers) -> Iterator[Document]:
        """The documents with these numbers, from 0, ascending; blank lines are skipped."""
        ...


def open_source(source: object, fields: Fields) -> Source:
    """Find out what a source is; nothing but its beginning is read.

    Args:
        source: the path of a file, of a folder, or a pattern of paths with `*`; or strings, or
            mappings, such as a `datasets.Dataset`. A file is a table with a document a row (JSON
            in lines or as an array, CSV, TSV, Parquet, Arrow) or plain text (one document), as its
            ending says, or its first bytes where that says nothing; JSON, CSV and text may be
            compressed (gzip, zstd, bzip2, xz). In a folder every file is a document, in the order
            of the paths, unless they are tables: then these are read. Names that begin with a dot
            are passed over, and what speaks of data in a folder that was cloned from a hub.
        fields: the names of the text and of the spans in a row.

    Raises:
        AnamorphError: if there is no such file, the object is none of these, or a folder holds
            several splits, or data beside other files.
    """
    if isinstance(source, (str, Path)):
        return _open_path(source, fields)
    if type(source).__name__ in ("DataFrame", "LazyFrame"):
        raise AnamorphError(
            "A source of text cannot be a data frame; give its rows: frame.to_dict('records') of "
            "pandas, frame.to_dicts() of polars."
        )
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


def checksum(source: str | Path, paths: Sequence[Path]) -> str:
    """32 hex digits of the contents of files; of several, of their names below the source too.

    Args:
        source: the file, folder or pattern, as it was given.
        paths: the files that are read of it.
    """
    root = _expanded(source)
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            of_file = hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=16))
        if path == root:
            return of_file.hexdigest()
        name = path.relative_to(root) if path.is_relative_to(root) else path
        digest.update(f"{of_file.hexdigest()} {name.as_posix()}\n".encode("utf-8", "replace"))
    return digest.hexdigest()


def _expanded(source: str | Path) -> Path:
    """The path that is meant; `~` stands for the user's folder unless there is such a file."""
    path = Path(source)
    try:
        return path if path.exists() else Path(expanduser(source))
    except (OSError, ValueError) as error:  # it is too long, or has a NUL
        raise AnamorphError(
            f"There is no file or folder {str(source)!r}: {error}. Give a path that exists."
        ) from error


def _open_path(source: str | Path, fields: Fields) -> Source:
    path = _expanded(source)
    if path.is_dir():
        files = files_of_folder(path)
    else:
        files = [(path, kind_of(path))] if path.exists() else files_of_pattern(str(path))
    if all(kind == "text" for _, kind in files):
        return _Files([file for file, _ in files], fields)
    opened = [_open_table(file, kind, fields) for file, kind in files]
    return opened[0] if len(opened) == 1 else _Shards(opened)


def _open_table(path: Path, kind: Kind, fields: Fields) -> Source:
    if kind == "lines":
        return Lines(path, fields)
    if kind == "json":
        source = Json(path, fields)
        whole = source.single_object()
        return source if whole is None else _Rows(rows_in(whole, fields.text, path), fields, path)
    if kind in ("csv", "tsv"):
        return Csv(path, fields, kind)
    return Table(path, fields, kind)


class _Files:
    """Plain text: a file is a document."""

    def __init__(self, paths: Sequence[Path], fields: Fields) -> None:
        if fields.spans is not None:
            raise AnamorphError(
                f"{paths[0]} is plain text and has no field {fields.spans!r}; spans_field needs "
                "JSON, Parquet, Arrow, or mappings."
            )
        self.paths = paths

    def __iter__(self) -> Iterator[Document]:
        return self.pick(np.arange(len(self.paths)))

    def count(self) -> int:
        return len(self.paths)

    def pick(self, numbers: Numbers) -> Iterator[Document]:
        for number in numbers.tolist():
            path = self.paths[number]
            with reading(path) as file:
                content = file.read()
            check_text(path, content[:HEAD])
            yield Document(decode(content, path, 0), (), str(path))


class _Shards:
    """Several tables as one."""

    def __init__(self, shards: Sequence[Source]) -> None:
        self.shards = shards
        self.paths = [path for shard in shards for path in shard.paths]

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

    def __init__(self, rows: Sequence[object], fields: Fields, path: Path | None = None) -> None:
        self.rows, self.fields = rows, fields
        self.paths: Sequence[Path] = () if path is None else (path,)
        self._where = "row" if path is None else f"{path}, row"

    def __iter__(self) -> Iterator[Document]:
        return self.pick(np.arange(len(self.rows)))

    def count(self) -> int:
        return len(self.rows)

    def pick(self, numbers: Numbers) -> Iterator[Document]:
        for number in numbers.tolist():
            where = f"{self._where} {number}"
            try:
                row = self.rows[number]
            except (LookupError, TypeError) as error:  # such as a pandas series with its own index
                raise AnamorphError(
                    f"{where} cannot be had of a {type(self.rows).__name__}: {error!r}; give a "
                    "list."
                ) from error
            yield to_document(row, self.fields, where)


class _Stream:
    """Any other iterable; it is gone through once."""

    def __init__(self, rows: Iterable[object], fields: Fields) -> None:
        self.rows, self.fields = rows, fields
        self.paths: Sequence[Path] = ()

    def __iter__(self) -> Iterator[Document]:
        for number, row in enumerate(self.rows):
            yield to_document(row, self.fields, f"row {number}")

    def count(self) -> None:
        return None

    def pick(self, numbers: Numbers) -> Iterator[Document]:
        raise NotImplementedError("a stream cannot be counted, so nobody asks it for numbers")
