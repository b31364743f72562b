"""Sums per sequence, from which every mean and interval is made.

A *row* is one (facet, level, sequence) with at least one scored position. Rows are ordered by
facet, then level, then sequence, so that all sequences of a level stand in one slice. The first
rows are those of the whole split.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.faithfulness.metrics import all_metrics, metric_names
from anamorph.tasks.base import NOT_APPLICABLE, Split


class Group(NamedTuple):
    """The rows of one level of one facet; facet and level are None for the whole split."""

    facet: str | None
    level: str | None
    rows: slice


@dataclass(frozen=True)
class SumIndex:
    """Which rows every scored position of a split belongs to; made once for a split.

    Scored positions are numbered in flat token order: position `i` is token
    `numpy.flatnonzero(split.scored)[i]`.

    Attributes:
        sequence: [rows] which sequence of the split.
        tokens: [rows] how many scored positions the row has.
        rows_of: [scored positions, 1 + facets] the row in the whole split, then in every facet;
            -1 where a facet does not apply.
        groups: the whole split, then every level that has a row, in order.
        sequences: how many sequences the split has, scored or not.
    """

    sequence: NDArray[np.int32]
    tokens: NDArray[np.int64]
    rows_of: NDArray[np.int64]
    groups: tuple[Group, ...]
    sequences: int

    @classmethod
    def of(cls, split: Split) -> Self:
        """The index of a split, from its `scored` and `facets`.

        Raises:
            AnamorphError: if nothing in the split is scored.
        """
        if not split.scored.any():
            raise AnamorphError(
                f"Split {split.name!r} has no scored positions, so nothing can be measured on it; "
                "score some, make it larger, or leave it out."
            )
        owner = np.repeat(np.arange(len(split)), split.lengths)[split.scored]
        labels: list[tuple[str | None, NDArray[Any], tuple[str | None, ...]]] = [
            (None, np.zeros_like(owner), (None,)),
            *((name, f.codes[split.scored], f.names) for name, f in split.facets.items()),
        ]
        rows_of = np.full((len(owner), len(labels)), -1, np.int64)
        sequences, tokens, groups, start = [], [], [], 0
        for column, (facet, codes, levels) in enumerate(labels):
            known = codes != NOT_APPLICABLE
            cells, row, counts = np.unique(
                codes[known].astype(np.int64) * len(split) + owner[known],
                return_inverse=True,
                return_counts=True,
            )
            rows_of[known, column] = row + start
            level, sequence = np.divmod(cells, len(split))
            for code, begin, size in zip(*np.unique(level, True, return_counts=True), strict=True):
                rows = slice(start + int(begin), start + int(begin + size))
                groups.append(Group(facet, levels[code], rows))
            sequences.append(sequence)
            tokens.append(counts)
            start += len(cells)
        return cls(
            sequence=np.concatenate(sequences).astype(np.int32),
            tokens=np.concatenate(tokens),
            rows_of=rows_of,
            groups=tuple(groups),
            sequences=len(split),
        )

    @property
    def whole(self) -> slice:
        """The rows of the whole split, which are the first."""
        return self.groups[0].rows

    def __len__(self) -> int:
        return len(self.tokens)

    def rows_at(self, positions: Tensor) -> Tensor:
        """[(1 + facets) · n] the rows of scored positions [n], facet after facet.

        Where a facet does not apply, the row is one past the last.
        """
        rows = torch.from_numpy(self.rows_of)[positions.cpu()].T.flatten()
        return torch.where(rows < 0, len(self), rows)


class CellSums:
    """The sums of one cell: every metric over the scored positions of every row.

    Sums are float64, on the host, and the positions of a sequence are added in their order. So they
    do not depend on how sequences were batched.

    Args:
        index: the rows.
        metrics: names of the metrics that are added, in order; by default all.

    Attributes:
        seen: so many sequences were seen, from the first on.
        halved: whether something did not fit the memory and was done in parts, which rounds in
            another way than it does where it fits.
    """

    def __init__(
        self,
        index: SumIndex,
        metrics: tuple[str, ...] | None = None,
    ) -> None:
        self.index = index
        self.metrics = metric_names() if metrics is None else metrics
        self.seen, self.halved = index.sequences, False
        # The last column, one more than there are rows, takes what belongs to no row. Metrics come
        # first, as torch scatters along the last axis several times faster than along the first.
        self._sums = torch.zeros(len(self.metrics), len(index) + 1, dtype=torch.float64)

    @property
    def sums(self) -> Tensor:
        """[metric, rows] float64."""
        return self._sums[:, :-1]

    def add_rows(self, rows: Tensor, values: Tensor) -> None:
        """Add the metrics of n scored positions: all positions of a sequence in one call.

        Args:
            rows: [(1 + facets) · n] as `SumIndex.rows_at` gives them.
            values: [metric, n].
        """
        every_facet = values.to(self._sums).repeat(1, self.index.rows_of.shape[1])
        self._sums.scatter_add_(1, rows.expand(len(self.metrics), -1), every_facet)

    def require_finite(self, cell: str) -> None:
        """Refuse a NaN or an infinity.

        Args:
            cell: what the message calls the cell and its split.

        Raises:
            AnamorphError: names cell, metric and sequence.
        """
        if not self.sums.sum().isfinite():  # one fast pass: the total is not finite either
            metric, row = (~self.sums.isfinite()).nonzero()[0].tolist()
            raise AnamorphError(
                f"{cell}: {self.metrics[metric]} is {self.sums[metric, row].item()} in sequence "
                f"{self.index.sequence[row]}; expected a finite number. Look for a NaN or an "
                "infinity in the model's weights, in what its simplifications give, and among the "
                "logits, where -inf rules out a token that occurs or that the model allows."
            )

    @property
    def tokens(self) -> NDArray[np.int64]:
        """[rows] the scored positions seen in every row; 0 in sequences that were not seen."""
        return np.where(self.index.sequence < self.seen, self.index.tokens, 0)

    def table(self) -> pl.DataFrame:
        """The sums: a column for each metric, rows as here; null for sequences not seen."""
        table = pl.DataFrame(dict(zip(self.metrics, self.sums.numpy(), strict=True)))
        if self.seen < self.index.sequences:
            seen = pl.Series(self.index.sequence < self.seen)
            table = table.with_columns(pl.when(seen).then(pl.all()))
        return table

    @classmethod
    def of(cls, table: pl.DataFrame, index: SumIndex, source: str) -> Self:
        """The sums of which `table` was made.

        Args:
            table: as `table` gives it.
            index: of the split.
            source: where the table comes from, for the message.

        Raises:
            AnamorphError: if it is of another split, or has unknown metrics.
        """
        known = all_metrics()
        unknown = [name for name in table.columns if name not in known]
        if unknown or len(table) != len(index):
            raise AnamorphError(
                f"The sums in {source} have {len(table)} rows and the columns "
                f"{', '.join(table.columns)}; expected {len(index)} rows of known metrics. They "
                "are of another split or version, or have a metric of a package that is not "
                "installed: install it, or delete them and run the audit again."
            )
        cell = cls(index, tuple(table.columns))
        unseen = table[:, 0].is_null()
        if unseen.any():
            cell.seen = int(index.sequence[(~unseen).to_numpy()].max()) + 1
        cell.sums.copy_(torch.from_numpy(table.fill_null(0).to_numpy().T.astype(np.float64)))
        return cell
