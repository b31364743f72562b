"""Files that appear whole or not at all."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import polars as pl
from safetensors import SafetensorError

from anamorph.errors import RunFolderError

MOST_LETTERS = 60  # of a file name that is made from another name


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
def replacing(path: Path | str) -> Iterator[Path]:
    """Write to the temporary path that this gives; on success it is renamed to `path`.

    Missing parent folders are made. If writing fails nothing is left behind, and an existing file
    stays as it was.

    Raises:
        RunFolderError: if the folder cannot be written to or is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except (OSError, SafetensorError, pl.exceptions.PolarsError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunFolderError(
            f"Cannot write {path}: {reason}. Give a folder that is writable and "
            "has room; what was there before is unchanged."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    r"""Write a JSON file that appears whole or not at all.

    Of a file name that is not text, what is not is written as `\udc..`, and read again so.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", "utf-8", errors="backslashreplace")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_table(
    path: Path, table: pl.DataFrame, compression: Literal["zstd", "lz4"] = "zstd"
) -> None:
    """Write a Parquet file that appears whole or not at all.

    With lz4 tables take up to a fifth more space, and numbers are read twice as fast.
    """
    with replacing(path) as temporary:
        table.write_parquet(temporary, compression=compression)
