"""Labels for any text: a token's position, how rare it is, and whether context predicts it.

All describe a token as the target of a prediction. The first of a sequence is not one.
"""

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anamorph.tasks.base import NOT_APPLICABLE, Facet, Tokens
from anamorph.tasks.bins import bin_names, binned
from anamorph.tasks.ragged import Rows

Offsets = NDArray[np.int64]

FREQUENCIES = (0, 1, 10, 100, 1000)  # lower ends
FREQUENCY_NAMES = ("unseen", "1–9", "10–99", "100–999", "1000+")
CONTINUATIONS = ("predictable", "other earlier continuation", "no earlier occurrence")
SHORTEST_POSITION = 16  # where the second bucket of positions begins; each further one is double


def text_facets(
    tokens: Tokens, offsets: Offsets, counts: NDArray[np.int64], length: int
) -> dict[str, Facet]:
    """The facets `position`, `frequency`, `repeated` and `induction`.

    Args:
        tokens: [tokens] all sequences one after the other.
        offsets: [sequences + 1] where each begins, and the end.
        counts: [vocabulary] how often each token occurs in train.
        length: of the longest sequence that the task allows; it decides the buckets of `position`.
    """
    rows = Rows(offsets)
    sequence, first = rows.owner, rows.position == 0
    starts = [1]
    while (start := max(2 * starts[-1], SHORTEST_POSITION)) < length:
        starts.append(start)
    facets = {
        "position": (binned(rows.position, starts), bin_names(starts, start)),
        "frequency": (binned(counts[tokens], FREQUENCIES), FREQUENCY_NAMES),
        "repeated": (_occurred(sequence, tokens), ("new", "seen before")),
        "induction": (_induction(tokens, sequence, first), CONTINUATIONS),
    }
    return {
        name: Facet(np.where(first, NOT_APPLICABLE, codes).astype(np.int16), names)
        for name, (codes, names) in facets.items()
    }


def _induction(
    tokens: Tokens, sequence: NDArray[np.int64], first: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """What followed the current token, the one before the target, earlier in the sequence.

    An induction head (Olsson et al. 2022, arXiv 2209.11895) looks for an earlier occurrence of the
    current token and predicts what followed it there.
    """
    current = np.where(first, -1, np.roll(tokens, 1))
    predictable = _occurred(sequence, current, tokens)
    occurred = np.roll(_occurred(sequence, tokens), 1)
    return np.where(predictable, 0, np.where(occurred, 1, 2))


def _occurred(*values: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether an earlier position has the same values."""
    positions = pl.DataFrame({str(i): value for i, value in enumerate(values)})
    return ~positions.select(pl.struct(pl.all()).is_first_distinct()).to_series().to_numpy()
