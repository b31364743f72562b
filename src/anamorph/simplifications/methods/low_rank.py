"""Weights of low rank: `low_rank(rank=8)@3.mlp`, `low_rank(rank=4)@1.3.pattern`."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from anamorph.errors import require
from anamorph.models.sites import Site
from anamorph.simplifications.statistics.moments import Moments
from anamorph.simplifications.weight_change import Matrices, Seen, WeightChange

LEAST = 1e-10  # of the mean second moment, added to all: it orders directions without inputs


class LowRank(WeightChange):
    """The best matrix of a rank in place of each; of a head's pattern, in place of W_Q W_Kᵀ.

    Best is what differs least from the matrix. With `whitened=true` it is what gives outputs, or at
    a pattern scores, that differ least, in the mean square over the data that it is fitted to (of
    scores, over all pairs of a token that looks and one that is looked at). A matrix whose rank is
    no higher stays as it is.

    Derivation. For inputs x with second moments C = E[x xᵀ] an output error is
    E|(W - W')x|² = |(W - W')C^½|², in Frobenius norm. The best W'C^½ is the truncated SVD of
    W C^½ (Eckart and Young), which is U Uᵀ W C^½ with its first left singular vectors U: the first
    eigenvectors of W C Wᵀ. So W' = U Uᵀ W. Of a head, with S = W_Q C W_Qᵀ of queries and T of keys,
    a score q·k becomes (M q)·k, whose error is |S^½ (1 - Mᵀ) T^½|²; it is least where
    M = S^½ U Uᵀ S^-½, with the first left singular vectors U of S^½ T^½. Only W_Q changes, to
    M W_Q, so that heads may share keys. Plain is C = 1.

    Source: Eckart and Young (1936); of outputs, Chen et al. (2021), DRONE (NeurIPS).

    Args:
        rank: of the new matrices.
        whitened: whether it is fitted to data.
    """

    name: ClassVar[str] = "low_rank"
    size_name: ClassVar[str | None] = "rank"
    kinds: ClassVar[frozenset[str]] = frozenset({"attention", "mlp", "pattern"})

    def __init__(self, *, rank: int, whitened: bool = False) -> None:
        self.rank, self.whitened = rank, whitened

    def validate(self, dim: int | None = None) -> None:
        """See `Estimator.validate`."""
        self.require_whole("rank", least=1)
        require(f"{self}: whitened", self.whitened, among=(True, False))

    def statistic(self, dim: int) -> Moments | None:
        """The moments of the inputs, if it is whitened."""
        return Moments(dim) if self.whitened else None

    def learn(self, statistic: Seen | None) -> Self:
        """See `WeightChange.learn`; of a pattern, how queries are turned."""
        if statistic is None or statistic.site.kind != "pattern":
            return super().learn(statistic)
        (query, w_q), (key, w_k) = statistic.matrices.items()
        moments = (_damped(statistic.inputs[name].second) for name in (query, key))
        self.learnt_ = {f"{query}:map": self._map(w_q, w_k, *moments)}
        return self

    def study(self, matrix: Tensor, inputs: Any) -> dict[str, Tensor]:
        """The directions of outputs that are kept, [rank, out] orthonormal."""
        if self.rank >= min(matrix.shape):
            return {}
        return {"directions": _first(matrix @ _damped(inputs.second) @ matrix.T, self.rank)}

    def simpler(self, matrix: Tensor, learnt: Mapping[str, Tensor]) -> Tensor:
        """The matrix [out, in] float64 of low rank."""
        if self.rank >= min(matrix.shape):
            return matrix
        if self.whitened:
            kept = learnt["directions"]
            return kept.T @ (kept @ matrix)
        if len(matrix) > matrix.shape[1]:  # the smaller of two products tells as much
            return self.simpler(matrix.T, learnt).T
        kept = _first(matrix @ matrix.T, self.rank)
        return kept.T @ (kept @ matrix)

    def change(self, site: Site, matrices: Matrices) -> dict[str, Tensor]:
        """See `WeightChange.change`; of a pattern W_Q alone."""
        if site.kind != "pattern":
            return super().change(site, matrices)
        (query, w_q), (_, w_k) = matrices.items()
        if self.whitened:
            return {query: self.learnt_of(query)["map"] @ w_q}
        same = torch.eye(w_q.shape[1], dtype=w_q.dtype)
        return {query: self._map(w_q, w_k, same, same) @ w_q}

    def _map(self, w_q: Tensor, w_k: Tensor, of_q: Tensor, of_k: Tensor) -> Tensor:
        """[dim, dim] what queries are multiplied by.

        Args:
            w_q: [dim, width].
            w_k: [dim, width].
            of_q: [width, width] second moments of what w_q is given.
            of_k: of what w_k is given.
        """
        if self.rank >= len(w_q):
            return torch.eye(len(w_q), dtype=w_q.dtype)
        root_q, back = _roots(w_q @ of_q @ w_q.T)
        root_k, _ = _roots(w_k @ of_k @ w_k.T)
        left: Tensor = torch.linalg.svd(root_q @ root_k).U[:, : self.rank]
        return root_q @ left @ left.T @ back


def _first(square: Tensor, rank: int) -> Tensor:
    """[rank, dim] the eigenvectors of the greatest eigenvalues of a symmetric matrix, as rows."""
    vectors: Tensor = torch.linalg.eigh(square).eigenvectors
    return vectors[:, -rank:].T.contiguous()


def _roots(square: Tensor) -> tuple[Tensor, Tensor]:
    """The root of a symmetric matrix without negative eigenvalues, and the root's pseudoinverse."""
    values, vectors = torch.linalg.eigh(square)
    roots = values.clamp(min=0).sqrt()
    known = roots > roots.amax() * 1e-7
    inverse = torch.where(known, 1 / roots.where(known, 1.0), 0.0)
    return (vectors * roots) @ vectors.T, (vectors * inverse) @ vectors.T


def _damped(second: Tensor) -> Tensor:
    """Second moments [dim, dim] with a little more in every direction."""
    return second + LEAST * second.diagonal().mean() * torch.eye(len(second), dtype=second.dtype)
