"""Documents from CSV and its like (RFC 4180): fields with separators between them, or in quotes."""

import re
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from anamorph.errors import AnamorphError
from anamorph.tasks.text.content import Kind
from anamorph.tasks.text.placed import NOTHING, Placed, PlacedFile
from anamorph.tasks.text.rows import Fields

_SEPARATORS: dict[Kind, str] = {"csv": ",;\t|", "tsv": "\t,;|"}  # the first one that fits
_QUOTED = re.compile(r'"([^"]*+(?:""[^"]*+)*+)"')  # takes all it can, or a cut would end it
_UNQUOTED = {s: re.compile(rf"[^{re.escape(s)}\r\n]*") for s in _SEPARATORS["csv"]}
_LINE_END = re.compile(r"\r\n|\n|\r")


class Csv(PlacedFile):
    """A document for every record; the first record names the columns."""

    broken = (
        "a record ({reason}). Fields with separators, quotes or line ends must be in quotes, and "
        "a quote in them must be written twice."
    )

    def __init__(self, path: Path, fields: Fields, kind: Kind) -> None:
        super().__init__(path, fields)
        found = {separator: self._names(separator) for separator in _SEPARATORS[kind]}
        if not any(found.values()):  # it is empty, or this says what is wrong
            self._first(next(iter(found)))
        fitting = (s for s, names in found.items() if {*fields.asked} <= set(names))
        self._separator = next(fitting, max(found, key=lambda s: len(found[s])))
        self._columns = found[self._separator]
        fields.check(path, self._columns)

    def _values(self) -> Iterator[Placed]:
        records = self._scanned(partial(_record, self._separator))
        for record, start, stop in islice(records, 1, None):
            if len(record) != len(self._columns):
                reason = f"{len(record)} field(s) for {len(self._columns)} columns"
                raise self._broken(reason, self._line(start))
            yield self._row(record), start, stop

    def _parse(self, data: bytes) -> dict[str, str]:
        found = _record(self._separator, data.decode(), 0, True)
        assert found is not None
        return self._row(found[0])

    def _row(self, record: list[str]) -> dict[str, str]:
        return dict(zip(self._columns, record, strict=True))

    def _names(self, separator: str) -> list[str]:
        try:
            return self._first(separator)
        except AnamorphError:  # of quoted names, with another separator between them
            return []

    def _first(self, separator: str) -> list[str]:
        return next((record for record, *_ in self._scanned(partial(_record, separator))), [])


def _record(separator: str, text: str, at: int, ended: bool) -> tuple[Any, int] | None:
    """The fields of a record, unless it is a blank line; see `anamorph.tasks.text.placed.Scan`."""
    if at >= len(text):
        return None
    fields: list[str] = []
    while True:
        quotes = text.startswith('"', at)
        found = (_QUOTED if quotes else _UNQUOTED[separator]).match(text, at)
        if (found is None or found.end() >= len(text) - 1) and not ended:
            return None
        if found is None:
            raise ValueError("a quote is not closed")
        fields.append(found[1].replace('""', '"') if quotes else found[0])
        at = found.end()
        if text.startswith(separator, at):
            at += 1
            continue
        line_end = _LINE_END.match(text, at)
        if line_end is None and at < len(text):
            raise ValueError(f"{text[at : at + 10]!r} follows a closing quote")
        stop = at if line_end is None else line_end.end()
        return (NOTHING if fields == [""] else fields), stop
