"""What `on=` says: the data that something is fitted on.

on   = part ("+" part)*           several parts are a mixture of equal numbers of sequences
part = split [slice]              `train` is the training split, whatever it is called
slice = "[" start ":" stop [":" step] "]"       Python's, over the sequences of the split
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from anamorph.errors import AnamorphError

WORD = r"[A-Za-z_][\w.-]*"  # what a split may be called
SLICE = r"\[(?:-?\d+)?:(?:-?\d+)?(?::(?:-?\d+)?)?\]"

TRAIN = "train"
"""What `on=` calls the training split."""

ORACLE, HALF = "oracle", "half"
"""Controls by what they are fitted on: the split that they are scored on, or a part of train."""


class Part(NamedTuple):
    """Some sequences of a split.

    Attributes:
        split: its name; `train` is the training split.
        slice: its text, such as `[0::2]`; empty for none.
    """

    split: str
    slice: str

    def sequences(self, count: int) -> NDArray[np.int64]:
        """The numbers of the sequences, of a split that has so many.

        Of a split other than `train`, without a slice, it is every second sequence, from the second
        on: the others are there to be scored.
        """
        text = self.slice or ("[:]" if self.split == TRAIN else "[1::2]")
        return np.arange(count)[_slice(text)]


@dataclass(frozen=True)
class FittedOn:
    """The data that `on=` names.

    Attributes:
        parts: each gives as many sequences as any other.
    """

    parts: tuple[Part, ...] = (Part(TRAIN, ""),)

    @classmethod
    def read(cls, text: str | None) -> "FittedOn":
        """Read the text of `on=`; None is all of the training split.

        Raises:
            AnamorphError: if it does not follow the grammar.
        """
        if text is None:
            return cls()
        if not isinstance(text, str):
            raise AnamorphError(f"on must be the name of a split; got {text!r}.")
        parts = []
        for part in text.split("+"):
            found = re.fullmatch(rf"({WORD})({SLICE})?", part)
            if not found:
                raise AnamorphError(
                    f"Cannot fit on {text!r}: expected the name of a split, which is a letter or "
                    "'_', then letters, digits, '_', '.' and '-' (rename the split if it has "
                    "another); behind it a slice such as [0::2], if not all of it is meant; and "
                    "'+' between several."
                )
            if found[2] and _slice(found[2]).step == 0:
                raise AnamorphError(f"Cannot fit on {text!r}: the step of a slice cannot be 0.")
            parts.append(Part(found[1], found[2] or ""))
        return cls(tuple(parts))

    @property
    def text(self) -> str | None:
        """What `read` reads; None for all of the training split."""
        return None if self == FittedOn() else "+".join(p.split + p.slice for p in self.parts)

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits other than `train`, each once."""
        return tuple(dict.fromkeys(part.split for part in self.parts if part.split != TRAIN))

    @property
    def control(self) -> str | None:
        """What something fitted on it is a control for.

        `ORACLE` if there is nothing of `train` in it, `HALF` for a part of `train` alone; None for
        all of it, and for a mixture with other splits: that is a view in its own right.
        """
        if not any(part.split == TRAIN for part in self.parts):
            return ORACLE
        return HALF if not self.splits and self != FittedOn() else None


def refuse_unfitted(what: object, on: str | None, joint: bool = False) -> None:
    """Refuse what is said about the fit of something that is not fitted.

    Raises:
        AnamorphError: unless `on` is None, which would be told as a control, and `joint` is false.
    """
    if on is not None or joint:
        said = "joint=true" if on is None else f"on={on}"
        raise AnamorphError(f"{what}: it is not fitted, so {said} says nothing; leave it out.")


def _slice(text: str) -> slice:
    return slice(*(int(end) if end else None for end in text[1:-1].split(":")))
