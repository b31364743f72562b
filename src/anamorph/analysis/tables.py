"""The numbers of a run as tables that others go on with: proxies × splits, or a number a row."""

from difflib import get_close_matches

import polars as pl

from anamorph.analysis.findings import IDENTITY
from anamorph.errors import AnamorphError
from anamorph.faithfulness.metrics import JUDGED, find_metric
from anamorph.runs.folder import Run

PROXY = ("simplification", "method", "family", "size_name", "size", "control", "sites")
NUMBER = ("value", "low", "high", "interval", "tokens", "sequences")
GAP = {
    "reference": "reference",
    "gap": "gap",
    "low": "gap_low",
    "high": "gap_high",
    "p_value": "p_value",
    "verdict": "verdict",
    "needed": "needed",
}
"""Columns of `gaps.parquet`, and what they are called beside the value itself."""
KEYS = ("seed", "simplification", "split", "metric")


def table(
    run: Run,
    metric: str = JUDGED,
    *,
    facet: str | None = None,
    seed: int | None = None,
    long: bool = False,
    controls: bool = False,
) -> pl.DataFrame:
    """A metric of every proxy on every split.

    Args:
        run: whose results these are.
        metric: which; the share of same predictions by default.
        facet: break it down by the levels of this one, which are rows.
        seed: of the model; None stands for all models together.
        long: a row a number, with its interval and its gap, in place of a column a split.
        controls: with the controls.

    Returns:
        a row a proxy, in the order of the results: `simplification`, `level` if a facet was given,
        and the value on each split, the reference first; null where there is none. With `long` a
        row a proxy, split and level: `simplification`, `split`, `role`, `level`, `value`, `low`,
        `high`, `interval`, `tokens`, `sequences`, and for whole splits the columns of `GAP`. A
        metric of the model alone has the one row `identity`, and one of the proxy alone begins
        with it.

    Raises:
        AnamorphError: if the run has no such metric, facet or seed; it lists those it has.
    """
    results = run.results
    _require("metric", metric, results["metric"])
    rows = results.filter(metric=metric)
    if facet is not None:
        _require("facet", facet, results["facet"].drop_nulls())
        _require(f"{metric} by facet", facet, rows["facet"].drop_nulls())
    of_facet = pl.col("facet").is_null() if facet is None else pl.col("facet") == facet
    rows = rows.filter(_of_seed(run, seed), of_facet, _told_by(metric))
    if not controls:
        rows = rows.filter(pl.col("control").is_null())
    names = ["simplification", *(["level"] if facet is not None else [])]
    if long:
        rows = rows if facet is not None else with_gaps(rows, run.gaps)
        gaps = [] if facet is not None else [*GAP.values()]
        return rows.select("simplification", "split", "role", *names[1:], *NUMBER, *gaps)
    wide = rows.pivot(on="split", index=names, values="value", maintain_order=True)
    return wide.select(*names, *(split for split in splits_of(rows) if split in wide.columns))


def verdicts(run: Run, *, seed: int | None = None, controls: bool = False) -> pl.DataFrame:
    """The verdict on every view on every split but the reference.

    Args:
        run: whose gaps these are.
        seed: of the model; None stands for all models together.
        controls: with the controls.

    Returns:
        a row a proxy and split: the columns of `PROXY`, `split`, `reference`, `verdict`, `iid` and
        `ood` (the shares of same predictions), `gap` with `low` and `high`, `low_all` and
        `high_all`, `p_value`, and `needed`: how many sequences would decide.

    Raises:
        AnamorphError: if the run has no such seed.
    """
    rows = run.gaps.filter(_of_seed(run, seed), metric=JUDGED)
    if not controls:
        rows = rows.filter(pl.col("control").is_null())
    ends = ("gap", "low", "high", "low_all", "high_all", "p_value", "needed")
    return rows.select(*PROXY, "split", "reference", "verdict", "iid", "ood", *ends)


def tidy(run: Run) -> pl.DataFrame:
    """Every number of whole splits, one a row, with its interval and, if it has one, its gap.

    Returns:
        `seed` (null: all models together; of a run of one model these are all rows), the columns of
        `PROXY`, `split`, `role`, `metric`, those of `NUMBER`, and those of `GAP`.
    """
    rows = run.results.filter(pl.col("facet").is_null())
    if len(run.seeds) < 2:
        rows = rows.filter(pl.col("seed").is_null())
    found = with_gaps(rows, run.gaps)
    return found.select("seed", *PROXY, "split", "role", "metric", *NUMBER, *GAP.values())


def with_gaps(rows: pl.DataFrame, gaps: pl.DataFrame) -> pl.DataFrame:
    """Rows of whole splits with their gaps beside them, null where there is none."""
    beside = gaps.select(*KEYS, **{name: pl.col(column) for column, name in GAP.items()})
    return rows.join(beside, on=KEYS, how="left", nulls_equal=True, maintain_order="left")


def splits_of(results: pl.DataFrame) -> list[str]:
    """The splits in the order of the results, the reference first."""
    found = results.select("split", "role").unique(maintain_order=True).rows()
    reference = next((split for split, role in found if role == "iid"), None)
    return sorted((split for split, _ in found), key=lambda split: split != reference)


def _of_seed(run: Run, seed: int | None) -> pl.Expr:
    if seed is None:
        return pl.col("seed").is_null()
    if seed not in run.seeds:
        raise AnamorphError(f"{run.path} has no seed {seed}; it has {_listed(run.seeds)}.")
    return pl.col("seed") == seed


def _told_by(metric: str) -> pl.Expr:
    """The proxies that a metric says something of."""
    about, model = find_metric(metric).about, pl.col("method") == IDENTITY
    return {"model": model, "proxy": pl.lit(True), "both": ~model}[about]


def _require(what: str, name: str, known: pl.Series) -> None:
    names = known.unique(maintain_order=True).to_list()
    if name not in names:
        near = get_close_matches(name, names, 1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise AnamorphError(
            f"There is no {what} {name!r} in this run; it has {_listed(names)}.{meant}"
        )


def _listed(names: list[str] | list[int]) -> str:
    return ", ".join(map(str, names)) or "none"
