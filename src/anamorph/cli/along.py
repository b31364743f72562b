"""`anamorph along RUN…`: finished runs along what they differ in."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from anamorph.analysis.along import Along
from anamorph.analysis.along_words import as_objects, changes, headline, notes
from anamorph.analysis.formats import FORMATS, markdown_of
from anamorph.analysis.words import SIGNS, split_label
from anamorph.cli.console import stderr, stdout
from anamorph.cli.layout import Sheet, say
from anamorph.cli.rows import LEGEND
from anamorph.cli.tables import STYLE
from anamorph.errors import AnamorphError
from anamorph.report.along import along as looked_at
from anamorph.runs.varied import setting_text

MOST_VALUES = 12  # columns of a table

Runs = Annotated[
    list[str],
    typer.Argument(
        help="Run folders, RUN/seed-N, or a folder that --vary made.", show_default=False
    ),
]
AxisName = Annotated[
    str | None,
    typer.Option(
        help="The setting that is the axis, such as training.steps, or seed.",
        show_default="what the runs differ in",
    ),
]
Page = Annotated[str | None, typer.Option(help="Write the page there, such as along.html.")]
Json = Annotated[bool, typer.Option("--json", help="Print all as JSON.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print the table as CSV.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print it for a document.")]


def along(
    runs: Runs,
    axis: AxisName = None,
    out: Page = None,
    as_json: Json = False,
    csv: Csv = False,
    markdown: Markdown = False,
) -> None:
    """Look at runs along an axis: checkpoints, seeds, sizes. Where does a view begin to fail?"""
    given = {"--json": as_json, "--csv": csv, "--markdown": markdown}
    kinds = [name for name, wanted in given.items() if wanted]
    if len(kinds) > 1:
        raise AnamorphError(f"Give one of {', '.join(kinds)}.")
    found = looked_at(runs, axis, out)
    match kinds:
        case ["--json"]:
            print(json.dumps(as_objects(found), ensure_ascii=False, allow_nan=False))
        case ["--csv"]:
            print(FORMATS["csv"](found.table), end="")
        case ["--markdown"]:
            print(_document(found))
        case _:
            print_along(found, stdout())
    if out is not None:
        (stderr() if kinds else stdout()).print(f"Page: {out}", soft_wrap=True, markup=False)


def print_along(found: Along, console: Console) -> None:
    """Same predictions and verdicts by view, split and value; and what changes, in words."""
    values = found.axis.values
    if len(values) <= MOST_VALUES:
        title = f"Share of predictions that proxy and model have in common, by {found.axis.name}"
        heads = ["view", "split", *map(setting_text, values)]
        rows = []
        for view, some in _matrix(found).items():
            for place, (split, row) in enumerate(some):
                first = "" if place else escape(view)
                rows.append([first, escape(split), *(_cell(*cell) for cell in row)])
        legend = f"{LEGEND}; no mark: faithful"
        Sheet(title, heads, rows, legend, words=heads[:2]).print(console)
    for change in changes(found):
        say(console, f"{change.title}. {' '.join(change.texts)}", indent="  ")
    for note in notes(found):
        say(console, note, "dim")
    say(console, headline(found), "bold")


def _matrix(found: Along) -> dict[str, list[tuple[str, list[tuple[float | None, str | None]]]]]:
    """By view, a row an `ood` split: same predictions and verdict at each value."""
    table: dict[str, list[tuple[str, list[tuple[float | None, str | None]]]]] = {}
    for view in found.telling(len(found.labels)):
        for split in found.splits:
            cells = {row["at"]: row for row in found.cells.get((*view, split), ())}
            if cells:
                row = [
                    (cells[at]["value"], cells[at]["verdict"]) if at in cells else (None, None)
                    for at in found.axis.values
                ]
                table.setdefault(found.labels[view], []).append((split_label(split), row))
    return table


def _cell(value: float | None, verdict: str | None) -> str:
    if value is None:
        return "–  "
    if verdict is None:
        return f"{value:.3f}  "
    return f"[{STYLE[verdict]}]{value:.3f} {SIGNS[verdict] or ' '}[/]"


def _document(found: Along) -> str:
    """What changes, and every verdict, in Markdown."""
    heads = ["view", "split", *map(setting_text, found.axis.values)]
    rows = [
        [f"`{view}`", split, *(_plain(*cell) for cell in row)]
        for view, some in _matrix(found).items()
        for split, row in some
    ]
    said = [f"- **`{c.title}`**: {' '.join(c.texts)}" for c in changes(found)]
    parts = [
        f"**{headline(found)}**",
        "\n".join(said),
        f"Share of same predictions by {found.axis.name} ({LEGEND}; no mark: faithful):",
        markdown_of(heads, rows),
        *notes(found),
    ]
    return "\n\n".join(parts)


def _plain(value: float | None, verdict: str | None) -> str:
    return "–" if value is None else f"{value:.3f} {SIGNS.get(verdict or '', '')}".strip()
