"""Tables that do not fit the memory: written to temporary files as they are made.

Ten thousand proxies on ten splits with two facets have tens of millions of rows. Their parts are
written one after the other, p-values are corrected over all of them (only what that needs is read),
and whoever takes the tables reads them part by part. Numbers and order are those of `tabulate`.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import polars as pl

from anamorph.errors import AnamorphError
from anamorph.faithfulness.gaps import Thresholds
from anamorph.faithfulness.judging import TO_CORRECT, corrected, judged
from anamorph.faithfulness.tables import Part
from anamorph.files import replacing
from anamorph.store import Address

ROOM = (
    "Tables are made in temporary files: give a folder with room for them in the environment "
    "variable TMPDIR."
)
ROWS = 2**18  # of a file, and of a group of rows in it


class SpooledTables(NamedTuple):
    """The tables of `tabulate`, to be read for as long as their files are there."""

    results: pl.LazyFrame
    gaps: pl.LazyFrame
    contrasts: pl.LazyFrame


@contextmanager
def spooled(
    parts: Iterable[Part], thresholds: Thresholds, learnt: float | None = None
) -> Iterator[SpooledTables]:
    """The tables that parts make, in temporary files, which are deleted in the end.

    Args:
        parts: from `anamorph.faithfulness.tables.parts`.
        thresholds: where the lines between verdicts are drawn.
        learnt: as for `tabulate`.

    Raises:
        AnamorphError: as `tabulate`; if the temporary files cannot be written.
    """
    with _temporary_folder() as folder:
        names = "results", "raw", "contrasts", "gaps"
        results, raw, contrasts, gaps = (_Spool(folder, name) for name in names)
        for part in parts:
            results.add(part.results)
            contrasts.add(part.contrasts)
            if part.gaps is not None:
                raw.add(part.gaps)
        right = corrected(raw.read().select(*TO_CORRECT).collect())
        start = 0
        for path in raw.paths:
            rows = pl.read_parquet(path)
            some = rows.with_columns(right[start : start + len(rows)])
            gaps.add(judged(some, thresholds, learnt))
            start += len(rows)
        yield SpooledTables(results.read(), gaps.read(), contrasts.read())


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    try:
        folder = TemporaryDirectory(prefix="anamorph-", ignore_cleanup_errors=True)
    except OSError as error:
        raise AnamorphError(f"Cannot make a temporary folder ({error}). {ROOM}") from error
    with folder as path:
        yield Path(path)


class _Spool:
    """A table that grows, in files of `ROWS` rows or a few more."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.frames: list[pl.DataFrame] = []
        self.paths: list[Path] = []

    def add(self, frame: pl.DataFrame) -> None:
        """Put rows behind those that are there."""
        self.frames.append(frame)
        if sum(map(len, self.frames)) >= ROWS:
            self._write()

    def read(self) -> pl.LazyFrame:
        """All rows."""
        if self.frames:
            self._write()
        return pl.scan_parquet(self.paths, glob=False)

    def _write(self) -> None:
        path = self.folder / f"{self.name}-{len(self.paths):06}.parquet"
        try:
            pl.concat(self.frames).write_parquet(path, compression="zstd")
        except (OSError, pl.exceptions.PolarsError) as error:
            raise AnamorphError(f"Cannot write {path} ({error}). {ROOM}") from error
        self.paths.append(path)
        self.frames = []


def write_rows(path: Address, rows: pl.LazyFrame) -> None:
    """Write a Parquet file that appears whole or not at all, and is not held in memory.

    Numbers of lz4 are read twice as fast as those of zstd, which questions across runs do, and take
    up to a fifth more space.

    Raises:
        RunFolderError: if the folder cannot be written to or is full.
    """
    with replacing(path) as temporary:
        rows.sink_parquet(temporary, compression="lz4", row_group_size=ROWS, maintain_order=True)
