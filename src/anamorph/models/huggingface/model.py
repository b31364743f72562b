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
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn

from anamorph.errors import AnamorphError
from anamorph.models.base import Batch, Edits, LayerKind, Ran, State
from anamorph.models.fingerprint import CONFIGURATION, digest_of
from anamorph.models.huggingface.again import Attended, Attending
from anamorph.models.huggingface.blocks import OUTSIDE, CannotSplit, blocks_of, probe
from anamorph.models.huggingface.calls import (
    Call,
    Given,
    Listing,
    Probing,
    StandIn,
    Stop,
    current,
)
from anamorph.models.huggingface.exchange import exchange
from anamorph.models.huggingface.reference import (
    Reference,
    accepts,
    context_of,
    logits_of,
    own_logits,
    require_language_model,
    without_cache,
)
from anamorph.models.sites import HEAD_KINDS, LAYER_KINDS, Site
from anamorph.models.tap import Tap, rows_at
from anamorph.models.wrapped import Wrapped, copies_of, same_up_to_rounding

LONGEST = 2_048  # a context up to which it is tried whether it is true


@dataclass(frozen=True)
class _State(State):
    """As every state, with what the model was given and what it hands to its blocks.

    Attributes:
        inputs: the model's keyword arguments.
        given: by number of copies, what each block is given besides the residual stream.
    """

    inputs: Mapping[str, Any] = field(default_factory=dict)
    given: dict[int, list[Given]] = field(default_factory=dict)


class _Memory(threading.local):
    """What one thread computed last, for the stacks of proxies that start at the same block.

    For one state alone: of all blocks it would be too large.
    """

    state: State | None = None
    index: int = -1
    attended: Attended | None = None


