"""Lloyd's algorithm where the points are, as scikit-learn has it on the CPU.

The start, the tolerance, what becomes of empty clusters and when it ends are scikit-learn's, so
that the centres are too, up to rounding. Sums are products of matrices, whose order is fixed. The
host waits once an iteration, to know whether it was the last.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anamorph.machine.process import as_found

TOLERANCE = 1e-4  # of the mean variance of a dimension: centres that move less rest
CHUNK = 4096  # points whose distances from all centres are held at a time


def start_of(points: NDArray[np.float64], clusters: int, seed: int) -> NDArray[np.int64]:
    """[clusters] the numbers of the points [points, dim] at which scikit-learn's `KMeans` begins.

    It draws them by k-means++, after it has subtracted the mean.
    """
    with as_found():  # here: it takes two seconds to import
        from sklearn.cluster import kmeans_plusplus
        from threadpoolctl import threadpool_limits

    with as_found(), threadpool_limits(limits=1):
        centred = points - points.mean(axis=0)
        found: NDArray[np.int64] = kmeans_plusplus(centred, clusters, random_state=seed)[1]
    return found


def lloyd(points: Tensor, start: Tensor, most: int) -> Tensor:
    """The centres that scikit-learn's `KMeans` comes to.

    Args:
        points: [points, dim] floats, on any device.
        start: [clusters, dim] likewise, fewer than there are distinct points.
        most: iterations.

    Returns:
        [clusters, dim] in the dtype of the points, on their device.
    """
    mean = points.mean(dim=0)
    tolerance = TOLERANCE * points.var(dim=0, correction=0).mean()
    points, centers = points - mean, start - mean
    labels = torch.full((len(points),), -1, device=points.device)
    for _ in range(most):
        found, sums, counts = _assigned(points, centers)
        made = sums / counts.clamp(min=1)[:, None]
        as_before, rest = (found == labels).all(), _moved(made, centers) <= tolerance
        last, empty = torch.stack([as_before | rest, (counts == 0).any()]).tolist()
        if empty:
            made = _relocated(points, centers, found, sums, counts)
            last = bool(as_before | (_moved(made, centers) <= tolerance))
        labels, centers = found, made
        if last:
            break
    return centers + mean


def _assigned(points: Tensor, centers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The number of the nearest centre [points]; by centre the sum of its points, and how many."""
    squares, numbers = centers.square().sum(dim=1), torch.arange(len(centers), device=points.device)
    sums, counts, labels = torch.zeros_like(centers), torch.zeros_like(squares), []
    for x in torch.split(points, CHUNK):
        # |x - c|² without |x|², which is the same for all centres
        labels.append(torch.addmm(squares, x, centers.T, alpha=-2).argmin(dim=1))
        mine = (labels[-1] == numbers[:, None]).to(x.dtype)  # [clusters, points]
        sums += mine @ x
        counts += mine.sum(dim=1)
    return torch.cat(labels), sums, counts


def _moved(centers: Tensor, before: Tensor) -> Tensor:
    return (centers - before).square().sum()


def _relocated(
    points: Tensor, centers: Tensor, labels: Tensor, sums: Tensor, counts: Tensor
) -> Tensor:
    """The new centres where clusters are empty: these get the points that are farthest from theirs.

    A cluster whose only point has gone so gets what scikit-learn gives it: the centre of the
    biggest, or its sum if that one stands behind it.
    """
    apart = (points - centers[labels]).square().sum(dim=1).cpu().numpy()
    empty = (counts == 0).nonzero()[:, 0].tolist()
    farthest = np.argpartition(apart, -len(empty))[: -len(empty) - 1 : -1].tolist()
    for cluster, point in zip(empty, farthest, strict=True):
        old = int(labels[point])
        sums[old] -= points[point]
        sums[cluster] = points[point]
        counts[old] -= 1
        counts[cluster] = 1
    made = sums / counts.clamp(min=1)[:, None]
    biggest = int(counts.argmax())
    for cluster in (counts == 0).nonzero()[:, 0].tolist():
        made[cluster] = (made if biggest < cluster else sums)[biggest]
    return made
