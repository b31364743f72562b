"""anamorph's own entry."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

PACKAGE = "anamorph"


def prepare(weights: Path, tokens: Tensor, projectors: Tensor) -> Callable[[], Tensor]:
    """What `work.Sweep` is to the others: a call gives [cell, metric] over all tokens."""
    raise NotImplementedError("anamorph does not take part yet")


VARIANTS = {"engine": prepare}
