"""The gap at each level of a facet, from the table of results."""

import polars as pl


def level_gaps(results: pl.DataFrame, seed: int | None = None) -> pl.DataFrame:
    """Agreement on the reference minus that on each `ood` split, by the levels of every facet.

    The sequences of two splits are independent, so the interval of a gap follows from the two
    intervals: the distances of their ends are added in squares (`anamorph.faithfulness.intervals`).
    Over several models it is rather too wide: how models differ counts on both splits.

    Args:
        results: as `results.parquet`; the rows of `same_prediction` are used.
        seed: whose rows; None for those over all seeds.

    Returns:
        a row a proxy, `ood` split, and facet and level of this split: simplification, split, facet,
        level; value and iid, the agreements; gap with low and high (null where either agreement has
        no interval); share and iid_share, of the split's scored positions (0 to 1). What is of the
        reference, and the gap, is null at a level that the reference does not have.
    """
    cell, level = ["simplification", "split"], ["simplification", "facet", "level"]
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
            below=pl.col("value") - pl.col("low"),
            above=pl.col("high") - pl.col("value"),
            share=pl.col("tokens") / pl.col("whole"),
        )
    )
    gap = pl.col("value_iid") - pl.col("value")
    return (
        rows.filter(role="ood")
        .join(rows.filter(role="iid"), level, "left", suffix="_iid", maintain_order="left")
        .select(
            *("simplification", "split", "facet", "level", "value"),
            iid="value_iid",
            gap=gap,
            low=gap - (pl.col("below_iid") ** 2 + pl.col("above") ** 2).sqrt(),
            high=gap + (pl.col("above_iid") ** 2 + pl.col("below") ** 2).sqrt(),
            share="share",
            iid_share="share_iid",
        )
    )
