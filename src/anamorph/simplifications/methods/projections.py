"""SVD, PCA and random directions: points are projected on a few axes."""

from abc import abstractmethod
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.models.sites import HEAD_KINDS, LAYER_KINDS, Site
from anamorph.simplifications.base import Simplification
from anamorph.simplifications.estimator import Where
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
    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """(down [dim, rank], up [rank, dim], bias [dim]), float64: `x @ down @ up + bias`."""

    def affine(self) -> tuple[Tensor, Tensor]:
        """The factors multiplied out: (matrix [dim, dim], bias [dim])."""
        down, up, bias = self.factors()
        return down @ up, bias

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
        *matrices, bias = self.prepared(x, "products", self._products)
        for matrix in matrices:
            x = x @ matrix
        return x + bias


class SVD(Projection):
    """The uncentred projection on the top right-singular vectors of the points.

    Args:
        rank: how many vectors to keep, from 1 to the dimension.

    Attributes:
        components_: [rank, dim] the vectors as rows, the greatest singular value first.

    Examples:
        >>> import torch
        >>> points = torch.tensor([[3.0, 4.0], [6.0, 8.0]])
        >>> SVD(rank=1).fit(points)(torch.tensor([4.0, -3.0])).abs().max() < 1e-6
        tensor(True)
    """

    name: ClassVar[str] = "svd"

    def _learn(self, moments: Moments) -> None:
        self.components_ = moments.axes[: self.rank].clone()

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """See `Projection.factors`; the bias is zero."""
        axes = self.components_
        return axes.T, axes, torch.zeros_like(axes[0])


class Centred(Projection):
    """A projection that leaves the mean of the points where it is.

    Attributes:
        mean_: [dim].
    """

    mean_: Tensor

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """See `Projection.factors`; the mean stays where it is."""
        axes = self.components_
        return axes.T, axes, self.mean_ - self.mean_ @ axes.T @ axes


class PCA(Centred):
    """The centred projection on the axes of greatest variance.

    Args:
        rank: how many axes to keep, from 1 to the dimension.

    Attributes:
        components_: [rank, dim] the axes as rows, the greatest variance first.
        mean_: [dim].
    """

    name: ClassVar[str] = "pca"

    def _learn(self, moments: Moments) -> None:
        self.components_ = moments.centred_axes[: self.rank].clone()
        self.mean_ = moments.mean.clone()


class Random(Centred):
    """The projection, about the mean, on random directions: what a rank keeps without any fit.

    Directions are orthonormal and uniformly distributed. They differ from site to site, unless
    `joint=true` shares them; those of a lower rank are among those of a higher one.

    Args:
        rank: how many directions, from 1 to the dimension.
        seed: of the directions.

    Attributes:
        components_: [rank, dim] the directions as rows.
        mean_: [dim].
    """

    name: ClassVar[str] = "random"
    control: ClassVar[str | None] = "random"

    _place: tuple[int, ...] = ()  # where it stands, in numbers

    def __init__(self, *, rank: int, seed: int = 0) -> None:
        super().__init__(rank=rank)
        self.seed = seed

    def validate(self, dim: int | None = None) -> None:
        """See `Simplification.validate`."""
        super().validate(dim)
        self.require_whole("seed", least=0)

    def placed(self, where: Where) -> Self:
        """One with directions of its own for the place."""
        placed = self.clone()
        placed._place = _numbers(where.sites[0])
        return placed

    def _learn(self, moments: Moments) -> None:
        # NumPy draws row by row, so that more rows begin with the same.
        random = np.random.default_rng([self.seed, *self._place])
        directions = random.standard_normal((self.rank, moments.dim))
        self.components_ = torch.from_numpy(np.linalg.qr(directions.T).Q.T.copy())
        self.mean_ = moments.mean.clone()


def _numbers(site: Site) -> tuple[int, int, int]:
    """A site in numbers."""
    kinds = (*HEAD_KINDS, *LAYER_KINDS)
    return site.layer, 0 if site.head is None else site.head, kinds.index(site.kind)
