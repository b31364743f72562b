"""Documents from tables that polars reads: Parquet and Arrow."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from anamorph.errors import AnamorphError
from anamorph.tasks.text.content import Kind
from anamorph.tasks.text.rows import Document, Fields, to_document
from anamorph.tasks.text.sources import Numbers, Source

ROWS = 16_384  # in memory at a time
NUMBER = ""  # the column with a row's number; no column that is asked for has this name


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
