"""Truncated singular value decomposition: points are projected on a subspace."""

from typing import ClassVar

import torch
from torch import Tensor

from anamorph.simplifications.methods.projection import Projection
from anamorph.simplifications.statistics.moments import Moments


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
