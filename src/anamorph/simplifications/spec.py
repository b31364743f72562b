"""Spec strings: the text that names a proxy. They are parsed, never evaluated.

    proxy      = "identity" | attachment (";" attachment)*
    attachment = stage ("+" stage)* "@" sites
    stage      = name [ "(" [key "=" value ("," key "=" value)*] ")" ]
    value      = scalar | "[" scalar ("," scalar)* "]"      a list stands for one proxy each
    scalar     = integer | decimal | "true" | "false" | word

`joint=true` among the parameters of a stage belongs to the attachment.
"""

import re
from collections.abc import Iterable, Mapping
from inspect import Parameter
from itertools import product

from anamorph.errors import AnamorphError
from anamorph.simplifications.attach import Attachment, Simplified
from anamorph.simplifications.base import Simplification
from anamorph.simplifications.chain import Chain
from anamorph.simplifications.registry import find_simplification

Scalar = bool | int | float | str
Known = Mapping[str, type[Simplification]]

NAME = r"[A-Za-z_]\w*"
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
WORD = r"[A-Za-z_][\w.-]*"
SITES = r"[\w.*{},\s-]+"


def parse(text: str) -> list[Simplified]:
    """The proxies that a spec string names: one, or one for each combination of its lists.

    Raises:
        AnamorphError: if the text cannot be read, or names or parameters do not exist.

    Example:
        >>> for proxy in parse("svd(rank=[1,2])@1.*.{query,key};onehot@1.*.pattern"):
        ...     print(proxy)
        svd(rank=1)@1.*.{query,key};onehot@1.*.pattern
        svd(rank=2)@1.*.{query,key};onehot@1.*.pattern
    """
    if text.strip() == "identity":
        return [Simplified(())]
    reader = _Reader(text)
    attachments: list[list[Attachment]] = []
    while True:
        choices = _read_chain(reader, {})
        reader.expect("@", "'@' and sites, such as @1.*.{query,key}")
        sites = reader.expect(SITES, "sites, such as 1.*.{query,key}")
        attachments.append([part.at(sites, joint=joint) for part, joint in choices])
        if not reader.take(";"):
            break
    reader.end("';' and another attachment, or nothing more")
    return [Simplified(choice) for choice in product(*attachments)]


def expand(
    specs: str | Simplified | Attachment | Iterable[str | Simplified | Attachment],
) -> list[Simplified]:
    """All proxies that the specs name, in order, each once.

    Raises:
        AnamorphError: as `parse`, and for things that name no proxy.
    """
    if isinstance(specs, str | Simplified | Attachment) or not isinstance(specs, Iterable):
        specs = [specs]
    found: dict[Simplified, None] = {}
    for spec in specs:
        if isinstance(spec, str):
            found |= dict.fromkeys(parse(spec))
        elif isinstance(spec, Attachment):
            found[Simplified((spec,))] = None
        elif isinstance(spec, Simplified):
            found[spec] = None
        else:
            raise AnamorphError(
                f"{spec!r} names no proxy; expected a spec string such as "
                "'svd(rank=4)@1.*.{query,key}', or a simplification attached to sites."
            )
    return list(found)


def check_readable(proxies: Iterable[Simplified]) -> None:
    """Whether each proxy can be read again from its text, as whoever goes on with a run must.

    Raises:
        AnamorphError: if one cannot.
    """
    for proxy in proxies:
        text = str(proxy)
        try:
            again = parse(text)
        except AnamorphError as error:
            raise AnamorphError(
                f"A run that holds {text} could not be gone on with: {error} Name the class in an "
                "entry point (docs/extending.md), or use am.audit, which keeps nothing on disk."
            ) from error
        if again != [proxy] or _parameters(again[0]) != _parameters(proxy):
            raise AnamorphError(
                f"A run that holds {text} could not be gone on with, as this text reads as "
                f"{', '.join(map(repr, again))}. Hyper-parameters must be numbers, true, false or "
                "words; and the class must be the one that its name stands for."
            )


