"""Head by head: the smallest size that stays faithful, and the largest gap.

Of proxies that edit a single head; seeds are kept apart, as the heads of two models have nothing
to do with each other.

The smallest faithful size is found by tests in a fixed order: from a head's largest size down, a
size passes while the lower end of its interval is at least what is asked; the first that does not
pass ends it. A size whose true value is below what is asked is named only if the largest such size
passes, which is one test at one end of a 95 % interval: with probability at most 2.5 %, however
many sizes were tried (Maurer, Hothorn and Lehmacher 1995; Westfall and Krishen 2001).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import polars as pl

from anamorph.analysis.edited_heads import EditedHead, single_heads
from anamorph.analysis.words import method_label, sized
from anamorph.models.sites import HEAD_KINDS

SCORES = ("previous_token", "induction", "copying", "positional")  # what heads look like
FEWEST_HEADS = 5  # for a correlation
LEASTS = (0.99, 0.95, 0.9, 0.8)
"""Shares of same predictions that can be asked of a proxy of one head.

They reach higher than what is asked of other proxies, because most single heads change few
predictions, whatever is done to them.
"""

LARGEST = "largest"  # of `Heads.by_size`: of all sizes
NONE, OPEN = "none", "?"  # in place of a smallest size
HEAD = ["seed", "method", "layer", "head"]


@dataclass(frozen=True)
class Heads:
    """What was found of single heads.

    Attributes:
        methods: ways of simplifying a head, without sizes, such as "SVD · query, key"; those that
            simplify keys or values that several query heads share say so.
        sizes: the size as text, such as "rank 8", of every method and size.
        smallest: a row a seed, method, head, split and `least`, one of `LEASTS`: the smallest
            `size` that is shown to have a same_prediction of so much, with its `value`, `low` and
            `high`. `text` is that size, "yes" where there are no sizes; "none" if even the largest
            is shown to have less, "?" if the data cannot say: then the numbers are those of the
            largest size.
        gaps: a row a seed, method, head, size and ood split: the gap in same_prediction, its
            interval, that which holds for all gaps at once, adjusted p-value and verdict.
        scores: a row a seed, method and head: its scores; the mean over those that share it if it
            is a key head. None if they were not measured.
        even: a row a seed: the scores of attention that is spread evenly; None likewise.
        shared_keys: whether several query heads read the same keys and values.
    """

    methods: list[str]
    sizes: dict[tuple[str, float | None], str]
    smallest: pl.DataFrame
    gaps: pl.DataFrame
    scores: pl.DataFrame | None
    even: pl.DataFrame | None
    shared_keys: bool

    @cached_property
    def largest(self) -> pl.DataFrame:
        """The row of `gaps` with the largest gap of every seed, method and head.

        As it was picked, `low` and `high` are those that hold for all gaps at once.
        """
        rows = self.gaps.sort("gap", descending=True, maintain_order=True)
        rows = rows.with_columns(low="low_all", high="high_all")
        return rows.group_by(HEAD, maintain_order=True).first()

    def by_size(self, keys: Sequence[str], level: float) -> pl.DataFrame:
        """The largest gap by `keys` at each size, and over all sizes.

        Args:
            keys: columns of `gaps`.
            level: an adjusted p-value below this is significant.

        Returns:
            rows of `gaps` with the size as `size_text`; `at`, that text again or `LARGEST`; and
            `sure`, whether the gap differs from zero: by its p-value, or by its interval if it is
            the largest of several. Then `low` and `high` are those that hold for all gaps at once.
        """
        texts = [self.sizes[key] for key in self.gaps.select("method", "size").iter_rows()]
        frame = self.gaps.with_columns(size_text=pl.Series(texts, dtype=pl.String))
        each = (frame.with_columns(at=at) for at in (pl.lit(LARGEST), pl.col("size_text")))
        frame = pl.concat(each).with_columns(picked=pl.len().over(*keys, "at") > 1)
        away = (pl.col("low") > 0) | (pl.col("high") < 0)
        certain = pl.col("p_value") < level
        return (
            frame.with_columns(
                pl.when("picked").then(f"{end}_all").otherwise(end).alias(end)
                for end in ("low", "high")
            )
            .with_columns(sure=pl.when("picked").then(away).otherwise(certain).fill_null(False))
            .sort("gap", descending=True, maintain_order=True)
            .group_by(*keys, "at", maintain_order=True)
            .first()
            .sort("layer", "head")
        )

    @cached_property
    def least(self) -> float:
        """The largest of `LEASTS` that at least half of the proxied heads reach on some split."""
        named = ~pl.col("text").is_in([NONE, OPEN])
        reached = self.smallest.group_by("least", *HEAD).agg(named.any())
        shares = dict(reached.group_by("least").agg(pl.col("text").mean()).iter_rows())
        return next((least for least in LEASTS if shares[least] >= 0.5), LEASTS[-1])

    @classmethod
    def of(
        cls,
        results: pl.DataFrame,
        gaps: pl.DataFrame,
        model: Mapping[str, Any],
        scores: pl.DataFrame | None,
    ) -> "Heads | None":
        """From a run's tables; None if no proxy edits a single head.

        Args:
            results: as `results.parquet`.
            gaps: as `gaps.parquet`.
            model: `layers`, `heads` and, where query heads share keys, `key_heads`.
            scores: all `heads.parquet`, or None.
        """
        single = single_heads(results, model)
        if not single:
            return None
        proxies, sizes = _proxies(results, single)
        numbers = ("split", "gap", "low", "high", "low_all", "high_all", "p_value", "verdict")
        of_heads = _measured(gaps, proxies).select(*HEAD, "shared", "size", *numbers)
        cells = _measured(results.filter(pl.col("facet").is_null()), proxies)
        by_head = even = None
        group = model["heads"] // model.get("key_heads", model["heads"])
        if scores is not None and not scores.is_empty():
            by_head = _of_edited(scores.drop_nulls("layer"), proxies, group)
            even = scores.filter(pl.col("layer").is_null())
        methods = proxies["method"].unique(maintain_order=True).to_list()
        smallest = pl.concat([_smallest(cells, least) for least in LEASTS])
        return cls(methods, sizes, smallest, of_heads, by_head, even, group > 1)


def _proxies(
    results: pl.DataFrame, single: Mapping[str, EditedHead]
) -> tuple[pl.DataFrame, dict[tuple[str, float | None], str]]:
    """simplification, method, layer, head and shared of the proxies of single heads; `sizes`."""
    rows, sizes = [], {}
    of_heads = results.filter(pl.col("simplification").is_in(list(single)))
    of_heads = of_heads.select("simplification", "size", "family", "size_name")
    for name, size, family, size_name in of_heads.unique(maintain_order=True).iter_rows():
        head = single[name]
        method = _method(family, head)
        sizes[method, size] = sized(size_name, [size])
        rows.append((name, method, head.layer, head.head, head.shared))
    columns = ("simplification", "method", "layer", "head", "shared")
    return pl.DataFrame(rows, columns, orient="row"), sizes


def _method(family: str, head: EditedHead) -> str:
    """How a head is simplified, whichever: `svd@1.3.query;svd@1.1.key` is "SVD · query, key"."""
    parts: dict[str, list[str]] = {}
    for attachment in re.findall(r'(?:"(?:[^"\\]|\\.)*"|[^;"])+', family):
        simplification, _, sites = attachment.rpartition("@")
        kinds = sites.rpartition(".")[2].strip("{}").split(",")
        parts.setdefault(method_label(simplification), []).extend(kinds)
    named = [
        f"{label} · {', '.join(kind for kind in HEAD_KINDS if kind in kinds)}"
        for label, kinds in parts.items()
    ]
    return " and ".join(named) + (" of shared key heads" if head.shared else "")


def _measured(frame: pl.DataFrame, proxies: pl.DataFrame) -> pl.DataFrame:
    """Same predictions of the proxies in single models."""
    rows = frame.filter(pl.col("seed").is_not_null(), metric="same_prediction").drop("method")
    return rows.join(proxies, on="simplification", maintain_order="left")


def _smallest(cells: pl.DataFrame, least: float) -> pl.DataFrame:
    by_split = [*HEAD, "shared", "split"]
    cells = cells.select(*by_split, "role", "size", "value", "low", "high").sort(
        "size", descending=True, maintain_order=True
    )
    passes = (pl.col("low") >= least).fill_null(False).cast(pl.Int8).cum_min().over(by_split)
    named = cells.filter(passes == 1).group_by(by_split, maintain_order=True).last()
    largest = cells.group_by(by_split, maintain_order=True).first()
    others = largest.join(named, on=by_split, how="anti", maintain_order="left")
    size = pl.col("size").map_elements(lambda x: f"{x:g}", return_dtype=pl.String)
    fails = (pl.col("high") < least).fill_null(False)
    text = pl.when(fails).then(pl.lit(NONE)).otherwise(pl.lit(OPEN))
    named = named.with_columns(text=size.fill_null("yes"))
    others = others.with_columns(text=text, size=pl.lit(None, pl.Float64))
    both = pl.concat([named, others]).with_columns(least=pl.lit(least))
    return both.sort("layer", "head", maintain_order=True)


def _of_edited(scores: pl.DataFrame, proxies: pl.DataFrame, group: int) -> pl.DataFrame:
    heads = proxies.select("method", "layer", "head", "shared").unique(maintain_order=True)
    scores = scores.select("seed", "layer", "head", *SCORES)
    by_key = scores.with_columns(pl.col("head") // group)
    by_key = by_key.group_by("seed", "layer", "head", maintain_order=True).agg(
        pl.col(SCORES).mean()
    )
    both = (each.with_columns(shared=pl.lit(x)) for x, each in ((False, scores), (True, by_key)))
    every = pl.concat(both)
    return heads.join(every, on=["layer", "head", "shared"], maintain_order="left").drop("shared")


def rows(heads: Heads, method: str, splits: Sequence[str]) -> list[dict[str, Any]]:
    """A table's rows, the largest gap first: what was found of every head with a method.

    Returns:
        of each `seed`, `name` ("4.3"), `smallest` (a text a split), the largest `gap` with `low`
        and `high` (see `Heads.largest`), its `split`, `size_text` and `verdict`, and the scores by
        name (None where there are none).
    """
    keys = ["seed", "layer", "head"]
    smallest = heads.smallest.filter(method=method, least=heads.least).pivot(
        on="split", index=keys, values="text"
    )
    table = heads.largest.filter(method=method).join(smallest, on=keys, how="full", coalesce=True)
    if heads.scores is not None:
        table = table.join(heads.scores.filter(method=method), on=keys, how="left")
    table = table.sort("gap", *keys, descending=[True, False, False, False], nulls_last=True)
    return [
        row
        | {
            "name": f"{row['layer']}.{row['head']}",
            "smallest": [row.get(split) or "–" for split in splits],
            "size_text": heads.sizes.get((method, row["size"]), ""),
        }
        for row in table.iter_rows(named=True)
    ]


def correlations(heads: Heads, resamples: int = 2000, seed: int = 0) -> list[dict[str, Any]]:
    """Spearman's rank correlation, over heads, of every score with a head's largest gap.

    Ranks are taken within a seed. Intervals are 95 % percentile intervals over resampled heads;
    they do not know how uncertain each gap is.

    Args:
        heads: of all seeds.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        method, score, value, low, high and heads of each pair with at least five heads.
    """
    if heads.scores is None:
        return []
    found = []
    table = heads.largest.join(heads.scores, on=HEAD)
    for method, score in product(heads.methods, SCORES):
        some = table.filter(method=method).drop_nulls(["gap", score])
        centred = pl.col("gap", score).rank().over("seed") - pl.len().over("seed") / 2
        ranks = some.select(centred).to_numpy()
        if len(ranks) < FEWEST_HEADS or not ranks.std(0).all():  # all heads alike
            continue
        draws = np.random.default_rng(seed).integers(len(ranks), size=(resamples, len(ranks)))
        x, y = ranks[draws].transpose(2, 0, 1)
        x, y = (z - z.mean(1, keepdims=True) for z in (x, y))
        with np.errstate(invalid="ignore"):
            drawn = (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))
        low, high = np.nanquantile(drawn, (0.025, 0.975))
        value = float(np.corrcoef(ranks.T)[0, 1])
        row = {"method": method, "score": score, "value": value, "low": float(low)}
        found.append(row | {"high": float(high), "heads": len(ranks)})
    return found
