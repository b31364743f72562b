"""All cells of a split, measured: means and intervals of every proxy, seed, level and metric."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from anamorph.errors import AnamorphError
from anamorph.faithfulness.contrasts import Contrast, contrasts
from anamorph.faithfulness.estimates import Estimates, Kinds, Stopping
from anamorph.faithfulness.intervals import Floats
from anamorph.faithfulness.metrics import JUDGED, SUFFIX, find_metric
from anamorph.faithfulness.sums import CellSums, SumIndex
from anamorph.tasks.base import Role

IDENTITY = "identity"  # the method of the model itself
BLOCK_BYTES = 2**28  # of sums held at once
COPIES = 8  # of a block's sums at once

CellKey = tuple[int, str, str]
"""Model seed, simplification (spec string), split name."""


class ProxyInfo(NamedTuple):
    """How the tables describe a proxy.

    Attributes:
        simplification: its spec string.
        method: such as "svd" or "svd+kmeans"; "identity" for the model itself.
        family: the spec string without the size, which proxies share that differ only in it.
        size_name: what the size is called, such as "rank"; None if there is none.
        size: how large it is; None if there is none.
        control: what the proxy is a control for; None for one that is no control.
        sites: where it stands; empty for what stands nowhere.
    """

    simplification: str
    method: str
    family: str
    size_name: str | None
    size: float | None
    control: str | None
    sites: str


class Grid(NamedTuple):
    """What the tables range over."""

    cells: Mapping[CellKey, CellSums]
    proxies: Sequence[ProxyInfo]
    seeds: Sequence[int]
    metrics: tuple[str, ...]
    stopping: Stopping | None

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics as the tables name them, per-sequence means last."""
        return (*self.metrics, *(name + SUFFIX for name in self.per_sequence))

    @property
    def per_sequence(self) -> tuple[str, ...]:
        """The metrics given for the whole split as a mean over sequences too."""
        return tuple(name for name in self.metrics if find_metric(name).per_sequence)

    @property
    def contrasted(self) -> tuple[str, ...]:
        """The metrics of which levels are contrasted."""
        return tuple(name for name in self.metrics if find_metric(name).contrasted)

    def kinds(self, names: Sequence[str]) -> Kinds:
        """What is known of some of the metrics."""
        metrics = [find_metric(name) for name in names]
        return Kinds(
            np.array([metric.share for metric in metrics]),
            np.array([metric.bounded for metric in metrics]),
            np.array([name == JUDGED for name in names]),
        )

    def blocks(self, rows: int) -> Iterator["Grid"]:
        """The same with some of the proxies; cells have at most so many rows."""
        of_one = 8 * COPIES * (len(self.seeds) + 1) * len(self.names) * rows
        step = max(1, BLOCK_BYTES // of_one)
        for start in range(0, len(self.proxies), step):
            yield self._replace(proxies=self.proxies[start : start + step])


@dataclass(frozen=True)
class Place:
    """A split and its rows."""

    name: str
    role: Role
    index: SumIndex

    @classmethod
    def of(cls, grid: Grid, name: str, role: Role) -> "Place":
        """Of a split's name."""
        index = grid.cells[grid.seeds[0], grid.proxies[0].simplification, name].index
        return cls(name, role, index)


@dataclass(frozen=True)
class Measured:
    """One split. The seed axis holds every seed, then all together; metrics are `Grid.names`."""

    index: SumIndex
    value: Floats  # [proxy, seed, group, metric]; NaN where a metric is not given for a group
    low: Floats
    high: Floats
    whole: Estimates  # of the whole split, [proxy, seed, metric]
    tokens: NDArray[np.int64]  # [proxy, seed, group] scored positions that were seen
    sequences: NDArray[np.int64]  # [proxy, seed, group] sequences that were seen
    contrasts: list[Contrast]


def measure(grid: Grid, place: Place) -> Measured:
    """Means and intervals of all cells of a split."""
    index = place.index
    groups = list(index.groups())
    shape = (len(grid.proxies), len(grid.seeds) + 1, len(groups), len(grid.names))
    value, low, high = (np.full(shape, np.nan) for _ in range(3))
    seen_tokens, seen_sequences = (np.empty(shape[:3], np.int64) for _ in range(2))
    # [proxy, seed, metric, row] and [proxy, seed, 1, row]; a cell may have stopped early
    sums, seen = _load(grid, place)
    whole: Estimates | None = None
    for g, group in enumerate(groups):
        here, tokens = sums[..., group.rows], seen[..., group.rows]
        ones = np.sign(tokens)
        for table, counts in ((seen_tokens, tokens), (seen_sequences, ones)):
            table[:, :-1, g] = counts.sum(axis=-1)[..., 0]
            table[:, -1, g] = table[:, :-1, g].max(axis=1)
        names = grid.metrics
        if group.facet is None:
            names = grid.names
            each = here[:, :, [grid.metrics.index(name) for name in grid.per_sequence]]
            here = np.concatenate([here, each / np.maximum(tokens, 1)], axis=2)
            counted = (np.broadcast_to(x, each.shape[:2] + x.shape[2:]) for x in (tokens, ones))
            tokens = np.concatenate(
                [
                    np.repeat(x, n, axis=2)
                    for x, n in zip(counted, (len(grid.metrics), each.shape[2]), strict=True)
                ],
                axis=2,
            )
        found = Estimates.of(here, tokens, grid.kinds(names), grid.stopping)
        given = np.s_[:, :, g, : len(names)]
        most = np.where(grid.kinds(names).bounded, 1.0, np.inf)
        value[given], low[given] = found.value, found.ends.low
        high[given] = np.minimum(found.ends.high, most)
        whole = found if group.facet is None else whole
    assert whole is not None  # the first group
    itself = np.array([proxy.method == IDENTITY for proxy in grid.proxies])
    exact = itself[:, None] & np.array([find_metric(name).about == "both" for name in grid.names])
    for end in (low, high):
        end[:] = np.where(exact[:, None, None], value, end)
    some = grid.contrasted
    places = [grid.metrics.index(name) for name in some]
    found_contrasts = (
        contrasts(index, sums[:, :, places], seen, grid.kinds(some).share)
        if grid.stopping is None
        else []
    )
    return Measured(index, value, low, high, whole, seen_tokens, seen_sequences, found_contrasts)


def _load(grid: Grid, place: Place) -> tuple[Floats, Floats]:
    """[proxy, seed, metric, row] sums; [proxy or 1, seed or 1, 1, row] scored positions seen.

    Sums are NaN where a proxy's attention was not compared, as that of a model of another shape.
    """
    proxies, index = grid.proxies, place.index
    sums = np.full((len(proxies), len(grid.seeds), len(grid.metrics), len(index)), np.nan)
    outputs = tuple(name for name in grid.metrics if find_metric(name).kind == "output")
    tokens = np.empty((len(proxies), len(grid.seeds), 1, len(index)))
    for p, proxy in enumerate(proxies):
        for s, seed in enumerate(grid.seeds):
            cell = grid.cells[seed, proxy.simplification, place.name]
            label = f"Seed {seed}, {proxy.simplification}, split {place.name}"
            if cell.metrics not in (grid.metrics, outputs) or len(cell.index) != len(index):
                raise AnamorphError(
                    f"{label}: {len(cell.index)} rows of {', '.join(cell.metrics)}; expected "
                    f"{len(index)} rows of {', '.join(grid.metrics)}, as in the other cells. "
                    "All seeds and proxies must be audited on the same data."
                )
            cell.require_finite(label)
            sums[p, s, [name in cell.metrics for name in grid.metrics]] = cell.sums.cpu().numpy()
            tokens[p, s] = cell.tokens
    every_row_seen = (tokens == index.tokens).all()
    return sums, tokens[:1, :1] if every_row_seen else tokens
