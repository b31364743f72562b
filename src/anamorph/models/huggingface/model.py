"""Hugging Face models, block by block, exactly as they are.

Nothing is re-implemented: the model's own modules run, one block at a time. Attention goes through
transformers' `AttentionInterface`, where queries and keys (after rotation), values and patterns can
be read and replaced; fused attention stays where no pattern is asked for. While a model is audited
its attention function is exchanged and some `forward`s are wrapped; afterwards it is as before.

What makes it fast: a proxy starts at its first edited block. There, queries, keys and values are
the model's own and computed once for all proxies; only the edited heads attend again, and their
difference goes through the output projection.
"""

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn

from anamorph.errors import AnamorphError
from anamorph.machine.devices import in_float64
from anamorph.models.base import Batch, Edits, LayerKind, Ran, State
from anamorph.models.fingerprint import CONFIGURATION, digest_of
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
from anamorph.models.huggingface.matrices import BlockMatrices, find_matrices
from anamorph.models.huggingface.norms import with_final_norm
from anamorph.models.huggingface.once import BEHIND, FIRST, Memory, alike_once, with_alike
from anamorph.models.huggingface.ports import parts_of
from anamorph.models.huggingface.reference import (
    Reference,
    accepts,
    context_of,
    inputs_of,
    logits_of,
    numeric,
    own_logits,
    require_language_model,
)
from anamorph.models.huggingface.watch import Watch
from anamorph.models.matrices import Matrix
from anamorph.models.sites import FINAL, HEAD_KINDS, LAYER_KINDS, NORM_KINDS, OF_HEADS, Site
from anamorph.models.tap import Tap, rows_at
from anamorph.models.wrapped import (
    Wrapped,
    copies_of,
    device_of,
    same_logits,
    same_up_to_rounding,
)

