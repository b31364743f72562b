"""Which text is which split: `ROLE=PATH` and `ROLE:NAME=PATH`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from anamorph.errors import AnamorphError
from anamorph.tasks.base import Role

ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class TextData:
    """Where the text of a split comes from.

    Attributes:
        name: the split's name.
        role: `train`, `iid` or `ood`.
        source: see `anamorph.tasks.text.files.open_source`.

    Raises:
        AnamorphError: if there is no such role, or the name cannot be that of a file.
    """

    name: str
    role: Role
    source: object

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise AnamorphError(
                f"There is no role {self.role!r}; a split's role is one of: {', '.join(ROLES)}. "
                "Write ROLE=PATH or ROLE:NAME=PATH."
            )
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise AnamorphError(
                f"A split cannot be named {self.name!r}; names are letters, digits, _, - and dots."
            )
        if self.name in ROLES and self.name != self.role:
            raise AnamorphError(
                f"A split of the role {self.role!r} cannot be named {self.name!r}, which is "
                "another role; give it a name of its own."
            )

    def __str__(self) -> str:
        key = self.role if self.name == self.role else f"{self.role}:{self.name}"
        if isinstance(self.source, (str, Path)):
            return f"{key}={self.source}"
        return f"{key}=<{type(self.source).__name__}>"


def parse_data(text: str) -> TextData:
    """Read `ROLE=PATH` or `ROLE:NAME=PATH`; a split without a name is named by its role.

    >>> parse_data("ood:python=b.jsonl")
    TextData(name='python', role='ood', source='b.jsonl')

    Raises:
        AnamorphError: if it is neither.
    """
    key, equals, path = text.partition("=")
    if not equals or not path.strip():
        raise AnamorphError(
            f"Cannot read the data {text!r}; expected ROLE=PATH or ROLE:NAME=PATH, such as "
            "iid=a.jsonl or ood:python=b.jsonl."
        )
    return _text_data(key.strip(), path.strip())


Data = str | Sequence[str] | Mapping[str, object]


def _text_data(key: str, source: object) -> TextData:
    role, colon, name = key.partition(":")
    return TextData(name if colon else role, cast(Role, role), source)


def all_data(data: Data) -> list[TextData]:
    """The data of every split.

    Raises:
        AnamorphError: if names or roles do not fit together.
    """
    if isinstance(data, Mapping):
        given = [_text_data(key, source) for key, source in data.items()]
    else:
        given = [parse_data(str(d)) for d in ([data] if isinstance(data, str) else data)]
    names = [d.name for d in given]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise AnamorphError(
            f"Two splits are named {twice[0]!r}; give each a name of its own, as ROLE:NAME=PATH."
        )
    for role, least, expected in (("iid", 1, "exactly one"), ("train", 0, "at most one")):
        found = [d.name for d in given if d.role == role]
        if not least <= len(found) <= 1:
            raise AnamorphError(
                f"The data have {len(found)} splits with the role {role!r} "
                f"({', '.join(found) or 'none'}); expected {expected}."
            )
    return given


def held_out_split(given: Sequence[TextData], fit_on: str) -> str | None:
    """The name of the evaluated split that fit data are taken from; None if there is a train split.

    Raises:
        AnamorphError: if `fit_on` names no split, or another than the one with the role `train`.
    """
    trains = [d.name for d in given if d.role == "train"]
    names = [d.name for d in given if d.role != "train"]
    if trains:
        if fit_on not in ("train", *trains):
            raise AnamorphError(
                f"fit_on={fit_on!r}, but there is a split with the role 'train', {trains[0]!r}, "
                "on which simplifications are fitted; leave out one of the two."
            )
        return None
    if fit_on not in names:
        raise AnamorphError(
            f"fit_on={fit_on!r}, but no split has that "
            f"{'role' if fit_on == 'train' else 'name'}; the splits are: {', '.join(names)}. Give "
            "data to fit simplifications on as train=PATH, or fit_on='iid' to hold some out of "
            "the reference."
        )
    return fit_on
