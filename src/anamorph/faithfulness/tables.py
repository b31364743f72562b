"""The tables of a study: every number with its interval, every gap with its verdict, and contrasts.

A split is taken at a time, the reference first, and of it some proxies at a time. So memory does
not grow with the number of proxies, but for a little of the reference, and for the rows of the
tables; where these are too many, `anamorph.faithfulness.spooled` writes them to files as they are
made. Nothing depends on the order in which cells were made.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anamorph.errors import AnamorphError
from anamorph.faithfulness.estimates import Gaps, Stopping
from anamorph.faithfulness.gaps import Thresholds
from anamorph.faithfulness.intervals import Ends, Floats
from anamorph.faithfulness.judging import judge
from anamorph.faithfulness.measuring import CellKey, Grid, Measured, Place, ProxyInfo, measure
from anamorph.faithfulness.metrics import SUFFIX, find_metric, which
from anamorph.faithfulness.sums import CellSums
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

    Intervals are 95 % intervals over sequences (`anamorph.faithfulness.intervals`). Rows where
    `seed` is null are of the mean over seeds; their intervals are over seeds too. A gap is positive
    where the proxy is less faithful, or does worse, out of distribution. P-values are corrected
    over all views and `ood` splits of one seed and metric, those of controls apart. Rows are in the
    order of splits (the reference first), proxies, seeds (null last), groups and metrics.

    Args:
        cells: every seed, proxy and split, all with the same metrics; those of attention may be
            missing. Each is looked up once (the first of each split once more), so a mapping may
            read files when it is asked.
        proxies: what stands in the tables; "identity" has results, but no gaps or contrasts.
        splits: the role of each split.
        reference: the split that gaps are measured against.
        thresholds: where the lines between verdicts are drawn.
        learnt: accuracy on the reference that a model must exceed for verdicts to mean anything.
        floor: what rounding alone does to each metric (`anamorph.auditing.noise.noise_floor`);
            gaps that are not larger are not tested.
        stopping: how cells were stopped early, if they were.

    Returns:
        results: seed, the columns of `ProxyInfo`, split, role, facet, level, metric, value, low,
            high, interval, tokens, sequences. `interval` says how `low` and `high` were made:
            "exact", "binomial", "t" or "sequence". All three are null where a level is too rare.
        gaps: seed, the columns of `ProxyInfo`, split, role, metric, reference, iid, ood, gap, low,
            high, low_all, high_all, p_value, level, change, verdict, needed. The last four are
            given for `same_prediction` only. `low_all` and `high_all` hold for all gaps of views of
            the seed and metric at once; those of a control are as wide.
        contrasts: seed, the columns of `ProxyInfo`, split, role, facet, level, metric, value, low,
            high, error, tokens, sequences: a level less the other levels of its facet. Empty if
            cells were stopped early.

    Raises:
        AnamorphError: if a cell is missing, has other metrics, or holds a NaN or an infinity.
    """
    thresholds = thresholds or Thresholds()
    made = list(parts(cells, proxies, splits, reference, thresholds, floor, stopping))
    gaps = pl.concat([part.gaps for part in made if part.gaps is not None], rechunk=True)
    return Tables(
        pl.concat([part.results for part in made], rechunk=True),
        judge(gaps, thresholds, learnt),
        pl.concat([part.contrasts for part in made], rechunk=True),
    )


class Part(NamedTuple):
    """Rows of the tables: those of some proxies on one split.

    Attributes:
        results: as of `tabulate`.
        gaps: what `anamorph.faithfulness.judging.judge` takes; None if the split has no gaps.
        contrasts: as of `tabulate`.
    """

    results: pl.DataFrame
    gaps: pl.DataFrame | None
    contrasts: pl.DataFrame


