"""Principal component analysis: points are projected on a subspace through their mean."""

from typing import ClassVar

from torch import Tensor

from anamorph.simplifications.methods.projection import Projection
from anamorph.simplifications.statistics.moments import Moments


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
