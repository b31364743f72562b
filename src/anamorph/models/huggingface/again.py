"""Editing some heads of a block whose tensors the model itself has computed already.

A proxy starts at its first edited block. There, queries, keys and values are the model's own and
the same for all proxies; only the heads that some edit touches attend again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from anamorph.machine.devices import in_float64
from anamorph.models.base import heads_at
from anamorph.models.huggingface.attention import Attention
from anamorph.models.huggingface.calls import Attending
from anamorph.models.sites import HEAD_KINDS, Site
from anamorph.models.tap import Tap, rows_at
from anamorph.models.wrapped import same_up_to_rounding


@dataclass(frozen=True)
class Attended:
    """What the attention of a block computed, with nothing edited.

    Attributes:
        attention: what the attention module handed over; one copy.
        output: [1, batch, head, position, dim] what the heads give.
        given: [batch, position, width] what the attention module gave.
        projection: the output projection, with which the attention module ends.
        matrix: [head · dim, width] with which a change of what the heads give is multiplied, to
            know how it changes what the projection gives; None where that is not linear.
    """

    attention: Attention
    output: Tensor
    given: Tensor
    projection: nn.Module
    matrix: Tensor | None

    @classmethod
    def of(cls, call: Attending, projection: nn.Module) -> Self:
        """What a block attended until it stopped, in a module that ends with a projection."""
        (attention, output), given = call.seen[-1], call.given
        assert given is not None
        matrix = linear_matrix(projection, side_by_side(output)[0], given)
        return cls(attention, output, given, projection, matrix)

    def again(self, tap: Tap) -> Tensor:
        """[copy, batch, position, width] what the module gives with edits to some heads.

        The heads that no edit touches are taken over; those that one does attend again. Where the
        output projection is linear, only the difference is put through it. Of what is recorded,
        only patterns of single heads are filled in.
        """
        layout = self.attention.layout
        edited: set[int] = set()
        for kind, edit in tap.here.items():
            if kind in HEAD_KINDS:
                touched = range(layout.count(kind)) if edit.heads is None else edit.heads
                edited |= {reader for head in touched for reader in layout.reading(head, kind)}
        heads = sorted(edited)
        output = self._heads_again(tap, heads)
        if self.matrix is None or len(heads) == layout.heads or tap.changes("heads"):
            if len(heads) < layout.heads:
                whole = self.output.expand(len(output), -1, -1, -1, -1).clone()
                _put(output, whole, heads)
                output = whole
            flat = tap("heads", side_by_side(output))
            projected: Tensor = self.projection(flat.flatten(0, 1))
            return projected.unflatten(0, flat.shape[:2])  # type: ignore[no-any-return, no-untyped-call]
        change = output - heads_at(self.output, heads)  # [copy, batch, heads, position, dim]
        by_head = self.matrix.unflatten(0, (1, 1, layout.heads, -1))  # type: ignore[no-untyped-call]
        return self.given + side_by_side(change) @ heads_at(by_head, heads).flatten(0, 3)

    def _heads_again(self, tap: Tap, heads: list[int]) -> Tensor:
        attention, layout = self.attention, self.attention.layout
        shared = sorted({layout.reads(head) for head in heads})
        query = _edited(tap, "query", attention.query, heads)
        key = _edited(tap, "key", attention.key, shared)
        value = _edited(tap, "value", attention.value, shared)
        if layout.shared > 1:
            spread = [shared.index(layout.reads(head)) for head in heads]
            key, value = heads_at(key, spread), heads_at(value, spread)
        pattern = None
        if "pattern" in tap.here:
            pattern = attention.pattern(query, key, heads)
            pattern = _of_heads(tap, "pattern", pattern, heads, layout.heads)
        output = self.output[:, :, :0]
        if heads:
            output = attention.attend(query, key, value, heads, pattern)
        if "output" in tap.here:
            output = _of_heads(tap, "output", output, heads, layout.heads)
        for site in tap.wanted.get("pattern", ()):
            if not isinstance(site, Site) or site.head is None:
                continue
            one = [heads.index(site.head)] if site.head in heads else []
            if pattern is not None and one:
                kept = rows_at(heads_at(pattern, one), tap.at)
            elif one:
                some = heads_at(query, one), heads_at(key, one)
                kept = attention.pattern(*some, [site.head], tap.at)
            else:  # it is recorded, but not edited
                read = heads_at(attention.key, [layout.reads(site.head)])
                own = heads_at(attention.query, [site.head])
                kept = attention.pattern(own, read, [site.head], tap.at)
            tap.recorded[site] = kept[:, :, 0]
        return output


def side_by_side(output: Tensor) -> Tensor:
    """[copy, batch, head, position, dim] as [copy, batch, position, head · dim]."""
    return output.transpose(2, 3).flatten(3)


def _edited(tap: Tap, kind: str, x: Tensor, heads: Sequence[int]) -> Tensor:
    """The given heads of x [1, batch, head, ...], edited: [1 or copy, batch, heads, ...]."""
    edit = tap.here.get(kind)
    if edit is None:
        return x if len(heads) == x.shape[2] else heads_at(x, heads)
    return edit.of_heads(x, heads, tap.context(kind, edit))


def _of_heads(tap: Tap, kind: str, x: Tensor, heads: Sequence[int], total: int) -> Tensor:
    """Edit x [1 or copy, batch, heads, ...], which holds only the given heads of all."""
    if len(heads) == total:
        return _edited(tap, kind, x, heads)
    full = x.new_zeros(len(x), x.shape[1], total, *x.shape[3:])
    _put(x, full, heads)
    return _edited(tap, kind, full, heads)


def _put(x: Tensor, whole: Tensor, heads: Sequence[int]) -> None:
    """Write x [copy, batch, heads, ...] where these heads are in the whole of all heads."""
    for place, head in enumerate(heads):
        whole[:, :, head] = x[:, :, place]


def linear_matrix(projection: nn.Module, heads: Tensor, given: Tensor) -> Tensor | None:
    """[in, out] the weights of an output projection, if a change goes through them and no more.

    Hooks, adapters and quantization make other functions of it, perhaps at some positions alone. So
    it is tried, as it is now, on two sequences of this very batch: with a change at every position
    that is as large as what the heads give, or eight times that.

    Args:
        projection: takes [batch, position, in].
        heads: [batch, position, in] what the heads give.
        given: [batch, position, out] what it makes of that.
    """
    weight = getattr(projection, "weight", None)
    if not torch.is_tensor(weight) or weight.dim() != 2 or weight.dtype != heads.dtype:
        return None
    heads, given = heads[:2], given[:2]
    generator = torch.Generator().manual_seed(0)
    change = torch.randn(heads.shape, generator=generator).to(heads) * heads.square().mean().sqrt()
    change[:, 1::2] *= 8
    for matrix in (weight.T, weight):  # of a Linear, of a Conv1D
        if matrix.shape != (heads.shape[-1], given.shape[-1]):
            continue
        expected = change @ matrix.detach()
        size = float(in_float64(expected).square().mean().sqrt())
        out = (projection(heads + change) - given).detach()
        if same_up_to_rounding(out, expected, scale=size):
            return matrix.detach()
    return None
