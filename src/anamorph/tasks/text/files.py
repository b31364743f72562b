"""A source of documents from what a user gives: a path, a pattern of paths, or Python objects."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import partial
from os.path import expanduser
from pathlib import Path
from typing import cast

from anamorph.errors import AnamorphError
from anamorph.tasks.text.content import Kind, kind_of
from anamorph.tasks.text.folders import files_of_folder, files_of_pattern
from anamorph.tasks.text.parsed import Csv, Json, Lines, rows_in
from anamorph.tasks.text.rows import Fields, listed
from anamorph.tasks.text.sources import Rows, Shards, Source, Stream, Table, TextFiles


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
        return Rows(cast(Sequence[object], source), fields)
    return Stream(source, fields)


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
        return TextFiles([file for file, _ in files], fields)
    opened = [_open_table(file, kind, fields) for file, kind in files]
    return opened[0] if len(opened) == 1 else Shards(opened)


def _open_table(path: Path, kind: Kind, fields: Fields) -> Source:
    if kind == "lines":
        return Lines(path, fields)
    if kind == "json":
        source = Json(path, fields)
        whole = source.single_object()
        return source if whole is None else Rows(rows_in(whole, fields.text, path), fields, path)
    if kind in ("csv", "tsv"):
        return Csv(path, fields, kind)
    return Table(path, fields, kind)
