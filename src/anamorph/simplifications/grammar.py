r"""The grammar of spec strings: text is read into names, values and patterns, never evaluated.

proxy      = "identity" | another | attachment (";" attachment)*
another    = "model(" path ")" | "model([" path ("," path)* "])"
path       = letters, digits and any of ./\~:+%-_ | any text in double quotes, as in JSON
attachment = stage ("+" stage)* "@" sites
stage      = name [ "(" [key "=" value ("," key "=" value)*] ")" ]
value      = scalar | "[" scalar ("," scalar)* "]"      a list stands for one proxy each
scalar     = integer | decimal | "true" | "false" | word
"""

import json
import re
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from anamorph.errors import AnamorphError

Scalar = bool | int | float | str
_Value = TypeVar("_Value")

NAME = r"[A-Za-z_]\w*"
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
WORD = r"[A-Za-z_][\w.-]*"
SITES = r"[\w.*{},\s-]+"
MODEL = r"model(?=\s*\()"
BARE = r"[\w./\\~:+%-]+"  # a path that needs no quotes
QUOTED = r'"(?:[^"\\]|\\.)*"'


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


def read_models(text: str) -> list[str]:
    """The paths in a text such as `model(a)` or `model([a, "b c"])`; empty if it is another kind.

    Raises:
        AnamorphError: if it begins like one, and does not follow the grammar.
    """
    reader = _Reader(text)
    if not reader.take(MODEL):
        return []
    reader.expect(r"\(", "'('")
    paths = reader.values(reader.path)
    reader.expect(r"\)", "')'")
    if reader.take("(?=[+@;])") is not None:
        raise reader.joined()
    reader.expect(r"\Z", "nothing more")
    return paths


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
        if self.take(MODEL):
            raise self.joined()
        name = self.expect(NAME, "the name of a simplification")
        values: dict[str, list[Scalar]] = {}
        if self.take(r"\(") and not self.take(r"\)"):
            while True:
                key = self.expect(NAME, "the name of a parameter")
                if key in values:
                    raise AnamorphError(f"The spec {self.text!r} gives {key} of {name} twice.")
                self.expect("=", "'=' and a value")
                values[key] = self.values(self.scalar)
                if self.take(r"\)"):
                    break
                self.expect(",", "',' or ')'")
        return Stage(name, values)

    def values(self, read: Callable[[], _Value]) -> list[_Value]:
        if not self.take(r"\["):
            return [read()]
        values = [read()]
        while self.take(","):
            values.append(read())
        self.expect(r"\]", "',' or ']'")
        return values

    def scalar(self) -> Scalar:
        text = self.expect(f"{NUMBER}|{WORD}", "a value: a number, true, false or a word")
        if text in ("true", "false"):
            return text == "true"
        if re.fullmatch(r"[+-]?\d+", text):
            return int(text)
        return float(text) if re.fullmatch(NUMBER, text) else text

    def path(self) -> str:
        what = "a path, which needs double quotes if it has a space or a bracket"
        text = self.expect(f"{QUOTED}|{BARE}", what)
        try:
            return str(json.loads(text)) if text.startswith('"') else text
        except ValueError as error:
            raise AnamorphError(
                f"Cannot read the path {text} in the spec {self.text!r}: write it as in JSON, a "
                "backslash as two."
            ) from error

    def joined(self) -> AnamorphError:
        return AnamorphError(
            f"Cannot read the spec {self.text!r}: model(PATH) is a whole model, which has no place "
            "at sites and cannot be joined with simplifications. Give it as a spec of its own."
        )
