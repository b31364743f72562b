"""Sparse coders trained here: `topk_sae`, and `topk_transcoder`, which stands in for an MLP."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.models.sites import Site
from anamorph.simplifications.formats import saelens, sparsify
from anamorph.simplifications.formats.coder import Encoder, SparseCoder
from anamorph.simplifications.pooled import Pooled
from anamorph.simplifications.replacement import Replacement
from anamorph.simplifications.sparse import Parts, Trainer
from anamorph.simplifications.sparse_device import DeviceTrainer

RATE = 2e-4  # for 2**14 features; it goes with one over the root of their number (as in sparsify)


class TopKCoder(Pooled):
    """What `TopKSAE` and `TopKTranscoder` have in common: encoder, decoder and their training.

    Attributes:
        tied: whether the decoder's bias is subtracted from what is read, and its norm is 1.
        encoder_: [read, features] float32.
        encoder_bias_: [features].
        decoder_: [features, written].
        bias_: [written].
    """

    tied: ClassVar[bool]

    features: int
    k: int

    encoder_: Tensor
    encoder_bias_: Tensor
    decoder_: Tensor
    bias_: Tensor

    @property
    def coder(self) -> SparseCoder:
        """What was learnt, in the form in which coders are read from files."""
        return SparseCoder(self._encoder(), self.decoder_, self.bias_)

    @property
    def usual_rate(self) -> float:
        """See `Pooled.usual_rate`."""
        return RATE / math.sqrt(self.features / 2**14)

    def validate(self, dim: int | None = None) -> None:
        """See `Simplification.validate`."""
        super().validate(dim)
        for parameter in ("features", "k"):
            self.require_whole(parameter, least=1)
        if self.k > self.features:
            raise AnamorphError(f"{self}: k must be at most the {self.features} features.")

    def start(self, x: Tensor, y: Tensor, random: torch.Generator) -> None:
        """See `Pooled.start`; a transcoder begins by writing the mean."""
        encoder = F.normalize(torch.randn(self.features, x.shape[1], generator=random), dim=1)
        encoder = encoder.to(x.device)
        decoder = encoder.clone() if self.tied else encoder.new_zeros(self.features, y.shape[1])
        spread = float((y - y.mean(dim=0)).square().sum(dim=1).mean())
        # The features of the mean point are zero; an autoencoder subtracts it anyway.
        begin = encoder.new_zeros(self.features) if self.tied else -encoder @ x.mean(dim=0)
        parts = Parts(encoder, begin, decoder, y.mean(dim=0))
        trainer = Trainer if x.device.type == "cpu" else DeviceTrainer
        self._trainer = trainer(self.begun(parts), self.k, self.tied, spread or 1.0)

    def begun(self, parts: Parts) -> Parts:
        """The weights to begin with; these, or more."""
        return parts

    def train(self, x: Tensor, y: Tensor, rate: float) -> float | Tensor:
        """See `Pooled.train`."""
        return self._trainer.step(x, y, rate, self.threads)

    def settle(self, scale: float, scale_written: float) -> None:
        """See `Pooled.settle`."""
        parts = self._trainer.parts
        self.encoder_, self.encoder_bias_ = parts.encoder.T * scale, parts.encoder_bias
        self.decoder_, self.bias_ = parts.decoder / scale_written, parts.bias / scale_written

    def encode(self, x: Tensor) -> Tensor:
        """The features [..., features] of `x` [..., read]."""
        return self.prepared(x, "encoder", self._encoder)(x)

    def __call__(self, x: Tensor) -> Tensor:
        """Write [..., written] by the features of `x` [..., read]."""
        decoder, bias = self.prepared(x, "decoder", lambda: (self.decoder_, self.bias_))
        return self.encode(x) @ decoder + bias

    def _encoder(self) -> Encoder:
        centre = self.bias_ if self.tied else None
        return Encoder(self.encoder_, self.encoder_bias_, centre, k=self.k)


class TopKSAE(TopKCoder):
    """A sparse autoencoder: a point is written as a sum of `k` of so many learnt directions.

    Trained as Gao et al. 2024 (arXiv 2406.04093) do, by Adam, with their loss for dead features. On
    a GPU that is fast at bfloat16 matrices are multiplied in it while it is trained; on others, and
    on a CPU, in float32. Weights and Adam's moments are float32 everywhere.

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
    tied: ClassVar[bool] = True

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

    def export(self, folder: Path | str, site: Site, model: str) -> Path:
        """Write what was learnt as SAELens 6 does; see `Estimator.export`."""
        return saelens.write_at(folder, self.coder, site, model)


