"""One-hot attention: every query attends only to the key it attends to most."""

from typing import ClassVar

import torch
from torch import Tensor

from anamorph.simplifications.base import Simplification


class OneHot(Simplification):
    """One at the arg-max of `[..., keys]` (the first of ties), zero elsewhere. Nothing is fitted.

    Examples:
        >>> OneHot()(torch.tensor([0.1, 0.6, 0.3]))
        tensor([0., 1., 0.])
    """

    name: ClassVar[str] = "onehot"
    kinds: ClassVar[frozenset[str]] = frozenset({"pattern"})

    def __call__(self, x: Tensor) -> Tensor:
        """Harden `x` [..., keys]; a row with a NaN keeps one."""
        most, where = x.max(dim=-1, keepdim=True)
        return torch.zeros_like(x).scatter_(-1, where, 1 + 0 * most)
