"""Numbers in bins, for facets."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray


def binned(values: NDArray[Any], edges: Sequence[int]) -> NDArray[np.int16]:
    """The bin of each value, which is a whole number from 0; -1 below the first bin.

    Args:
        values: of any shape.
        edges: the lowest value of each bin, ascending; the last bin has no end.
    """
    if values.max(initial=0) > edges[-1]:
        values = np.minimum(values, edges[-1])
    every = np.arange(edges[-1] + 1)  # a look-up is faster than a search for each value
    of_value = (np.searchsorted(edges, every, side="right") - 1).astype(np.int16)
    codes: NDArray[np.int16] = of_value[values]
    return codes


def bin_names(edges: Sequence[int], end: int | None = None) -> tuple[str, ...]:
    """The bins' names: `4–7` for the values from 4 to 7, and `1024–` for the last bin.

    >>> bin_names((1, 2, 4, 8))
    ('1', '2–3', '4–7', '8–')

    Args:
        edges: the lowest value of each bin, ascending.
        end: the lowest value that is beyond the last bin, if it has an end.
    """
    closed = pairwise(edges if end is None else [*edges, end])
    names = [str(low) if low == high - 1 else f"{low}–{high - 1}" for low, high in closed]
    return (*names, *([f"{edges[-1]}–"] if end is None else []))
