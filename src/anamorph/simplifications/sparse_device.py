"""Training a TopK coder on a device.

The loss and the steps are those of `anamorph.simplifications.sparse`. But a device multiplies dense
matrices faster than it gathers the few rows that matter, and it must not be asked anything while it
works: shapes are fixed, and features that are dead are told by a mask.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from anamorph.machine.devices import is_fast_at_bfloat16
from anamorph.simplifications import sparse
from anamorph.simplifications.sparse import Chunk, Parts, Trainer


class DeviceTrainer(Trainer):
    """The weights of a TopK coder as it learns on their device.

    Matrices are multiplied in bfloat16 where the device is fast at it; weights, sums and Adam's
    moments stay in float32.

    Attributes:
        products: the format in which matrices are multiplied.
    """

    chunk: ClassVar[int] = 4096

    def __init__(self, parts: Parts, k: int, tied: bool, variance: float) -> None:
        super().__init__(parts, k, tied, variance)
        fast = is_fast_at_bfloat16(parts.encoder.device)
        self.products = torch.bfloat16 if fast else torch.float32
        self.steps = 0

    def dead(self) -> Tensor:
        """[features] whether each is dead."""
        return self.idle >= sparse.DEAD_AFTER

    def step(self, x: Tensor, y: Tensor, rate: float, workers: int = 1) -> Tensor | float:
        """See `Trainer.step`; nothing waits for the device."""
        self.steps += 1
        return super().step(x, y, rate, workers=1)

    def gradients(self, x: Tensor, y: Tensor, dead: Tensor) -> Chunk:
        """See `Trainer.gradients`; `dead` is a mask [features]."""
        encoder, encoder_bias, decoder, bias, skip = self.parts
        inner = x - bias if self.tied else x
        before = self._product(inner, encoder.T) + encoder_bias  # [points, features]
        code = _largest(before, self.k).clamp(min=0)
        error = self._product(code, decoder) + bias - y
        if skip is not None:
            error += self._product(x, skip.T)
        slope = error * (2 / self.variance)  # of the loss, by what is written
        to_decoder = self._product(code.T, slope)
        to_code = self._product(slope, decoder.T) * (code > 0)
        if self.steps > sparse.DEAD_AFTER:  # none can be before
            few = max(1, min(len(dead), x.shape[1] // 2))
            ghosts = _largest(before.masked_fill(~dead, -torch.inf), few)
            slope_dead = (self._product(ghosts, decoder) + error) * (
                2 * sparse.DEAD_SHARE / self.variance
            )
            to_decoder += self._product(ghosts.T, slope_dead)
            to_code += self._product(slope_dead, decoder.T) * (ghosts != 0)
        to_encoder, to_encoder_bias = self._product(to_code.T, inner), to_code.sum(dim=0)
        to_bias = slope.sum(dim=0)
        if self.tied:
            to_bias -= to_encoder_bias @ encoder
        to_skip = None if skip is None else self._product(slope.T, x)
        gradient = Parts(to_encoder, to_encoder_bias, to_decoder, to_bias, to_skip)
        loss = error.square().sum() / self.variance
        return Chunk(gradient, loss, (code > 0).any(dim=0))

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        return (a.to(self.products) @ b.to(self.products)).float()


def _largest(before: Tensor, k: int) -> Tensor:
    """`before` [points, features] with zeros but at the `k` largest of a row that are finite."""
    values, kept = before.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(before).scatter(-1, kept, values.masked_fill(values == -torch.inf, 0))
