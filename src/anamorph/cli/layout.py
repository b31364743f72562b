"""Tables and texts in a terminal of any width: what one would search for is never broken.

Spec strings, numbers, verdicts and paths stay whole on one line, if need be on a longer one.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from anamorph.analysis.words import SIGNS
from anamorph.faithfulness.gaps import VERDICTS

GAP, INDENT, NOTHING = "   ", "  ", "–"
LEAST = 24  # columns of a terminal for a column of texts
_SIGNED = (f"{re.escape(SIGNS[verdict])} ?{re.escape(verdict)}" for verdict in VERDICTS)
_KEPT = re.compile(
    rf"[\w}}]\([^()\s][^()]*\)|{'|'.join(_SIGNED)}|{'|'.join(map(re.escape, VERDICTS))}"
)
_SPACE = "\ue000"  # stands for one that is kept: a letter of no script, one column wide


def wrapped(text: str, width: int, indent: str = "") -> str:
    """A text in lines of a width, broken between words, but not within specs and verdicts.

    What does not fit a line is a longer line of its own.

    Args:
        text: without markup.
        width: of a line, its indent included.
        indent: of all lines but the first.
    """
    lines: list[str] = []
    for paragraph in text.split("\n"):
        whole = _KEPT.sub(lambda found: found[0].replace(" ", _SPACE), paragraph)
        line, *words = whole.split(" ")
        for word in words:
            if cell_len(line) + 1 + cell_len(word) <= width:
                line += f" {word}"
            else:
                lines.append(line)
                line = indent + word
        lines.append(line)
    return "\n".join(lines).replace(_SPACE, " ")


def say(console: Console, text: str, style: str = "", indent: str = "") -> None:
    """Print a text without markup; see `wrapped`."""
    console.print(Text(wrapped(text, console.width, indent), style), soft_wrap=True)


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        title: above it, without markup.
        heads: what the columns are called, without markup; the first tells the rows apart.
        rows: the cells, in markup; the first of a row may be "" for that of the row before.
        caption: below it, without markup.
        words: the columns of words, which stand left; those of numbers stand right.
        texts: whether cells have sentences, which may be broken between words.
        lined: whether there is a line between rows.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    words: Collection[str] = ()
    texts: bool = False
    lined: bool = False

    def print(self, console: Console) -> None:
        """Print it as a table where it fits the width, or else row by row."""
        say(console, self.title, "italic")
        rows = _broken(self.heads, self.rows, console.width) if self.texts else self.rows
        if _width(self.heads, rows) <= console.width:
            console.print(self._table(rows))
        elif self.texts:
            self._print_texts(console)
        else:
            self._print_blocks(console)
        if self.caption:
            say(console, self.caption, "dim")

    def _table(self, rows: Iterable[Sequence[str]]) -> Table:
        table = Table(show_lines=self.lined)
        for place, head in enumerate(self.heads):
            left = self.texts or not place or head in self.words
            table.add_column(escape(head), justify="left" if left else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        return table

    def _print_blocks(self, console: Console) -> None:
        """A row's name on a line of its own; below it its cells, each behind its column's head."""
        second = self.heads[1] in self.words  # likewise
        heads = self.heads[2 if second else 1 :]
        cells = [[_one_line(x) for x in row[2 if second else 1 :]] for row in self.rows]
        columns = _columns(heads, cells, console.width - len(INDENT))
        for row, some in zip(self.rows, cells, strict=True):
            if row[0]:
                console.print(row[0], soft_wrap=True)
            if second:
                named = f"{escape(self.heads[1])} {row[1]}".strip()
                console.print(f"{INDENT}{named}", soft_wrap=True)
            parts = [
                escape(head) + " " * (columns[i % len(columns)] - cell_len(head) - _cells(x)) + x
                for i, (head, x) in enumerate(zip(heads, some, strict=True))
            ]
            for i in range(0, len(parts), len(columns)):
                line = GAP.join(parts[i : i + len(columns)]).rstrip()
                console.print(INDENT + line, soft_wrap=True)

    def _print_texts(self, console: Console) -> None:
        """Likewise of cells with sentences; those that say nothing are left out."""
        for row in self.rows:
            console.print(row[0], soft_wrap=True)
            for head, cell in zip(self.heads[1:], row[1:], strict=True):
                for text in _plain(cell).split("\n") if cell != NOTHING else ():
                    say(console, f"{INDENT}{head}: {text}", indent=INDENT * 2)


def _columns(heads: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """The widths of as many columns as fit, where cells follow each other line by line."""
    spaces = [
        cell_len(head) + 1 + max((_cells(row[place]) for row in rows), default=0)
        for place, head in enumerate(heads)
    ]
    for count in range(len(spaces), 1, -1):
        widths = [max(spaces[place::count]) for place in range(count)]
        if sum(widths) + len(GAP) * (count - 1) <= width:
            return widths
    return [max(spaces, default=0)]


def _broken(heads: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[list[str]]:
    """Rows whose cells, but for the first, are broken to share the width."""
    first = max(map(_cells, [heads[0], *(row[0] for row in rows)]))
    room = (width - first - 1 - 3 * len(heads)) // max(1, len(heads) - 1)
    room = max(room, LEAST)
    return [
        [row[0], *(escape(wrapped(_plain(cell), room, INDENT)) for cell in row[1:])] for row in rows
    ]


def _width(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> int:
    """Of a table whose cells are not broken, with its lines."""
    every = zip(map(escape, heads), *rows, strict=True)
    return sum(max(map(_cells, column)) + 3 for column in every) + 1


def _cells(markup: str) -> int:
    """The width of the widest line."""
    return max(map(cell_len, _plain(markup).split("\n")))


def _plain(markup: str) -> str:
    return Text.from_markup(markup, emoji=False).plain


def _one_line(cell: str) -> str:
    return cell.replace("\n", ", ")
