"""The two tables of a study: every number with its interval, and every gap with its verdict.

Proxies are worked through in blocks, each over the reference and then over every other split, so
that memory does not grow with the number of proxies: only the rows of the tables stay. Nothing
depends on the order in which cells were made.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anamorph.errors import AnamorphError
from anamorph.faithfulness.bootstrap import (
    Floats,
    interval,
    p_value,
    replicates,
    seed_replicates,
    weights,
)
from anamorph.faithfulness.gaps import Thresholds, benjamini_hochberg, verdict
from anamorph.faithfulness.metrics import HIGHER_IS_BETTER
from anamorph.faithfulness.sums import CellSums, Group, SumIndex
from anamorph.tasks.base import Role

SUFFIX = "_per_sequence"
PER_SEQUENCE = ("same_prediction", "model_accuracy", "proxy_accuracy")
"""Metrics given for the whole split as a mean over sequences too, named `..._per_sequence`."""

IDENTITY = "identity"  # the method of the model itself
BLOCK_BYTES = 2**28  # of sums and replicates held at once
COPIES = 8  # of a block's replicates at once: of two splits, sorted, in differences

CellKey = tuple[int, str, str]
"""Model seed, simplification (spec string), split name."""


class ProxyInfo(NamedTuple):
    """How the tables describe a proxy.

    Attributes:
        simplification: its spec string.
        method: such as "svd" or "svd+kmeans"; "identity" for the model itself.
        size: rank, clusters, ..., or None.
        sites: where it stands.
    """

    simplification: str
    method: str
    size: float | None
    sites: str


class _Grid(NamedTuple):
    """What the tables range over."""

    cells: Mapping[CellKey, CellSums]
    proxies: Sequence[ProxyInfo]
    seeds: Sequence[int]
    metrics: tuple[str, ...]
    resamples: int
    seed: int

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics as the tables name them, per-sequence means last."""
        return (*self.metrics, *(name + SUFFIX for name in PER_SEQUENCE))

    def blocks(self, rows: int) -> Iterator["_Grid"]:
        """The same with some of the proxies; cells have at most so many rows."""
        of_sums = len(self.seeds) * rows
        of_replicates = COPIES * (len(self.seeds) + 1) * self.resamples
        step = max(1, BLOCK_BYTES // (8 * len(self.names) * (of_sums + of_replicates)))
        for start in range(0, len(self.proxies), step):
            yield self._replace(proxies=self.proxies[start : start + step])


@dataclass(frozen=True)
class _Drawn:
    """A split, and the resamples that all its cells share."""

    name: str
    role: Role
    index: SumIndex
    weights: NDArray[np.unsignedinteger]  # [sequences, resamples], in as few bytes as hold them

    @classmethod
    def of(cls, grid: _Grid, name: str, role: Role) -> "_Drawn":
        index = grid.cells[grid.seeds[0], grid.proxies[0].simplification, name].index
        # By name, so that splits are resampled independently and in any order.
        drawn = weights(index.sequences, grid.resamples, [grid.seed, crc32(name.encode())])
        return cls(name, role, index, drawn.astype(np.min_scalar_type(int(drawn.max()))))


@dataclass(frozen=True)
class _Measured:
    """One split. The seed axis holds every seed, then all together; metrics are `_Grid.names`."""

    index: SumIndex
    value: Floats  # [proxy, seed, group, metric]; NaN where a metric is not given for a group
    low: Floats
    high: Floats
    whole: Floats  # [proxy, seed, metric, resample] replicates for the whole split
    tokens: NDArray[np.int64]  # [proxy, seed, group] scored positions that were seen
    sequences: NDArray[np.int64]  # [proxy, seed, group] sequences that were seen


def tabulate(
    cells: Mapping[CellKey, CellSums],
    proxies: Sequence[ProxyInfo],
    splits: Mapping[str, Role],
    *,
    reference: str,
    resamples: int = 1000,
    seed: int = 0,
    thresholds: Thresholds | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Make `results` and `gaps` from the sums of all cells.

    Intervals are 95 % percentile intervals over resampled sequences, with seeds resampled above
    them in the rows where `seed` is null (the mean over seeds). A gap is positive where the proxy
    is less faithful, or does worse, out of distribution. P-values are adjusted over all proxies and
    `ood` splits of one seed and metric. Rows stand in the order of splits (the reference first),
    proxies, seeds (null last), groups and metrics.

    Args:
        cells: every seed, proxy and split, all with the same metrics. Each is looked up once (the
            first of each split again), so that a mapping may read files on access.
        proxies: what stands in the tables; "identity" has results but no gaps.
        splits: the role of each split.
        reference: the split that gaps are measured against.
        resamples: bootstrap resamples.
        seed: of the resampling.
        thresholds: where the lines between verdicts are drawn.

    Returns:
        results: seed, simplification, method, size, sites, split, role, facet, level, metric,
            value, low, high, tokens, sequences; `low` and `high` are null where a level is too
            rare for an interval.
        gaps: seed, simplification, method, size, sites, split, role, metric, reference, gap, low,
            high, p_value, verdict; the verdict stands at `same_prediction` only.

    Raises:
        AnamorphError: if a cell is missing, has other metrics, or holds a NaN or an infinity.
    """
    order = [reference, *(name for name in splits if name != reference)]
    seeds = sorted({key[0] for key in cells})
    _require_all(cells, proxies, seeds, order)
    metrics = cells[seeds[0], proxies[0].simplification, reference].metrics
    grid = _Grid(cells, proxies, seeds, metrics, resamples, seed)

    drawn = [_Drawn.of(grid, name, splits[name]) for name in order]
    results: list[list[pl.DataFrame]] = [[] for _ in order]
    gaps: list[list[pl.DataFrame]] = [[] for _ in order]
    for block in grid.blocks(max(len(split.index) for split in drawn)):
        baseline = _measure(block, drawn[0])
        results[0].append(_results(block, drawn[0], baseline))
        gaps[0].append(_gaps(block, reference, drawn[0], baseline, baseline)[:0])  # the columns
        for place, split in enumerate(drawn[1:], start=1):
            measured = _measure(block, split)
            results[place].append(_results(block, split, measured))
            if split.role == "ood":
                gaps[place].append(_gaps(block, reference, split, baseline, measured))
    return (
        pl.concat(chain.from_iterable(results), rechunk=True),
        _judge(pl.concat(chain.from_iterable(gaps), rechunk=True), thresholds or Thresholds()),
    )


def _require_all(
    cells: Mapping[CellKey, CellSums],
    proxies: Sequence[ProxyInfo],
    seeds: Sequence[int],
    splits: Sequence[str],
) -> None:
    if not proxies or not seeds:
        raise AnamorphError("There are no proxies or no cells to tabulate; run an audit first.")
    there = set(cells)  # asking a lazy mapping for a key may read a file
    missing = [
        f"seed {seed}, {proxy.simplification}, split {split}"
        for split in splits
        for proxy in proxies
        for seed in seeds
        if (seed, proxy.simplification, split) not in there
    ]
    if missing:
        raise AnamorphError(
            f"{len(missing)} cells are missing, the first is {missing[0]}; expected one for every "
            "seed, proxy and split. Run the audit to its end before making tables."
        )


def _measure(grid: _Grid, split: _Drawn) -> _Measured:
    """Means, intervals and whole-split replicates of all cells of a split."""
    index = split.index
    groups = list(index.groups())
    shape = (len(grid.proxies), len(grid.seeds) + 1, len(groups), len(grid.names))
    value, low, high = (np.full(shape, np.nan) for _ in range(3))
    whole = np.empty((*shape[:2], shape[3], grid.resamples))
    seen_tokens, seen_sequences = (np.empty(shape[:3], np.int64) for _ in range(2))
    # [proxy, seed, metric, row] and [proxy, seed, 1, row]; a cell may have stopped early
    sums, seen = _load(grid, split)
    for g, group in enumerate(groups):
        used = split.weights[index.sequence[group.rows]].astype(np.float64)
        tokens = seen[..., group.rows]
        ones = np.sign(tokens)
        for table, counts in ((seen_tokens, tokens), (seen_sequences, ones)):
            table[:, :-1, g] = counts.sum(axis=-1)[..., 0]
            table[:, -1, g] = table[:, :-1, g].max(axis=1)
        here = sums[..., group.rows]
        means = _ratio(here.sum(axis=-1), tokens.sum(axis=-1))
        resampled = replicates(here, tokens, used)
        if group.facet is None:
            each = here[:, :, [grid.metrics.index(name) for name in PER_SEQUENCE]]
            each = each / np.maximum(tokens, 1)
            means = np.concatenate([means, _ratio(each.sum(-1), ones.sum(-1))], axis=-1)
            resampled = np.concatenate([resampled, replicates(each, ones, used)], axis=-2)
        given = np.s_[:, :, g, : means.shape[-1]]
        value[given] = np.concatenate([means, means.mean(axis=1, keepdims=True)], axis=1)
        over_seeds = seed_replicates(list(resampled.swapaxes(0, 1)), grid.seed)
        resampled = np.concatenate([resampled, over_seeds[:, None]], axis=1)
        low[given], high[given] = interval(resampled)
        if group.facet is None:
            whole[:] = resampled
    return _Measured(index, value, low, high, whole, seen_tokens, seen_sequences)


def _ratio(sums: Floats, counts: NDArray[np.int64]) -> Floats:
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def _load(grid: _Grid, split: _Drawn) -> tuple[Floats, NDArray[np.int64]]:
    """[proxy, seed, metric, row] sums; [proxy or 1, seed or 1, 1, row] scored positions seen."""
    proxies, index = grid.proxies, split.index
    sums = np.empty((len(proxies), len(grid.seeds), len(grid.metrics), len(index)))
    tokens = np.empty((len(proxies), len(grid.seeds), 1, len(index)), np.int64)
    for p, proxy in enumerate(proxies):
        for s, seed in enumerate(grid.seeds):
            cell = grid.cells[seed, proxy.simplification, split.name]
            label = f"Seed {seed}, {proxy.simplification}, split {split.name}"
            if cell.metrics != grid.metrics or len(cell.index) != len(index):
                raise AnamorphError(
                    f"{label}: {len(cell.index)} rows of {', '.join(cell.metrics)}; expected "
                    f"{len(index)} rows of {', '.join(grid.metrics)}, as in the other cells. "
                    "All seeds and proxies must be audited on the same data."
                )
            cell.require_finite(label)
            sums[p, s], tokens[p, s] = cell.sums.cpu().numpy(), cell.tokens
    every_row_seen = (tokens == index.tokens).all()
    return sums, tokens[:1, :1] if every_row_seen else tokens


def _results(grid: _Grid, split: _Drawn, measured: _Measured) -> pl.DataFrame:
    groups: list[Group] = list(measured.index.groups())
    given = ~np.isnan(measured.value)
    p, s, g, m = np.nonzero(given)
    frame = pl.DataFrame(
        _keys(grid, split, p, s)
        | {
            "facet": _pick([group.facet for group in groups], g, pl.String),
            "level": _pick([group.level for group in groups], g, pl.String),
            "metric": _pick(grid.names, m, pl.String),
            "value": measured.value[given],
            "low": measured.low[given],
            "high": measured.high[given],
            "tokens": measured.tokens[p, s, g],
            "sequences": measured.sequences[p, s, g],
        }
    )
    return frame.with_columns(pl.col("low", "high").fill_nan(None))


def _gaps(
    grid: _Grid, reference: str, split: _Drawn, iid: _Measured, ood: _Measured
) -> pl.DataFrame:
    """Gaps with raw p-values, and beside them what a verdict needs."""
    sign = np.array([1 if n.removesuffix(SUFFIX) in HIGHER_IS_BETTER else -1 for n in grid.names])
    before, after = iid.value[:, :, 0], ood.value[:, :, 0]  # [proxy, seed, metric]
    resampled = sign[:, None] * (iid.whole - ood.whole)
    low, high = interval(resampled)
    keep = np.array([proxy.method != IDENTITY for proxy in grid.proxies])
    p, s, m = (axis.ravel() for axis in np.indices(before.shape)[:, keep])
    model_only, proxy_only = (
        after[p, s, grid.names.index(name)] for name in ("model_only_right", "proxy_only_right")
    )

    return pl.DataFrame(
        _keys(grid, split, p, s)
        | {
            "metric": _pick(grid.names, m, pl.String),
            "reference": _pick([reference], np.zeros_like(m), pl.String),
            "gap": (sign * (before - after))[p, s, m],
            "low": low[p, s, m],
            "high": high[p, s, m],
            "p_value": p_value(resampled)[p, s, m],
            "iid": before[p, s, m],
            "ood": after[p, s, m],
            "model_only_right": model_only,
            "proxy_only_right": proxy_only,
        }
    )


def _judge(gaps: pl.DataFrame, thresholds: Thresholds) -> pl.DataFrame:
    """Adjust the p-values, give the verdicts, and drop what was only needed for them."""
    adjusted = np.full(len(gaps), np.nan)
    for rows in gaps.with_row_index().group_by("seed", "metric").agg("index")["index"]:
        adjusted[rows] = benjamini_hochberg(gaps["p_value"].gather(rows).to_numpy())
    gaps = gaps.with_columns(p_value=pl.Series(adjusted, dtype=pl.Float64))
    judged = gaps.select(
        "metric", "iid", "ood", "gap", "p_value", "model_only_right", "proxy_only_right"
    )
    verdicts = [
        verdict(iid, ood, gap, p, model_only, proxy_only, thresholds)
        if metric == "same_prediction" and not np.isnan(p)
        else None
        for metric, iid, ood, gap, p, model_only, proxy_only in judged.iter_rows()
    ]
    return (
        gaps.with_columns(pl.Series("verdict", verdicts, dtype=pl.String))
        .with_columns(pl.col("low", "high", "p_value").fill_nan(None))
        .drop("iid", "ood", "model_only_right", "proxy_only_right")
    )


def _keys(
    grid: _Grid, split: _Drawn, proxy: NDArray[np.int64], seed: NDArray[np.int64]
) -> dict[str, pl.Series]:
    """The columns that both tables start with, for rows given by proxy and seed number."""
    same = np.zeros_like(proxy)
    return {
        "seed": _pick([*grid.seeds, None], seed, pl.Int64),
        "simplification": _pick([x.simplification for x in grid.proxies], proxy, pl.String),
        "method": _pick([x.method for x in grid.proxies], proxy, pl.String),
        "size": _pick([x.size for x in grid.proxies], proxy, pl.Float64),
        "sites": _pick([x.sites for x in grid.proxies], proxy, pl.String),
        "split": _pick([split.name], same, pl.String),
        "role": _pick([split.role], same, pl.String),
    }


def _pick(values: Sequence[Any], index: NDArray[np.int64], dtype: type[pl.DataType]) -> pl.Series:
    return pl.Series(values, dtype=dtype, strict=False).gather(index)
