"""Sparse coders trained here: `topk_sae`, and the training that a transcoder shares with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from anamorph.errors import AnamorphError, require
from anamorph.simplifications.formats.coder import Encoder, SparseCoder
from anamorph.simplifications.sparse import Parts, Trainer
from anamorph.simplifications.streamed import Streamed

WARM_UP = 50  # steps in which the learning rate rises
DECAY = 0.5  # the share of the last pool's steps in which it falls to zero
RATE = 2e-4  # for 2**14 features; it goes with one over the root of their number (as in sparsify)


class Training:
    """A coder that learns from a stream, a *pool* of points at a time.

    Neighbours in a stream are alike, so points wait until a pool is full and are then shuffled. The
    learning rate rises, stays, and falls while the last pool is learnt from, as how long the stream
    is is known only then.

    Args:
        settings: how many features, and how they are learnt.
        read: the width of what is read.
        written: of what is written, which stands behind it in a point; 0 for an autoencoder.
        random: of starts and shuffles.
    """

    def __init__(self, settings: Trained, read: int, written: int, random: torch.Generator) -> None:
        self.settings, self.read, self.written, self.random = settings, read, written, random
        self.held: list[Tensor] = []
        self.trainer: Trainer | None = None
        self.steps = 0

    def take(self, points: Tensor) -> None:
        """Take in points [points, read + written] of the stream."""
        if sum(map(len, self.held)) >= self.settings.pool:
            self._learn(last=False)
        self.held.append(points.float().cpu())

    def finish(self) -> SparseCoder:
        """Learn from the last pool, and give the coder, for points as they came."""
        self._learn(last=True)
        assert self.trainer is not None
        parts, scale, tied = self.trainer.parts, self.scale, not self.written
        bias = parts.bias / self.scale_out
        encoder = Encoder(
            parts.encoder.T * scale, parts.encoder_bias, bias if tied else None, k=self.settings.k
        )
        return SparseCoder(encoder, parts.decoder / self.scale_out, bias)

    def _learn(self, last: bool) -> None:
        points = torch.cat(self.held)
        self.held = []
        x = points[:, : self.read]
        y = points[:, self.read :] if self.written else x
        if self.trainer is None:
            self._begin(x, y)
        assert self.trainer is not None
        x, y = x * self.scale, y * self.scale_out
        batch, passes = self.settings.batch, self.settings.passes
        steps = passes * -(-len(x) // batch)
        for step, some in enumerate(self._batches(len(x))):
            rate = self.rate * min(1.0, (self.steps + 1) / WARM_UP)
            if last:
                rate *= min(1.0, (steps - step) / (DECAY * steps))
            self.trainer.step(x[some], y[some], rate, workers=1)
            self.steps += 1

    def _batches(self, points: int) -> Iterator[Tensor]:
        for _ in range(self.settings.passes):
            order = torch.randperm(points, generator=self.random)
            yield from torch.split(order, self.settings.batch)

    def _begin(self, x: Tensor, y: Tensor) -> None:
        """Scales that bring the mean length of a point to √width, and the first weights."""
        features, tied = self.settings.features, not self.written
        self.scale, self.scale_out = (_scale(part) for part in (x, y))
        self.rate = self.settings.rate or RATE / (features / 2**14) ** 0.5
        centre = y.mean(dim=0) * self.scale_out
        spread = float((y * self.scale_out - centre).square().sum(dim=1).mean())
        random = torch.randn(features, self.read, generator=self.random)
        encoder = F.normalize(random, dim=1)
        decoder = encoder.clone() if tied else torch.zeros(features, y.shape[1])
        parts = Parts(encoder, torch.zeros(features), decoder, centre)
        self.trainer = Trainer(parts, self.settings.k, tied, spread or 1.0)


def _scale(x: Tensor) -> float:
    length = float((x - x.mean(dim=0)).norm(dim=1).mean())
    return x.shape[1] ** 0.5 / length if length else 1.0


class Trained(Streamed):
    """What a TopK coder that is trained here can be told; see `TopKSAE`."""

    features: int
    k: int
    batch: int
    pool: int
    passes: int
    rate: float | None

    encoder_: Tensor
    encoder_bias_: Tensor
    decoder_: Tensor
    bias_: Tensor

    def validate(self, dim: int | None = None) -> None:
        """See `Simplification.validate`."""
        super().validate(dim)
        for parameter in ("features", "k", "pool", "passes"):
            self.require_whole(parameter, least=1)
        if self.k > self.features:
            raise AnamorphError(f"{self}: k must be at most the {self.features} features.")
        if self.rate is not None:
            require(f"{self}: rate", self.rate, above=0)

    def step(self, points: Tensor) -> None:
        """See `Streamed.step`."""
        self._training.take(points)

    def end(self) -> None:
        """See `Streamed.end`."""
        coder = self._training.finish()
        self.encoder_, self.encoder_bias_ = coder.encoder.weight, coder.encoder.bias
        self.decoder_, self.bias_ = coder.weight, coder.bias


class TopKSAE(Trained):
    """A sparse autoencoder: a point is written as a sum of `k` of so many learnt directions.

    Trained as Gao et al. 2024 (arXiv 2406.04093) do, by Adam, with their loss for dead features.

    Args:
        features: how many directions there are.
        k: how many of them are active at a time.
        passes: how often each point is learnt from.
        rate: the learning rate; by default `2e-4 / √(features / 2**14)`.
        batch: points of a step.
        pool: points that are held to be shuffled, of `4 * dim` bytes each.
        seed: of the start and the shuffles.

    Attributes:
        encoder_: [dim, features] float32.
        encoder_bias_: [features].
        decoder_: [features, dim].
        bias_: [dim], subtracted before encoding and added behind decoding.
    """

    name: ClassVar[str] = "topk_sae"
    size_name: ClassVar[str | None] = "k"

    def __init__(
        self,
        *,
        features: int,
        k: int,
        passes: int = 1,
        rate: float | None = None,
        batch: int = 1024,
        pool: int = 2**15,
        seed: int = 0,
    ) -> None:
        self.features = features
        self.k = k
        self.passes = passes
        self.rate = rate
        self.batch = batch
        self.pool = pool
        self.seed = seed

    def begin(self, dims: Sequence[int], random: torch.Generator) -> None:
        """See `Streamed.begin`."""
        self._training = Training(self, dims[0], 0, random)

    def __call__(self, x: Tensor) -> Tensor:
        """Write `x` [..., dim] by its features."""
        weights = (self.encoder_, self.encoder_bias_, self.decoder_, self.bias_)
        encoder, encoder_bias, decoder, bias = (weight.to(x) for weight in weights)
        return Encoder(encoder, encoder_bias, bias, k=self.k)(x) @ decoder + bias
