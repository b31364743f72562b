"""How far a long step is, for whoever watches it."""

from collections.abc import Callable, Mapping
from typing import NamedTuple


class Event(NamedTuple):
    """How far a step is.

    Attributes:
        step: such as "seed 0: training".
        done: of the total, in the step's own units.
        total: of what there is to do.
        note: such as what was done last.
        numbers: what was measured on the way, by name; of a training `loss` (bits a token, averaged
            over the last steps) and `tokens_per_second`.
    """

    step: str
    done: int
    total: int
    note: str = ""
    numbers: Mapping[str, float] = {}


Watch = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Watch nothing."""


def within(name: str, watch: Watch) -> Watch:
    """Tells of steps with the name of what they are part of in front."""
    return lambda event: watch(Event(f"{name}, {event.step}", *event[1:]))