def parts(
    cells: Mapping[CellKey, CellSums],
    proxies: Sequence[ProxyInfo],
    splits: Mapping[str, Role],
    reference: str,
    thresholds: Thresholds,
    floor: Mapping[str, float] | None = None,
    stopping: Stopping | None = None,
) -> Iterator[Part]:
    """The tables of `tabulate`, before gaps are judged, part by part in the order of their rows.

    Of the reference the numbers of whole splits are kept, for the gaps of the other splits: some
    kilobytes a proxy and seed. Arguments and errors are those of `tabulate`.
    """
    seeds = sorted({key[0] for key in cells})
    order = [reference, *(name for name in splits if name != reference)]
    _require_all(cells, proxies, seeds, order)
    one = seeds[0], proxies[0].simplification
    places = [Place(name, splits[name], cells[*one, name].index) for name in order]
    grid = Grid(cells, proxies, seeds, cells[*one, reference].metrics, stopping)
    views = grid.compared & np.array([proxy.control is None for proxy in proxies])
    family = int(views.sum()) * sum(splits[name] == "ood" for name in order)
    # Without a split to compare, the empty table of gaps has the columns of the reference's own.
    compared = [n for n, place in enumerate(places) if n and place.role == "ood"] or [0]
    blocks = list(grid.blocks(max(len(place.index) for place in places)))
    wholes: list[Measured] = []  # of the reference, by block
    for number, place in enumerate(places):
        for block, some in enumerate(blocks):
            measured = measure(some, place)
            if not number:
                wholes.append(measured.without_levels())
            gaps = None
            if number in compared:
                iid = wholes[block]
                made = Gaps.of(iid.whole, measured.whole, max(family, 1), thresholds.tolerance)
                table = _gaps(iid, measured, made, floor or {})
                gaps = table if number else table[:0]
            yield Part(_results(measured), gaps, _contrasts(measured))


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


def _results(measured: Measured) -> pl.DataFrame:
    grid, groups = measured.grid, measured.place.index.groups
    given = ~np.isnan(measured.value)
    p, s, g, m = np.nonzero(given)
    usual = np.where(which(grid.names, lambda metric: metric.share), "binomial", "t")
    how = np.where(grid.exact, "exact", "sequence" if grid.stopping else usual)  # [proxy, metric]
    frame = pl.DataFrame(
        _keys(measured, p, s)
        | {
            "facet": _pick([group.facet for group in groups], g),
            "level": _pick([group.level for group in groups], g),
            "metric": _pick(grid.names, m),
            "value": measured.value[given],
            "low": measured.low[given],
            "high": measured.high[given],
            "interval": pl.Series(how[p, m], dtype=pl.String),
            "tokens": measured.tokens[p, s, g],
            "sequences": measured.sequences[p, s, g],
        }
    )
    return frame.with_columns(
        pl.col("low", "high").fill_nan(None),
        pl.when(pl.col("low").is_not_nan()).then("interval").alias("interval"),
    )


