"""A task on disk: one Parquet file a split, and `task.json`."""

from pathlib import Path

import polars as pl

from anamorph.errors import AnamorphError
from anamorph.files import file_name, write_json, write_table
from anamorph.tasks.base import Split, Task


def export(task: Task, folder: Path | str) -> None:
    """Write `SPLIT.parquet` for every split, then `task.json`.

    A row is a sequence; `tokens`, `scored` and one column for each facet are lists with an entry
    for each token. Facets are codes; `task.json` has their names, the vocabulary, the candidates,
    the accuracy of a model that has learnt the task, the roles and every argument of the task.
    Where the name of a split cannot be that of a file on every system, the file has another, which
    `task.json` names.

    Raises:
        AnamorphError: if the folder cannot be written to, or a facet is named as another column.
    """
    folder = Path(folder)
    for split in task.splits.values():
        write_table(folder / f"{file_name(split.name)}.parquet", _table(split))
    description = {
        "task": dict(task.spec),
        "vocabulary": task.vocabulary,
        "candidates": task.candidates.tolist(),
        "learnt": task.learnt,
        "splits": {
            split.name: {
                "file": f"{file_name(split.name)}.parquet",
                "role": split.role,
                "sequences": len(split),
                "tokens": len(split.tokens),
                "scored": int(split.scored.sum()),
            }
            for split in task.splits.values()
        },
        "facets": {name: facet.names for name, facet in task.reference.facets.items()},
    }
    write_json(folder / "task.json", description)


def _table(split: Split) -> pl.DataFrame:
    """A split as a table with a row a sequence."""
    columns = {"tokens": split.tokens, "scored": split.scored}
    columns |= {} if split.masked is None else {"masked": split.masked}
    if taken := sorted(columns.keys() & split.facets.keys()):
        raise AnamorphError(
            f"Split {split.name!r} has a facet named {taken[0]!r}, which is the name of a column "
            "that every split has; give the facet another name."
        )
    columns |= {name: facet.codes for name, facet in split.facets.items()}
    row = pl.Series("row", split.owner)
    lists = {
        name: pl.DataFrame({"entry": values}).group_by(row, maintain_order=True).agg("entry")
        for name, values in columns.items()
    }
    return pl.DataFrame({name: table["entry"] for name, table in lists.items()})
