"""Documents from CSV and its like (RFC 4180): fields with separators between them, or in quotes."""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

from anamorph.errors import AnamorphError
from anamorph.tasks.text.content import Kind, reading
from anamorph.tasks.text.places import BLOCK, Placed, line_of
from anamorph.tasks.text.rows import Document, Fields, to_document

_SEPARATORS: dict[Kind, str] = {"csv": ",;\t|", "tsv": "\t,;|"}  # the first one that fits
_QUOTED = re.compile(r'"([^"]*+(?:""[^"]*+)*+)"')  # takes all it can, or a cut would end it
_UNQUOTED = {s: re.compile(rf"[^{re.escape(s)}\r\n]*") for s in _SEPARATORS["csv"]}
_LINE_END = re.compile(r"\r\n|\n|\r")


class NotARecordError(AnamorphError):
    """What stands in a file is no record of CSV."""


class Csv(Placed):
    """A document a record; the first record names the columns."""

    def __init__(self, path: Path, fields: Fields, kind: Kind) -> None:
        super().__init__(path, fields)
        wanted = {name for name in fields if name is not None}
        found = {s: self._names(s) for s in _SEPARATORS[kind]}
        if not any(found.values()):
            next(
                self._records(_SEPARATORS[kind][0]), None
            )  # says what is wrong, if it is not empty
        fitting = (s for s, names in found.items() if wanted <= set(names))
        self._separator = next(fitting, max(found, key=lambda s: len(found[s])))
        self._columns = found[self._separator]
        for name in fields:
            if name is not None and self._columns.count(name) != 1:
                raise AnamorphError(
                    f"{path} has {'no' if name not in self._columns else 'more than one'} column "
                    f"{name!r}; its columns are: {', '.join(self._columns) or 'none'}. Name the "
                    f"right one with {'text_field' if name == fields.text else 'spans_field'}."
                )

    def values(self) -> Iterator[tuple[list[str], int, int]]:
        """Every record but the first, its first byte and the one behind it."""
        records = self._records(self._separator)
        next(records)
        for record, start, stop in records:
            if len(record) != len(self._columns):
                raise self._broken(
                    f"{len(record)} field(s) for {len(self._columns)} columns", start
                )
            yield record, start, stop

    def parse(self, data: bytes) -> list[str]:
        """The record that the bytes hold."""
        found = _record(data.decode(), 0, self._separator, ended=True)
        assert found is not None
        return found[0]

    def document(self, value: list[str], number: int) -> Document:
        """The document of a record."""
        row = dict(zip(self._columns, value, strict=True))
        return to_document(row, self.fields, f"{self.path}, row {number}")

    def _names(self, separator: str) -> list[str]:
        try:
            return next((record for record, _, _ in self._records(separator)), [])
        except NotARecordError:  # of quoted names, with another separator between them
            return []

    def _records(self, separator: str) -> Iterator[tuple[list[str], int, int]]:
        """Every record that is not a blank line; little of the file is in memory."""
        utf8 = codecs.getincrementaldecoder("utf-8")()
        text, at, place, size, ended = "", 0, 0, BLOCK, False
        with reading(self.path) as file:
            if file.read(3) != codecs.BOM_UTF8:
                file.seek(0)
            else:
                place = 3
            while at < len(text) or not ended:
                try:
                    found = _record(text, at, separator, ended) if at < len(text) else None
                    if found is None:
                        block = file.read(size)
                        size, ended = size * 2, not block
                        text, at = text[at:] + utf8.decode(block, final=ended), 0
                        continue
                except UnicodeDecodeError as error:
                    raise self._broken(f"not UTF-8: {error.reason}", place) from error
                except ValueError as error:
                    raise self._broken(str(error), place) from error
                record, stop = found
                end = place + len(text[at:stop].encode())
                if record != [""]:
                    yield record, place, end
                at, place, size = stop, end, BLOCK

    def _broken(self, reason: str, place: int) -> NotARecordError:
        return NotARecordError(
            f"{self.path}:{line_of(self.path, place)} is no record ({reason}). Fields with "
            "separators, quotes or line ends must stand in quotes, and a quote in them twice."
        )


def _record(text: str, at: int, separator: str, ended: bool) -> tuple[list[str], int] | None:
    """The fields of a record and where the next begins; None if more of the text is needed.

    Raises:
        ValueError: if the quotes in it do not fit together.
    """
    fields = []
    while True:
        if text[at : at + 1] == '"':
            quoted = _QUOTED.match(text, at)
            if quoted is None or (quoted.end() >= len(text) - 1 and not ended):
                if not ended:
                    return None
                raise ValueError("a quote is not closed")
            fields.append(quoted.group(1).replace('""', '"'))
            at = quoted.end()
        else:
            plain = _UNQUOTED[separator].match(text, at)
            assert plain is not None  # it takes nothing, too
            if plain.end() >= len(text) - 1 and not ended:
                return None
            fields.append(plain.group())
            at = plain.end()
        if text[at : at + 1] == separator:
            at += 1
            continue
        line_end = _LINE_END.match(text, at)
        if line_end is None and at < len(text):
            raise ValueError(f"{text[at : at + 10]!r} stands behind a quote")
        return fields, at if line_end is None else line_end.end()
