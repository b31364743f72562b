"""Binary concepts: a point is made again from a few features that are on or off."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from anamorph.errors import require
from anamorph.simplifications.pooled import Pooled

PRIOR = 0.15  # of the loss, for how often concepts are on
RATE = 1e-2


class Concepts(Pooled):
    """Binary concepts: a point is written as the sum of the directions of the concepts that are on.

    The Bernoulli concepts of De Santis et al. 2025 (arXiv 2506.02092, §3), at a site of a model and
    without labels: of their loss the reconstruction and the prior are left, a concept's embedding
    is one direction, and the decoder is linear. Concepts are drawn while they are learnt, from
    relaxed Bernoulli distributions whose draws are rounded (gradients pass straight through); a
    point of data is given those that are likelier on than off.

    Args:
        concepts: how many there are.
        share: of points at which a concept is on, as it is expected beforehand.
        passes: how often each point is learnt from.
        rate: the learning rate of Adam; by default 0.01.
        batch: points of a step.
        pool: points that are held to be shuffled, of `4 * dim` bytes each.
        seed: of the start, the draws and the shuffles.

    Attributes:
        encoder_: [dim, concepts] float32; a concept is on if `x @ encoder_ + encoder_bias_ > 0`.
        encoder_bias_: [concepts].
        decoder_: [concepts, dim].
        bias_: [dim] what is written where no concept is on.
    """

    name: ClassVar[str] = "concepts"
    size_name: ClassVar[str | None] = "concepts"

    encoder_: Tensor
    encoder_bias_: Tensor
    decoder_: Tensor
    bias_: Tensor

    def __init__(
        self,
        *,
        concepts: int,
        share: float = 0.2,
        passes: int = 1,
        rate: float | None = None,
        batch: int = 256,
        pool: int = 2**15,
        seed: int = 0,
    ) -> None:
        self.concepts = concepts
        self.share = share
        self.passes = passes
        self.rate = rate
        self.batch = batch
        self.pool = pool
        self.seed = seed

    @property
    def usual_rate(self) -> float:
        """See `Pooled.usual_rate`."""
        return RATE

    def validate(self, dim: int | None = None) -> None:
        """See `Simplification.validate`."""
        super().validate(dim)
        self.require_whole("concepts", least=1)
        require(f"{self}: share", self.share, above=0, below=1)

    def start(self, x: Tensor, y: Tensor, random: torch.Generator) -> None:
        """See `Pooled.start`; at first every concept is as likely on as off."""
        self._random = random
        self._spread = float((y - y.mean(dim=0)).square().sum(dim=1).mean()) or 1.0
        encoder = F.normalize(torch.randn(self.concepts, x.shape[1], generator=random), dim=1)
        encoder = encoder.to(x.device)
        decoder = encoder.clone()
        parts = [encoder, -encoder @ x.mean(dim=0), decoder, y.mean(dim=0) - decoder.sum(dim=0) / 2]
        self._parts = [part.requires_grad_() for part in parts]
        self._optimizer = torch.optim.Adam(self._parts, fused=True)

    def train(self, x: Tensor, y: Tensor, rate: float) -> Tensor:
        """See `Pooled.train`."""
        encoder, encoder_bias, decoder, bias = self._parts
        odds = F.linear(x, encoder, encoder_bias)  # their logarithm
        draw = torch.rand(odds.shape, generator=self._random).clamp(1e-6, 1 - 1e-6).logit()
        draw = draw.to(x.device, non_blocking=x.is_cuda)
        soft = torch.sigmoid(odds + draw)
        on = soft + (soft > 0.5).float() - soft.detach()
        error = (on @ decoder + bias - y).square().sum(dim=1).mean() / self._spread
        likely = torch.sigmoid(odds).mean(dim=0)
        prior = likely * (likely / self.share).log()
        prior = prior + (1 - likely) * ((1 - likely) / (1 - self.share)).log()
        loss = error + PRIOR * prior.sum() / self.concepts**0.5
        for part, gradient in zip(self._parts, torch.autograd.grad(loss, self._parts), strict=True):
            part.grad = gradient
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.step()
        return error.detach()

    def settle(self, scale: float, scale_written: float) -> None:
        """See `Pooled.settle`."""
        encoder, encoder_bias, decoder, bias = (part.detach() for part in self._parts)
        self.encoder_, self.encoder_bias_ = encoder.T * scale, encoder_bias
        self.decoder_, self.bias_ = decoder / scale_written, bias / scale_written

    def encode(self, x: Tensor) -> Tensor:
        """Which concepts are on, 1 or 0 [..., concepts] for `x` [..., dim]; a NaN stays a NaN."""
        encoder, bias = self.prepared(x, "encoder", lambda: (self.encoder_, self.encoder_bias_))
        odds = x @ encoder + bias
        return (odds > 0) + 0 * odds

    def __call__(self, x: Tensor) -> Tensor:
        """Write `x` [..., dim] by its concepts."""
        decoder, bias = self.prepared(x, "decoder", lambda: (self.decoder_, self.bias_))
        return self.encode(x) @ decoder + bias
