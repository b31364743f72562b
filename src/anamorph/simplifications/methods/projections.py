"""SVD and PCA: points are projected on a few axes, learnt from the moments."""

from abc import abstractmethod
from typing import ClassVar, Self

import torch
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.simplifications.base import Simplification
from anamorph.simplifications.statistics.moments import Moments


class Projection(Simplification):
    """An orthogonal projection on `rank` axes; a subclass says which, and through which point.

    Attributes:
        components_: [rank, dim] orthonormal rows, the most important first.
    """

    size_name: ClassVar[str | None] = "rank"

    components_: Tensor

    def __init__(self, *, rank: int) -> None:
        self.rank = rank

    @abstractmethod
    def affine(self) -> tuple[Tensor, Tensor]:
        """The projection as (matrix [dim, dim], bias [dim]), float64: `x @ matrix + bias`."""

    def validate(self, dim: int | None = None) -> None:
        """See `Simplification.validate`."""
        self.require_whole("rank", least=1)
        if dim is not None and self.rank > dim:
            raise AnamorphError(
                f"{self}: rank above dimension. The activations have {dim} dimensions; "
                f"choose a rank from 1 to {dim}."
            )

    def exact_size(self, dim: int, points: int) -> int | None:
        """At full rank nothing is cut away."""
        return dim

    def statistic(self, dim: int) -> Moments:
        """The moments, shared by all ranks of SVD and PCA."""
        self.validate(dim)
        return Moments(dim)

    def learn(self, statistic: Moments) -> Self:
        """Take the first axes.

        Raises:
            AnamorphError: if no point was seen, or the rank is above the dimension.
        """
        self.validate(statistic.dim)
        if statistic.count == 0:
            raise AnamorphError(f"{self}: there are no points to fit to; give at least one.")
        self._learn(statistic)
        return self

    @abstractmethod
    def _learn(self, moments: Moments) -> None: ...

    def __call__(self, x: Tensor) -> Tensor:
        """Project `x` [..., dim]."""
        matrix, bias = self.affine()
        return x @ matrix.to(x) + bias.to(x)


class SVD(Projection):
    """The uncentred projection on the top right-singular vectors of the points.

    Args:
        rank: how many vectors to keep, from 1 to the dimension.

    Attributes:
        components_: [rank, dim] the vectors as rows, the greatest singular value first.

    Example:
        >>> import torch
        >>> points = torch.tensor([[3.0, 4.0], [6.0, 8.0]])
        >>> SVD(rank=1).fit(points)(torch.tensor([4.0, -3.0])).abs().max() < 1e-6
        tensor(True)
    """

    name: ClassVar[str] = "svd"

    def _learn(self, moments: Moments) -> None:
        self.components_ = moments.axes[: self.rank].clone()

    def affine(self) -> tuple[Tensor, Tensor]:
        """(matrix [dim, dim], bias [dim]), float64; the bias is zero."""
        matrix = self.components_.T @ self.components_
        return matrix, torch.zeros_like(matrix[0])


class PCA(Projection):
    """The centred projection on the axes of greatest variance.

    Args:
        rank: how many axes to keep, from 1 to the dimension.

    Attributes:
        components_: [rank, dim] the axes as rows, the greatest variance first.
        mean_: [dim].
    """

    name: ClassVar[str] = "pca"

    mean_: Tensor

    def _learn(self, moments: Moments) -> None:
        self.components_ = moments.centred_axes[: self.rank].clone()
        self.mean_ = moments.mean.clone()

    def affine(self) -> tuple[Tensor, Tensor]:
        """(matrix [dim, dim], bias [dim]), float64."""
        matrix = self.components_.T @ self.components_
        return matrix, self.mean_ - self.mean_ @ matrix
