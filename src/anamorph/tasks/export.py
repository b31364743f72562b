"""A task on disk: one Parquet file a split, and `task.json`."""

import json
import re
import unicodedata
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anamorph.errors import AnamorphError
from anamorph.files import replacing
from anamorph.tasks.base import Split, Task

LONGEST = 100  # bytes of a split's name that can be a file's

_RESERVED = {"con", "prn", "aux", "nul", *(f"{x}{i}" for x in ("com", "lpt") for i in range(10))}


def export(task: Task, folder: Path | str) -> None:
    """Write `SPLIT.parquet` for every split, then `task.json`.

    A row is a sequence; `tokens`, `scored` and one column for each facet are lists with an entry
    for each token. Facets are codes; `task.json` has their names, the vocabulary, the candidates,
    the accuracy of a model that has learnt the task, the roles and every argument of the task.
    Where the name of a split cannot be that of a file everywhere, the file has another, which
    `task.json` tells.

    Raises:
        AnamorphError: if the folder cannot be written to, or a facet is named as another column.
    """
    folder = Path(folder)
    stems = file_stems(task.splits)
    for split in task.splits.values():
        with replacing(folder / f"{stems[split.name]}.parquet") as temporary:
            to_table(split).write_parquet(temporary, compression="zstd")
    description = {
        "task": dict(task.spec),
        "vocabulary": task.vocabulary,
        "candidates": task.candidates.tolist(),
        "learnt": task.learnt,
        "splits": {
            split.name: {
                "file": f"{stems[split.name]}.parquet",
                "role": split.role,
                "sequences": len(split),
                "tokens": len(split.tokens),
                "scored": int(split.scored.sum()),
            }
            for split in task.splits.values()
        },
        "facets": {name: facet.names for name, facet in task.reference.facets.items()},
    }
    with replacing(folder / "task.json") as temporary:
        temporary.write_text(json.dumps(description, indent=2, ensure_ascii=False) + "\n", "utf-8")


def to_table(split: Split) -> pl.DataFrame:
    """A split as a table with a row a sequence.

    Raises:
        AnamorphError: if a facet is named as another column.
    """
    columns = {"tokens": split.tokens, "scored": split.scored}
    columns |= {} if split.masked is None else {"masked": split.masked}
    if taken := sorted(columns.keys() & split.facets.keys()):
        raise AnamorphError(
            f"Split {split.name!r} has a facet named {taken[0]!r}, which is the name of a column "
            "that every split has; give the facet another name."
        )
    columns |= {name: facet.codes for name, facet in split.facets.items()}
    return pl.DataFrame({name: _lists(x, split.offsets) for name, x in columns.items()})


def file_stems(names: Iterable[str]) -> dict[str, str]:
    """For each name one that is safe for a file everywhere, and no other's in any case of letters.

    A name of letters, digits, `_`, `-` and dots stays as it is; others, and those that differ from
    another by the case of letters only, are told apart by a few hex digits at their end.
    """
    names = list(names)
    folded = [unicodedata.normalize("NFC", name).casefold() for name in names]
    stems = {}
    for name, fold in zip(names, folded, strict=True):
        safe = re.fullmatch(r"\w(?:[\w.-]*[\w-])?", name) and len(name.encode()) <= LONGEST
        if safe and folded.count(fold) == 1 and fold.split(".")[0] not in _RESERVED:
            stems[name] = name
        else:
            digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
            stems[name] = f"{re.sub(r'[^A-Za-z0-9]+', '_', name)[:40]}-{digest}"
    return stems


def _lists(values: NDArray[np.generic], offsets: NDArray[np.int64]) -> pl.Series:
    frame = pl.DataFrame(
        {"row": np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)), "value": values}
    )
    return frame.group_by("row", maintain_order=True).agg("value")["value"]
