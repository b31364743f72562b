"""The contract of a model: it runs block by block, so that nothing is computed twice.

Activations carry a leading *copy* axis, `[copy, batch, ...]`. It is 1 until an edit puts several
proxies in place of one tensor; from there on broadcasting carries all of them at once. Head kinds
are `[copy, batch, head, position, dim]` (a pattern is `[copy, batch, head, query, key]`), layer
kinds `[copy, batch, position, dim]`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.models.layout import HeadLayout, layout_of
from anamorph.models.matrices import Matrix
from anamorph.models.sites import HEAD_KINDS, Site, describe_sites
from anamorph.showing import Card, Showing


class LayerKind(NamedTuple):
    """A layer and a kind: the whole tensor, all heads of it, that an edit or a recording is for."""

    layer: int
    kind: str

    def __str__(self) -> str:
        return f"{self.layer}.{'*.' if self.kind in HEAD_KINDS else ''}{self.kind}"


Recorded = dict[LayerKind | Site, Tensor]
"""Activations, after edits.

A `LayerKind` stands for all heads, `[copy, batch, head, ...]`; a `Site` for one,
`[copy, batch, ...]`.
"""


@dataclass(frozen=True)
class Context:
    """What an edit is told of the run that it changes, besides the tensor.

    Attributes:
        tokens: [batch, position] all token ids of the sequences.
        mask: [batch, position] True at real tokens.
        at: None, or [batch, query] the positions that the tensor holds: on its position axis, or
            on the query axis of a pattern.
        read: what the edit asked to read (`Edit.reads`), [1 or copy, batch, ...], after edits. It
            holds the same positions as the tensor; keys and values always hold all of them.
        original: what the model has in place of the tensor, [batch, ...], where the run holds an
            unchanged copy of it; else None.
    """

    tokens: Tensor
    mask: Tensor
    at: Tensor | None = None
    read: Mapping[LayerKind, Tensor] = field(default_factory=dict)
    original: Tensor | None = None


class Edit(ABC):
    """What stands in for one tensor of a layer.

    Attributes:
        reads: other tensors, of the same layer or of earlier ones, that it has to be shown. They
            must be computed before the one that it replaces.
        copies: how many copies of the model it makes of one.
        heads: the only heads that it changes; None if it may change any.
    """

    reads: tuple[LayerKind, ...] = ()
    copies: int = 1
    heads: Sequence[int] | None = None

    @abstractmethod
    def __call__(self, x: Tensor, context: Context) -> Tensor:
        """[1 or copy, batch, ...] to [copy, batch, ...]; the other axes stay as they are."""

    def of_heads(self, x: Tensor, heads: Sequence[int], context: Context) -> Tensor:
        """[1 or copy, batch, head, ...] of all heads to [copy, batch, heads, ...] of some."""
        edited = self(x, context)
        return edited if len(heads) == x.shape[2] else heads_at(edited, heads)


def heads_at(x: Tensor, heads: Sequence[int]) -> Tensor:
    """The given heads of x [copy, batch, head, ...].

    A list as an index would have to be copied to a GPU, which is waited for.
    """
    first = heads[0] if heads else 0
    if list(heads) == list(range(first, first + len(heads))):
        return x[:, :, first : first + len(heads)]
    return torch.stack([x[:, :, head] for head in heads], dim=2)


class EditBy(Edit):
    """The edit that a function makes of the tensor alone.

    Attributes:
        fired: how often it was made.
    """

    fired = 0

    def __init__(self, function: Callable[[Tensor], Tensor], copies: int = 1) -> None:
        self.function, self.copies = function, copies

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        """What the function makes of `x`."""
        self.fired += 1
        return self.function(x)


Edits = Mapping[LayerKind, Edit]


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences.

    Attributes:
        tokens: [batch, position] int64 token ids; anything where the mask is False.
        mask: [batch, position] True at real tokens, which stand at the left.
    """

    tokens: Tensor
    mask: Tensor

    @classmethod
    def whole(cls, tokens: Tensor) -> "Batch":
        """Sequences [batch, position] without padding."""
        return cls(tokens, torch.ones_like(tokens, dtype=torch.bool))

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return replace(self, tokens=self.tokens.to(device), mask=self.mask.to(device))


@dataclass(frozen=True)
class State:
    """What one layer hands to the next.

    Attributes:
        residual: [copy, batch, position, width]; after a last layer that was given positions `at`,
            of these alone.
        tokens: [batch, position] token ids.
        mask: [batch, position] True at real tokens.
        read: what edits of this run asked to read of the layers so far.
        scale: [copy, batch, position, 1] of the final norm, after a last layer where it is edited;
            else None.
    """

    residual: Tensor
    tokens: Tensor
    mask: Tensor
    read: Mapping[LayerKind, Tensor] = field(default_factory=dict)
    scale: Tensor | None = None

    def to(self, device: torch.device) -> Self:
        """The same on another device; itself if it is there."""
        if self.residual.device == device:
            return self
        tensors = {k: x.to(device) for k, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **tensors, read={k: x.to(device) for k, x in self.read.items()})

    def each(self, some: Callable[[Tensor], Tensor]) -> Self:
        """Some copies or positions of it: `some` gives them of [copy, batch, position, dim]."""
        scale = None if self.scale is None else some(self.scale)
        return replace(self, residual=some(self.residual), scale=scale)


class Ran(NamedTuple):
    """What came out of a run.

    Attributes:
        state: after its last layer.
        recorded: what was asked for, as far as the model has it.
    """

    state: State
    recorded: Recorded


