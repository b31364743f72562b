"""The numbers that others report of a view, beside the share of same predictions."""

from collections.abc import Callable
from typing import NamedTuple

import polars as pl

from anamorph.analysis.findings import IDENTITY, KEPT, Findings
from anamorph.analysis.words import percent
from anamorph.faithfulness.metrics import JUDGED

ZERO, MEAN = "zero", "mean"  # the ablations, by their methods
LEAST = 1e-6  # bits that an ablation must cost: less is rounding

EXPLAINED, SAME = "explained variance", "same prediction"
NUMBERS: dict[str, tuple[str, Callable[[float], str]]] = {
    "explained_variance": (EXPLAINED, "{:.2f}".format),
    "l0": ("L0", "{:.1f}".format),
    "dead": ("dead features", percent),
    "ce_recovered": ("CE recovered", "{:.2f}".format),
    "kl_recovered": ("KL recovered", "{:.2f}".format),
    "same_prediction": (SAME, percent),
}
"""The columns of `reported`: what each is called, and how it is written."""


class Reported(NamedTuple):
    """What others report of a proxy.

    Attributes:
        simplification: its spec string.
        lines: by what a number is called its texts, one a split; without those that it has not.
    """

    simplification: str
    lines: dict[str, list[str]]


def recovered(results: pl.DataFrame) -> pl.DataFrame:
    """How much of what an ablation costs is not lost with a proxy at the same sites.

    `ce_recovered` is (CE_ablated − CE_proxy) / (CE_ablated − CE_model), of cross entropies, and
    `kl_recovered` is (KL_ablated − KL_proxy) / KL_ablated, of KL(model ‖ ·), as in SAEBench
    (Karvonen et al. 2025, arXiv 2503.09532): 1 for the model, 0 for the ablation, and maybe below.
    They are ratios of means over scored positions.

    Args:
        results: of an audit or a run.

    Returns:
        seed, simplification, split, ablation (its spec string), ce_recovered and kl_recovered (null
        where the ablation costs nothing). No row where no ablation was measured on the same
        positions, or it leaves others as they are (`keep=`); where zero and mean ablation were, it
        is the zero ablation.
    """
    metrics = ("model_cross_entropy", "proxy_cross_entropy", "output_kl")
    keys = ["seed", "split", "sites", "tokens", "keep"]
    value = pl.col("value")
    wide = (
        results.filter(pl.col("facet").is_null(), pl.col("metric").is_in(metrics))
        .with_columns(keep=pl.col("simplification").str.extract_all(KEPT).list.join(""))
        .group_by(*keys, "simplification", "method", "control", maintain_order=True)
        .agg(value.filter(pl.col("metric") == name).first().alias(name) for name in metrics)
        .with_columns(pl.col("method").str.replace("frozen; |; frozen", ""))
    )
    ablates = pl.col("method").is_in([ZERO, MEAN])
    ablations = (
        wide.filter(ablates, pl.col("control").is_null())
        .sort(pl.col("method") == MEAN, maintain_order=True)
        .unique(keys, keep="first", maintain_order=True)
        .select(*keys, ablation="simplification", ce="proxy_cross_entropy", kl="output_kl")
    )
    both = wide.filter(~ablates, pl.col("method") != IDENTITY).join(
        ablations, on=keys, nulls_equal=True, maintain_order="left"
    )
    ce, kl = pl.col("ce"), pl.col("kl")

    def share(part: pl.Expr, cost: pl.Expr) -> pl.Expr:
        return pl.when(cost > LEAST).then(part / cost)

    return both.select(
        "seed",
        "simplification",
        "split",
        "ablation",
        ce_recovered=share(ce - pl.col("proxy_cross_entropy"), ce - pl.col("model_cross_entropy")),
        kl_recovered=share(kl - pl.col("output_kl"), kl),
    )


def reported(run: Findings) -> pl.DataFrame:
    """What others report of every view, a row a split.

    Returns:
        simplification, split, ablation, and the columns of `NUMBERS`, null where there is no such
        number. Of several sites it is the worst explained variance, and the mean of `l0` and
        `dead`; of several models always the mean, and of `recovered` the ratio of means.
    """
    keys = ["simplification", "split"]
    same = run.pooled.filter(pl.col("method") != IDENTITY, metric=JUDGED)
    found = same.select(*keys, same_prediction="value").join(
        recovered(run.results).filter(pl.col("seed").is_null()),
        on=keys,
        how="left",
        maintain_order="left",
    )
    if run.sites is not None:
        means = (
            run.sites.group_by("seed", *keys, maintain_order=True)
            .agg(pl.col("explained_variance").min(), pl.col("l0", "dead").mean())
            .group_by(keys, maintain_order=True)
            .agg(pl.col("explained_variance", "l0", "dead").mean())
        )
        found = found.join(means, on=keys, how="left", maintain_order="left")
    missing = [name for name in NUMBERS if name not in found.columns]
    found = found.with_columns(pl.lit(None, pl.Float64).alias(name) for name in missing)
    return found.select(*keys, "ablation", *NUMBERS)


def lines(run: Findings) -> list[Reported]:
    """What others report, in words: of every view of which there is such a number.

    The most telling come first.
    """
    methods = {p.simplification: p.method for p in run.proxies}
    by_proxy = {name: some for (name,), some in reported(run).group_by("simplification")}
    made = []
    for name in (p.simplification for p in run.telling(len(run.proxies))):
        if name not in by_proxy:  # of single heads there may be seeds alone
            continue
        rows = {row["split"]: row for row in by_proxy[name].iter_rows(named=True)}
        ablation = next((row["ablation"] for row in rows.values() if row["ablation"]), None)
        texts = {}
        for column, (called, written) in NUMBERS.items():
            values = [rows[split][column] for split in run.splits]
            if ablation and column.endswith("recovered"):
                called += f" ({methods[ablation]})"
            if any(value is not None for value in values):
                texts[called] = ["–" if value is None else written(value) for value in values]
        if set(texts) != {SAME}:
            made.append(Reported(name, texts))
    return made
