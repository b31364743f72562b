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

from anamorph.models.base import Edit
from anamorph.models.calls import Call
from anamorph.models.sites import HEAD_KINDS, Site


@dataclass
class Attention:
    """What an attention module hands over, and what it gives.

    Attributes:
        module: the attention module.
        query: [copy, batch, head, position, dim], as it enters the scores.
        key: [copy, batch, key head, position, dim], too.
        value: [copy, batch, key head, position, dim].
        mask: None, or [batch or 1, head or 1, query, key]: False, or a large negative number, where
            nothing is to be seen.
        causal: whether, without a mask, no position sees those behind it.
        scaling: of the scores.
        softcap: scores are squeezed into (-softcap, softcap).
        sinks: [head] the score of an extra key without a value.
        bias: [batch or 1, head, query, key] added to the scores.
        given: [batch, position, width] what the module gave.
        projection: with which it ends.
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

    @property
    def group(self) -> int:
        """How many query heads share a key head."""
        return self.query.shape[2] // self.key.shape[2]

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
        mask = self._mask(heads)
        if mask is not None and mask.shape[1] > 1:
            mask = mask.repeat(1, copies, 1, 1)
        out = F.scaled_dot_product_attention(
            q, k, v, mask, scale=self.scaling, is_causal=self._is_causal(query)
        )
        return out.unflatten(1, (copies, -1)).movedim(1, 0)  # type: ignore[no-any-return, no-untyped-call]

    def pattern(
        self, query: Tensor, key: Tensor, heads: Sequence[int], at: Tensor | None = None
    ) -> Tensor:
        """[copy, batch, head, query, key] probabilities of the given heads, at some positions."""
        if at is not None:
            query = _rows(query, at)
        scores = (query @ key.transpose(-1, -2)) * self.scaling
        if self.softcap is not None:
            scores = (scores / self.softcap).tanh_() * self.softcap
        lowest = torch.finfo(scores.dtype).min
        if self.bias is not None:
            scores = scores + _rows_of_mask(self.bias[:, list(heads)], at)
        mask = self._mask(heads)
        if mask is not None:
            mask = _rows_of_mask(mask, at)
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

    def again(self, call: Call) -> Tensor:
        """[copy, batch, position, width] what the module gives with edits to some heads.

        The heads that no edit touches are taken over; those that one does attend again, and the
        difference is put through the output projection. Of what is recorded, only patterns of
        single heads are filled in.
        """
        assert self.given is not None and self.output is not None
        total = self.query.shape[2]
        edited: set[int] = set()
        for kind, edit in call.edits.items():
            if kind in HEAD_KINDS:
                every = range(self.key.shape[2] if kind in ("key", "value") else total)
                touched = getattr(edit, "heads", every)
                shared = kind in ("key", "value")
                edited |= {
                    head
                    for head in range(total)
                    if (head // self.group if shared else head) in touched
                }
        heads = sorted(edited)
        output = self._heads_again(call, heads)
        assert self.projection is not None
        if len(heads) == total:
            return self.projection(output.transpose(2, 3).flatten(3))  # type: ignore[no-any-return]
        change = output - self.output[:, :, heads]  # [copy, batch, heads, position, dim]
        weight = self.projection.weight
        if type(self.projection).__name__ != "Conv1D":
            weight = weight.T
        dim = output.shape[-1]
        rows = weight.unflatten(0, (total, dim))[heads].flatten(0, 1)  # type: ignore[operator]
        return self.given + change.transpose(2, 3).flatten(3) @ rows  # type: ignore[no-any-return]

    def _heads_again(self, call: Call, heads: list[int]) -> Tensor:
        shared = sorted({head // self.group for head in heads})
        query = _edited(call, "query", self.query, heads)
        key = _edited(call, "key", self.key, shared)
        value = _edited(call, "value", self.value, shared)
        if self.group > 1:
            spread = [shared.index(head // self.group) for head in heads]
            key, value = key[:, :, spread], value[:, :, spread]
        pattern = None
        if "pattern" in call.edits:
            pattern = self.pattern(query, key, heads)
            pattern = _of_heads(call.edits["pattern"], pattern, heads, self.query.shape[2])
        output = self.attend(query, key, value, heads, pattern)
        if "output" in call.edits:
            output = _of_heads(call.edits["output"], output, heads, self.query.shape[2])
        for site in call.wanted:
            if not isinstance(site, Site) or site.kind != "pattern":
                continue
            if pattern is not None and site.head in heads:
                kept = _rows(pattern[:, :, [heads.index(site.head)]], call.at)
            elif site.head in heads:
                one = slice(heads.index(site.head), heads.index(site.head) + 1)
                kept = self.pattern(query[:, :, one], key[:, :, one], [site.head], call.at)
            else:  # it is recorded, but not edited
                assert site.head is not None
                own = self.query[:, :, [site.head]], self.key[:, :, [site.head // self.group]]
                kept = self.pattern(*own, [site.head], call.at)
            call.record[site] = kept[:, :, 0]
        return output

    def _mask(self, heads: Sequence[int]) -> Tensor | None:
        if self.mask is None or self.mask.shape[1] == 1:
            return self.mask
        return self.mask[:, list(heads)]

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
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function: `[batch, head, position, dim]` to `[batch, position, head, dim]`."""
    call = Call.now() or Call()
    copies = call.shape[0] if call.shape else 1
    query, key, value = (x.unflatten(0, (copies, -1)) for x in (query, key, value))  # type: ignore[no-untyped-call]
    attention = Attention(
        module,
        query,
        key,
        value,
        attention_mask,
        getattr(module, "is_causal", True) if is_causal is None else is_causal,
        query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap,
        s_aux,
        position_bias,
    )
    query, key, value = (
        call.tap(kind, x) for kind, x in (("query", query), ("key", key), ("value", value))
    )
    if copies > 1:  # the mask has a row for every copy of a sequence
        attention.mask = None if attention_mask is None else attention_mask[: query.shape[1]]
    every = range(query.shape[2])
    wide_key, wide_value = (x.repeat_interleave(attention.group, dim=2) for x in (key, value))
    pattern = None
    if "pattern" in call.edits:
        pattern = call.edits["pattern"](attention.pattern(query, wide_key, every))
        call.keep("pattern", pattern if call.at is None else _rows(pattern, call.at))
    else:
        for site in call.wanted:
            if site.kind == "pattern":
                head = site.head if isinstance(site, Site) else None
                some = every if head is None else [head]
                q, k = query[:, :, list(some)], wide_key[:, :, list(some)]
                kept = attention.pattern(q, k, some, call.at)
                call.record[site] = kept if head is None else kept[:, :, 0]
    output = call.tap("output", attention.attend(query, wide_key, wide_value, every, pattern))
    if call.probing is not None:
        call.seen.append(attention)
    if call.stop:
        attention.output = output
        call.attention = attention
    return output.transpose(2, 3).flatten(0, 1).contiguous(), None


