"""The gap level by level of a facet, from the table of results."""

import polars as pl

Z = 1.96  # standard errors on either side of a 95 % interval


def level_gaps(results: pl.DataFrame, seed: int | None = None) -> pl.DataFrame:
    """Agreement on the reference minus that on each `ood` split, by the levels of every facet.

    Of one model, the positions of two splits are independent, so that the interval of a gap follows
    from the two intervals, as if they were normal. Over several models it is rather too wide: what
    models differ in counts on both splits.

    Args:
        results: as `results.parquet`; used are the rows of `same_prediction`.
        seed: whose rows; None: those over all seeds.

    Returns:
        a row a proxy, `ood` split, facet and level that both splits have: simplification, split,
        facet, level; value and iid, the agreements; gap with low and high (null where either
        agreement has no interval); error and iid_error, standard errors of the agreements; share
        and iid_share, of the split's scored positions (0 to 1).
    """
    cell = ["simplification", "split"]
    rows = results.filter(
        pl.col("seed").eq_missing(seed),
        pl.col("metric") == "same_prediction",
        pl.col("method") != "identity",
    )
    whole = rows.filter(pl.col("facet").is_null()).select(*cell, whole="tokens")
    rows = (
        rows.drop_nulls("facet")
        .join(whole, on=cell, maintain_order="left")
        .with_columns(
            error=(pl.col("high") - pl.col("low")) / (2 * Z),
            share=pl.col("tokens") / pl.col("whole"),
        )
    )
    keys = ["simplification", "facet", "level"]
    iid = rows.filter(pl.col("role") == "iid").select(
        *keys, iid="value", iid_error="error", iid_share="share"
    )
    half = Z * (pl.col("error") ** 2 + pl.col("iid_error") ** 2).sqrt()
    return (
        rows.filter(pl.col("role") == "ood")
        .join(iid, on=keys, maintain_order="left")
        .with_columns(gap=pl.col("iid") - pl.col("value"))
        .with_columns(low=pl.col("gap") - half, high=pl.col("gap") + half)
        .select(
            *("simplification", "split", "facet", "level", "value", "iid"),
            *("gap", "low", "high", "error", "iid_error", "share", "iid_share"),
        )
    )
