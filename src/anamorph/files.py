"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import polars as pl
from safetensors import SafetensorError

from anamorph.errors import AnamorphError


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Write to the temporary path that this gives; on success it is renamed to `path`.

    Missing parent folders are made. If writing fails nothing is left behind, and an existing file
    stays as it was.

    Raises:
        AnamorphError: if the folder cannot be written to or is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except (OSError, SafetensorError, pl.exceptions.PolarsError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AnamorphError(
            f"Cannot write {path}: {reason}. Give a folder that is writable and "
            "has room; what was there before is unchanged."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
