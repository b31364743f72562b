"""Hugging Face models, block by block, exactly as they are.

Nothing is re-implemented: the model's own modules run, one block at a time. Attention goes through
transformers' `AttentionInterface`, where queries and keys (after rotation), values and patterns can
be read and replaced; fused attention stays where no pattern is asked for. While a model is audited
its attention function is exchanged and some `forward`s are wrapped; afterwards it is as before.

What makes it fast: a proxy starts at its first edited block. There, queries, keys and values are
the model's own and computed once for all proxies; only the edited heads attend again, and their
difference goes through the output projection.
"""

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn

from anamorph.errors import AnamorphError
from anamorph.models.attention import Attention
from anamorph.models.base import Batch, Edits, Key, Recording, State
from anamorph.models.calls import Block, Call, Stop, current
from anamorph.models.exchange import exchange
from anamorph.models.sites import HEAD_KINDS, Site
from anamorph.models.wrapped import Wrapped, copies_of, rows_at, same_up_to_rounding

MLP_NAMES = ("mlp", "feed_forward", "ffn", "fc2", "output.dense")
"""Where a block's MLP, or the last matrix of it, is found: the first of these names that exists."""


@dataclass(frozen=True)
class _State(State):
    """As every state, with what the model was given and what it hands to its blocks.

    Attributes:
        inputs: the model's keyword arguments.
        arguments: by number of copies, each block's arguments behind the residual stream.
    """

    inputs: Mapping[str, Any] = field(default_factory=dict)
    arguments: dict[int, list[tuple[tuple[Any, ...], dict[str, Any]]]] = field(default_factory=dict)


