"""Documents from tables that polars reads: Parquet and Arrow."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anamorph.errors import AnamorphError
from anamorph.tasks.text.content import Kind
from anamorph.tasks.text.rows import Document, Fields, to_document

Numbers = NDArray[np.int64]

ROWS = 16_384  # in memory at a time


class Table:
    """A document a row."""

    def __init__(self, path: Path, fields: Fields, kind: Kind) -> None:
        self.path, self.fields, self.kind = path, fields, kind
        self.paths = (path,)
        self._columns = [name for name in fields if name is not None]
        with self._telling():
            names = self._frame().collect_schema().names()
        for name in self._columns:
            if name not in names:
                raise AnamorphError(
                    f"{path} has no column {name!r}; its columns are: {', '.join(names)}. Name "
                    f"the right one with {'text_field' if name == fields.text else 'spans_field'}."
                )

    def __iter__(self) -> Iterator[Document]:
        with self._telling():
            frame = self._frame().select(self._columns)
        for start in range(0, self.count(), ROWS):
            with self._telling():
                rows = frame.slice(start, ROWS).collect(engine="streaming")
            for number, row in enumerate(rows.iter_rows(named=True), start):
                yield self._document(row, number)

    def count(self) -> int:
        """The number of documents, blank lines included."""
        with self._telling():
            return int(self._frame().select(pl.len()).collect().item())

    def pick(self, numbers: Numbers) -> Iterator[Document]:
        """The documents with these numbers, ascending."""
        chosen = pl.col("").is_in(numbers.tolist())  # no column that is asked for is called ""
        with self._telling():
            rows = self._frame().select(self._columns).with_row_index("").filter(chosen)
            found = rows.collect(engine="streaming")
        for row in found.iter_rows(named=True):
            yield self._document(row, row[""])

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

    def _document(self, row: Mapping[str, Any], number: int) -> Document:
        return to_document(row, self.fields, f"{self.path}, row {number}")
