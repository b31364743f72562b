"""All cells of a split, measured: means and intervals of every proxy, seed, level and metric."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from anamorph.errors import AnamorphError
from anamorph.faithfulness.contrasts import Contrast, contrasts
from anamorph.faithfulness.estimates import Estimates, Stopping
from anamorph.faithfulness.intervals import Floats
from anamorph.faithfulness.metrics import SUFFIX, find_metric, which
from anamorph.faithfulness.sums import CellSums, SumIndex
from anamorph.tasks.base import Role

IDENTITY = "identity"  # the method of the model itself
BLOCK_BYTES = 2**28  # of sums held at once, with their copies
COPIES = 8  # of the sums, that are held at once

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
        """The metrics as the tables name them, means over sequences last."""
        return (*self.metrics, *(name + SUFFIX for name in self.per_sequence))

    @property
    def per_sequence(self) -> tuple[str, ...]:
        """The metrics of which the tables give the mean over sequences too, for whole splits."""
        return tuple(name for name in self.metrics if find_metric(name).per_sequence)

    @property
    def contrasted(self) -> tuple[str, ...]:
        """The metrics of which levels are contrasted."""
        return tuple(name for name in self.metrics if find_metric(name).contrasted)

    @property
    def compared(self) -> NDArray[np.bool_]:
        """[proxy] those that are not the model itself."""
        return np.array([proxy.method != IDENTITY for proxy in self.proxies])

    @property
    def exact(self) -> NDArray[np.bool_]:
        """[proxy, name] what is known without error: how the model agrees with itself."""
        return ~self.compared[:, None] & which(self.names, lambda metric: metric.about == "both")

    def blocks(self, rows: int) -> Iterator["Grid"]:
        """The same for some of the proxies at a time, whose cells have at most so many rows."""
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


@dataclass(frozen=True)
class Measured:
    """A split. The seed axis holds every seed, then all together; metrics are `Grid.names`."""

    grid: Grid
    place: Place
    value: Floats  # [proxy, seed, group, metric]; NaN where a metric is not given for a group
    low: Floats
    high: Floats
    whole: Estimates  # of the whole split
    tokens: NDArray[np.int64]  # [proxy, seed, group] scored positions that were seen
    sequences: NDArray[np.int64]  # [proxy, seed, group] sequences that were seen
    contrasts: list[Contrast]

    def without_levels(self) -> "Measured":
        """The same without the levels of facets, to be kept."""
        first = np.s_[:, :, :1]
        return replace(
            self,
            value=self.value[first].copy(),  # a view would keep the levels
            low=self.low[first].copy(),
            high=self.high[first].copy(),
            tokens=self.tokens[first].copy(),
            sequences=self.sequences[first].copy(),
            contrasts=[],
        )


def measure(grid: Grid, place: Place) -> Measured:
    """Means and intervals of all cells of a split."""
    groups = place.index.groups
    shape = (len(grid.proxies), len(grid.seeds) + 1, len(groups), len(grid.names))
    value, low, high = (np.full(shape, np.nan) for _ in range(3))
    tokens, sequences = (np.empty(shape[:3], np.int64) for _ in range(2))
    sums, seen = _load(grid, place)
    for g, group in enumerate(groups):
        here, counts, names = sums[..., group.rows], seen[..., group.rows], grid.metrics
        for table, numbers in ((tokens, counts), (sequences, np.sign(counts))):
            table[:, :-1, g] = numbers.sum(axis=-1)[..., 0]
            table[:, -1, g] = table[:, :-1, g].max(axis=1)
        if group.facet is None:
            names = grid.names
            here, counts = _with_means_over_sequences(grid, here, counts)
        found = Estimates.of(here, counts, names, grid.stopping)
        most = np.where(which(names, lambda metric: metric.bounded), 1.0, np.inf)
        given = np.s_[:, :, g, : len(names)]
        value[given], low[given] = found.value, found.ends.low
        high[given] = np.minimum(found.ends.high, most)
        if group.facet is None:
            whole = found
    for end in (low, high):
        end[:] = np.where(grid.exact[:, None, None], value, end)
    levels = []
    if grid.stopping is None:
        some = [grid.metrics.index(name) for name in grid.contrasted]
        share = which(grid.contrasted, lambda metric: metric.share)
        levels = contrasts(place.index, sums[:, :, some], seen, share)
    return Measured(grid, place, value, low, high, whole, tokens, sequences, levels)


def _with_means_over_sequences(grid: Grid, sums: Floats, tokens: Floats) -> tuple[Floats, Floats]:
    """Sums and counts of `grid.names`; a mean over sequences counts every sequence once."""
    some = [grid.metrics.index(name) for name in grid.per_sequence]
    sums = np.concatenate([sums, sums[:, :, some] / np.maximum(tokens, 1)], axis=2)
    once = np.arange(len(grid.names)) >= len(grid.metrics)
    return sums, np.where(once[:, None], np.sign(tokens), tokens)


def _load(grid: Grid, place: Place) -> tuple[Floats, Floats]:
    """[proxy, seed, metric, row] sums; [proxy or 1, seed or 1, 1, row] scored positions seen.

    Sums of attention are NaN for a proxy whose attention was not compared, such as another model of
    another shape.
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