class HuggingFace(Wrapped):
    """A causal or masked language model of transformers, to be audited.

    Sites are `layer.head.kind` for query, key (both as they enter the scores), value, pattern and
    output (of a head, before the output projection), and `layer.kind` for residual and mlp. Where
    several query heads share a key and value head, keys and values are counted by the latter.

    Args:
        model: from transformers, with a language-model head. It is left as it was found.

    Attributes:
        causal: whether no position sees those behind it, as found out on a few tokens.
        context: the longest sequence, in tokens, if the configuration names one.
        heads: query heads of a layer.
        key_heads: key and value heads of a layer.

    Raises:
        AnamorphError: if it has no blocks or no head, or gives other logits block by block.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.model = cast(Any, model)
        if self.model.get_output_embeddings() is None:
            raise AnamorphError(
                f"{type(model).__name__} has no language-model head, so it predicts no tokens; "
                "load it with AutoModelForCausalLM or AutoModelForMaskedLM."
            )
        configuration = self.model.config.get_text_config()
        self.context = getattr(configuration, "max_position_embeddings", None)
        self._memory = threading.local()
        self.blocks = [Block(b, None, None, None, False) for b in _blocks_of(model)]
        with torch.inference_mode():
            self._explore()

    @property
    def layers(self) -> int:
        """The number of blocks."""
        return len(self.blocks)

    @property
    def sites(self) -> list[Site]:
        """Every tensor that can be read and replaced."""
        heads = [
            Site(layer, head, kind)
            for kind, (layer, block) in product(HEAD_KINDS, enumerate(self.blocks))
            if block.attention is not None
            for head in range(self.key_heads if kind in ("key", "value") else self.heads)
        ]
        residuals = [Site(layer, None, "residual") for layer in range(self.layers)]
        mlps = [Site(i, None, "mlp") for i, block in enumerate(self.blocks) if block.mlp]
        return heads + residuals + mlps

    def dim(self, kind: str) -> int | None:
        """The last dimension of a site's activation; None for patterns, where it varies."""
        if kind == "pattern":
            return None
        dim: int = self._dims.get(kind, self._width)
        return dim

    def describe(self) -> dict[str, Any]:
        """Class, shape and number format, for a report."""
        return {
            "class": type(self.model).__name__,
            "layers": self.layers,
            "heads": self.heads,
            "key_heads": self.key_heads,
            "head_width": self._dims.get("query"),
            "width": self._width,
            "parameters": _size(self.model),
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    @property
    def vocabulary(self) -> int:
        """The number of logits."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    def _prepare(self) -> Callable[[], None]:
        return exchange(self.model, self.blocks)

    def start(self, batch: Batch) -> State:
        """Embed the tokens: the state before block 0.

        Padding may stand at either side; positions are counted from the mask.

        Raises:
            AnamorphError: if the batch is longer than the context.
        """
        self._check_length(batch.tokens)
        state = _State(batch.tokens[None, :, :0], batch.mask, inputs=self._inputs(batch))
        with self.session():
            hidden = self._arguments(state, 1)
        return _State(hidden[None], batch.mask, None, state.inputs, state.arguments)

    def layer(
        self,
        index: int,
        state: State,
        edits: Edits | None = None,
        record: Recording | None = None,
        at: Tensor | None = None,
    ) -> State:
        """Run one block; see `anamorph.models.base.Model.layer`."""
        assert isinstance(state, _State)
        here = {key.kind: edit for key, edit in (edits or {}).items() if key.layer == index}
        wanted = [key for key in (record or {}) if key.layer == index]
        call = Call(here, wanted, record if record is not None else {}, at)
        with self.session():
            residual = self._run(index, state, call)
        if "residual" in here:
            residual = here["residual"](residual)
        for key in wanted:
            if key.kind == "residual":
                call.record[key] = residual
        rows = at if index == self.layers - 1 else None
        if rows is not None:
            residual = rows_at(residual, rows)
        return _State(residual, state.mask, rows, state.inputs, state.arguments)

    def logits(self, state: State, at: Tensor | None = None) -> Tensor:
        """[copy, batch, query, vocabulary] at the positions `at` [batch, query], or all.

        What follows the last block must work position by position, as a norm and a head do.
        """
        residual = state.residual if at is None else rows_at(state.residual, at)
        with self.session(), current(Call(replaced=residual.reshape(1, -1, residual.shape[-1]))):
            token = torch.zeros(1, 1, dtype=torch.long, device=residual.device)
            out: Tensor = self.model(input_ids=token, use_cache=False).logits
        return out.view(*residual.shape[:-1], -1)

    def _run(self, index: int, state: _State, call: Call) -> Tensor:
        """[copy, batch, position, width] after a block, before an edit of the residual stream."""
        residual, block = state.residual, self.blocks[index]
        copies = max(len(residual), copies_of(call.edits.values()))
        heads_edited = any(kind in HEAD_KINDS for kind in call.edits)
        more = any(
            key.kind in HEAD_KINDS and (isinstance(key, Key) or key.kind != "pattern")
            for key in call.wanted
        )
        if len(residual) == 1 and heads_edited and not more and block.projection is not None:
            call.attended = self._attention(index, state).again(call)
        if len(residual) < copies:
            residual = residual.expand(copies, *residual.shape[1:])
        if copies not in state.arguments:
            self._arguments(state, copies)
        arguments, keywords = state.arguments[copies][index]
        call.shape = residual.shape[:3]
        with current(call):
            out = block.module(residual.flatten(0, 1), *arguments, **keywords)
        return (out[0] if block.as_tuple else out).view(residual.shape)  # type: ignore[no-any-return]

    def _attention(self, index: int, state: _State) -> Attention:
        """The attention of a block as the model itself computes it, remembered for one state."""
        kept = getattr(self._memory, "attention", None)
        if kept is None or kept[0] is not state or kept[1] != index:
            block = self.blocks[index]
            call = Call(stop=True, shape=state.residual.shape[:3])
            arguments, keywords = state.arguments[1][index]
            with current(call), suppress(Stop):
                block.module(state.residual[0], *arguments, **keywords)
            assert call.attention is not None
            call.attention.projection = block.projection
            kept = self._memory.attention = (state, index, call.attention)
        attention: Attention = kept[2]
        return attention

    def _arguments(self, state: _State, copies: int) -> Tensor:
        """Find out what the model hands to its blocks; gives the first block's input."""
        call = Call(listing=[])
        inputs = {
            name: value.repeat(copies, *[1] * (value.dim() - 1))
            if torch.is_tensor(value)
            else value
            for name, value in state.inputs.items()
        }
        with current(call), suppress(Stop):
            self.model(**inputs)
        assert call.listing is not None
        state.arguments[copies] = [
            (arguments[1:], keywords) for arguments, keywords in call.listing
        ]
        first: Tensor = call.listing[0][0][0]
        return first

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": batch.tokens, "use_cache": False}
        right = bool((batch.mask[:, 1:] <= batch.mask[:, :-1]).all())
        if right and (self.causal or bool(batch.mask.all())):
            return inputs  # no real position sees the padding behind it
        inputs["attention_mask"] = batch.mask.long()
        if not right:
            inputs["position_ids"] = (batch.mask.long().cumsum(1) - 1).clamp(min=0)
        return inputs

    def _explore(self) -> None:
        """Find the parts of the blocks on a few tokens, and make sure that nothing is lost."""
        tokens = (torch.arange(12, device=self.device).view(2, 6) * 7 + 3) % self.vocabulary
        batch = Batch(tokens, torch.ones_like(tokens).bool())
        self.causal, self._dims = True, {}
        self.heads = self.key_heads = 0
        found: list[Block] = []
        with self.session():
            call = Call(probing=[], shape=torch.Size((1, *tokens.shape)))
            with current(call):
                expected = self.model(input_ids=tokens, use_cache=False).logits
                shorter = self.model(input_ids=tokens[:, :5], use_cache=False).logits
        assert call.probing is not None
        self.causal = same_up_to_rounding(shorter, expected[:, :5])
        for block, (out, attentions) in zip(self.blocks, call.probing, strict=False):
            attention = attentions[0] if len(attentions) == 1 else None
            mlp = next((m for n in MLP_NAMES if (m := _submodule(block.module, n))), None)
            module = None if attention is None else attention.module
            found.append(Block(block.module, module, None, mlp, isinstance(out, tuple)))
            if attention is not None:
                self.heads, self.key_heads = attention.query.shape[2], attention.key.shape[2]
                self._dims = {
                    "query": attention.query.shape[-1],
                    "key": attention.key.shape[-1],
                    "value": attention.value.shape[-1],
                    "output": attention.value.shape[-1],
                }
            self._width = (out[0] if isinstance(out, tuple) else out).shape[-1]
        self.blocks = found
        self.blocks = [
            Block(b.module, b.attention, self._projection(i, batch), b.mlp, b.as_tuple)
            for i, b in enumerate(self.blocks)
        ]
        state = self.start(batch)
        for layer in range(self.layers):
            state = self.layer(layer, state)
        if not same_up_to_rounding(self.logits(state)[0], expected):
            raise AnamorphError(
                f"{type(self.model).__name__} gives other logits when it runs block by block (by "
                f"{(self.logits(state)[0] - expected).abs().max():.2g}): its blocks share more "
                "than the residual stream, so proxies of it would not be what they seem."
            )

    def _projection(self, index: int, batch: Batch) -> nn.Module | None:
        """The output projection with which an attention module ends, if it does."""
        block = self.blocks[index]
        if block.attention is None:
            return None
        state = self.start(batch)
        assert isinstance(state, _State)
        with self.session():
            attention = self._attention(index, state)
        heads = attention.heads()  # [1, batch, position, head · dim]
        for module in block.attention.modules():
            weight = getattr(module, "weight", None)
            if weight is None or weight.dim() != 2 or heads.shape[-1] not in weight.shape:
                continue
            try:
                if same_up_to_rounding(module(heads[0]), attention.given):
                    return module
            except RuntimeError:  # it takes something else
                continue
        return None


def _blocks_of(model: nn.Module) -> list[nn.Module]:
    config: Any = model.config
    count = config.get_text_config().num_hidden_layers
    lists: list[Any] = [
        m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count
    ]
    if not lists:
        raise AnamorphError(
            f"{type(model).__name__} has no list of {count} blocks, as its configuration says, so "
            "it cannot run block by block. Decoders and encoders with one stack of blocks can; "
            "am.HookedModel takes any module."
        )
    return list(max(lists, key=_size))


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    for name in path.split("."):
        module = getattr(module, name, None)  # type: ignore[assignment]
        if not isinstance(module, nn.Module):
            return None
    return module


def _size(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