NEEDS_MORE = "its blocks need more than the residual stream, such as what earlier ones keep"
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
        self._made_mask = False  # there a mask is given that is taken as it is
        self._memory, self._matrices = Memory(), list[BlockMatrices]()
        with torch.inference_mode():
            reference = Reference.of(model, self.context)
            self._tokens, self.blocks = reference.tokens, blocks_of(model, reference.tokens)
            self.layers = len(self.blocks)
            self.causal, self.parallel = reference.causal, reference.parallel
            self.vocabulary, self._dtype = reference.plain.shape[-1], reference.plain.dtype
            self._takes_padding = reference.causal or reference.pads
            self._explore(reference)
            self.context = self._usable_context(reference.tokens)

    @property
    def sites(self) -> list[Site]:
        """Every tensor that can be read and replaced."""
        heads = [
            Site(layer, head, kind)
            for kind, (layer, block) in product(HEAD_KINDS, enumerate(self.blocks))
            if block.heads is not None
            for head in range(block.heads.layout.count(kind))
        ]
        return heads + [
            Site(layer, None, kind)
            for kind, (layer, block) in product((*LAYER_KINDS, *NORM_KINDS), enumerate(self.blocks))
            if kind == "residual"
            or kind in {*block.ports, *block.norms}
            or (kind == "heads" and block.heads is not None)
        ]

    def fingerprint(self) -> dict[str, str]:
        """A digest of the model's weights, layer by layer, and of its configuration."""
        configuration = digest_of(numeric(self.model.config.to_dict()))
        return super().fingerprint() | {CONFIGURATION: configuration}

    def matrices(self, site: Site) -> list[Matrix]:
        """See `anamorph.models.base.Model.matrices`."""
        if site.kind not in ("mlp", "attention", "pattern"):
            return super().matrices(site)
        if not self._matrices:
            tokens = self._tokens.to(self.device)
            self._matrices = find_matrices(self, self.module, self.blocks, tokens)
        return self._matrices[site.layer].at(site)

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
        nothing, inputs = batch.tokens[None, :, :0], self._inputs(batch)
        state = _State(nothing, batch.tokens, batch.mask, inputs=inputs)
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
        place = device_of(self.blocks[index].module)  # of a model over several, that of the block
        state, at = state.to(place), None if at is None else at.to(place)
        tap = Tap(index, state, edits or {}, record, at)
        with self.session():
            residual = tap("residual", self._run(index, state, tap))
        final = self.blocks[index].norms.get(FINAL) if tap.concerns(FINAL) else None
        scale = None if final is None else tap(FINAL, final.scale(residual))
        state = replace(state, residual=residual, read=tap.read, scale=scale)
        rows = at if index == self.layers - 1 else None
        recorded = {key: x.to(self.device) for key, x in tap.recorded.items()}
        return Ran(state.each(lambda x: rows_at(x, rows)), recorded)

    def logits(self, state: State, at: Tensor | None = None) -> Tensor:
        """[copy, batch, query, vocabulary] at the positions `at` [batch, query], or all.

        What follows the last block must work position by position, as a norm and a head do.
        """
        state = state.each(lambda x: rows_at(x, at))
        residual, scale = state.residual, state.scale
        shape = (1, -1) if self._as_one else (-1, 1)
        if scale is not None:
            residual, scale = residual.expand(len(scale), -1, -1, -1), scale.reshape(*shape, 1)
        single = residual.reshape(*shape, residual.shape[-1])
        with self.session(), current(StandIn(residual=single, scale=scale)):
            tokens = torch.zeros(len(single), 1, dtype=torch.long, device=residual.device)
            inputs = inputs_of(self.model, tokens)
            if self._made_mask:  # else transformers looks at tensors: a GPU is waited for
                inputs["attention_mask"] = tokens.new_ones(len(single), 1, 1, 1)
            out = self.model(**inputs)
        logits = logits_of(self.model, out, None)
        return logits.view(*residual.shape[:-1], -1).to(self.device)

    def _run(self, index: int, state: _State, tap: Tap) -> Tensor:
        """[copy, batch, position, width] after a block, before an edit of the residual stream."""
        residual, block = state.residual, self.blocks[index]
        inside = {kind: edit for kind, edit in tap.here.items() if kind not in BEHIND}
        copies = max(len(residual), copies_of(inside.values()))
        more = OF_HEADS & tap.kept or any(
            isinstance(key, LayerKind) or kind != "pattern"
            for kind in OF_HEADS & tap.wanted.keys()
            for key in tap.wanted[kind]
        )
        call, own = Call(tap), (block, self._given(state, 1)[index], residual)
        alone, first = len(residual) == 1, min((key.layer for key in tap.edits), default=-1)
        normed = block.norms.keys() & tap.here.keys()  # attention may be given something else
        again = alone and OF_HEADS & tap.here.keys() and not (more or normed)
        if again and (attended := self._memory.at(index, state).attended(*own)) is not None:
            out = attended.again(tap)
            call.attended = out.expand(copies, *out.shape[1:])
        elif alone and first == index and not FIRST & tap.here.keys():
            call.once = self._memory.at(index, state).once(*own)
        if len(residual) < copies:
            residual = residual.expand(copies, *residual.shape[1:])
        return call.run(block, self._given(state, copies)[index], residual)

    def _given(self, state: _State, copies: int) -> list[Given]:
        """What the model hands to its blocks, for so many copies of a batch."""
        if copies not in state.given:
            call = Listing(layers=self.layers)
            inputs = {  # tensors are [batch, position]
                name: x.repeat(copies, 1) if torch.is_tensor(x) else x
                for name, x in state.inputs.items()
            }
            with current(call), suppress(Stop):
                self.model(**inputs)
            state.given[copies] = with_alike(call.given, copies)
        return state.given[copies]

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        inputs = inputs_of(self.model, batch.tokens)
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
        bare, why = self.blocks, ""
        try:
            state = self._try(reference)
        except CannotSplit as error:
            why = str(error)
        outside = all(block.headless == OUTSIDE for block in self.blocks)
        if why or outside:
            self.blocks, self._exchanged = bare, False
            try:
                state = self._try(reference)
            except CannotSplit as error:
                raise AnamorphError(
                    f"{type(self.model).__name__} cannot be audited block by block: {error}. "
                    "am.HookedModel takes any module."
                ) from error
        if why and not outside:
            why = f"with its attention function exchanged, {why}"
            self.blocks = [replace(block, headless=why) for block in self.blocks]
        watch = Watch.of(self.module, state.residual[0], partial(self.logits, state))
        self.blocks = with_final_norm(self.blocks, watch)
        dims = next((block.heads.dims for block in self.blocks if block.heads), {})
        self._widths = {**dims, "residual": state.residual.shape[-1]}
        self._takes_left_padding = True
        self._takes_left_padding = self._gives(*reference.padded("left"))
        self._as_one = True
        self._as_one = self._gives(state, reference.plain.flatten(0, 1))
        self._made_mask = accepts(self.model, "attention_mask")
        self._made_mask = self._made_mask and self._gives(state, reference.plain.flatten(0, 1))

    def _try(self, reference: Reference) -> State:
        """Find the parts of the blocks, the model's attention function exchanged or not.

        Returns:
            what comes out of the last block for the tokens of the reference.

        Raises:
            CannotSplit: if the model does not give its own logits block by block; says why.
        """
        doing, call = "it does not run in parts", Probing()
        try:
            with self.session():
                found = probe(self.model, self.blocks, call, reference.tokens)
                self.blocks = [replace(block, parts=parts_of(block)) for block in found]
            with self.session():
                states = [self.start(Batch.whole(reference.tokens))]
                for layer in range(self.layers):
                    states.append(self.layer(layer, states[-1]).state)
                for what, batch, expected in reference.cases(states[-1]):
                    if by := self._differs(batch, expected):
                        raise CannotSplit(
                            f"the logits of {what} differ from its own, by up to {by:.2g}"
                        )
                doing = NEEDS_MORE
                self._require_apart(states)
                for layer, block in enumerate(self.blocks):
                    if not alike_once(self.layer, layer, block, states):
                        self.blocks[layer] = replace(block, parts={})
            return states[-1]
        except (AnamorphError, CannotSplit):
            raise
        except Exception as error:  # whatever somebody's model raises where it is run in parts
            if not call.begun:
                self.blocks = [replace(block, headless=OUTSIDE) for block in self.blocks]
            reason = str(error).strip().split("\n")[0]
            raise CannotSplit(
                f"{doing} ({type(error).__name__}{f': {reason}' if reason else ''})"
            ) from error

    def _usable_context(self, tokens: Tensor) -> int | None:
        """The context, without the few positions that some models keep for padding."""
        if self.context is None or self.context > LONGEST:
            return self.context
        for context in range(self.context, max(0, self.context - 4), -1):
            with suppress(IndexError, RuntimeError):
                self.start(Batch.whole(tokens.flatten().repeat(context)[None, :context]))
                return context
        return self.context

    def _gives(self, batch: Batch | State, expected: Tensor) -> bool:
        """Whether a model gives logits at all, and those expected."""
        try:
            return not self._differs(batch, expected)
        except Exception:  # it takes other masks, or looks at how many tokens it was given
            return False

    def _differs(self, batch: Batch | State, expected: Tensor) -> float:
        """By how much logits differ from [real token, vocabulary] expected; 0 if by rounding.

        Those of a batch, or of the state behind the last block.
        """
        state = self.run(batch).state if isinstance(batch, Batch) else batch
        found = self.logits(state)[0][batch.mask.to(self.device)]
        if same_logits(found, expected):
            return 0.0
        return float((found - expected).abs().nan_to_num(torch.inf).max())

    def _require_apart(self, states: list[State]) -> None:
        """Make sure that a block depends on its input alone.

        A proxy starts at any block, with others beside it. So every block runs alone, the last one
        first, on two copies that differ, and must give what it gives on each. The states are those
        before every block, and behind the last.

        Raises:
            CannotSplit: if it does not.
        """
        assert isinstance(states[0], _State)
        fresh = replace(states[0], given={})
        for layer in reversed(range(self.layers)):
            own = states[layer].residual
            other = own.flip(-1) / 2
            alone, both = (
                self.layer(layer, replace(fresh, residual=residual)).state.residual
                for residual in (other, torch.cat([own, other]))
            )
            expected = torch.cat([states[layer + 1].residual, alone])
            size = float(in_float64(expected).square().mean().sqrt())  # some numbers are huge
            if not same_up_to_rounding(both, expected, scale=size):
                raise CannotSplit(
                    f"its block {layer} gives other numbers when it runs by itself, or with copies "
                    "beside it, so it depends on more than its own residual stream"
                )
