"""Attention as transformers' `AttentionInterface` hands it over, with taps.

A model that is being audited comes through `attention_forward`. What is to be done with a layer's
tensors stands in a `Call`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anamorph.errors import AnamorphError
from anamorph.models.huggingface.calls import Call
from anamorph.models.layout import HeadLayout
from anamorph.models.sites import HEAD_KINDS, Site
from anamorph.models.tap import Tap, rows_at
from anamorph.models.wrapped import same_up_to_rounding

HARMLESS = frozenset(
    {
        "cache_position",
        "deterministic",
        "logits_to_keep",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)
"""Arguments that change nothing of what attention computes: not in one forward without a cache."""


@dataclass
class Attention:
    """What an attention module hands over, and what it gives.

    Attributes:
        module: the attention module.
        query: [copy, batch, head, position, dim], as it enters the scores.
        key: [copy, batch, key head, position, dim], too.
        value: [copy, batch, key head, position, dim].
        mask: None, or [copy or 1, batch or 1, head or 1, query, key]: False, or a large negative
            number, where nothing is to be seen.
        causal: whether, without a mask, no position sees those behind it.
        scaling: of the scores.
        softcap: scores are squeezed into (-softcap, softcap).
        sinks: [head] the score of an extra key without a value.
        bias: [copy or 1, batch or 1, head or 1, query, key] added to the scores.
        given: [batch, position, width] what the module gave.
        projection: with which it ends.
        matrix: [head · dim, width] with which a change of what the heads give is multiplied, to
            know how it changes what the projection gives; None where that is not linear.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    causal: bool
    scaling: float
    softcap: float | None
    sinks: Tensor | None
    bias: Tensor | None
    output: Tensor | None = None
    given: Tensor | None = None
    projection: nn.Module | None = None
    matrix: Tensor | None = None

    @property
    def layout(self) -> HeadLayout:
        """Which query head reads which keys and values."""
        return HeadLayout(self.query.shape[2], self.key.shape[2])

    def heads(self) -> Tensor:
        """[copy, batch, position, head · dim] what the heads give, side by side."""
        assert self.output is not None
        return self.output.transpose(2, 3).flatten(3)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        heads: Sequence[int],
        pattern: Tensor | None = None,
    ) -> Tensor:
        """[copy, batch, head, query, dim] of the given heads, fused unless a pattern is given."""
        if pattern is not None:
            return pattern @ value
        if self.softcap is not None or self.sinks is not None or self.bias is not None:
            return self.pattern(query, key, heads) @ value
        copies = max(len(query), len(key), len(value))
        # Copies are handed over as heads: what they share is then repeated without being copied.
        q, k, v = (
            x.expand(copies, *x.shape[1:]).movedim(0, 1).flatten(1, 2) for x in (query, key, value)
        )
        mask = None if self.mask is None else _of_some_heads(self.mask, heads)
        if mask is not None:
            if len(mask) > 1 or mask.shape[2] > 1:
                mask = mask.expand(copies, -1, len(heads), -1, -1)
            mask = mask.movedim(0, 1).flatten(1, 2)
        out = F.scaled_dot_product_attention(
            q, k, v, mask, scale=self.scaling, is_causal=self._is_causal(query)
        )
        return out.unflatten(1, (copies, -1)).movedim(1, 0)  # type: ignore[no-any-return, no-untyped-call]

    def pattern(
        self, query: Tensor, key: Tensor, heads: Sequence[int], at: Tensor | None = None
    ) -> Tensor:
        """[copy, batch, head, query, key] probabilities of the given heads, at some positions."""
        query = rows_at(query, at)
        scores = (query @ key.transpose(-1, -2)) * self.scaling
        if self.softcap is not None:
            scores = (scores / self.softcap).tanh_() * self.softcap
        lowest = torch.finfo(scores.dtype).min
        if self.bias is not None:
            scores = scores + _rows_of_mask(_of_some_heads(self.bias, heads), at)
        if self.mask is not None:
            mask = _rows_of_mask(_of_some_heads(self.mask, heads), at)
            hidden = mask if mask.dtype != torch.bool else _additive(mask, scores.dtype)
            scores = scores + hidden
        elif self._is_causal(query if at is None else key):
            columns = torch.arange(key.shape[-2], device=key.device)
            rows = columns if at is None else at[:, None]
            scores = scores.masked_fill(columns > rows[..., None], lowest)
        if self.sinks is not None:
            sinks = self.sinks[list(heads)].view(-1, 1, 1).expand(*scores.shape[:-1], 1)
            scores = torch.cat([scores, sinks.to(scores)], dim=-1)
            return scores.softmax(-1, dtype=torch.float32)[..., :-1].to(query.dtype)
        return scores.softmax(-1, dtype=torch.float32).to(query.dtype)

    def again(self, tap: Tap) -> Tensor:
        """[copy, batch, position, width] what the module gives with edits to some heads.

        The heads that no edit touches are taken over; those that one does attend again. Where the
        output projection is linear, only the difference is put through it. Of what is recorded,
        only patterns of single heads are filled in.
        """
        assert self.given is not None and self.output is not None
        layout = self.layout
        total = layout.heads
        edited: set[int] = set()
        for kind, edit in tap.here.items():
            if kind in HEAD_KINDS:
                touched = range(layout.count(kind)) if edit.heads is None else edit.heads
                edited |= {reader for head in touched for reader in layout.reading(head, kind)}
        heads = sorted(edited)
        output = self._heads_again(tap, heads) if heads else self.output[:, :, :0]
        assert self.projection is not None
        dim = output.shape[-1]
        if self.matrix is None or len(heads) == total or "heads" in tap.here:
            if len(heads) < total:
                whole = self.output.expand(len(output), -1, -1, -1, -1).clone()
                whole[:, :, heads] = output
                output = whole
            flat = output.transpose(2, 3).flatten(3)  # [copy, batch, position, head · dim]
            flat = tap("heads", flat)
            projected: Tensor = self.projection(flat.flatten(0, 1))
            return projected.unflatten(0, flat.shape[:2])  # type: ignore[no-any-return, no-untyped-call]
        change = output - self.output[:, :, heads]  # [copy, batch, heads, position, dim]
        rows = self.matrix.unflatten(0, (total, dim))[heads].flatten(0, 1)  # type: ignore[no-untyped-call]
        return self.given + change.transpose(2, 3).flatten(3) @ rows  # type: ignore[no-any-return]

    def _heads_again(self, tap: Tap, heads: list[int]) -> Tensor:
        layout = self.layout
        shared = sorted({layout.reads(head) for head in heads})
        query = _edited(tap, "query", self.query, heads)
        key = _edited(tap, "key", self.key, shared)
        value = _edited(tap, "value", self.value, shared)
        if layout.shared > 1:
            spread = [shared.index(layout.reads(head)) for head in heads]
            key, value = key[:, :, spread], value[:, :, spread]
        pattern = None
        if "pattern" in tap.here:
            pattern = self.pattern(query, key, heads)
            pattern = _of_heads(tap, "pattern", pattern, heads, layout.heads)
        output = self.attend(query, key, value, heads, pattern)
        if "output" in tap.here:
            output = _of_heads(tap, "output", output, heads, layout.heads)
        for site in tap.wanted.get("pattern", ()):
            assert isinstance(site, Site) and site.head is not None
            if pattern is not None and site.head in heads:
                kept = rows_at(pattern[:, :, [heads.index(site.head)]], tap.at)
            elif site.head in heads:
                one = slice(heads.index(site.head), heads.index(site.head) + 1)
                kept = self.pattern(query[:, :, one], key[:, :, one], [site.head], tap.at)
            else:  # it is recorded, but not edited
                own = self.query[:, :, [site.head]], self.key[:, :, [layout.reads(site.head)]]
                kept = self.pattern(*own, [site.head], tap.at)
            tap.recorded[site] = kept[:, :, 0]
        return output

    def _is_causal(self, query: Tensor) -> bool:
        return self.mask is None and self.causal and query.shape[-2] > 1


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    s_aux: Tensor | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention function: `[batch, head, position, dim]` to `[batch, position, head, dim]`.

    Raises:
        AnamorphError: if it is given something that changes what it computes in an unknown way.
    """
    unknown = [name for name, x in others.items() if x is not None and name not in HARMLESS]
    if unknown:
        raise AnamorphError(
            f"{type(module).__name__} hands {', '.join(f'{name}=' for name in unknown)} to its "
            "attention function. Anamorph does not know what that does to attention, so what it "
            "says of this model could be wrong."
        )
    if attention_mask is None and sliding_window and 0 < sliding_window < key.shape[2]:
        raise AnamorphError(
            f"{type(module).__name__} sees a sliding window of {sliding_window} tokens, but has no "
            f"mask that says so for {key.shape[2]}; take sequences of at most {sliding_window}."
        )
    call = Call.now() or Call()
    tap = call.tap
    copies = call.shape[0] if call.shape else 1
    query, key, value = (x.unflatten(0, (copies, -1)) for x in (query, key, value))  # type: ignore[no-untyped-call]
    attention = Attention(
        module,
        query,
        key,
        value,
        _by_copy(attention_mask, copies),
        getattr(module, "is_causal", True) if is_causal is None else is_causal,
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap,
        s_aux,
        _by_copy(position_bias, copies),
    )
    every = range(query.shape[2])
    if tap is not None:
        query, key, value = tap("query", query), tap("key", key), tap("value", value)
    wide_key, wide_value = (
        x.repeat_interleave(attention.layout.shared, dim=2) for x in (key, value)
    )
    pattern = None
    if tap is not None and tap.changes("pattern"):
        pattern = tap("pattern", attention.pattern(query, wide_key, every))
    elif tap is not None:
        for site in tap.wanted.get("pattern", ()):
            head = site.head if isinstance(site, Site) else None
            some = every if head is None else [head]
            q, k = query[:, :, list(some)], wide_key[:, :, list(some)]
            kept = attention.pattern(q, k, some, tap.at)
            tap.recorded[site] = kept if head is None else kept[:, :, 0]
    output = attention.attend(query, wide_key, wide_value, every, pattern)
    if tap is not None:
        output = tap("output", output)
    side = output.transpose(2, 3)  # [copy, batch, position, head, dim]
    if tap is not None and tap.concerns("heads"):
        side = tap("heads", side.flatten(3)).unflatten(3, side.shape[3:])  # type: ignore[no-untyped-call]
    if call.probing is not None:
        call.seen.append(attention)
    if call.stop:
        attention.output = output
        call.attention = attention
    return side.flatten(0, 1).contiguous(), None


def _edited(tap: Tap, kind: str, x: Tensor, heads: list[int]) -> Tensor:
    """The given heads of x [1, batch, head, ...], edited: [1 or copy, batch, heads, ...]."""
    edit = tap.here.get(kind)
    if edit is None:
        return x if len(heads) == x.shape[2] else x[:, :, heads]
    return edit.of_heads(x, heads, tap.context(kind, edit))


def _of_heads(tap: Tap, kind: str, x: Tensor, heads: list[int], total: int) -> Tensor:
    """Edit x [1 or copy, batch, heads, ...], which holds only the given heads of all."""
    if len(heads) == total:
        return _edited(tap, kind, x, heads)
    full = x.new_zeros(len(x), x.shape[1], total, *x.shape[3:])
    full[:, :, heads] = x
    return _edited(tap, kind, full, heads)


def _by_copy(x: Tensor | None, copies: int) -> Tensor | None:
    """A mask or bias [copy · batch or 1, ...] as [copy, batch, ...], one if all copies are alike.

    Most are made of the tokens alone; but some models make them of the residual stream.
    """
    if x is None or copies == 1 or len(x) == 1:
        return None if x is None else x[None]
    x = x.unflatten(0, (copies, -1))  # type: ignore[no-untyped-call]
    return x[:1] if bool((x[1:] == x[:1]).all()) else x


def _of_some_heads(x: Tensor, heads: Sequence[int]) -> Tensor:
    """The given heads of a mask or bias, which may be the same for all."""
    return x if x.shape[2] == 1 else x[:, :, list(heads)]


def _rows_of_mask(mask: Tensor, at: Tensor | None) -> Tensor:
    """The rows `at` [batch, query] of a mask [copy, batch or 1, head, query, key], or all."""
    if at is None or mask.shape[3] == 1:  # one row is the same for all
        return mask
    return rows_at(mask.expand(-1, len(at), -1, -1, -1), at)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)


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
        size = float(expected.double().square().mean().sqrt())
        out = (projection(heads + change) - given).detach()
        if same_up_to_rounding(out, expected, scale=size):
            return matrix.detach()
    return None