def _edited(call: Call, kind: str, x: Tensor, heads: list[int]) -> Tensor:
    """The given heads of x [1, batch, head, ...], edited: [1 or copy, batch, heads, ...]."""
    if kind not in call.edits:
        return x if len(heads) == x.shape[2] else x[:, :, heads]
    edit = call.edits[kind]
    if hasattr(edit, "of_heads"):
        return edit.of_heads(x, heads)  # type: ignore[no-any-return]
    out = edit(x)
    return out if len(heads) == x.shape[2] else out[:, :, heads]


def _of_heads(edit: Edit, x: Tensor, heads: list[int], total: int) -> Tensor:
    """Edit x [1 or copy, batch, heads, ...], which holds only the given heads of all."""
    if len(heads) == total:
        return edit(x)
    full = x.new_zeros(len(x), x.shape[1], total, *x.shape[3:])
    full[:, :, heads] = x
    return _edited(Call(edits={"": edit}), "", full, heads)


def _rows(x: Tensor, at: Tensor | None) -> Tensor:
    """The positions `at` [batch, query] of x [copy, batch, head, position, dim], or all."""
    if at is None:
        return x
    return x.gather(3, at[None, :, None, :, None].expand(*x.shape[:3], -1, x.shape[-1]))


def _rows_of_mask(mask: Tensor, at: Tensor | None) -> Tensor:
    """The rows `at` [batch, query] of a mask [batch or 1, head or 1, query, key], or all."""
    if at is None:
        return mask
    mask = mask.expand(len(at), *mask.shape[1:])
    return mask.gather(2, at[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[-1]))


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
