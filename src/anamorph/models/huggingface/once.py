"""What a block computes of one copy by itself, for the stacks of proxies that start there."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from anamorph.machine.devices import in_float64
from anamorph.models.base import EditBy, LayerKind, Ran, State
from anamorph.models.changing import changed_now
from anamorph.models.huggingface.again import Attended
from anamorph.models.huggingface.attention import alike_by_copy, place_of
from anamorph.models.huggingface.calls import Attending, Block, Given, Once, Stop
from anamorph.models.sites import FINAL, NORM_KINDS, OF_HEADS
from anamorph.models.wrapped import same_up_to_rounding

BEHIND = frozenset({"residual", FINAL})
"""The kinds of sites behind a block."""

FIRST = OF_HEADS | {NORM_KINDS[0]}
"""The kinds before which a block computes next to nothing."""


class Memory(threading.local):
    """What one thread computed last, of one state and block: that of all would be too large."""

    _of: tuple[object, ...] = ()
    _attended: Attended | None = None
    _once: Once | None = None

    def at(self, index: int, state: State) -> "Memory":
        """What there is of a block that is given a state; all else is forgotten."""
        of = state, index, changed_now()  # whose weights it runs with
        if len(of) != len(self._of) or any(a is not b for a, b in zip(of, self._of, strict=True)):
            self._of, self._attended, self._once = of, None, None
        return self

    def attended(self, block: Block, given: Given, residual: Tensor) -> Attended | None:
        """What attention computes with nothing edited; None if no projection ends it."""
        if block.heads is None or block.heads.projection is None:
            return None
        if self._attended is None:
            call = Attending()
            with suppress(Stop):
                call.run(block, given, residual)
            self._attended = Attended.of(call, block.heads.projection)
        return self._attended

    def once(self, block: Block, given: Given, residual: Tensor) -> Once:
        """What the parts of a block give with nothing edited."""
        if self._once is None:
            self._once = Once()
            self._once.run(block, given, residual)
        return self._once


def with_alike(given: list[Given], copies: int) -> list[Given]:
    """What blocks are given, with where in it tensors lie that are the same for all copies.

    It is looked at here, for all stacks of so many proxies: a GPU has to be waited for.
    """
    every = [x for one in given for x in _tensors((*one.arguments, *one.keywords.values()))]
    masks = [x for x in {id(x): x for x in every}.values() if x.dim() == 4]
    masks = [x for x in masks if copies > 1 and not len(x) % copies]
    if not masks:
        return given
    same = torch.stack([alike_by_copy(x, copies) for x in masks]).tolist()
    alike = frozenset(place_of(x) for x, is_same in zip(masks, same, strict=True) if is_same)
    return [replace(one, alike=alike) for one in given]


def _tensors(some: Iterable[Any]) -> Iterator[Tensor]:
    for x in some:
        if isinstance(x, Mapping):
            yield from _tensors(x.values())
        elif isinstance(x, (tuple, list)):
            yield from _tensors(x)
        elif isinstance(x, Tensor):
            yield x


def alike_once(layer: Callable[..., Ran], index: int, block: Block, states: list[State]) -> bool:
    """Whether a block whose parts run once for all copies gives what it gives of each by itself.

    Every kind of site in it is edited, while another stream runs between what is kept and its use.

    Args:
        layer: runs a block; see `anamorph.models.base.Model.layer`.
        index: of the block.
        block: itself.
        states: of a few tokens, before every block and behind the last.
    """
    own, after = states[index], states[index + 1].residual
    both = replace(own, residual=torch.cat([own.residual] * 2))
    other = replace(own, residual=own.residual.flip(-1) / 2)
    size = float(in_float64(after).square().mean().sqrt())  # some numbers are huge
    try:
        for kind in (*block.ports, *(block.norms.keys() - BEHIND)):
            edit = {LayerKind(index, kind): EditBy(_one_changed, copies=2)}
            expected = layer(index, both, edit).state.residual
            found = layer(index, own, edit).state.residual
            layer(index, other)
            again = layer(index, own, edit).state.residual
            wanted = torch.cat([after, expected[1:]])
            if not all(same_up_to_rounding(x, wanted, scale=size) for x in (found, again)):
                return False
    except Exception:  # of every kind that somebody's module may raise
        return False
    return True


def _one_changed(x: Tensor) -> Tensor:
    """Two copies of x [1 or 2, ...], the second changed."""
    x = x.expand(2, *x.shape[1:])
    return torch.cat([x[:1], x[1:].flip(1) / 2])
