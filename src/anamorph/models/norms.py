"""The scale of a norm: what it multiplies its input with, whatever it has learnt."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anamorph.models.tap import Tap


@dataclass(frozen=True)
class Norm:
    """A LayerNorm (Ba et al. 2016) or an RMSNorm (Zhang and Sennrich 2019) in a model.

    It gives (x - mean) · scale · gain + bias, where scale is 1 / sqrt(variance + eps). An RMSNorm
    takes no mean away, and has the mean square in place of the variance.

    Attributes:
        module: what gives that.
        eps: what is added to the variance.
        centred: whether the mean is taken away.
    """

    module: nn.Module
    eps: float
    centred: bool = True

    def scale(self, x: Tensor) -> Tensor:
        """[..., width] to [..., 1], in float32 at least."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        return (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()

    def bias(self, x: Tensor) -> Tensor:
        """[1, 1, width] what the module gives of zeros, of the dtype of `x` [..., width]."""
        bias: Tensor = self.module.forward(x.new_zeros(1, 1, x.shape[-1]))  # passes by all hooks
        return bias

    def scaled(self, x: Tensor, out: Tensor, scale: Tensor) -> Tensor:
        """What the module gives of `x` with another scale.

        Args:
            x: [copy, ..., width] what it is given.
            out: [copy, ..., width] what it gives by itself.
            scale: [copy, ..., 1]. Where it is the module's own, the output stays as it is.
        """
        return (out + (out - self.bias(x)) * (scale / self.scale(x) - 1)).to(out.dtype)

    def through(self, tap: Tap, kind: str, x: Tensor, out: Tensor) -> Tensor:
        """What the module gives of `x`, if its scale is a site of a kind; arguments as above."""
        if not tap.concerns(kind):
            return out
        scale = tap(kind, self.scale(x))
        return self.scaled(x, out, scale) if kind in tap.here else out
