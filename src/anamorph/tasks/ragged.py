"""Sequences of different lengths, one after the other in flat arrays, and indices into these."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


class Ragged:
    """Whatever holds sequences in flat arrays and says where they lie.

    Attributes:
        offsets: [sequences + 1] sequence `i` is `array[offsets[i]:offsets[i + 1]]` of every array.
    """

    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Indices:
        """[sequences] entries of each sequence."""
        return np.diff(self.offsets)

    @property
    def owner(self) -> Indices:
        """[entries] the sequence that each entry belongs to."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @property
    def position(self) -> Indices:
        """[entries] the place of each entry in its sequence, from 0."""
        return np.arange(self.offsets[-1]) - np.repeat(self.offsets[:-1], self.lengths)

    def entries(self, sequences: Indices) -> Indices:
        """[entries of these sequences] their indices, one sequence after the other."""
        taken = Rows.of(self.lengths[sequences])
        shift = self.offsets[sequences] - taken.offsets[:-1]
        return np.arange(taken.offsets[-1]) + np.repeat(shift, taken.lengths)

    def rectangle(self, sequences: Indices, least: int = 0) -> tuple[Indices, NDArray[np.bool_]]:
        """The given sequences as rows, as wide as the longest of them and at least `least`.

        Returns:
            [row, column] the index of each entry, 0 where the sequence has ended; and
            [row, column] whether there is an entry.
        """
        lengths = self.lengths[sequences]
        columns = np.arange(max(int(lengths.max(initial=0)), least))
        valid = columns < lengths[:, None]
        return np.where(valid, self.offsets[sequences][:, None] + columns, 0), valid


@dataclass(frozen=True)
class Rows(Ragged):
    """Nothing but where sequences lie."""

    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, lengths: Sequence[int] | NDArray[Any]) -> "Rows":
        """Sequences of the given lengths, the first at the beginning of the array."""
        return cls(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def joined(parts: Sequence[Ragged]) -> NDArray[np.int64]:
    """The offsets of all sequences of all parts, in order."""
    return Rows.of(np.concatenate([part.lengths for part in parts])).offsets
