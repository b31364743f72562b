"""Tables as text for programs and papers: CSV, LaTeX, Markdown, JSON."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import polars as pl
import polars.selectors as cs

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{"▼": r"$\blacktriangledown$", "▲": r"$\blacktriangle$", "◆": r"$\blacklozenge$"},
    **{"↓": r"$\downarrow$", "→": r"$\rightarrow$", "×": r"$\times$", "−": "$-$", "–": "--"},
    "\N{NO-BREAK SPACE}": "~",
}
DIGITS = 4  # behind the point, in documents; CSV and JSON have all


def csv(table: pl.DataFrame) -> str:
    """Comma-separated, with a line of names; nothing where a value is missing."""
    return table.write_csv()


def as_json(table: pl.DataFrame) -> str:
    """A list of objects, one a row; null where a value is missing."""
    return json.dumps(table.to_dicts(), allow_nan=False, ensure_ascii=False)


def markdown(table: pl.DataFrame) -> str:
    """A table of GitHub's Markdown."""
    return markdown_of(table.columns, _rows(table)) + "\n"


def markdown_of(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of GitHub's Markdown, of texts; bars and line breaks in them do not end a cell."""
    lines = [[_for_markdown(text) for text in line] for line in (heads, *rows)]
    lines.insert(1, ["---"] * len(heads))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def latex(table: pl.DataFrame) -> str:
    """A `tabular` with the rules of the package booktabs; words left, numbers right."""
    columns = "".join("r" if kind.is_numeric() else "l" for kind in table.dtypes)
    rows = ([for_latex(text) for text in row] for row in _rows(table))
    return latex_of(columns, [for_latex(name) for name in table.columns], rows)


def latex_of(columns: str, heads: Sequence[str], *groups: Iterable[Sequence[str]]) -> str:
    """A `tabular` with the rules of the package booktabs.

    Args:
        columns: how each is set: l, r or c.
        heads: what each is called, in LaTeX.
        groups: of rows, with a rule between them; the cells in LaTeX.
    """
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _latex_row(heads)]
    for rows in groups:
        lines += [r"\midrule", *map(_latex_row, rows)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def for_latex(text: str) -> str:
    """A text as LaTeX shows it; the signs of verdicts are those of the package amssymb."""
    shown = [_LATEX.get(sign, sign) for sign in re.sub(r"[ \t\r\n\f\v]+", " ", text)]
    if shown and shown[0] in "[*":  # which the end of the line before would take for its own
        shown[0] = f"{{{shown[0]}}}"
    return "".join(shown)


FORMATS: dict[str, Callable[[pl.DataFrame], str]] = {
    "csv": csv,
    "latex": latex,
    "markdown": markdown,
    "json": as_json,
}
"""By the option that asks for it."""


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _rows(table: pl.DataFrame) -> list[list[str]]:
    rounded = table.with_columns(cs.float().round(DIGITS))
    return [[_text(value) for value in row] for row in rounded.iter_rows()]


def _text(value: Any) -> str:
    """As a document has it; – where it is missing."""
    if value is None:
        return "–"
    return f"{value:.{DIGITS}f}" if isinstance(value, float) else str(value)


def _for_markdown(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", r"\|")
