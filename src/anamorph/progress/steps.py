"""How long steps took, and how long they will."""

import time
from dataclasses import dataclass, field

from anamorph.progress import Event


@dataclass
class Step:
    """A step that has begun: its first and its last event.

    Attributes:
        first: the event with which it began.
        last: the event that came last.
        since: when the first came, in seconds of `time.monotonic`.
    """

    first: Event
    last: Event
    since: float = field(default_factory=lambda: time.monotonic())

    def __str__(self) -> str:
        """Such as "seed 0: training: 1,200 of 6,000, 20.5/s, 4 min left (loss 3.1 bits)"."""
        event = self.last
        text = f"{event.step}: {event.done:,} of {event.total:,}"
        if rate := self.rate:
            text += f", {rate_text(rate)}, {self.left} left"
        return text + bracketed(event.note)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.since

    @property
    def rate(self) -> float:
        """Units a second; 0 before anything is done."""
        return max(0, self.last.done - self.first.done) / max(self.seconds, 1e-9)

    @property
    def left(self) -> str:
        """How long it will take if it goes on like that; empty before anything is done."""
        rate = self.rate
        return duration((self.last.total - self.last.done) / rate) if rate else ""


def bracketed(note: str) -> str:
    """A note in brackets with a space in front, or nothing where there is none."""
    return f" ({note})" if note else ""


def rate_text(a_second: float) -> str:
    """In the unit that gives a number above 1, such as "20.5/s" or "3.2/min"."""
    for unit, seconds in (("s", 1), ("min", 60)):
        if a_second * seconds >= 1:
            return f"{a_second * seconds:.3g}/{unit}"
    return f"{a_second * 3600:.3g}/h"


def duration(seconds: float) -> str:
    """Such as "45 s", "12 min" or "3.4 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
