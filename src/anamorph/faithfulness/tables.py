"""The tables of a study: every number with its interval, every gap with its verdict, and contrasts.

Proxies are worked through in blocks, each over the reference and then over every other split, so
that memory does not grow with the number of proxies: only the rows of the tables stay. Nothing
depends on the order in which cells were made.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anamorph.errors import AnamorphError
from anamorph.faithfulness.estimates import Gaps, Stopping
from anamorph.faithfulness.gaps import Thresholds
from anamorph.faithfulness.intervals import Ends
from anamorph.faithfulness.judging import judge
from anamorph.faithfulness.measuring import (
    IDENTITY,
    CellKey,
    Grid,
    Measured,
    Place,
    ProxyInfo,
    measure,
)
from anamorph.faithfulness.metrics import SUFFIX, find_metric
from anamorph.faithfulness.sums import CellSums, Group
from anamorph.tasks.base import Role


class Tables(NamedTuple):
    """What `tabulate` makes; see there."""

    results: pl.DataFrame
    gaps: pl.DataFrame
    contrasts: pl.DataFrame


def tabulate(
    cells: Mapping[CellKey, CellSums],
    proxies: Sequence[ProxyInfo],
    splits: Mapping[str, Role],
    *,
    reference: str,
    thresholds: Thresholds | None = None,
    learnt: float | None = None,
    floor: Mapping[str, float] | None = None,
    stopping: Stopping | None = None,
) -> Tables:
    """Make `results`, `gaps` and `contrasts` from the sums of all cells.

    Intervals are 95 % intervals over sequences (`anamorph.faithfulness.intervals`), and over seeds
    too in the rows where `seed` is null (the mean over seeds). A gap is positive where the proxy is
    less faithful, or does worse, out of distribution. P-values are corrected over all proxies and
    `ood` splits of one seed and metric. Rows stand in the order of splits (the reference first),
    proxies, seeds (null last), groups and metrics.

    Args:
        cells: every seed, proxy and split, all with the same metrics, but that those of attention
            may be missing. Each is looked up once (the first of each split again), so that a
            mapping may read files on access.
        proxies: what stands in the tables; "identity" has results, but no gaps or contrasts.
        splits: the role of each split.
        reference: the split that gaps are measured against.
        thresholds: where the lines between verdicts are drawn.
        learnt: accuracy on the reference that a model must be above for verdicts to mean anything.
        floor: what rounding alone does to each metric (`anamorph.auditing.noise.noise_floor`);
            gaps of no more than that are not tested.
        stopping: how cells were stopped early, if they were.

    Returns:
        results: seed, the columns of `ProxyInfo`, split, role, facet, level, metric, value, low,
            high, interval, tokens, sequences; `interval` says how `low` and `high` were made:
            "exact", "binomial", "t" or "sequence"; null where they are, because a level is too
            rare.
        gaps: seed, the columns of `ProxyInfo`, split, role, metric, reference, iid, ood, gap, low,
            high, low_all, high_all, p_value, level, change, verdict, needed; the last four stand
            at `same_prediction` only. `low_all` and `high_all` hold for all gaps of the seed and
            metric at once.
        contrasts: seed, the columns of `ProxyInfo`, split, role, facet, level, metric, value, low,
            high, error, tokens, sequences: a level less the other levels of its facet. Empty if
            cells were stopped early.

    Raises:
        AnamorphError: if a cell is missing, has other metrics, or holds a NaN or an infinity.
    """
    thresholds = thresholds or Thresholds()
    order = [reference, *(name for name in splits if name != reference)]
    seeds = sorted({key[0] for key in cells})
    _require_all(cells, proxies, seeds, order)
    metrics = cells[seeds[0], proxies[0].simplification, reference].metrics
    grid = Grid(cells, proxies, seeds, metrics, stopping)
    family = sum(p.method != IDENTITY for p in proxies) * sum(splits[s] == "ood" for s in order)

    places = [Place.of(grid, name, splits[name]) for name in order]
    results: list[list[pl.DataFrame]] = [[] for _ in order]
    gaps: list[list[pl.DataFrame]] = [[] for _ in order]
    others: list[list[pl.DataFrame]] = [[] for _ in order]
    for block in grid.blocks(max(len(place.index) for place in places)):
        baseline = measure(block, places[0])
        for number, place in enumerate(places):
            measured = measure(block, place) if number else baseline
            results[number].append(_results(block, place, measured))
            others[number].append(_contrasts(block, place, measured))
            if (place.role == "ood" and number) or not (family or number):
                made = Gaps.of(baseline.whole, measured.whole, max(family, 1), thresholds.tolerance)
                table = _gaps(block, reference, place, baseline, measured, made, floor or {})
                gaps[number].append(table if number else table[:0])  # the columns
    return Tables(
        pl.concat(chain.from_iterable(results), rechunk=True),
        judge(pl.concat(chain.from_iterable(gaps), rechunk=True), thresholds, learnt),
        pl.concat(chain.from_iterable(others), rechunk=True),
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


def _results(grid: Grid, place: Place, measured: Measured) -> pl.DataFrame:
    groups: list[Group] = list(measured.index.groups())
    given = ~np.isnan(measured.value)
    p, s, g, m = np.nonzero(given)
    kind = "sequence" if grid.stopping else None
    how = [kind or ("binomial" if share else "t") for share in grid.kinds(grid.names).share]
    itself = pl.col("method").eq(IDENTITY) & pl.col("metric").is_in(
        [name for name in grid.names if find_metric(name).about == "both"]
    )
    frame = pl.DataFrame(
        _keys(grid, place, p, s)
        | {
            "facet": _pick([group.facet for group in groups], g, pl.String),
            "level": _pick([group.level for group in groups], g, pl.String),
            "metric": _pick(grid.names, m, pl.String),
            "value": measured.value[given],
            "low": measured.low[given],
            "high": measured.high[given],
            "interval": _pick(how, m, pl.String),
            "tokens": measured.tokens[p, s, g],
            "sequences": measured.sequences[p, s, g],
        }
    )
    return frame.with_columns(
        pl.col("low", "high").fill_nan(None),
        interval=pl.when(itself)
        .then(pl.lit("exact"))
        .when(pl.col("low").is_not_nan())
        .then("interval"),
    )


def _contrasts(grid: Grid, place: Place, measured: Measured) -> pl.DataFrame:
    """A row a level, proxy, seed and metric; levels stand in their order."""
    found = measured.contrasts
    shape = len(grid.proxies), len(grid.seeds) + 1, len(grid.contrasted)

    def column(numbers: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """[proxy, seed, contrast, metric]; tokens and sequences have no axis of metrics."""
        wide = [np.broadcast_to(x.reshape(*shape[:2], -1), shape) for x in numbers]
        return np.stack(wide, axis=2) if wide else np.empty((*shape[:2], 0, shape[2]))

    value = column([x.value for x in found])
    compared = np.array([proxy.method != IDENTITY for proxy in grid.proxies])
    at = p, s, c, m = np.nonzero(~np.isnan(value) & compared[:, None, None, None])
    frame = pl.DataFrame(
        _keys(grid, place, p, s)
        | {
            "facet": _pick([x.facet for x in found], c, pl.String),
            "level": _pick([x.level for x in found], c, pl.String),
            "metric": _pick(grid.contrasted, m, pl.String),
            "value": value[at],
            "low": column([x.ends.low for x in found])[at],
            "high": column([x.ends.high for x in found])[at],
            "error": column([x.error for x in found])[at],
            "tokens": column([x.tokens for x in found])[at].astype(np.int64),
            "sequences": column([x.sequences for x in found])[at].astype(np.int64),
        }
    )
    return frame.with_columns(pl.col("low", "high", "error").fill_nan(None))


def _gaps(
    grid: Grid,
    reference: str,
    place: Place,
    iid: Measured,
    ood: Measured,
    made: Gaps,
    floor: Mapping[str, float],
) -> pl.DataFrame:
    """Gaps with raw p-values, and beside them what a verdict needs."""
    lower = np.array([find_metric(name).better != "higher" for name in grid.names])
    before, after = iid.value[:, :, 0], ood.value[:, :, 0]  # [proxy, seed, metric]
    ends = [
        Ends(np.where(lower, -e.high, e.low), np.where(lower, -e.low, e.high))
        for e in (made.ends, made.ends_all)
    ]
    bounded = grid.kinds(grid.names).bounded
    ends = [Ends(*(np.where(bounded, np.clip(x, -1, 1), x) for x in e)) for e in ends]
    rounding = np.array([_rounding(name, floor) for name in grid.names])
    tested = np.abs(made.value) > rounding
    accuracy = before[..., grid.names.index("model_accuracy")].copy()  # [proxy, seed]
    accuracy[:, -1] = accuracy[:, :-1].min(axis=1)  # all models must have learnt
    compared = np.array([proxy.method != IDENTITY for proxy in grid.proxies])
    at = p, s, m = np.nonzero(~np.isnan(before) & compared[:, None, None])
    only = {
        name: after[p, s, grid.names.index(name)]
        for name in ("model_only_right", "proxy_only_right")
    }
    sequences = np.stack([iid.sequences[:, :, 0], ood.sequences[:, :, 0]])
    if len(grid.seeds) > 1:  # more sequences alone may not decide what several models leave open
        sequences[:, :, -1] = 0
    if grid.stopping is not None:  # nor are more of them looked at once a cell has stopped
        sequences[:] = 0

    return pl.DataFrame(
        _keys(grid, place, p, s)
        | {
            "metric": _pick(grid.names, m, pl.String),
            "reference": _pick([reference], np.zeros_like(m), pl.String),
            "iid": before[at],
            "ood": after[at],
            "gap": np.where(lower, -made.value, made.value)[at],
            "low": ends[0].low[at],
            "high": ends[0].high[at],
            "low_all": ends[1].low[at],
            "high_all": ends[1].high[at],
            "p_value": np.where(tested, made.zero, np.nan)[at],
            "iid_low": iid.low[:, :, 0][at],
            "iid_high": iid.high[:, :, 0][at],
            "worse": np.where(tested & ~lower, made.worse, np.nan)[at],
            "accuracy": accuracy[p, s],
            "iid_sequences": sequences[0, p, s],
            "ood_sequences": sequences[1, p, s],
        }
        | only
    )


def _rounding(metric: str, floor: Mapping[str, float]) -> float:
    """Up to which size a gap is rounding; exact equality is always one."""
    name, known = metric.removesuffix(SUFFIX), find_metric(metric)
    if name not in floor or known.about != "both":
        return 0.0
    if known.bounded and known.better == "higher":
        return 1 - floor[name]
    # Of a metric that was added, unbounded or without a direction, nobody knows what no change is.
    return floor[name] if known.at is None or (known.better == "lower" and known.bounded) else 0.0


def _keys(
    grid: Grid, place: Place, proxy: NDArray[np.int64], seed: NDArray[np.int64]
) -> dict[str, pl.Series]:
    """The columns that all tables start with, for rows given by proxy and seed number."""
    same = np.zeros_like(proxy)
    return {
        "seed": _pick([*grid.seeds, None], seed, pl.Int64),
        "simplification": _pick([x.simplification for x in grid.proxies], proxy, pl.String),
        "method": _pick([x.method for x in grid.proxies], proxy, pl.String),
        "family": _pick([x.family for x in grid.proxies], proxy, pl.String),
        "size_name": _pick([x.size_name for x in grid.proxies], proxy, pl.String),
        "size": _pick([x.size for x in grid.proxies], proxy, pl.Float64),
        "control": _pick([x.control for x in grid.proxies], proxy, pl.String),
        "sites": _pick([x.sites for x in grid.proxies], proxy, pl.String),
        "split": _pick([place.name], same, pl.String),
        "role": _pick([place.role], same, pl.String),
    }


def _pick(values: Sequence[Any], index: NDArray[np.int64], dtype: type[pl.DataType]) -> pl.Series:
    return pl.Series(values, dtype=dtype, strict=False).gather(index)
