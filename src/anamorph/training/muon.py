"""Muon, fast on processors without bfloat16.

`torch.optim.Muon` orthogonalizes one matrix after the other in bfloat16. A processor without it has
to emulate it, and a step then takes longer than the gradient. This one works in float32, on all
matrices of one shape at once. Momentum, rates and decay are the same.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.775, 2.0315)
STEPS = 5


class Muon(Optimizer):
    """Momentum whose updates are matrices with all singular values near one.

    Args:
        params: matrices.
        lr: the learning rate, a number or a tensor of one, as steps that are captured need; larger
            by √(rows/columns) for matrices with more rows.
        weight_decay: decoupled.
        momentum: of the gradient, in Nesterov's form.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                updates = orthogonal(torch.stack(self._moved(parameters, group["momentum"])))
                rate = group["lr"] * math.sqrt(max(1, shape[0] / shape[1]))
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                updates = updates.to(parameters[0].dtype)
                if isinstance(rate, Tensor):
                    updates, rate = updates * rate, 1.0
                torch._foreach_add_(parameters, list(updates.unbind()), alpha=-rate)

    def _moved(self, parameters: list[Tensor], momentum: float) -> tuple[Tensor, ...]:
        """Of parameters of one shape, where their gradients and those before would move them."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(gradient)
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        return torch._foreach_lerp(gradients, buffers, momentum)


def orthogonal(x: Tensor) -> Tensor:
    """Matrices [matrix, rows, columns] with their singular values brought near one.

    By five steps of a Newton-Schulz iteration whose coefficients make small ones grow fastest. The
    values end between 0.7 and 1.2, which is near enough.
    """
    a, b, c = COEFFICIENTS
    tall = x.shape[-2] > x.shape[-1]
    x = (x.mT if tall else x).float()
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return x.mT if tall else x
