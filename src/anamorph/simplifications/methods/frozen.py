"""What the model itself has, whatever is simplified before: `frozen@*.*.pattern;frozen@*.norm`."""

from typing import ClassVar

from torch import Tensor

from anamorph.models.base import Context
from anamorph.models.sites import HEAD_KINDS, LAYER_KINDS, NORM_KINDS
from anamorph.simplifications.base import Simplification


class Frozen(Simplification):
    """Leaves a site as the model itself has it, although what comes before it is simplified.

    With attention patterns frozen, a replacement of MLPs is a *local* replacement model: what it
    gets wrong does not change where heads look. With the scales of norms frozen too, all that is
    left of the model is affine (Ameisen et al. 2025, *Circuit Tracing*). The model runs along
    beside the proxies.
    """

    name: ClassVar[str] = "frozen"
    kinds: ClassVar[frozenset[str]] = frozenset({*HEAD_KINDS, *LAYER_KINDS, *NORM_KINDS})
    beside_model: ClassVar[bool] = True

    def __call__(self, x: Tensor) -> Tensor:
        """`x` itself [..., dim]."""
        return x

    def apply(self, x: Tensor, *, context: Context) -> Tensor:
        """What the model has in place of `x`."""
        return x if context.original is None else context.original
