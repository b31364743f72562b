"""Attention as transformers' `AttentionInterface` hands it over, one computation at a time."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anamorph.errors import AnamorphError
from anamorph.models.base import heads_at
from anamorph.models.layout import HeadLayout
from anamorph.models.sites import Site
from anamorph.models.tap import Tap, rows_at

Place = tuple[int, int]
"""Where a tensor lies: its address, and how far its rows lie apart."""

KNOWN = frozenset(
    {"dropout", "is_causal", "position_bias", "s_aux", "scaling", "sliding_window", "softcap"}
)
"""Arguments whose meaning is known."""

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


@dataclass(frozen=True)
class Attention:
    """What an attention module hands over.

    Attributes:
        module: the attention module.
        query: [copy, batch, head, position, dim], as it enters the scores.
        key: [copy, batch, key head, position, dim], too.
        value: [copy, batch, key head, position, dim].
        mask: None, or [copy or 1, batch or 1, head or 1, query, key]: False, or a large negative
            number, where nothing is to be seen.
        bias: None, or [copy or 1, batch or 1, head or 1, query, key] added to the scores.
        causal: whether, without a mask, no position sees those behind it.
        scaling: of the scores.
        softcap: scores are squeezed into (-softcap, softcap).
        sinks: [head] the score of an extra key without a value.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    bias: Tensor | None
    causal: bool
    scaling: float
    softcap: float | None
    sinks: Tensor | None

    @classmethod
    def of(
        cls,
        module: nn.Module,
        tensors: Sequence[Tensor],
        mask: Tensor | None,
        options: Mapping[str, Any],
        copies: int,
        alike: Collection[Place] = (),
    ) -> Self:
        """What a module hands to its attention function, for so many copies of the model.

        Args:
            module: the attention module.
            tensors: queries, keys and values, each [copy · batch, head, position, dim].
            mask: None, or [copy · batch or 1, head or 1, query, key].
            options: the other arguments, by name.
            copies: in front of the batch.
            alike: where tensors lie that are the same for all copies.

        Raises:
            AnamorphError: if it hands over something that changes what is computed in an unknown
                way.
        """
        name, known = type(module).__name__, {k: x for k, x in options.items() if x is not None}
        if unknown := known.keys() - KNOWN - HARMLESS:
            raise AnamorphError(
                f"{name} hands {', '.join(f'{name}=' for name in sorted(unknown))} to its "
                "attention function. Anamorph does not know what that does to attention, so what "
                "it says of this model could be wrong."
            )
        query, key, value = (x.unflatten(0, (copies, -1)) for x in tensors)  # type: ignore[no-untyped-call]
        window, length = known.get("sliding_window", 0), key.shape[3]
        if mask is None and 0 < window < length:
            raise AnamorphError(
                f"{name} sees a sliding window of {window} tokens, but has no mask that says so "
                f"for {length}; take sequences of at most {window}."
            )
        return cls(
            module,
            query,
            key,
            value,
            _by_copy(mask, copies, alike),
            _by_copy(known.get("position_bias"), copies, alike),
            known.get("is_causal", getattr(module, "is_causal", True)),
            known.get("scaling", query.shape[-1] ** -0.5),
            known.get("softcap"),
            known.get("s_aux"),
        )

    @property
    def layout(self) -> HeadLayout:
        """Which query head reads which keys and values."""
        return HeadLayout(self.query.shape[2], self.key.shape[2])

    def through(self, tap: Tap) -> Tensor:
        """[copy, batch, head, position, dim] what the heads give, every tensor through a tap."""
        query, key, value = tap("query", self.query), tap("key", self.key), tap("value", self.value)
        shared, every = self.layout.shared, range(query.shape[2])
        key, value = (x.repeat_interleave(shared, dim=2) for x in (key, value))
        pattern = None
        if tap.changes("pattern"):
            pattern = tap("pattern", self.pattern(query, key, every))
        else:
            self._record(tap, query, key)
        return tap("output", self.attend(query, key, value, every, pattern))

    def record(self, tap: Tap) -> None:
        """Record the patterns that a tap wants, where nothing is edited."""
        self._record(tap, self.query, self.key.repeat_interleave(self.layout.shared, dim=2))

    def _record(self, tap: Tap, query: Tensor, key: Tensor) -> None:
        """The same, of queries and keys [copy, batch, head, position, dim] of every head."""
        for site in tap.wanted.get("pattern", ()):
            one = site.head if isinstance(site, Site) else None
            heads = range(query.shape[2]) if one is None else range(one, one + 1)
            kept = self.pattern(heads_at(query, heads), heads_at(key, heads), heads, tap.at)
            tap.recorded[site] = kept if one is None else kept[:, :, 0]

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
        mask = None if self.mask is None else _part(self.mask, heads)
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
            scores = scores + _part(self.bias, heads, at)
        if self.mask is not None:
            mask = _part(self.mask, heads, at)
            if mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, lowest)
            scores = scores + mask
        elif self._is_causal(query if at is None else key):
            columns = torch.arange(key.shape[-2], device=key.device)
            rows = columns if at is None else at[:, None]
            scores = scores.masked_fill(columns > rows[..., None], lowest)
        if self.sinks is not None:
            sinks = heads_at(self.sinks[None, None], heads)
            sinks = sinks.view(-1, 1, 1).expand(*scores.shape[:-1], 1)
            scores = torch.cat([scores, sinks.to(scores)], dim=-1)
        pattern = scores.softmax(-1, dtype=torch.float32)
        return (pattern if self.sinks is None else pattern[..., :-1]).to(query.dtype)

    def _is_causal(self, query: Tensor) -> bool:
        return self.mask is None and self.causal and query.shape[-2] > 1


def place_of(x: Tensor) -> Place:
    """Where a tensor lies; another with the same first axis may have it too."""
    return x.data_ptr(), x.stride(0)


def alike_by_copy(x: Tensor, copies: int) -> Tensor:
    """Whether [copy · batch, ...] is the same for all copies, as a tensor."""
    by_copy: Tensor = x.unflatten(0, (copies, -1))  # type: ignore[no-untyped-call]
    return (by_copy[1:] == by_copy[:1]).all()


def _by_copy(x: Tensor | None, copies: int, alike: Collection[Place]) -> Tensor | None:
    """A mask or bias [copy · batch or 1, ...] as [copy, batch, ...], one if all copies are alike.

    Most are made of the tokens alone, before the blocks run; what is made within a block, such as
    of the residual stream, has to be looked at.
    """
    if x is None or copies == 1 or len(x) == 1:
        return None if x is None else x[None]
    same = place_of(x) in alike or bool(alike_by_copy(x, copies))
    x = x.unflatten(0, (copies, -1))  # type: ignore[no-untyped-call]
    return x[:1] if same else x


def _part(x: Tensor, heads: Sequence[int], at: Tensor | None = None) -> Tensor:
    """The given heads, and rows `at` [batch, query] or all, of a mask or bias.

    It is [copy, batch or 1, head or 1, query or 1, key], where one is the same for all.
    """
    x = x if x.shape[2] == 1 else heads_at(x, heads)
    if at is None or x.shape[3] == 1:
        return x
    return rows_at(x.expand(-1, len(at), -1, -1, -1), at)
