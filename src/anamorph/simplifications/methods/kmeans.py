"""K-means: every point is replaced by the centre of its cluster."""

from typing import ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.machine.process import as_found
from anamorph.simplifications.base import Simplification
from anamorph.simplifications.lloyd import lloyd, start_of
from anamorph.simplifications.statistics.reservoir import USUAL, Reservoir

MAX_ITERATIONS = 100  # of Lloyd's algorithm; it stops before when the centres rest (tol=1e-4)


class KMeans(Simplification):
    """The nearest of `clusters` centres, found by scikit-learn: k-means++, one start, Lloyd.

    Of points that come from another device Lloyd's algorithm runs there, in float64 (on Apple's
    GPUs, which have none, in float32), and finds the same centres up to rounding.

    Args:
        clusters: how many centres; at most the number of distinct points seen. Exactly that many
            reproduce the points.
        seed: of the start, and of the sample if there are more points than `reservoir`.
        reservoir: at most so many points, drawn uniformly from the stream, are fitted to.

    Attributes:
        centers_: [clusters, dim].
    """

    name: ClassVar[str] = "kmeans"
    size_name: ClassVar[str | None] = "clusters"

    centers_: Tensor

    def __init__(self, *, clusters: int, seed: int = 0, reservoir: int = USUAL) -> None:
        self.clusters = clusters
        self.seed = seed
        self.reservoir = reservoir

    def validate(self, dim: int | None = None) -> None:
        """See `Simplification.validate`."""
        self.require_whole("clusters", least=1)
        self.require_whole("seed", least=0)
        self.require_whole("reservoir", least=1)
        if self.seed >= 2**32:
            raise AnamorphError(f"{self}: seed must be below 2**32; got {self.seed}.")
        if self.clusters > self.reservoir:
            raise AnamorphError(
                f"{self}: clusters above points. Only {self.reservoir} points are kept to fit to; "
                "choose fewer clusters or a larger reservoir."
            )

    def exact_size(self, dim: int, points: int) -> int | None:
        """A cluster a point changes nothing, as long as every point is kept."""
        return points if points <= self.reservoir else None

    def statistic(self, dim: int) -> Reservoir:
        """A sample of the points, shared by all numbers of clusters."""
        self.validate(dim)
        return Reservoir(capacity=int(self.reservoir), seed=int(self.seed))

    def learn(self, statistic: Reservoir) -> Self:
        """Find the centres.

        Raises:
            AnamorphError: if there are fewer distinct points than clusters.
        """
        self.validate()
        points = statistic.points().numpy()
        few = len(np.unique(points[:, :1])) <= self.clusters  # by one coordinate: it is far faster
        distinct = np.unique(points, axis=0) if few else points
        if self.clusters > len(distinct):
            raise AnamorphError(
                f"{self}: clusters above points. Of {statistic.seen} points seen, {len(distinct)} "
                "distinct ones were kept; choose fewer clusters or fit to more data."
            )
        if few and self.clusters == len(distinct):
            centers = distinct  # the optimum, which the algorithm could miss by a duplicate
        elif statistic.device.type == "cpu":
            centers = self._on_cpu(points)
        else:
            dtype = torch.float32 if statistic.device.type == "mps" else torch.float64
            start = torch.from_numpy(start_of(points, int(self.clusters), self.seed))
            there = torch.from_numpy(points).to(statistic.device, dtype)
            found = lloyd(there, there[start.to(there.device)], MAX_ITERATIONS)
            centers = found.cpu().numpy()
        self.centers_ = torch.from_numpy(centers.astype(np.float64))
        return self

    def _on_cpu(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        with as_found():  # here: it takes two seconds to import
            from sklearn.cluster import KMeans as ScikitKMeans
            from threadpoolctl import threadpool_limits

        # One thread: scikit-learn adds up the threads' partial sums as they come in.
        with as_found(), threadpool_limits(limits=1):
            search = ScikitKMeans(
                int(self.clusters), n_init=1, max_iter=MAX_ITERATIONS, random_state=self.seed
            )
            found: NDArray[np.float64] = search.fit(points).cluster_centers_
        return found

    def __call__(self, x: Tensor) -> Tensor:
        """Replace every point of `x` [..., dim] by its nearest centre; one with a NaN by NaN."""
        # |x - c|² without |x|², which is the same for all centres. Measured from the centres' mean,
        # so that a common offset does not swallow the differences.
        centers, middle, shifted = self.prepared(x, "centers", self._shifted)
        distance = shifted.square().sum(dim=1) - 2 * (x - middle) @ shifted.T
        nearest = F.embedding(distance.argmin(dim=-1), centers)
        # No centre is nearest to what is not a number. Distances would not tell: they may overflow.
        return nearest.add_((0 * x).sum(dim=-1, keepdim=True))

    def _shifted(self) -> tuple[Tensor, Tensor, Tensor]:
        """The centres, their mean [dim], and the centres without it."""
        middle = self.centers_.mean(dim=0)
        return self.centers_, middle, self.centers_ - middle
