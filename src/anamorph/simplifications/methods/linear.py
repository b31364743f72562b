"""Least squares: a part of the model is replaced by an affine map of what it reads."""

from typing import ClassVar, Self

import torch
from torch import Tensor

from anamorph.errors import AnamorphError, require
from anamorph.models.sites import HEAD_KINDS, LAYER_KINDS, Site
from anamorph.simplifications.base import VECTOR_KINDS
from anamorph.simplifications.placing import computed_before
from anamorph.simplifications.replacement import Replacement
from anamorph.simplifications.statistics.moments import Moments

LEAST = 1e-6
"""Directions in which what is read varies less than this, relative to the greatest, are left out:
behind a norm, what varies so little in float32 is rounding."""


class Linear(Replacement):
    """The affine map, fitted by ordinary least squares, from one site to another.

    `linear@1.mlp` replaces the MLP of layer 1 by the affine map of its input that comes closest to
    it; where several are equally close, by the one whose weights are smallest.

    Args:
        source: the kind of site that is read: of the same layer, or of the layer before where a
            layer computes it after what is written, as in `linear(source=residual)@1.mlp`.

    Attributes:
        weight_: [read, written] float64.
        bias_: [written] float64.
    """

    name: ClassVar[str] = "linear"

    weight_: Tensor
    bias_: Tensor

    def __init__(self, *, source: str = "mlp_input") -> None:
        self.source = source

    def reads(self, site: Site) -> tuple[Site, ...]:
        """The site of the kind `source`, of the same head if it has heads."""
        layer = site.layer - (not computed_before(self.source, site.kind))
        return (Site(layer, site.head if self.source in HEAD_KINDS else None, self.source),)

    def validate(self, dim: int | None = None) -> None:
        """See `Simplification.validate`."""
        require(
            f"{self}: source",
            self.source,
            among=[kind for kind in (*HEAD_KINDS, *LAYER_KINDS) if kind in VECTOR_KINDS],
        )

    def statistic(self, *dims: int) -> Moments:
        """The moments of what is read and written, side by side."""
        self.validate()
        return Moments(*dims)

    def learn(self, statistic: Moments) -> Self:
        """Solve the normal equations.

        Raises:
            AnamorphError: if no point was seen.
        """
        if statistic.count == 0:
            raise AnamorphError(f"{self}: there are no points to fit to; give at least one.")
        read = statistic.dims[0]
        scatter = statistic.scatter[:read]
        inverse = torch.linalg.pinv(scatter[:, :read], rtol=LEAST**2, hermitian=True)
        self.weight_ = inverse @ scatter[:, read:]
        self.bias_ = statistic.mean[read:] - statistic.mean[:read] @ self.weight_
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """Map what is read, `x` [..., read], to [..., written]."""
        weight, bias = self.prepared(x, "map", lambda: (self.weight_, self.bias_))
        return x @ weight + bias
