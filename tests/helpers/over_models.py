"""The mean over several models by itself."""

import numpy as np
from numpy.typing import NDArray

from anamorph.faithfulness.intervals import Floats, Means


def over_models(sums: Floats, counts: Floats, share: NDArray[np.bool_]) -> Means:
    """Of [model, ..., sequences]."""
    return Means.of_every_model(sums[None], counts[None], share)[0, -1]
