"""What a simplification computes with, made ready once for the dtype and the device of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

READY = "_ready"
"""The attribute that holds it: neither learnt, saved, pickled nor a part of a fingerprint."""

_T = TypeVar("_T", bound="Movable | tuple[Movable, ...]")


class Movable(Protocol):
    """A tensor, or what holds some."""

    def to(self, *, dtype: torch.dtype, device: torch.device) -> Self:
        """The same in another dtype, on another device."""


class Prepared:
    """Attributes, and what follows from them, as they were last used."""

    def held(self) -> tuple[object, ...]:
        """All attributes, of stages too: what it computes follows from them."""
        own = [value for name, value in vars(self).items() if name != READY]
        lists = [part for value in own if isinstance(value, tuple) for part in value]
        return (*own, *(x for part in lists if isinstance(part, Prepared) for x in part.held()))

    def prepared(self, x: Tensor, name: str, make: Callable[[], _T]) -> _T:
        """What is made of its attributes, in the dtype of `x`, on its device.

        It is made again only for another dtype or device, or once an attribute was set anew: of
        each thing one is kept. An attribute that is changed in place is not noticed.

        Args:
            x: what is computed with it.
            name: tells it apart from what else is made.
            make: gives a tensor, or several, or what holds some, in any dtype and on any device.
        """
        ready = vars(self).setdefault(READY, {})  # threads may do the same at once: the last stays
        held, like = self.held(), (x.dtype, x.device)
        last = ready.get(name)
        if last is None or last[0] != like or not _same(last[1], held):
            made: Any = make()
            several = isinstance(made, tuple)
            moved = [y.to(dtype=x.dtype, device=x.device) for y in (made if several else (made,))]
            last = ready[name] = like, held, tuple(moved) if several else moved[0]
        found: _T = last[2]
        return found

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles hold."""
        return {name: value for name, value in vars(self).items() if name != READY}


def _same(some: tuple[object, ...], others: tuple[object, ...]) -> bool:
    """Whether these are the same objects."""
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))
