"""Count, mean and scatter of a stream of points: all that SVD and PCA, of any rank, must know."""

from functools import cached_property

import torch
from torch import Tensor


class Moments:
    """Streaming first and second moments in float64.

    The scatter is kept around the mean and merged by the rule of Chan, Golub and LeVeque (1979), so
    that points far from the origin do not cancel away what sets them apart.

    Attributes:
        count: points seen.
        mean: [dim].
        scatter: [dim, dim] the sum of (x - mean)(x - mean)ᵀ.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)

    @property
    def key(self) -> tuple[str]:
        """All moments of one stream are the same."""
        return ("moments",)

    @property
    def dim(self) -> int:
        """The width of the points."""
        return len(self.mean)

    def update(self, x: Tensor) -> None:
        """Take in `x` [points, dim]."""
        if not len(x):
            return
        points = x.detach().to("cpu", torch.float64)
        mean = points.mean(dim=0)
        centred = points - mean
        shift = mean - self.mean
        total = self.count + len(points)
        self.scatter = self.scatter + centred.T @ centred
        self.scatter += torch.outer(shift, shift) * (self.count * len(points) / total)
        self.mean = self.mean + shift * (len(points) / total)
        self.count = total
        self.__dict__.pop("axes", None)
        self.__dict__.pop("centred_axes", None)

    @cached_property
    def axes(self) -> Tensor:
        """[dim, dim] the right-singular vectors of the points, the greatest singular value first.

        A row an axis, with the sign that makes its greatest entry positive.
        """
        return _axes(self.scatter + self.count * torch.outer(self.mean, self.mean))

    @cached_property
    def centred_axes(self) -> Tensor:
        """[dim, dim] the principal axes, the greatest variance first; rows and signs as `axes`."""
        return _axes(self.scatter)


def _axes(scatter: Tensor) -> Tensor:
    axes = torch.linalg.eigh(scatter).eigenvectors.T.flip(0)  # ascending columns to rows from top
    greatest = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True))
    return torch.where(greatest < 0, -axes, axes).contiguous()
