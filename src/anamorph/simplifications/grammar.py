r"""The grammar of spec strings: text is read into names, values and patterns, never evaluated.

proxy      = "identity" | another | attachment (";" attachment)*
another    = "model(" text ")" | "model([" text ("," text)* "])"
attachment = stage ("+" stage)* "@" sites
stage      = name [ "(" [parameter ("," key "=" value)*] ")" ]
parameter  = key "=" value | value                     a value alone is the path
value      = scalar | "[" scalar ("," scalar)* "]"      a list stands for one proxy each
scalar     = integer | decimal | "true" | "false" | text
text       = letters, digits and any of ./\~:+%-_ | anything in double quotes, as in JSON
             and, behind the first, what Python calls a slice: train[0::2]
"""

import json
import re
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from anamorph.errors import AnamorphError
from anamorph.tasks.fitted_on import SLICE

Scalar = bool | int | float | str
_Item = TypeVar("_Item")

NAME = r"[A-Za-z_]\w*"
SITES = r"[\w.*{},\s-]+"
PATH = "path"  # the parameter that a value alone is
MODEL = r"model(?=\s*\()"
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
BARE = rf"[\w./\\~:+%-](?:[\w./\\~:+%-]|{SLICE})*"  # text that needs no quotes
TEXT = rf'"(?:[^"\\]|\\.)*"|{BARE}'


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
    attachments = reader.several(reader.attachment, ";")
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
    stages = reader.several(reader.stage, r"\+")
    reader.expect(r"\Z", "nothing more")
    return stages


def value_text(value: object) -> str:
    """A value as a spec has it: text in quotes if it would be read as something else without."""
    if isinstance(value, str):
        plain = re.fullmatch(BARE, value) and isinstance(_scalar(value), str)
        return value if plain else json.dumps(value, ensure_ascii=False)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _scalar(text: str) -> Scalar:
    """What text without quotes stands for."""
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    return float(text) if re.fullmatch(NUMBER, text) else text


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

    def several(self, read: Callable[[], _Item], separator: str) -> list[_Item]:
        found = [read()]
        while self.take(separator):
            found.append(read())
        return found

    def attachment(self) -> tuple[list[Stage], str]:
        stages = self.several(self.stage, r"\+")
        self.expect("@", "'@' and sites, such as @1.*.{query,key}")
        return stages, self.expect(SITES, "sites, such as 1.*.{query,key}")

    def stage(self) -> Stage:
        if self.take(MODEL):
            raise self.joined()
        stage = Stage(self.expect(NAME, "the name of a simplification"), {})
        if not self.take(r"\(") or self.take(r"\)"):
            return stage
        if self.take(rf"(?={NAME}\s*=)") is None:  # a value alone
            stage.values[PATH] = self.values(self.path)
            if not self.take(","):
                self.expect(r"\)", "'=' and a value, ',' or ')'")
                return stage
        for key, values in self.several(self.parameter, ","):
            if key in stage.values:
                raise AnamorphError(f"The spec {self.text!r} gives {key} of {stage.name} twice.")
            stage.values[key] = values
        self.expect(r"\)", "',' or ')'")
        return stage

    def parameter(self) -> tuple[str, list[Scalar]]:
        key = self.expect(NAME, "the name of a parameter")
        self.expect("=", "'=' and a value")
        return key, self.values(self.scalar)

    def values(self, read: Callable[[], _Item]) -> list[_Item]:
        if not self.take(r"\["):
            return [read()]
        values = self.several(read, ",")
        self.expect(r"\]", "',' or ']'")
        return values

    def scalar(self) -> Scalar:
        what = r"a value: a number, true, false, or text, which needs double quotes if there is "
        text = self.expect(TEXT, what + r"anything in it but letters, digits and ./\~:+%-_")
        return self.unquoted(text) if text.startswith('"') else _scalar(text)

    def path(self) -> str:
        what = "a path, which needs double quotes if it has a space or a bracket"
        return self.unquoted(self.expect(TEXT, what))

    def unquoted(self, text: str) -> str:
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