def _parameters(proxy: Simplified) -> list[dict[str, object]]:
    """What text does not tell apart: 12 and '12'."""
    return [part.get_params() for a in proxy.attachments for part in a.simplification.parts()]


def parse_simplification(text: str, known: Known | None = None) -> Simplification:
    """The one simplification, or chain, of a text without sites.

    Args:
        text: such as `svd(rank=8)+kmeans(clusters=64)`.
        known: classes by name, besides the registry.

    Raises:
        AnamorphError: as `parse`, and for lists and `joint`.
    """
    reader = _Reader(text)
    choices = _read_chain(reader, known or {})
    reader.end("nothing more")
    if len(choices) != 1 or choices[0][1]:
        raise AnamorphError(f"{text!r} must name one simplification, without lists or joint.")
    return choices[0][0]


class _Reader:
    """A place in a text, and what may stand there."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0

    def take(self, pattern: str) -> str | None:
        """Step over the pattern, if it stands here, and over white space before it."""
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

    def end(self, what: str) -> None:
        self.expect(r"\Z", what)


def _read_chain(reader: _Reader, known: Known) -> list[tuple[Simplification, bool]]:
    """Every simplification that the chain stands for, and whether it is joint."""
    stages = [_read_stage(reader, known)]
    while reader.take(r"\+"):
        stages.append(_read_stage(reader, known))
    chains = []
    for choice in product(*stages):
        simplifications = tuple(simplification for simplification, _ in choice)
        joint = {joint for _, joint in choice if joint is not None}
        if joint == {True, False}:
            raise AnamorphError(
                f"The spec {reader.text!r} says both joint=true and joint=false of one attachment; "
                "say it once."
            )
        whole = simplifications[0] if len(choice) == 1 else Chain(stages=simplifications)
        chains.append((whole, joint == {True}))
    return chains


def _read_stage(reader: _Reader, known: Known) -> list[tuple[Simplification, bool | None]]:
    name = reader.expect(NAME, "the name of a simplification")
    kind = known.get(name) or find_simplification(name)
    values: dict[str, list[Scalar]] = {}
    if reader.take(r"\(") and not reader.take(r"\)"):
        while True:
            key = reader.expect(NAME, "the name of a parameter")
            if key in values:
                raise AnamorphError(f"The spec {reader.text!r} gives {key} of {name} twice.")
            reader.expect("=", "'=' and a value")
            values[key] = _read_values(reader)
            if reader.take(r"\)"):
                break
            reader.expect(",", "',' or ')'")
    flags: list[bool | None] = [None]
    if "joint" in values:
        flags = [_as_flag(value) for value in values.pop("joint")]
    _check_parameters(kind, values)
    made = [kind(**dict(zip(values, choice, strict=True))) for choice in product(*values.values())]
    return [(simplification, flag) for simplification in made for flag in flags]


def _as_flag(value: Scalar) -> bool:
    if not isinstance(value, bool):
        raise AnamorphError(f"joint must be true or false; got {value!r}.")
    return value


def _check_parameters(kind: type[Simplification], given: Iterable[str]) -> None:
    defaults = kind.defaults()
    missing = [k for k, v in defaults.items() if v is Parameter.empty and k not in given]
    unknown = [k for k in given if k not in defaults]
    if missing or unknown:
        problem = f"has no {', '.join(unknown)}" if unknown else f"needs {', '.join(missing)}"
        raise AnamorphError(
            f"{kind.name} {problem}. Its parameters are: {', '.join(defaults) or 'none'} "
            "(and joint=true, which shares one fit among the sites of a head)."
        )


def _read_values(reader: _Reader) -> list[Scalar]:
    if not reader.take(r"\["):
        return [_read_scalar(reader)]
    values = [_read_scalar(reader)]
    while reader.take(","):
        values.append(_read_scalar(reader))
    reader.expect(r"\]", "',' or ']'")
    return values


def _read_scalar(reader: _Reader) -> Scalar:
    text = reader.expect(f"{NUMBER}|{WORD}", "a value: a number, true, false or a word")
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    return float(text) if re.fullmatch(NUMBER, text) else text
