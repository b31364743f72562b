"""What differs between two runs, models, checkpoints or seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from anamorph.analysis.differences import headline, notes_of
from anamorph.analysis.paired_cells import SCHEMA, Pair, paired_cells
from anamorph.analysis.sides import OtherData, Side, matched, named_pair, other_data, why_apart
from anamorph.analysis.words import listing
from anamorph.errors import AnamorphError
from anamorph.faithfulness.gaps import benjamini_hochberg
from anamorph.faithfulness.intervals import LEVEL, Ends, Floats
from anamorph.faithfulness.metrics import JUDGED
from anamorph.faithfulness.two_runs import unpaired as independent
from anamorph.runs.folder import Run
from anamorph.store import Address

PAIR = ["simplification", "simplification_b"]
KEYS = [*PAIR, "method", "family", "size_name", "size", "control", "split", "role", "metric"]
NUMBERS = ["a", "b", "difference", "low", "high", "interval", "p_value", "p_corrected", "differs"]
COLUMNS = [*KEYS, *NUMBERS, "least", "most"]


@dataclass(frozen=True)
class Comparison:
    """What differs between two runs. `a` and `b` are the numbers of the first and of the second.

    Attributes:
        first: what was compared.
        second: with what.
        values: a row a proxy, split and metric, and of the model itself for what is said of it
            alone. simplification, simplification_b (the same but where pairs were named), method,
            family, size_name, size, control, split, role, metric, a, b, difference (b − a), low and
            high (95 %), interval ("paired" by sequence, "unpaired", "exact", null if none can be
            given), p_value (of "they are equal", as it is), p_corrected (Benjamini and Hochberg's,
            over all rows of the metric, controls apart), differs (p_corrected < 0.05), least and
            most (the differences of single models, if several are compared).
        gaps: likewise, of generalization gaps: `a` and `b` are gaps.
        verdicts: simplification, simplification_b, method, family, size_name, size, control, split,
            role, a, b (verdicts), changed.
        headline: what differs, in a sentence.
        notes: what must be known to read it, a sentence each.
    """

    first: str
    second: str
    values: pl.DataFrame
    gaps: pl.DataFrame
    verdicts: pl.DataFrame
    headline: str
    notes: tuple[str, ...]

    @property
    def differences(self) -> pl.DataFrame:
        """`values` and `gaps` in one table; the first column, `of`, says which a row is."""
        tables = {"value": self.values, "gap": self.gaps}
        return pl.concat(t.select(pl.lit(of).alias("of"), pl.all()) for of, t in tables.items())

    def __repr__(self) -> str:
        return f"Comparison of {self.first} and {self.second}. {self.headline}"


def compare(
    first: Run | Address | str,
    second: Run | Address | str,
    *,
    proxies: Mapping[str, str] | Sequence[str] = (),
    unpaired: bool = False,
) -> Comparison:
    """Compare two runs, or the models of two seeds: values, gaps and verdicts.

    Differences are those of the second less the first. They are paired by sequence: what the same
    sequences have in common cancels. Over several models, those of one seed stand together, and the
    interval allows for the models' spread too.

    Args:
        first: a run folder, `am.load_run` of one, or the folder of one of its models, such as
            `runs/a/seed-0`; it may be of the same run as the second.
        second: likewise.
        proxies: spec strings of the first, and beside which of the second they stand, where these
            differ; also as texts `SPEC=SPEC`. Others stand beside those of the same spec.
        unpaired: compare splits of which the sequences differ, or are not known to be the same, as
            independent samples.

    Raises:
        AnamorphError: if there is no run, no pair of proxies, or no split that both have; if the
            data of a split differ, unless `unpaired`; or if the runs have other seeds.
        RunFolderError: if a run is not finished, or damaged.
    """
    a, b = Side.at(first), Side.at(second)
    if not isinstance(proxies, Mapping):
        proxies = dict(named_pair(text, a, b) for text in proxies)
    pairs = matched(a, b, proxies)
    splits = [name for name in a.splits if name in b.splits]
    if not splits:
        raise AnamorphError(
            f"{a.name} and {b.name} have no split of the same name: {', '.join(a.splits)}; "
            f"{', '.join(b.splits)}. Compare runs on the same data."
        )
    apart = other_data(a, b, splits)
    why = why_apart(a, b, apart)
    if a.seeds != b.seeds and max(len(a.seeds), len(b.seeds)) > 1:
        apart, why = [OtherData(name) for name in splits], _other_seeds(a, b)
    if apart and not unpaired:
        raise AnamorphError(
            f"Numbers cannot be paired by sequence: {why}. Compare runs on the same data, or give "
            "--unpaired (unpaired=True) to compare these splits as independent samples, with wider "
            "intervals."
        )
    values = _joined(a.results, b.results, pairs, splits, "value")
    gaps = _joined(a.gaps, b.gaps, pairs, splits, "gap")
    same = [name for name in splits if name not in {other.split for other in apart}]
    counted = not (a.stopped or b.stopped)  # so many sequences as was said before
    if counted and same:
        metrics = values["metric"].unique(maintain_order=True).to_list()
        of_pairs: list[Pair] = list(pairs.iter_rows())
        of_values, of_gaps = paired_cells(a, b, of_pairs, same, metrics)
    else:
        of_values = of_gaps = pl.DataFrame(schema=SCHEMA)
    values, gaps = (
        _tested(_with_ends(table, paired, counted))
        for table, paired in ((values, of_values), (gaps, of_gaps))
    )
    verdicts = _verdicts(a, b, pairs, splits)
    said = headline(a, b, values, gaps, verdicts)
    notes = notes_of(a, b, pairs, why)
    return Comparison(a.name, b.name, values, gaps, verdicts, said, tuple(notes))


def _other_seeds(a: Side, b: Side) -> str:
    """Why the models of two runs cannot stand together."""
    seeds = [listing(side.seeds) for side in (a, b)]
    one = " ".join(str(side.run.seed(side.seeds[0])) for side in (a, b))
    return (
        f"{a.name} has models of the seeds {seeds[0]}, and {b.name} of {seeds[1]}; two models, one "
        f"of each, are compared by anamorph compare {one}"
    )


def _joined(
    a: pl.DataFrame, b: pl.DataFrame, pairs: pl.DataFrame, splits: Sequence[str], number: str
) -> pl.DataFrame:
    """A row a number that both have: `KEYS` of the first, and a, b with low and high of each."""
    ends = [number, "low", "high"]
    ours, theirs = (
        table.filter(pl.col("split").is_in(splits)).rename(
            {name: f"{side}_{name}".removesuffix(f"_{number}") for name in ends}
        )
        for side, table in (("a", a), ("b", b))
    )
    ours = ours.join(pairs, on="simplification", maintain_order="left")
    theirs = theirs.rename({"simplification": "simplification_b"})
    theirs = theirs.select("simplification_b", "split", "metric", "b", "b_low", "b_high")
    on = ["simplification_b", "split", "metric"]
    joined = ours.join(theirs, on=on, maintain_order="left")
    return joined.select(*KEYS, "a", "a_low", "a_high", "b", "b_low", "b_high")


def _with_ends(table: pl.DataFrame, paired: pl.DataFrame, counted: bool) -> pl.DataFrame:
    """Differences with their intervals: paired where there are such, else of independent samples.

    Args:
        table: from `_joined`.
        paired: from `paired_cells`; empty if nothing can be paired.
        counted: whether the intervals of both can be used where it is not.
    """
    keys = [*PAIR, "split", "metric"]
    table = table.join(paired, on=keys, how="left", maintain_order="left")
    apart = independent(*_numbers(table, "a"), *_numbers(table, "b"))
    others = {"low": apart.ends.low, "high": apart.ends.high, "p_value": apart.p_value}
    table = table.with_columns(
        pl.Series(f"other_{name}", numbers) for name, numbers in others.items()
    ).with_columns(difference=pl.col("b") - pl.col("a"))
    exact, is_paired = pl.col("exact").fill_null(False), pl.col("exact").is_not_null()
    kind = pl.when(exact).then(pl.lit("exact")).when(is_paired).then(pl.lit("paired"))
    kind = kind.when(pl.lit(counted)).then(pl.lit("unpaired"))

    def chosen(name: str) -> pl.Expr:
        of_exact = pl.lit(None) if name == "p_value" else pl.col("difference")
        found = pl.when(exact).then(of_exact).when(is_paired).then(name)
        return found.when(pl.lit(counted)).then(f"other_{name}").fill_nan(None).alias(name)

    table = table.with_columns(kind.alias("interval"), *map(chosen, others))
    known = pl.col("low").is_not_null() & pl.col("high").is_not_null()
    return table.with_columns(
        pl.when(known).then("interval").alias("interval"), pl.col("least", "most").fill_nan(None)
    )


def _numbers(table: pl.DataFrame, side: str) -> tuple[Floats, Ends]:
    """What one side of a joined table has, and its intervals."""
    value, low, high = (table[f"{side}{end}"].to_numpy() for end in ("", "_low", "_high"))
    return value, Ends(low, high)


def _tested(table: pl.DataFrame) -> pl.DataFrame:
    """With p-values corrected over the rows of a metric, those of controls apart."""
    corrected = np.full(len(table), np.nan)
    raw = table["p_value"].cast(pl.Float64).to_numpy()
    groups = table.with_row_index().group_by("metric", pl.col("control").is_null()).agg("index")
    for rows in groups["index"]:
        corrected[rows] = benjamini_hochberg(raw[rows])
    level = 1 - LEVEL
    table = table.with_columns(p_corrected=pl.Series(corrected).fill_nan(None))
    differs = (pl.col("p_corrected") < level).fill_null(False)
    return table.with_columns(differs=differs).select(COLUMNS)


def _verdicts(a: Side, b: Side, pairs: pl.DataFrame, splits: Sequence[str]) -> pl.DataFrame:
    judged = (side.gaps.filter(metric=JUDGED) for side in (a, b))
    ours, theirs = (x.filter(pl.col("split").is_in(splits)) for x in judged)
    theirs = theirs.select(
        pl.col("simplification").alias("simplification_b"), "split", pl.col("verdict").alias("b")
    )
    joined = ours.rename({"verdict": "a"}).join(pairs, on="simplification", maintain_order="left")
    joined = joined.join(theirs, on=["simplification_b", "split"], maintain_order="left")
    changed = pl.col("a").ne_missing(pl.col("b"))
    return joined.with_columns(changed=changed).select(*KEYS[:-1], "a", "b", "changed")


def as_objects(found: Comparison) -> dict[str, Any]:
    """All of it for JSON."""
    tables = {name: vars(found)[name].to_dicts() for name in ("values", "gaps", "verdicts")}
    said = {name: vars(found)[name] for name in ("first", "second", "headline", "notes")}
    return said | tables
