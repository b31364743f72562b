"""Training a TopK coder: an autoencoder or a transcoder of which `k` features are active at a time.

The loss is the share of the variance of what is to be written that is not explained, plus, after
Gao et al. 2024 (arXiv 2406.04093, §3 and appendix A), a small part for features that are dead: the
largest of them must explain what the live ones leave. As they are not clipped at zero there, one
that never comes above zero learns too.

Gradients are written down, as only the active features have any: of the five products of matrices
that autograd would make for a step, one is left whole, the encoder's.
"""

from __future__ import annotations

import warnings
from functools import reduce
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anamorph.machine.threads import side_by_side

CHUNK = 512  # points that a thread takes at a time; fixed, so that threads do not change numbers
DEAD_SHARE = 1 / 32  # of the loss, for dead features (Gao et al., appendix A.2)
DEAD_AFTER = 100  # steps without being active

SPARSE = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
"""Whether torch multiplies sparse matrices on this machine; else they are filled up with zeros."""

with warnings.catch_warnings():  # torch says once that these are new, and then no more
    warnings.simplefilter("ignore")
    torch.eye(1).to_sparse_csr()


class Parts(NamedTuple):
    """The weights of a coder, or their gradients.

    Attributes:
        encoder: [features, read].
        encoder_bias: [features].
        decoder: [features, written].
        bias: [written] added to what is written; an autoencoder subtracts it from what it reads.
        skip: [written, read] by which what is read is written too, or None.
    """

    encoder: Tensor
    encoder_bias: Tensor
    decoder: Tensor
    bias: Tensor
    skip: Tensor | None = None


class Chunk(NamedTuple):
    """What comes of some points.

    Attributes:
        gradient: of the loss, summed over the points.
        loss: the squared error, summed, in units of the variance of a point.
        active: [features] whether a feature was active at any of them.
    """

    gradient: Parts
    loss: float | Tensor
    active: Tensor


