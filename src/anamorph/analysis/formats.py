"""Tables as text for programs and papers: CSV, LaTeX, Markdown, JSON."""

import json
import re
from collections.abc import Callable
from typing import Any

import polars as pl
import polars.selectors as cs

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
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
    lines = [_cells(table, _for_markdown), ["---"] * table.width, *_rows(table, _for_markdown)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def latex(table: pl.DataFrame) -> str:
    """A `tabular` with the rules of the package booktabs; words left, numbers right."""
    columns = "".join("r" if kind.is_numeric() else "l" for kind in table.dtypes)
    ends = [" & ".join(line) + r" \\" for line in _rows(table, _for_latex)]
    head = " & ".join(_cells(table, _for_latex)) + r" \\"
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *ends]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


FORMATS: dict[str, Callable[[pl.DataFrame], str]] = {
    "csv": csv,
    "latex": latex,
    "markdown": markdown,
    "json": as_json,
}
"""By the option that asks for it."""


def _cells(table: pl.DataFrame, written: Callable[[str], str]) -> list[str]:
    return [written(name) for name in table.columns]


def _rows(table: pl.DataFrame, written: Callable[[str], str]) -> list[list[str]]:
    rounded = table.with_columns(cs.float().round(DIGITS))
    return [[written(_text(value)) for value in row] for row in rounded.iter_rows()]


def _text(value: Any) -> str:
    """As a document has it; – where it is missing."""
    if value is None:
        return "–"
    return f"{value:.{DIGITS}f}" if isinstance(value, float) else str(value)


def _for_markdown(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", r"\|")


def _for_latex(text: str) -> str:
    escaped = "".join(_LATEX.get(character, character) for character in re.sub(r"\s+", " ", text))
    return escaped.replace("–", "--")
