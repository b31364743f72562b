"""Many models along an axis: one page, with a link to the report of each run."""

import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

from anamorph.analysis.along import Along, Row
from anamorph.analysis.along_words import changes, headline, notes, where
from anamorph.analysis.axes import Asked, Point, axis_of
from anamorph.analysis.words import SIGNS
from anamorph.errors import AnamorphError
from anamorph.files import replacing
from anamorph.report.charts.along import draw
from anamorph.report.frame import filled, frame
from anamorph.runs.varied import setting_text
from anamorph.store import Address, StorePath, address_of

MOST_VIEWS = 12  # told in sentences that are not folded away
MOST_MODELS = 20  # rows of a table that is not folded away
MOST_PRINTED = 60  # rows of a folded table that is printed all the same


def along(
    runs: Sequence[Asked] | Asked, axis: str | None = None, out: Address | str | None = None
) -> Along:
    """Look at finished runs along what they differ in: checkpoints, seeds, sizes of a model.

    Args:
        runs: run folders, folders of one of their models (`runs/a/seed-0`), folders of studies
            that `--vary` made, or runs that are open; of a single run of several seeds these are
            the axis.
        axis: the setting that is the axis, such as `training.steps`, `model` or `seed`; by default
            what the runs differ in.
        out: write the page there, such as `along.html`.

    Returns:
        the tables; `table` has a row a value of the axis, view, split and metric.

    Raises:
        AnamorphError: if the runs differ in nothing, or in several settings and `axis` names none
            of them; if two stand at the same place; if they have no view in common; or if the page
            cannot be written.
        RunFolderError: if a run is not finished, or damaged.
    """
    several = [runs] if not isinstance(runs, Sequence) or isinstance(runs, str) else runs
    found = Along.of(axis_of(several, axis))
    if out is not None:
        write_page(found, address_of(out))
    return found


def write_page(found: Along, path: Address) -> None:
    """Write the page; it links to the reports of the runs, from where it lies."""
    if path.suffix.lower() != ".html":
        raise AnamorphError(
            f"The page is an HTML file; got {path}. Give a name such as along.html."
        )
    figures = draw(found)
    said = changes(found)
    page = filled(
        "along.html.j2",
        **frame(list(chain(*figures.values()))),
        figures=figures,
        found=found,
        where=where(found),
        headline=headline(found),
        changes=said,
        notes=notes(found),
        most_views=MOST_VIEWS,
        most_models=MOST_MODELS,
        most_printed=MOST_PRINTED,
        models=_models(found, path.parent),
        cells=_cells(found),
        trends=[row | {"view": _view(found, row)} for row in found.trends.to_dicts()],
        signs=SIGNS,
        shown=setting_text,
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _models(found: Along, folder: Address) -> list[dict[str, Any]]:
    """A row a value: its text, other settings, accuracy by split, and the link to its report."""
    rows = []
    for point in found.axis.points:
        own = found.models.filter(run=str(point.side.run.path), at=point.value, rest=point.rest)
        accuracy = dict(own.select("split", "accuracy").iter_rows())
        rows.append(
            {
                "at": point.text,
                "rest": point.rest,
                "models": len(point.side.seeds),
                "accuracy": [accuracy.get(split) for split in found.splits],
                **_linked(point, folder),
            }
        )
    return rows


def _linked(point: Point, folder: Address) -> dict[str, str | None]:
    """A run as seen from a folder: its `name`, and the `link` to its report; None without one."""
    report, here = point.side.run.report, str(folder)
    if isinstance(report, StorePath):  # it is opened from beside the page, wherever that is copied
        inside = str(report).startswith(f"{here}/")
        link = quote(str(report)[len(here) + 1 :]) if inside else None
        return {"name": point.side.name.removeprefix(f"{here}/"), "link": link}
    try:
        name = Path(os.path.relpath(point.side.name, here)).as_posix()
        link = quote(Path(os.path.relpath(report, here)).as_posix())
    except ValueError:  # on another drive
        name, link = point.side.name, report.absolute().as_uri()
    return {"name": name, "link": link if report.exists() else None}


def _cells(found: Along) -> list[Row]:
    """Every judged row with the name of its view, in the order of views and splits."""
    return [row | {"view": _view(found, row)} for rows in found.cells.values() for row in rows]


def _view(found: Along, row: Row) -> str:
    return found.labels[row["rest"], row["simplification"]]
