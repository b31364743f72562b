"""What is seen of a part of a split: it is small, can travel, and is merged with what follows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from anamorph.errors import AnamorphError
from anamorph.models.sites import Site
from anamorph.simplifications.points import Lengths, Stream
from anamorph.simplifications.statistics.base import Statistic, can_merge

Source = Stream | str
"""What a statistic sees: the points of a stream, or what the matrix of this name is given."""


@dataclass
class SeenPart:
    """What statistics have seen of a part of a split.

    It can be pickled, and is then as large as its statistics. Each is there once, however many fits
    it serves. Of points of width d, moments are 8·d·(d + 1) bytes and sums of squares 8·d. Of a
    sample a point is 8 bytes and d numbers in the model's format.

    Attributes:
        before: of the sequences that come before the part.
        lengths: of its own sequences.
        widths: of the points at each site.
        statistics: by what they see, and by their keys.
    """

    before: Lengths
    lengths: Lengths = field(default_factory=Counter)
    widths: dict[Site, int] = field(default_factory=dict)
    statistics: dict[Source, dict[Hashable, Statistic]] = field(default_factory=dict)

    def of(self, source: Source, earlier: Mapping[Hashable, Statistic]) -> Iterable[Statistic]:
        """Its statistics of a source; they are begun when they are first asked for.

        Args:
            source: what they see.
            earlier: by key, those of the parts before, or empty ones. What cannot be merged goes
                on: it is taken as it is.
        """
        if source not in self.statistics:
            start = count_points(self.before, source)
            self.statistics[source] = {
                key: statistic.part(start) if can_merge(statistic) else statistic
                for key, statistic in earlier.items()
            }
        return self.statistics[source].values()

    def merge(self, later: SeenPart) -> None:
        """Take in what was seen of the part that follows.

        Raises:
            AnamorphError: if that part does not follow.
        """
        end = self.before + self.lengths
        if self.statistics and later.before != end:
            raise AnamorphError(
                f"A part that begins with sequence {later.before.total()} cannot follow one that "
                f"ends before sequence {end.total()}; give all parts of the split, in order."
            )
        for source, statistics in self.statistics.items():
            for key, mine in statistics.items():
                theirs = later.statistics[source][key]
                if can_merge(mine) and can_merge(theirs):
                    mine.merge(theirs)
        self.lengths = self.lengths + later.lengths

    def add(self, other: SeenPart) -> None:
        """Take in other statistics of the same sequences, all of which they have seen."""
        self.lengths = other.lengths
        for source, statistics in other.statistics.items():
            self.statistics.setdefault(source, {}).update(statistics)


def count_points(lengths: Lengths, source: Source) -> int:
    """How many points sequences of these lengths have."""
    places, keep = (1, 0) if isinstance(source, str) else (len(source.places), source.keep)
    return places * sum(number * max(length - keep, 0) for length, number in lengths.items())