class Model(Showing, ABC):
    """A Transformer that the audit can run layer by layer.

    What most models agree on stands here as a default; a model that differs says so.

    Attributes:
        layers: the number of blocks.
        vocabulary: the number of logits.
        causal: whether no position sees those behind it.
        context: the longest sequence, in tokens; None if there is none.
        parallel: whether two threads may run it at once. A model that keeps something of one run
            where another run can see it must say no: its batches then run one after the other.
        batch_tokens: tokens of a batch, padding included, with which an audit of it is fastest.
        whole_blocks: whether a block runs as a whole: at all positions in the last layer, too, and
            once for proxies that begin there, beside what comes behind their first edits.
    """

    layers: int
    vocabulary: int
    causal: bool = True
    context: int | None = None
    parallel: bool = True
    batch_tokens: int = 4_096
    whole_blocks: bool = False

    @property
    @abstractmethod
    def sites(self) -> Sequence[Site]:
        """Every tensor that can be read and replaced."""

    @property
    def layout(self) -> tuple[HeadLayout, ...]:
        """How many heads each layer has, and which of them read which keys and values."""
        return layout_of(self.sites, self.layers)

    @property
    def device(self) -> torch.device:
        """Where its weights are, and where it wants its batches."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The number format of its logits."""
        return torch.float32

    def session(self) -> AbstractContextManager[None]:
        """Prepare the model once for many runs; afterwards it is as it was before."""
        return nullcontext()

    def describe(self) -> dict[str, Any]:
        """What it is, for `spec.json` and a report; JSON values only."""
        return {"class": type(self).__name__, "layers": self.layers}

    def fingerprint(self) -> dict[str, str]:
        """A digest of every part of what its numbers depend on, such as `layer 0` and `rest`.

        Two models with equal digests give equal numbers. A model without digests cannot be told
        from another of its shape, so an audit of it into a run folder is refused.
        """
        return {}

    def matrices(self, site: Site) -> list[Matrix]:
        """The matrices of weights behind a site, none of which any other layer uses.

        Args:
            site: `mlp` or `attention`, for the matrices of that layer's MLP, or of its queries,
                keys, values and outputs; or the `pattern` of a head, for two, W_Q [dim, width] and
                W_K [dim, width], such that its scores are W_Q x · W_K y times a number, up to
                biases.

        Raises:
            AnamorphError: if the model does not say which they are, or there are none; says why.
        """
        raise AnamorphError(
            f"{type(self).__name__} does not say which matrices stand behind {site}, so its "
            "weights cannot be changed there. A Decoder, am.HuggingFace and am.HookedModel do; "
            "or give a changed copy of the model as am.AnotherModel(name, model)."
        )

    def check(self, batch: Batch) -> None:
        """Make sure, before an audit, that it runs as its owner would run it.

        Args:
            batch: a few right-padded sequences of the data.

        Raises:
            AnamorphError: if it does not; says what differs.
        """
        return None

    def _card(self) -> Card:
        said, parameters = self.describe(), self._parameter_count()
        counts = sorted({(here.heads, here.key_heads) for here in self.layout if here.heads})
        heads = [f"{n}" if n == keys else f"{n} ({keys} of keys and values)" for n, keys in counts]
        facts = {
            "layers": f"{self.layers}",
            "heads a layer": " or ".join(heads),
            "width": said.get("width"),
            "vocabulary": f"{self.vocabulary:,} tokens",
            "context": None if self.context is None else f"{self.context:,} tokens",
            "predicts": "the next token" if self.causal else "hidden tokens",
            "parameters": f"{parameters:,}" if parameters else None,
            "computes": f"in {str(self.dtype).removeprefix('torch.')} on {self.device}",
            "sites": describe_sites(self.sites),
        }
        known = [(name, str(fact)) for name, fact in facts.items() if fact]
        names = dict.fromkeys([type(self).__name__, *filter(None, [said.get("class")])])
        return Card(" · ".join(names), known)

    def _parameter_count(self) -> int | None:
        """How many numbers it has learnt, if that is known."""
        return self.describe().get("parameters")

    @abstractmethod
    def start(self, batch: Batch) -> State:
        """Embed the tokens: the state before layer 0."""

    @abstractmethod
    def layer(
        self,
        index: int,
        state: State,
        edits: Edits | None = None,
        record: Collection[LayerKind | Site] = (),
        at: Tensor | None = None,
    ) -> Ran:
        """Run one block.

        Args:
            index: which layer.
            state: what came out of the layer before, at all positions.
            edits: of the whole run; this layer's are made, and what any of them reads is kept.
            record: what to record; what other layers hold is left alone.
            at: [batch, query] the positions that count. Recorded patterns hold these rows only, and
                in the last layer nothing is computed for other positions that they do not need
                (recorded queries and what follows from them may then hold these rows only).
        """

    def run(
        self,
        batch: Batch | State,
        edits: Edits | None = None,
        record: Collection[LayerKind | Site] = (),
        at: Tensor | None = None,
        first: int = 0,
        stop: int | None = None,
    ) -> Ran:
        """Run the blocks from `first` on, up to `stop` (which does not run) or all.

        `batch` may also be the state before layer `first`; `edits` are of the layers that run. The
        other arguments are as for `layer`.
        """
        state = self.start(batch) if isinstance(batch, Batch) else batch
        recorded: Recorded = {}
        for index in range(first, self.layers if stop is None else stop):
            state, found = self.layer(index, state, edits, record, at)
            recorded |= found
        return Ran(state, recorded)

    @abstractmethod
    def logits(self, state: State, at: Tensor | None = None) -> Tensor:
        """[copy, batch, query, vocabulary] at the positions `at` [batch, query], or all."""
