"""What tables of earlier versions lack."""

import re

import polars as pl


def with_families(table: pl.DataFrame) -> pl.DataFrame:
    """A table of proxies with the columns `family` and `size_name`, made of the spec strings.

    Tables that have them, and tables without a row, stay as they are. None of an earlier version
    had a `control`.
    """
    if "control" not in table.columns:
        table = table.with_columns(control=pl.lit(None, pl.String))
    if "family" in table.columns or table.is_empty():
        return table
    keys = ["simplification", "size"]
    found = table.select(keys).unique(maintain_order=True)
    split = [split_size(name, size) for name, size in found.iter_rows()]
    named = pl.DataFrame(split, schema={"family": pl.String, "size_name": pl.String}, orient="row")
    return table.join(found.hstack(named), on=keys, nulls_equal=True, maintain_order="left")


def with_features(table: pl.DataFrame) -> pl.DataFrame:
    """A table of sites with `l0` and `dead`, which earlier versions did not count."""
    missing = [name for name in ("l0", "dead") if name not in table.columns]
    return table.with_columns(pl.lit(None, pl.Float64).alias(name) for name in missing)


def split_size(simplification: str, size: float | None) -> tuple[str, str | None]:
    """Take the size out of a spec string.

    Returns:
        The text without it, which all sizes of a family share, and what the size is called (such
        as "rank"); the whole text and None if there is no single size.
    """
    number = r"\b(\w+)=(\d+\.?\d*(?:[eE][+-]?\d+)?)(?=[,)]),?\s*"
    found = re.findall(number, simplification)
    names = [name for name, given in found if name != "seed" and float(given) == size]
    if not names:
        return simplification, None
    # Proxies of several attachments have the size in each.
    rest = re.sub(
        number,
        lambda x: "" if x[1] == names[0] and float(x[2]) == size else x[0],
        simplification,
    )
    return re.sub(r",\s*\)", ")", rest).replace("()", ""), names[0]