class HuggingFace(Wrapped):
    """A causal or masked language model of transformers, to be audited.

    Sites are `layer.head.kind` for query, key (both as they enter the scores), value, pattern and
    output (of a head, before the output projection), and `layer.kind` for residual and mlp. Where
    several query heads share a key and value head, keys and values are counted by the latter.

    A model whose attention does not come through transformers' interface runs with its own, and
    has the sites residual and mlp alone; so has one whose attention does not give the model's own
    logits there. What `mlp` is, is found by value: what a block's MLP adds to the residual stream.

    Args:
        model: from transformers, with a language-model head. It is left as it was found.

    Attributes:
        causal: whether no position sees those behind it, as found out on a few tokens.
        context: the longest sequence, in tokens, if the configuration names one.
        parallel: whether two threads may run it; not if it keeps something of its last run.

    Raises:
        AnamorphError: if it is no language model with one stack of blocks, or gives other logits
            block by block than by itself, padded or not.
    """

    batch_tokens = 1_024  # blocks of language models are wide

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.model = cast(Any, model)
        require_language_model(model)
        self.context = context_of(model)
        self._exchanged = True  # its attention function, in sessions
        self._as_one = False  # behind the last block all positions are one sequence
        self._memory = _Memory()
        with torch.inference_mode():
            reference = Reference.of(model, self.context)
            self.blocks = blocks_of(model, lambda: own_logits(model, reference.tokens))
            self.layers = len(self.blocks)
            self.causal, self.parallel = reference.causal, reference.parallel
            self.vocabulary, self._dtype = reference.plain.shape[-1], reference.plain.dtype
            self._takes_padding = reference.causal or reference.pads
            self._explore(reference)
            self.context = self._usable_context(reference.tokens)
            self._as_one = self._may_be_one(reference)

    @property
    def sites(self) -> list[Site]:
        """Every tensor that can be read and replaced."""
        heads = [
            Site(layer, head, kind)
            for kind, (layer, block) in product(HEAD_KINDS, enumerate(self.blocks))
            if block.attention is not None
            for head in range(block.key_heads if kind in ("key", "value") else block.heads)
        ]
        return heads + [
            Site(layer, None, kind)
            for kind, (layer, block) in product(LAYER_KINDS, enumerate(self.blocks))
            if kind == "residual"
            or kind in block.ports
            or (kind == "heads" and block.attention is not None)
        ]

    def fingerprint(self) -> dict[str, str]:
        """A digest of the model's weights, layer by layer, and of its configuration."""
        return {
            **super().fingerprint(),
            CONFIGURATION: digest_of(_numeric(self.model.config.to_dict())),
        }

    def _own(self, tokens: Tensor) -> Tensor:
        return own_logits(self.model, tokens)

    def _prepare(self) -> Callable[[], None]:
        return exchange(self.model, self.blocks, self._exchanged)

    def start(self, batch: Batch) -> State:
        """Embed the tokens: the state before block 0.

        Padding may stand at either side; positions are counted from the mask.

        Raises:
            AnamorphError: if the batch is longer than the context, or has padding that the model
                would see.
        """
        self._check_length(batch.tokens)
        state = _state_of(batch, batch.tokens[None, :, :0], self._inputs(batch))
        with self.session():
            hidden = self._given(state, 1)[0].stream
        return replace(state, residual=hidden[None])

    def layer(
        self,
        index: int,
        state: State,
        edits: Edits | None = None,
        record: Collection[LayerKind | Site] = (),
        at: Tensor | None = None,
    ) -> Ran:
        """Run one block; see `anamorph.models.base.Model.layer`."""
        assert isinstance(state, _State)
        tap = Tap(index, state, edits or {}, record, at)
        with self.session():
            residual = tap("residual", self._run(index, state, tap))
        residual = rows_at(residual, at if index == self.layers - 1 else None)
        return Ran(replace(state, residual=residual, read=tap.read), tap.recorded)

    def logits(self, state: State, at: Tensor | None = None) -> Tensor:
        """[copy, batch, query, vocabulary] at the positions `at` [batch, query], or all.

        What follows the last block must work position by position, as a norm and a head do.
        """
        residual = rows_at(state.residual, at)
        width = residual.shape[-1]
        single = residual.reshape(1, -1, width) if self._as_one else residual.reshape(-1, 1, width)
        with self.session(), current(StandIn(residual=single)):
            tokens = torch.zeros(len(single), 1, dtype=torch.long, device=residual.device)
            out = self.model(input_ids=tokens, **without_cache(self.model))
        logits = logits_of(self.model, out, None)
        return logits.view(*residual.shape[:-1], -1)

    def _may_be_one(self, reference: Reference) -> bool:
        """Whether, behind the last block, one token may stand for a stream of many positions."""
        batch = Batch(reference.tokens, torch.ones_like(reference.tokens).bool())
        state = self.run(batch).state
        apart = self.logits(state)
        self._as_one = True
        try:
            return same_up_to_rounding(self.logits(state), apart)
        except Exception:  # the model looks at how many tokens it was given
            return False
        finally:
            self._as_one = False

    def _run(self, index: int, state: _State, tap: Tap) -> Tensor:
        """[copy, batch, position, width] after a block, before an edit of the residual stream."""
        residual, block = state.residual, self.blocks[index]
        copies = max(len(residual), copies_of(tap.here.values()))
        of_heads = *HEAD_KINDS, "heads"
        heads_edited = any(kind in of_heads for kind in tap.here)
        more = any(kind in of_heads for kind in tap.kept) or any(
            kind in of_heads and (isinstance(key, LayerKind) or kind != "pattern")
            for kind, keys in tap.wanted.items()
            for key in keys
        )
        call = Call(tap)
        if len(residual) == 1 and heads_edited and not more and block.projection is not None:
            attended = self._attended(index, state, block.projection).again(tap)
            call.attended = attended.expand(copies, *attended.shape[1:])
        if len(residual) < copies:
            residual = residual.expand(copies, *residual.shape[1:])
        call.shape, call.ports, stream = residual.shape[:3], block.ports, residual.flatten(0, 1)
        call.stream = stream.clone() if "middle" in tap.here else stream
        given = self._given(state, copies)[index]
        with current(call):
            out = given.call(block.module, call.stream)
        return block.form.first(out).view(residual.shape)

    def _attended(self, index: int, state: _State, projection: nn.Module) -> Attended:
        """What the attention of a block computes with nothing edited, remembered for one state."""
        memory = self._memory
        if memory.attended is None or memory.state is not state or memory.index != index:
            call = Attending(shape=state.residual.shape[:3])
            with current(call), suppress(Stop):
                self._given(state, 1)[index].call(self.blocks[index].module, state.residual[0])
            memory.state, memory.index = state, index
            memory.attended = call.through(projection)
        return memory.attended

    def _given(self, state: _State, copies: int) -> list[Given]:
        """What the model hands to its blocks, for so many copies of a batch."""
        if copies not in state.given:
            call = Listing(layers=self.layers)
            inputs = {
                name: value.repeat(copies, *[1] * (value.dim() - 1))
                if torch.is_tensor(value)
                else value
                for name, value in state.inputs.items()
            }
            with current(call), suppress(Stop):
                self.model(**inputs)
            state.given[copies] = call.given
        return state.given[copies]

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        inputs: dict[str, Any] = {"input_ids": batch.tokens, **without_cache(self.model)}
        right = bool((batch.mask[:, 1:] <= batch.mask[:, :-1]).all())
        if bool(batch.mask.all()) or (right and self.causal):
            return inputs  # no real position sees the padding behind it
        if not (self._takes_padding if right else self._takes_left_padding):
            raise AnamorphError(
                f"Padding at the {'right' if right else 'left'} changes what "
                f"{type(self.model).__name__} itself says of real tokens, although it is told of "
                "it; give sequences of one length."
            )
        inputs["attention_mask"] = batch.mask.long()
        if not right and accepts(self.model, "position_ids"):
            inputs["position_ids"] = (batch.mask.long().cumsum(1) - 1).clamp(min=0)
        return inputs

    def _explore(self, reference: Reference) -> None:
        """Find the parts of the blocks, and make sure that the model is what it is by itself.

        Raises:
            AnamorphError: if it is not; says in what.
        """
        bare = self.blocks
        difference = self._try(reference)
        outside = all(block.headless == OUTSIDE for block in self.blocks)
        if difference or outside:
            self.blocks, self._exchanged = bare, False
            if otherwise := self._try(reference):
                raise AnamorphError(
                    f"{type(self.model).__name__} cannot be audited block by block: {otherwise}. "
                    "am.HookedModel takes any module."
                )
        if difference and not outside:
            why = f"with its attention function exchanged, {difference}"
            self.blocks = [replace(block, headless=why) for block in self.blocks]
        dims = next((block.dims for block in self.blocks if block.heads), {})
        whole = Batch(reference.tokens, torch.ones_like(reference.tokens).bool())
        self._widths = {**dims, "residual": self.start(whole).residual.shape[-1]}
        self._takes_left_padding = True
        batch, expected = reference.left_padded()
        try:
            self._takes_left_padding = not self._differs(batch, expected)
        except Exception:  # it takes masks of another form
            self._takes_left_padding = False

    def _try(self, reference: Reference) -> str:
        """Why the model does not give its own logits, its attention function exchanged or not.

        Returns:
            the end of a sentence; empty if it gives them.
        """
        inputs = {"input_ids": reference.tokens, **without_cache(self.model)}
        doing, call, run = "it does not run in parts", Probing(), lambda: self.model(**inputs)
        try:
            with self.session():
                self.blocks = probe(self.blocks, call, run, reference.tokens)
            for what, batch, expected in reference.cases():
                if difference := self._differs(batch, expected):
                    return f"the logits of {what} differ from its own, by up to {difference:.2g}"
            doing = "its blocks need more than the residual stream, such as what earlier ones keep"
            return self._depends(Batch(reference.tokens, torch.ones_like(reference.tokens).bool()))
        except AnamorphError:
            raise
        except CannotSplit as error:
            return str(error)
        except Exception as error:  # whatever somebody's model raises where it is run in parts
            if not call.seen:
                self.blocks = [replace(block, headless=OUTSIDE) for block in self.blocks]
            reason = str(error).strip().split("\n")[0]
            return f"{doing} ({type(error).__name__}{f': {reason}' if reason else ''})"

    def _usable_context(self, tokens: Tensor) -> int | None:
        """The context, without the few positions that some models keep for padding."""
        if self.context is None or self.context > LONGEST:
            return self.context
        for context in range(self.context, max(0, self.context - 4), -1):
            some = tokens.flatten().repeat(context)[None, :context]
            inputs = {"input_ids": some, **without_cache(self.model)}
            mask = torch.ones_like(some).bool()
            try:
                with self.session():
                    self._given(_state_of(Batch(some, mask), some[None, :, :0], inputs), 1)
            except (IndexError, RuntimeError):
                continue
            return context
        return self.context

    def _differs(self, batch: Batch, expected: Tensor) -> float:
        """By how much logits of a batch differ from those expected at real tokens; 0 if not."""
        state = self.run(batch).state
        found = self.logits(state)[0][batch.mask]
        if same_up_to_rounding(found, expected):
            return 0.0
        return float((found - expected).abs().nan_to_num(torch.inf).max())

    def _depends(self, batch: Batch) -> str:
        """On what a block depends besides its input: the end of a sentence; empty if on nothing.

        A proxy starts at any block, with others beside it. So every block runs alone, the last one
        first, on two copies that differ, and must give what it gives on each.
        """
        states = [self.start(batch)]
        for layer in range(self.layers):
            states.append(self.layer(layer, states[-1]).state)
        inputs = self._inputs(batch)
        beside = [_state_of(batch, states[0].residual, inputs) for _ in range(2)]
        for layer in reversed(range(self.layers)):
            own = states[layer].residual
            other = own.flip(-1) / 2
            alone, both = (
                self.layer(layer, replace(state, residual=residual)).state.residual
                for state, residual in zip(beside, (other, torch.cat([own, other])), strict=True)
            )
            expected = torch.cat([states[layer + 1].residual, alone])
            size = float(expected.double().square().mean().sqrt())  # some numbers are huge
            if not same_up_to_rounding(both, expected, scale=size):
                return (
                    f"its block {layer} gives other numbers when it runs by itself, or with copies "
                    "beside it, so it depends on more than its own residual stream"
                )
        return ""


def _state_of(batch: Batch, residual: Tensor, inputs: Mapping[str, Any]) -> _State:
    return _State(residual, batch.tokens, batch.mask, inputs=inputs)


def _numeric(configuration: Any) -> Any:
    """A configuration without versions, places and implementations, which decide rounding alone."""
    if isinstance(configuration, dict):
        return {
            str(key): _numeric(value)
            for key, value in configuration.items()
            if key != "transformers_version" and not str(key).startswith("_")
        }
    return configuration