class TopKTranscoder(TopKCoder, Replacement):
    """A transcoder: what an MLP writes is made of what it reads, by `k` features at a time.

    Dunefsky et al. 2024 (arXiv 2406.11944), with a skip connection as in Paulo et al. 2025 (arXiv
    2501.18823); trained as `topk_sae` is.

    Args:
        features: how many features there are.
        k: how many of them are active at a time.
        skip: whether an affine map of what is read is learnt beside the features, and added.
        passes: as of `topk_sae`, and so are the others.
        rate: the learning rate; by default `2e-4 / √(features / 2**14)`.
        batch: points of a step.
        pool: points that are held to be shuffled, of `8 * dim` bytes each.
        seed: of the start and the shuffles.

    Attributes:
        encoder_: [read, features] float32.
        encoder_bias_: [features].
        decoder_: [features, written].
        bias_: [written].
        skip_: [read, written], if there is a skip connection.
    """

    name: ClassVar[str] = "topk_transcoder"
    size_name: ClassVar[str | None] = "k"
    kinds: ClassVar[frozenset[str]] = frozenset({"mlp"})
    tied: ClassVar[bool] = False

    skip_: Tensor

    def __init__(
        self,
        *,
        features: int,
        k: int,
        skip: bool = False,
        passes: int = 1,
        rate: float | None = None,
        batch: int = 1024,
        pool: int = 2**15,
        seed: int = 0,
    ) -> None:
        self.features = features
        self.k = k
        self.skip = skip
        self.passes = passes
        self.rate = rate
        self.batch = batch
        self.pool = pool
        self.seed = seed

    @property
    def coder(self) -> SparseCoder:
        """See `TopKCoder.coder`."""
        return replace(super().coder, skip=self.skip_) if self.skip else super().coder

    def reads(self, site: Site) -> tuple[Site, ...]:
        """What the MLP of the same layer reads."""
        return (Site(site.layer, None, "mlp_input"),)

    def validate(self, dim: int | None = None) -> None:
        """See `Simplification.validate`."""
        super().validate(dim)
        if not isinstance(self.skip, bool):
            raise AnamorphError(f"{self}: skip must be true or false; got {self.skip!r}.")

    def begun(self, parts: Parts) -> Parts:
        """See `TopKCoder.begun`."""
        zeros = parts.encoder.new_zeros(parts.decoder.shape[1], parts.encoder.shape[1])
        return parts._replace(skip=zeros) if self.skip else parts

    def settle(self, scale: float, scale_written: float) -> None:
        """See `Pooled.settle`."""
        super().settle(scale, scale_written)
        if (skip := self._trainer.parts.skip) is not None:
            self.skip_ = skip.T.contiguous() * (scale / scale_written)  # laid out as it is read

    def __call__(self, x: Tensor) -> Tensor:
        """Write [..., written] in place of the MLP that reads `x` [..., read]."""
        made = super().__call__(x)
        return made + x @ self.prepared(x, "skip", lambda: self.skip_) if self.skip else made

    def export(self, folder: Path | str, site: Site, model: str) -> Path:
        """Write what was learnt as sparsify does; SAELens has no form for it.

        See `Estimator.export`; this format does not hold the name of the model.
        """
        return sparsify.write_at(folder, self.coder, site)
