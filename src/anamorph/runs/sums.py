"""The sums per sequence of whole splits, read from the works of a run without torch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anamorph.errors import RunFolderError
from anamorph.runs.folder import SEQUENCES, Run, read_table
from anamorph.store import Address

AGAIN = "Give the command of the run again, which makes what is missing."


class SplitSums:
    """What every sequence of a split adds to each metric, for one model of a run.

    Args:
        run: a finished one, with `sequences/SPLIT.parquet`.
        seed: of the model.
        split: its name.

    Attributes:
        sequences: those that have a scored position, in the order of the sums; see
            `scored_sequences`.
        weights: a digest of the model's weights.

    Raises:
        RunFolderError: if a file is missing or damaged.
    """

    def __init__(self, run: Run, seed: int, split: str) -> None:
        self.run, self.seed, self.split = run, seed, split
        self.sequences = scored_sequences(run, split)
        self.weights = ""
        self._places: dict[str, tuple[Address, int]] = {}
        for path in run.works_of(seed, split):
            with _told(path):
                file = run.copies.of(path)
                names = pl.read_parquet(file, columns=["proxy"], memory_map=False)["proxy"]
                self.weights = pl.read_parquet_metadata(file).get("weights", "")
            runs = names.rle().struct.unnest()
            starts = runs["len"].cum_sum() - runs["len"]
            for name, start in zip(runs["value"], starts, strict=True):
                self._places[name] = path, start

    def of(self, proxy: str) -> pl.DataFrame:
        """A row a sequence, a column a metric; null where a sequence was not seen.

        Raises:
            RunFolderError: if there are none.
        """
        if proxy not in self._places:
            raise RunFolderError(
                f"{self.run.seed(self.seed) / 'works'} has no sums of {proxy} on {self.split!r}. "
                f"{AGAIN}"
            )
        path, start = self._places[proxy]
        with _told(path):
            table = pl.scan_parquet(self.run.copies.of(path), glob=False)
            rows = table.slice(start, len(self.sequences)).collect()
        if len(rows) < len(self.sequences) or (rows["proxy"] != proxy).any():
            raise RunFolderError(
                f"{path} has not {len(self.sequences)} rows of {proxy}, a sequence each. Delete it "
                f"and results.parquet. {AGAIN}"
            )
        return rows.drop("proxy")


@contextmanager
def _told(path: Address) -> Iterator[None]:
    """Say which file cannot be read, and what to do."""
    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0]
        raise RunFolderError(
            f"Cannot read the sums in {path}: {reason}. Delete it and results.parquet. {AGAIN}"
        ) from error


def scored_sequences(run: Run, split: str) -> pl.DataFrame:
    """The sequences of a split that have a scored position, as `sequences/SPLIT.parquet` has them.

    Returns:
        a row a sequence: `sequence`, `digest`, `length` in tokens, `scored` positions, `number` in
        the task's split and `id` at its source, null where they are not known.

    Raises:
        RunFolderError: if it is not there, as in runs of earlier versions.
    """
    path = run.sequences(split)
    if not path.exists():
        raise RunFolderError(
            f"{path} is missing: the run in {run.path} is not finished, or was made by an earlier "
            "version, which did not write down which sequences it scored. Finish it, or audit "
            "again into another folder."
        )
    table = read_table(path, SEQUENCES.split()).filter(pl.col("scored") > 0)
    later = {"number": pl.lit(None, pl.Int64), "id": pl.lit(None, pl.String)}
    return table.with_columns(x.alias(k) for k, x in later.items() if k not in table.columns)


def in_one_array(tables: Sequence[pl.DataFrame], metrics: Sequence[str]) -> NDArray[np.float64]:
    """[table, metric, sequence] sums; NaN where a table lacks a metric."""
    found = np.full((len(tables), len(metrics), len(tables[0])), np.nan)
    for place, table in enumerate(tables):
        numbers = table.fill_null(np.nan).to_numpy()
        for row, name in enumerate(metrics):
            if name in table.columns:
                found[place, row] = numbers[:, table.columns.index(name)]
    return found
