"""Files that appear whole or not at all."""

import json
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar
from uuid import uuid4

import polars as pl
from safetensors import SafetensorError

from anamorph.errors import RunFolderError
from anamorph.store import Address, StorePath, address_of

_T = TypeVar("_T")

MOST_LETTERS = 60  # of a file name that is made from another name
REQUESTS = 16  # that a store is asked at a time
COPIES = 256  # of files of a store that are kept at a time, while they are read in parts
FOOTER = 2**18  # bytes at the end of a Parquet file that are read first


def file_name(name: str) -> str:
    """A file name without an ending that any system takes, and that no other name shares.

    A plain name (lower-case letters, digits, `_` and `-`) stays as it is. Of any other, the plain
    part is kept, and a digest tells it from names that differ by case or by a sign alone.
    """
    plain = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-")[:MOST_LETTERS]
    if plain and plain == name and name not in RESERVED:
        return name
    return f"{plain}-{sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}".lstrip("-")


RESERVED = frozenset(
    ["con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(10))]
)
"""What Windows takes for a device, whatever the ending."""


@contextmanager
def replacing(path: Address | str) -> Iterator[Path]:
    """Write to the temporary path that this gives; on success it is renamed to `path`.

    Missing parent folders are made. If writing fails nothing is left behind, and an existing file
    stays as it was. If `path` is in a store, the temporary file is on this machine, and is sent
    there whole.

    Raises:
        RunFolderError: if the folder cannot be written to or is full.
    """
    path = address_of(path)
    try:
        with _sent(path) if isinstance(path, StorePath) else _renamed(path) as temporary:
            yield temporary
    except (OSError, SafetensorError, pl.exceptions.PolarsError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunFolderError(
            f"Cannot write {path}: {reason}. Give a folder that is writable and "
            "has room; what was there before is unchanged."
        ) from error


@contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    # Processes of several machines, or containers, may have the same number.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def _sent(path: StorePath) -> Iterator[Path]:
    with TemporaryDirectory(prefix="anamorph-", ignore_cleanup_errors=True) as folder:
        temporary = Path(folder) / path.name
        yield temporary
        path.send(temporary)


@contextmanager
def at_hand(path: Address | str) -> Iterator[Path]:
    """A file on this machine to read: itself, or a copy of one in a store, for as long as needed.

    Raises:
        FileNotFoundError: if it is in a store, and is not there.
        RunFolderError: if the store cannot be reached.
    """
    path = address_of(path)
    if isinstance(path, Path):
        yield path
        return
    with TemporaryDirectory(prefix="anamorph-", ignore_cleanup_errors=True) as folder:
        copy = Path(folder) / path.name
        path.fetch(copy)
        yield copy


def read_part(path: Address, start: int, stop: int) -> bytes:
    """The bytes of a file from `start` to `stop`."""
    if isinstance(path, StorePath):
        return path.read_part(start, stop)
    with path.open("rb") as file:
        file.seek(start)
        return file.read(stop - start)


class Copies:
    """Files that are read in parts, at hand: one in a store is copied once, and kept a while."""

    def __init__(self) -> None:
        self._files: dict[StorePath, Path] = {}  # the one that was read last is the last
        self._folder: TemporaryDirectory[str] | None = None

    def __reduce__(self) -> "tuple[type[Copies], tuple[()]]":
        return Copies, ()  # another process makes its own

    def of(self, path: Address) -> Path:
        """The file itself if it is on this machine, else its copy; errors as of `at_hand`."""
        if isinstance(path, Path):
            return path
        if self._folder is None:
            self._folder = TemporaryDirectory(prefix="anamorph-", ignore_cleanup_errors=True)
        copy = self._files.pop(path, None)
        if copy is None:
            copy = Path(self._folder.name) / sha256(str(path).encode()).hexdigest()
            path.fetch(copy)
        self._files[path] = copy
        if len(self._files) > COPIES:
            self._files.pop(next(iter(self._files))).unlink()
        return copy


def of_each(call: Callable[[Address], _T], paths: Iterable[Address]) -> list[_T]:
    """What a function says of each file, in their order; files in a store are asked side by side.

    The first error is raised.
    """
    paths = list(paths)
    if not any(isinstance(path, StorePath) for path in paths):
        return list(map(call, paths))
    with ThreadPoolExecutor(REQUESTS) as pool:
        return list(pool.map(call, paths))


def are_there(paths: Iterable[Address]) -> list[bool]:
    """Whether each of some files is there, asked for by its name."""
    return of_each(lambda path: path.exists(), paths)


def parquet_metadata(path: Address) -> dict[str, str]:
    """What a Parquet file says beside its table; only its end is read.

    Raises:
        OSError, PolarsError: if it is missing or damaged.
    """
    if isinstance(path, Path):
        return pl.read_parquet_metadata(path)
    end = path.read_part(-FOOTER, None)
    length = struct.unpack("<I", end[-8:-4])[0] + 8 if len(end) >= 8 else 0
    if length > FOOTER:
        end = path.read_part(-length, None)
    return pl.read_parquet_metadata(BytesIO(end))


def write_json(path: Address, value: Any) -> None:
    r"""Write a JSON file that appears whole or not at all.

    Of a file name that is not text, what is not is written as `\udc..`, and read again so.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", "utf-8", errors="backslashreplace")


def write_bytes(path: Address, content: bytes) -> None:
    """Write a file that appears whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_table(path: Address, table: pl.DataFrame) -> None:
    """Write a Parquet file that appears whole or not at all."""
    with replacing(path) as temporary:
        table.write_parquet(temporary, compression="zstd")
