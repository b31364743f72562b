"""Differences between two runs on the same sequences, read from the sums of both."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anamorph.analysis.sides import Side
from anamorph.faithfulness.intervals import Differences, Ends, Floats
from anamorph.faithfulness.metrics import SUFFIX, find_metric, which
from anamorph.faithfulness.two_runs import of_gaps, paired
from anamorph.runs.sums import SplitSums, in_one_array

BLOCK_BYTES = 2**27  # of sums held at once, with their copies
COPIES = 16

SCHEMA = {
    "simplification": pl.String,
    "simplification_b": pl.String,
    "split": pl.String,
    "metric": pl.String,
    "low": pl.Float64,
    "high": pl.Float64,
    "p_value": pl.Float64,
    "least": pl.Float64,
    "most": pl.Float64,
    "exact": pl.Boolean,
}
"""Of both tables that `paired_cells` gives. The last but one are those of single models."""

Pair = tuple[str, str]  # spec strings in the first run and in the second


@dataclass(frozen=True)
class _Split:
    """A split of both runs: sums are read as they are asked for, by models that stand together."""

    name: str
    first: list[SplitSums]
    second: list[SplitSums]

    @classmethod
    def of(cls, first: Side, second: Side, name: str) -> "_Split":
        sums = ([SplitSums(s.run, seed, name) for seed in s.seeds] for s in (first, second))
        return cls(name, *sums)

    def __len__(self) -> int:
        return len(self.first[0].sequences)

    def difference(
        self, pairs: Sequence[Pair], metrics: Sequence[str]
    ) -> tuple[Differences, NDArray[np.bool_]]:
        """[pair, model + 1, metric] second less first; [pair] those that are the same to the bit.

        The latter are the same proxy of the same weights, with the same sums of all metrics.
        """
        order = [sums[0].sequences["digest"].arg_sort() for sums in (self.first, self.second)]
        scored = self.first[0].sequences["scored"].gather(order[0]).to_numpy().astype(np.float64)
        once = np.array([name.endswith(SUFFIX) for name in metrics])[:, None]
        columns = [name.removesuffix(SUFFIX) for name in metrics]
        ours, theirs = (
            self._sums(sums, names, columns, rows) / np.where(once, scored, 1)
            for sums, names, rows in zip(
                (self.first, self.second), zip(*pairs, strict=True), order, strict=True
            )
        )
        share = which(metrics, lambda metric: metric.share)
        found = paired(ours, theirs, np.where(once, 1.0, scored), share)
        weights = [[sums.weights for sums in side] for side in (self.first, self.second)]
        alike = np.array([a == b for a, b in pairs]) & (weights[0] == weights[1])
        equal = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
        return found, alike & equal.all(axis=(1, 2, 3))

    def _sums(
        self,
        sums: Sequence[SplitSums],
        names: Sequence[str],
        columns: Sequence[str],
        rows: pl.Series,
    ) -> Floats:
        """[pair, model, metric, sequence], sequences in one order for both runs."""
        tables = ([model.of(name)[rows] for model in sums] for name in names)
        return np.stack([in_one_array(of_models, columns) for of_models in tables])


def paired_cells(
    first: Side,
    second: Side,
    pairs: Sequence[Pair],
    splits: Sequence[str],
    metrics: Sequence[str],
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Intervals of differences of values and of gaps.

    Args:
        first: with as many models as the second, which stand together in their order.
        second: likewise.
        pairs: of spec strings.
        splits: whose sequences are the same in both runs; the reference first, if it is among them.
        metrics: those to compare.

    Returns:
        values and gaps, with the columns of `SCHEMA`; gaps only if the reference is among the
        splits. Numbers are NaN where there is none.
    """
    values, gaps = [pl.DataFrame(schema=SCHEMA)], [pl.DataFrame(schema=SCHEMA)]
    reference = first.reference if first.reference == second.reference else None
    found = [_Split.of(first, second, name) for name in splits]
    for some in _blocks(pairs, found, len(first.seeds), len(metrics)):
        of_reference: tuple[Differences, NDArray[np.bool_]] | None = None
        for split in found:
            here, exact = split.difference(some, metrics)
            values.append(_table(here, exact, some, split.name, metrics))
            if split.name == reference:
                of_reference = here, exact
            elif of_reference is not None:
                of_gap, both = of_gaps(of_reference[0], here), exact & of_reference[1]
                gaps.append(_of_gaps(_table(of_gap, both, some, split.name, metrics, 2.0)))
    return pl.concat(values), pl.concat(gaps)


def _blocks(
    pairs: Sequence[Pair], splits: Sequence[_Split], models: int, metrics: int
) -> Iterator[Sequence[Pair]]:
    """Some pairs at a time, so that memory does not grow with their number."""
    of_one = 8 * COPIES * (models + 1) * metrics * max(map(len, splits), default=1)
    step = max(1, BLOCK_BYTES // of_one)
    yield from (pairs[start : start + step] for start in range(0, len(pairs), step))


def _table(
    found: Differences,
    exact: NDArray[np.bool_],
    pairs: Sequence[Pair],
    split: str,
    metrics: Sequence[str],
    most: float = 1.0,
) -> pl.DataFrame:
    """A row a pair and metric, of all models together; `most` is the largest of bounded metrics."""
    bounded = which(metrics, lambda metric: metric.bounded)
    ends = Ends(*(np.where(bounded, np.clip(end, -most, most), end) for end in found.ends()))
    over_all = {"low": ends.low, "high": ends.high, "p_value": found.p_value_of_none()}
    each = found.value[:, : max(1, found.value.shape[1] - 1)]
    columns = {name: numbers[:, -1].ravel() for name, numbers in over_all.items()}
    columns |= {"least": each.min(axis=1).ravel(), "most": each.max(axis=1).ravel()}
    names = [(*pair, split, metric) for pair in pairs for metric in metrics]
    keys = dict(zip(SCHEMA, zip(*names, strict=True), strict=False))
    columns |= {"exact": np.repeat(exact, len(metrics))}
    return pl.DataFrame(keys | columns, schema=SCHEMA)


def _of_gaps(table: pl.DataFrame) -> pl.DataFrame:
    """A gap is positive where the split is worse than the reference, whichever way is better."""
    names = table["metric"].unique()
    falls = [name for name in names if find_metric(name).better != "higher"]
    turned = pl.col("metric").is_in(falls)

    def ends(low: str, high: str) -> list[pl.Expr]:
        """Two columns that change places, and sign, where a lower number is better."""
        pairs = ((low, high), (high, low))
        return [pl.when(turned).then(-pl.col(b)).otherwise(pl.col(a)).alias(a) for a, b in pairs]

    return table.with_columns(*ends("low", "high"), *ends("least", "most"))