def _contrasts(measured: Measured) -> pl.DataFrame:
    """A row a level, proxy, seed and metric; levels stand in their order."""
    grid, found = measured.grid, measured.contrasts
    shape = len(grid.proxies), len(grid.seeds) + 1, len(grid.contrasted)

    def column(numbers: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """[proxy, seed, contrast, metric]; tokens and sequences have no axis of metrics."""
        wide = [np.broadcast_to(x.reshape(*x.shape[:2], -1), shape) for x in numbers]
        return np.stack(wide, axis=2) if wide else np.empty((*shape[:2], 0, shape[2]))

    value = column([x.value for x in found])
    at = p, s, c, m = np.nonzero(~np.isnan(value) & grid.compared[:, None, None, None])
    frame = pl.DataFrame(
        _keys(measured, p, s)
        | {
            "facet": _pick([x.facet for x in found], c),
            "level": _pick([x.level for x in found], c),
            "metric": _pick(grid.contrasted, m),
            "value": value[at],
            "low": column([x.ends.low for x in found])[at],
            "high": column([x.ends.high for x in found])[at],
            "error": column([x.error for x in found])[at],
            "tokens": column([x.tokens for x in found])[at].astype(np.int64),
            "sequences": column([x.sequences for x in found])[at].astype(np.int64),
        }
    )
    return frame.with_columns(pl.col("low", "high", "error").fill_nan(None))


def _gaps(iid: Measured, ood: Measured, made: Gaps, floor: Mapping[str, float]) -> pl.DataFrame:
    """Gaps with raw p-values, and beside them what a verdict needs."""
    grid = ood.grid
    before, after = iid.value[:, :, 0], ood.value[:, :, 0]  # [proxy, seed, metric]
    lower = which(grid.names, lambda metric: metric.better != "higher")
    bounded = which(grid.names, lambda metric: metric.bounded)
    rounding = np.array([_rounding(name, floor) for name in grid.names])
    tested = np.abs(made.value) > rounding
    at = p, s, m = np.nonzero(~np.isnan(before) & grid.compared[:, None, None])

    def column(numbers: Floats) -> Floats:
        """Of [proxy, seed, metric], or with the seed alone where there is one."""
        return np.broadcast_to(numbers, before.shape)[at]

    def ends(of: Ends) -> tuple[Floats, Floats]:
        pair = np.where(lower, -of.high, of.low), np.where(lower, -of.low, of.high)
        low, high = (column(np.where(bounded, np.clip(x, -1, 1), x)) for x in pair)
        return low, high

    (low, high), (low_all, high_all) = ends(made.ends), ends(made.ends_all)
    accuracy = before[..., grid.names.index("model_accuracy")].copy()  # [proxy, seed]
    accuracy[:, -1] = accuracy[:, :-1].min(axis=1)  # all models must have learnt
    sequences = np.stack([iid.sequences[:, :, 0], ood.sequences[:, :, 0]])
    if len(grid.seeds) > 1:  # more sequences alone may not decide what several models leave open
        sequences[:, :, -1] = 0
    if grid.stopping is not None:  # once a cell has stopped, no more of them are looked at
        sequences[:] = 0
    return pl.DataFrame(
        _keys(ood, p, s)
        | {
            "metric": _pick(grid.names, m),
            "reference": _pick([iid.place.name], np.zeros_like(m)),
            "iid": before[at],
            "ood": after[at],
            "gap": column(np.where(lower, -made.value, made.value)),
            "low": low,
            "high": high,
            "low_all": low_all,
            "high_all": high_all,
            "p_value": column(np.where(tested, made.zero, np.nan)),
            "iid_low": iid.low[:, :, 0][at],
            "iid_high": iid.high[:, :, 0][at],
            "worse": column(np.where(tested & ~lower, made.worse, np.nan)),
            "accuracy": accuracy[p, s],
            "iid_sequences": sequences[0, p, s],
            "ood_sequences": sequences[1, p, s],
        }
        | {
            name: after[p, s, grid.names.index(name)]
            for name in ("model_only_right", "proxy_only_right")
        }
    )


def _rounding(metric: str, floor: Mapping[str, float]) -> float:
    """The size up to which a gap is rounding; a gap of exactly 0 always is."""
    name, known = metric.removesuffix(SUFFIX), find_metric(metric)
    if name not in floor or known.about != "both":
        return 0.0
    if known.bounded and known.better == "higher":
        return 1 - floor[name]
    # An added metric tells which value means no change only if it is bounded and has a direction.
    return floor[name] if known.at is None or (known.better == "lower" and known.bounded) else 0.0


def _keys(
    measured: Measured, proxy: NDArray[np.int64], seed: NDArray[np.int64]
) -> dict[str, pl.Series]:
    """The columns that all tables start with, for rows given by proxy and seed number."""
    grid, place, same = measured.grid, measured.place, np.zeros_like(proxy)
    described = zip(ProxyInfo._fields, zip(*grid.proxies, strict=True), strict=True)
    return {
        "seed": _pick([*grid.seeds, None], seed, pl.Int64),
        **{
            name: _pick(values, proxy, pl.Float64 if name == "size" else pl.String)
            for name, values in described
        },
        "split": _pick([place.name], same),
        "role": _pick([place.role], same),
    }


def _pick(
    values: Sequence[Any], index: NDArray[np.int64], dtype: type[pl.DataType] = pl.String
) -> pl.Series:
    return pl.Series(values, dtype=dtype, strict=False).gather(index)
