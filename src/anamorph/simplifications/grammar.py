"""The grammar of spec strings: text is read into names, values and patterns, never evaluated.

proxy      = "identity" | attachment (";" attachment)*
attachment = stage ("+" stage)* "@" sites
stage      = name [ "(" [key "=" value ("," key "=" value)*] ")" ]
value      = scalar | "[" scalar ("," scalar)* "]"      a list stands for one proxy each
scalar     = integer | decimal | "true" | "false" | word
"""

import re
from typing import NamedTuple

from anamorph.errors import AnamorphError

Scalar = bool | int | float | str

NAME = r"[A-Za-z_]\w*"
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
WORD = r"[A-Za-z_][\w.-]*"
SITES = r"[\w.*{},\s-]+"


class Stage(NamedTuple):
    """A name with, by parameter, the values it is to take."""

    name: str
    values: dict[str, list[Scalar]]


def read_proxy(text: str) -> list[tuple[list[Stage], str]]:
    """Of each attachment in the text of a proxy, the stages and the sites; empty for `identity`.

    Raises:
        AnamorphError: if the text does not follow the grammar.
    """
    if text.strip() == "identity":
        return []
    reader = _Reader(text)
    attachments = []
    while True:
        stages = reader.stages()
        reader.expect("@", "'@' and sites, such as @1.*.{query,key}")
        attachments.append((stages, reader.expect(SITES, "sites, such as 1.*.{query,key}")))
        if not reader.take(";"):
            break
    reader.expect(r"\Z", "';' and another attachment, or nothing more")
    return attachments


def read_stages(text: str) -> list[Stage]:
    """The stages in a text without sites, such as `svd(rank=8)+kmeans(clusters=64)`.

    Raises:
        AnamorphError: if the text does not follow the grammar.
    """
    reader = _Reader(text)
    stages = reader.stages()
    reader.expect(r"\Z", "nothing more")
    return stages


class _Reader:
    """A place in a text, and what may come there."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0

    def take(self, pattern: str) -> str | None:
        """Step over the pattern, if it comes next, and over white space before it."""
        found = re.compile(rf"\s*({pattern})").match(self.text, self.place)
        if not found:
            return None
        self.place = found.end()
        return found[1]

    def expect(self, pattern: str, what: str) -> str:
        found = self.take(pattern)
        if found is None:
            rest = self.text[self.place :].strip()
            where = f"before {rest!r}" if rest else "at its end"
            raise AnamorphError(f"Cannot read the spec {self.text!r} {where}: expected {what}.")
        return found

    def stages(self) -> list[Stage]:
        stages = [self.stage()]
        while self.take(r"\+"):
            stages.append(self.stage())
        return stages

    def stage(self) -> Stage:
        name = self.expect(NAME, "the name of a simplification")
        values: dict[str, list[Scalar]] = {}
        if self.take(r"\(") and not self.take(r"\)"):
            while True:
                key = self.expect(NAME, "the name of a parameter")
                if key in values:
                    raise AnamorphError(f"The spec {self.text!r} gives {key} of {name} twice.")
                self.expect("=", "'=' and a value")
                values[key] = self.values()
                if self.take(r"\)"):
                    break
                self.expect(",", "',' or ')'")
        return Stage(name, values)

    def values(self) -> list[Scalar]:
        if not self.take(r"\["):
            return [self.scalar()]
        values = [self.scalar()]
        while self.take(","):
            values.append(self.scalar())
        self.expect(r"\]", "',' or ']'")
        return values

    def scalar(self) -> Scalar:
        text = self.expect(f"{NUMBER}|{WORD}", "a value: a number, true, false or a word")
        if text in ("true", "false"):
            return text == "true"
        if re.fullmatch(r"[+-]?\d+", text):
            return int(text)
        return float(text) if re.fullmatch(NUMBER, text) else text
