"""The invented run of `synthetic_run`, with controls beside some of its views."""

from pathlib import Path

import polars as pl

from anamorph.runs.folder import COLUMNS
from anamorph.runs.older import with_families
from synthetic_run import LAYER_1, SPLITS, make_run

FAMILY = f"svd(joint=true)@{LAYER_1}"
PROXY = f"svd(rank=8, joint=true)@{LAYER_1}"
EXPLAINED = 0.98, 0.71  # of the variance of queries and keys
DEEP = "unseen_depth"
LEFT = 0.1  # of what the view gets wrong, where it is fitted on the split itself
RANDOM = 0.5  # of what the view gets right, where nothing is learnt


def make_controlled(run: Path) -> Path:
    """Beside SVD of layer 1: fitted on unseen depth, on half of train, and not at all."""
    make_run(run, seeds=(0,), nasty=False)
    for name in ("results", "gaps"):
        views = with_families(pl.read_parquet(run / f"{name}.parquet"))
        named = pl.col("simplification")
        view = views.filter(pl.col("family") == FAMILY)
        oracle = view.with_columns(
            named.str.replace("joint=true", f"joint=true, on={DEEP}"), control=pl.lit("oracle")
        )
        half = view.with_columns(
            named.str.replace("joint=true", "joint=true, on=train[0::2]"), control=pl.lit("half")
        )
        random = view.with_columns(
            named.str.replace("svd", "random"),
            pl.col("method").str.replace("svd", "random"),
            pl.col("family").str.replace("svd", "random"),
            control=pl.lit("random"),
        )
        if name == "results":
            changed = [pl.col(column) for column in ("value", "low", "high")]
            oracle = oracle.with_columns(x * LEFT + (1 - LEFT) for x in changed)
            random = random.with_columns(x * RANDOM for x in changed)
        pl.concat([views, oracle, half, random]).write_parquet(run / f"{name}.parquet")
    rows = [
        (0, view, split, role, site, value, 900, 100)
        for split, role in SPLITS.items()
        for view, site, value in [
            (PROXY, "1.0.query", EXPLAINED[0]),
            (PROXY, "1.0.key", EXPLAINED[1]),
            (PROXY.replace("joint=true", "joint=true, on=unseen_depth"), "1.0.key", 0.5),
        ]
    ]
    schema = COLUMNS["sites"].split()
    pl.DataFrame(rows, schema, orient="row").write_parquet(run / "seed-0" / "sites.parquet")
    return run
