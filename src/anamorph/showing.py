"""What a notebook and a terminal show of an object: words, facts and one table.

An object that says what it is by a `Card` has `_repr_html_` and `__repr__` from `Showing`. The HTML
has its style inline, no scripts, and takes the colour of text from where it stands, so that it can
be read in light and in dark. All text is escaped.
"""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import NamedTuple

from markupsafe import Markup

WIDTH = 100  # columns of text, where a name can be cut to fit
MOST = 40  # rows of a table
MOST_OF_TEXT = 16  # in a terminal, where it should stay on one screen

LINE = "1px solid rgba(128,128,128,.35)"
CELL = f"padding:2px 10px;border:0;border-bottom:{LINE};background:none;vertical-align:top"
TABLE = "border-collapse:collapse;margin:4px 0;font-size:inherit;font-variant-numeric:tabular-nums"
TINTS = {
    "": "",
    "good": "background:rgba(0,158,115,.24)",
    "bad": "background:#b0432c;color:#fff",
    "other": "background:#4b4fa3;color:#fff",
    "both": "background:#8d5485;color:#fff",
    "open": "background:rgba(226,170,0,.3)",
    "poor": "background:rgba(128,128,128,.28)",
}
"""Of a cell; light ones let what is behind them through, so that text of any colour can be read."""


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        text: what stands in it.
        tint: one of `TINTS`.
        number: whether it stands at the right.
    """

    text: str
    tint: str = ""
    number: bool = True


@dataclass(frozen=True)
class Card:
    """What is said of an object.

    Attributes:
        title: what it is.
        facts: names and what they are.
        lines: sentences before the table.
        heads: of the table's columns; the first is of the rows' names.
        rows: of the table: a name, and a cell for each other column; those behind the first `MOST`
            are left out, which is said.
        total: what rows there are in all, such as "270 proxies", where more than `MOST`.
        notes: sentences behind it.
    """

    title: str
    facts: Sequence[tuple[str, str]] = ()
    lines: Sequence[str] = ()
    heads: Sequence[str] = ()
    rows: Sequence[tuple[str, Sequence[Cell]]] = ()
    total: str = ""
    notes: Sequence[str] = ()

    @property
    def html(self) -> str:
        """For a notebook."""
        paragraph = '<p style="margin:0 0 4px">{}</p>'
        parts = [html(paragraph, html("<strong>{}</strong>", self.title))]
        parts += [html(paragraph, line) for line in self.lines]
        if self.facts:
            rows = [_row(name, [Cell(text, number=False)]) for name, text in self.facts]
            parts.append(html('<table style="{}"><tbody>{}</tbody></table>', TABLE, joined(rows)))
        if self.rows:
            parts.append(self._table())
        parts += [html(paragraph, note) for note in self._said(MOST)]
        style = "overflow-x:auto;line-height:1.45;color:inherit"
        region = '<div role="region" tabindex="0" aria-label="{}" style="{}">{}</div>'
        return str(html(region, self.title, style, joined(parts)))

    def _table(self) -> Markup:
        first = self.rows[0][1]
        aligned = ["left", *("right" if cell.number else "left" for cell in first)]
        style = f"{CELL};font-weight:600;vertical-align:bottom;text-align:"
        head = joined(
            html('<th scope="col" style="{}">{}</th>', style + align, text)
            for text, align in zip(self.heads, aligned, strict=True)
        )
        return html(
            '<table style="{}"><thead><tr style="background:none">{}</tr></thead>'
            "<tbody>{}</tbody></table>",
            *(TABLE, head, joined(_row(name, cells) for name, cells in self.rows[:MOST])),
        )

    def _said(self, most: int) -> list[str]:
        """The notes, and before them that rows are left out."""
        left_out = len(self.rows) > most
        return [*([f"Shown are {most} of {self.total}."] if left_out else []), *self.notes]

    @property
    def line(self) -> str:
        """Title and facts in a line."""
        return f"{self.title}: {', '.join(f'{name} {fact}' for name, fact in self.facts)}"

    @property
    def text(self) -> str:
        """For a terminal: one screen of it."""
        wide = max((len(name) for name, _ in self.facts), default=0)
        lines = [self.title, *map(_wrapped, self.lines)]
        lines += [f"  {name:{wide}}  {text}" for name, text in self.facts]
        if self.rows:
            lines += self._columns(self.rows[:MOST_OF_TEXT])
        return "\n".join([*lines, *map(_wrapped, self._said(MOST_OF_TEXT))])

    def _columns(self, rows: Sequence[tuple[str, Sequence[Cell]]]) -> list[str]:
        """Heads stand word below word, and long names are cut in the middle."""
        words = [head.split() for head in self.heads[1:]]
        texts = [[cell.text for cell in cells] for _, cells in rows]
        widths = [
            max(map(len, [*head, *column])) for head, *column in zip(words, *texts, strict=True)
        ]
        right = [cell.number for cell in rows[0][1]]
        room = max(24, WIDTH - sum(widths) - 2 * len(widths))
        names = [_cut(name, room) for name, _ in rows]
        first = max(map(len, [self.heads[0], *names]))

        def line(name: str, cells: Iterable[str]) -> str:
            placed = (
                f"{cell:>{width}}" if at_right else f"{cell:{width}}"
                for cell, width, at_right in zip(cells, widths, right, strict=True)
            )
            return "  ".join([f"{name:{first}}", *placed]).rstrip()

        tall = max(map(len, words))
        tops = list(zip(*([""] * (tall - len(head)) + head for head in words), strict=True))
        heads = [line(self.heads[0] if top is tops[-1] else "", top) for top in tops]
        return [*heads, *(line(name, cells) for name, cells in zip(names, texts, strict=True))]


class Showing:
    """What is shown as its card."""

    @abstractmethod
    def _card(self) -> Card:
        """What is said of it."""

    def __repr__(self) -> str:
        return self._card().text

    def _repr_html_(self) -> str:
        return self._card().html


def html(template: str, *values: object) -> Markup:
    """Markup with values in its braces, escaped unless they are markup themselves."""
    return Markup(template).format(*values)


def joined(parts: Iterable[Markup]) -> Markup:
    """Pieces of markup as one."""
    return Markup("").join(parts)


def _row(name: str, cells: Sequence[Cell]) -> Markup:
    head = html('<th scope="row" style="{};font-weight:400;text-align:left">{}</th>', CELL, name)
    columns = (
        html(
            '<td style="{};text-align:{};{}">{}</td>',
            *(CELL, "right;white-space:nowrap" if cell.number else "left"),
            *(TINTS[cell.tint], cell.text),
        )
        for cell in cells
    )
    return html('<tr style="background:none">{}{}</tr>', head, joined(columns))


def _wrapped(text: str) -> str:
    return fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _cut(name: str, room: int) -> str:
    """A name that is too long, without its middle."""
    if len(name) <= room:
        return name
    front = (room - 1) * 2 // 3
    return f"{name[:front]}…{name[front + 1 - room :]}"
