"""How far a long step is, for whoever watches it."""

from collections.abc import Callable
from typing import NamedTuple


class Event(NamedTuple):
    """How far a step is.

    Attributes:
        step: such as "seed 0: training".
        done: of the total, in the step's own units.
        total: of what there is to do.
        note: such as what was done last.
    """

    step: str
    done: int
    total: int
    note: str = ""


Watch = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Watch nothing."""