class Active(NamedTuple):
    """So many features of each point: a matrix [points, of all features] that is mostly zero.

    Attributes:
        features: [points, k] their numbers, rising in a row.
        values: [points, k].
    """

    features: Tensor
    values: Tensor

    def clipped(self) -> Active:
        """With zeros for values below zero."""
        return self._replace(values=self.values.clamp(min=0))

    def times(self, weight: Tensor) -> Tensor:
        """The product with `weight` [features, any]."""
        return self._matrix(len(weight)) @ weight

    def transposed_times(self, x: Tensor, features: int) -> Tensor:
        """The product [features, any] of its transpose with `x` [points, any]."""
        if not SPARSE:
            return self._matrix(features).T @ x
        size = (features, len(x))  # whose columns are the rows of this one
        return torch.sparse_csc_tensor(*self._places(), size, check_invariants=False) @ x

    def sampled(self, x: Tensor, weight: Tensor) -> Tensor:
        """Of `x @ weight.T` what stands at these features [points, k].

        Args:
            x: [points, any].
            weight: [features, any].
        """
        if not SPARSE:
            return (x @ weight.T).gather(-1, self.features)
        product = torch.sparse.sampled_addmm(self._matrix(len(weight)), x, weight.T, beta=0)
        return product.values().view_as(self.values)  # type: ignore[no-any-return]

    def _matrix(self, features: int) -> Tensor:
        size = (len(self.values), features)
        if not SPARSE:
            return torch.zeros(size).scatter(-1, self.features, self.values)
        return torch.sparse_csr_tensor(*self._places(), size, check_invariants=False)

    def _places(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where rows start, in which columns their values stand, and the values."""
        points, k = self.features.shape
        starts = torch.arange(0, points * k + 1, k)
        return starts, self.features.flatten(), self.values.flatten()


def largest(before: Tensor, k: int) -> Active:
    """The `k` largest of each row of `before` [points, features]."""
    kept = np.argpartition(before.numpy(), -k, axis=-1)[:, -k:]  # in half of torch's time
    features = torch.from_numpy(np.sort(kept, axis=-1))
    return Active(features, before.gather(-1, features))


class Trainer:
    """The weights of a TopK coder as it learns.

    Args:
        parts: to begin with.
        k: features that are active at a time.
        tied: whether the decoder's bias is subtracted from what is read, as in an autoencoder,
            whose decoder is also kept at norm 1.
        variance: of what is written: the mean squared distance of a point from the mean.
    """

    chunk: ClassVar[int] = CHUNK

    def __init__(self, parts: Parts, k: int, tied: bool, variance: float) -> None:
        self.parts, self.k, self.tied, self.variance = parts, k, tied, variance
        self.idle = torch.zeros_like(parts.encoder_bias, dtype=torch.int64)  # steps, by feature
        self.optimizer = torch.optim.Adam([p for p in parts if p is not None], fused=True)

    def dead(self) -> Tensor:
        """The numbers of the features that are dead."""
        return (self.idle >= DEAD_AFTER).nonzero().squeeze(1)

    def step(self, x: Tensor, y: Tensor, rate: float, workers: int) -> float | Tensor:
        """Learn from points.

        Args:
            x: [points, read].
            y: [points, written].
            rate: the learning rate.
            workers: threads.

        Returns:
            the share of the variance that is not explained, before the step.
        """
        dead = self.dead()
        pairs = zip(torch.split(x, self.chunk), torch.split(y, self.chunk), strict=True)
        chunks = list(side_by_side(lambda pair: self.gradients(*pair, dead), pairs, workers))
        for part, *gradients in zip(self.parts, *(chunk.gradient for chunk in chunks), strict=True):
            if part is not None:
                part.grad = reduce(Tensor.add_, gradients).div_(len(x))
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        if self.tied:
            decoder = self.parts.decoder
            decoder.div_(decoder.norm(dim=1, keepdim=True).clamp(min=1e-12))
        self.idle += 1
        self.idle.masked_fill_(torch.stack([chunk.active for chunk in chunks]).any(dim=0), 0)
        return sum(chunk.loss for chunk in chunks) / len(x)

    def gradients(self, x: Tensor, y: Tensor, dead: Tensor) -> Chunk:
        """The gradient of the loss, summed over points.

        Args:
            x: [points, read].
            y: [points, written].
            dead: the numbers of the features that are dead.
        """
        encoder, encoder_bias, decoder, bias, skip = self.parts
        inner = x - bias if self.tied else x
        before = F.linear(inner, encoder, encoder_bias)
        active = largest(before, self.k).clipped()
        error = active.times(decoder) + bias - y
        if skip is not None:
            error += F.linear(x, skip)
        slope = error * (2 / self.variance)  # of the loss, by what is written
        to_decoder = active.transposed_times(slope, len(decoder))
        to_features = active._replace(values=active.sampled(slope, decoder) * (active.values > 0))
        to_encoder = to_features.transposed_times(inner, len(encoder))
        to_encoder_bias = _summed(to_features, len(encoder))
        if len(dead):
            few = largest(before[:, dead], max(1, min(len(dead), x.shape[1] // 2)))
            left = few.times(decoder[dead]) + error  # the best dead features explain -error
            slope_dead = left * (2 * DEAD_SHARE / self.variance)
            to_decoder[dead] += few.transposed_times(slope_dead, len(dead))
            to_few = few._replace(values=few.sampled(slope_dead, decoder[dead]))
            to_encoder[dead] += to_few.transposed_times(inner, len(dead))
            to_encoder_bias[dead] += _summed(to_few, len(dead))
        to_bias = slope.sum(dim=0)
        if self.tied:
            to_bias -= to_encoder_bias @ encoder
        was_active = torch.zeros(len(encoder), dtype=torch.bool)
        was_active[active.features[active.values > 0]] = True
        loss = float(error.square().sum()) / self.variance
        to_skip = None if skip is None else slope.T @ x
        gradient = Parts(to_encoder, to_encoder_bias, to_decoder, to_bias, to_skip)
        return Chunk(gradient, loss, was_active)


def _summed(active: Active, features: int) -> Tensor:
    """The sum over points [features]."""
    return torch.zeros(features).index_add_(0, active.features.flatten(), active.values.flatten())
