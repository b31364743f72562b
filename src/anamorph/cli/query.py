"""`anamorph query SQL RUN…`: questions across runs."""

import json
import math
import re
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import polars.selectors as cs
import typer
from rich.markup import escape

from anamorph.analysis.formats import csv, markdown_of
from anamorph.cli.console import stdout
from anamorph.cli.layout import NOTHING, Sheet, say
from anamorph.errors import AnamorphError
from anamorph.runs.query import SECONDS, query_columns
from anamorph.runs.query import query as asked
from anamorph.runs.query_process import shown
from anamorph.runs.query_tables import TABLES

MOST_ROWS = 40  # in a terminal
MOST_LETTERS = 400  # of a cell there
DIGITS = 4
HELP = f"""Ask a question of any number of runs, in SQL.

Tables: {", ".join(TABLES)};
--columns tells what they have. The first column of each is run. Rows
where seed is null are of all models of a run together. For example:
anamorph query "select run, simplification, gap from cells
where seed is null and verdict like 'illusion%' order by gap desc" runs
"""

Sql = Annotated[
    str | None,
    typer.Argument(
        help="One SELECT of DuckDB; @FILE reads it from a file, - from stdin.", show_default=False
    ),
]
Runs = Annotated[
    list[str] | None,
    typer.Argument(help="Run folders, or folders of these.", metavar="RUN…", show_default=False),
]


def query(
    sql: Sql = None,
    runs: Runs = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all rows as a list of objects.")
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print all rows as CSV.")] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print all rows as a table for a document.")
    ] = False,
    columns: Annotated[
        bool, typer.Option("--columns", help="Print the tables, their columns and types.")
    ] = False,
    rows: Annotated[int, typer.Option(min=1, help="To show in the terminal.")] = MOST_ROWS,
    timeout: Annotated[float, typer.Option(help="Seconds that it may take.")] = SECONDS,
    skip: Annotated[
        bool, typer.Option("--skip", help="Leave out runs that are unfinished or damaged.")
    ] = False,
) -> None:
    """Ask a question; see `HELP`."""
    if as_json + as_csv + as_markdown > 1:
        raise AnamorphError("Give one of --json, --csv and --markdown.")
    if columns:
        found = query_columns()
    elif sql is None or not runs:
        raise AnamorphError(
            'Give a question and at least one run: anamorph query "select …" RUN…; '
            "anamorph query --columns tells what can be asked for."
        )
    else:
        found = asked(_read(sql), runs, timeout=timeout, skip=skip)
    if as_json:
        print(_as_json(found))
    elif as_csv:
        print(csv(_for_spreadsheets(found)), end="")
    elif as_markdown:
        print(markdown_of(list(map(_for_markdown, found.columns)), _texts(found, _for_markdown)))
    elif columns:
        _show_columns()
    else:
        _show(found, rows)


query.__doc__ = HELP


def _read(sql: str) -> str:
    """The question itself, or that of a file or of stdin."""
    if sql == "-":
        return sys.stdin.read()
    if not sql.startswith("@"):
        return sql
    try:
        return Path(sql[1:]).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise AnamorphError(f"Cannot read the question in {sql[1:]}: {error}.") from error


def _show_columns() -> None:
    for table, columns in TABLES.items():
        rows = [[escape(text) for text in (name, *about)] for name, about in columns.items()]
        Sheet(table, ("column", "type", "meaning"), rows, texts=True).print(stdout())


def _show(found: pl.DataFrame, rows: int) -> None:
    """The first rows as a table, and how many there are."""
    console = stdout()
    if not found.width or found.is_empty():
        say(console, f"No rows ({', '.join(map(shown, found.columns))}).")
        return
    title = f"{len(found):,} row{'s' if len(found) > 1 else ''}"
    if len(found) > rows:
        title += f", of which the first {rows:,} are shown; all with --csv or --json"
    sheet = Sheet(
        title=title,
        heads=[shown(name).replace("\n", " ") for name in found.columns],
        rows=_texts(found.head(rows), _for_terminal),
        words=[name for name, kind in found.schema.items() if not kind.is_numeric()],
        texts=found.width == 1,
    )
    sheet.print(console)


def _texts(found: pl.DataFrame, dressed: Callable[[str], str]) -> list[list[str]]:
    """The cells of all rows; of ranks and the like, whole in all rows, without a point."""
    whole = [column.name for column in found.select(cs.float()) if _is_whole(column)]
    shown_so = found.with_columns(pl.col(whole).cast(pl.Int64))
    return [[dressed(_text(value)) for value in row] for row in shown_so.iter_rows()]


def _is_whole(column: pl.Series) -> bool:
    inside = column.is_finite() & (column.abs() < 2**53) & (column == column.round())
    return bool(inside.all())


def _text(value: Any) -> str:
    """A value as people read it: four digits behind the point, or of what is very small."""
    if value is None:
        return NOTHING
    if isinstance(value, float) and math.isfinite(value):
        small = 0 < abs(value) < 10**-DIGITS
        return f"{value:.{DIGITS - 1}e}" if small else f"{value:.{DIGITS}f}"
    return str(value)


def _for_terminal(text: str) -> str:
    cut = text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]}…"
    return escape(shown(cut).replace("\n", " "))


def _for_markdown(text: str) -> str:
    """Without what Markdown takes for HTML, links, code or emphasis."""
    text = shown(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]])", r"\\\1", text)


def _for_spreadsheets(found: pl.DataFrame) -> pl.DataFrame:
    """Without formulas, which a spreadsheet would carry out; lists and the like as JSON."""
    nested = [name for name, kind in found.schema.items() if kind.is_nested() or kind == pl.Binary]
    plain = found.with_columns(
        pl.Series(name, [None if x is None else _json(x) for x in found[name].to_list()], pl.String)
        for name in nested
    )
    return plain.with_columns(cs.string().map_elements(_no_formula, pl.String)).rename(_no_formula)


def _no_formula(text: str) -> str:
    """A text behind an apostrophe if it looks like a formula and is more than a sign or number."""
    formula = re.match(r"[=+\-@\t\r].", text, re.DOTALL) and not re.fullmatch(r"[-+]?[\d.]+", text)
    return f"'{shown(text)}" if formula else shown(text)


def _as_json(found: pl.DataFrame) -> str:
    """A list of objects, as one line of JSON; null stands for what is no finite number too."""
    finite = found.with_columns(
        pl.when(cs.float().is_finite()).then(cs.float())  # of no other does JSON have a word
    )
    return _json(finite.to_dicts())


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=_plain)
    return re.sub(r"[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]", _code, text)


def _plain(value: Any) -> Any:
    """What JSON has for a value that it has no word for."""
    return float(value) if isinstance(value, Decimal) else str(value)


def _code(sign: re.Match[str]) -> str:
    return f"\\u{ord(sign[0]):04x}"
