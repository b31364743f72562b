"""The contract of a model: it runs block by block, so that nothing is computed twice.

Activations carry a leading *copy* axis, `[copy, batch, ...]`. It is 1 until an edit puts several
proxies in place of one tensor; from there on broadcasting carries all of them at once. Head kinds
are `[copy, batch, head, position, dim]` (a pattern is `[copy, batch, head, query, key]`), layer
kinds `[copy, batch, position, dim]`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anamorph.models.sites import Site


class LayerKind(NamedTuple):
    """A layer and a kind: the whole tensor, all heads of it, that an edit or a recording is for."""

    layer: int
    kind: str


Edit = Callable[[Tensor], Tensor]
"""Takes an activation `[1 or copy, batch, ...]`, gives `[copy, batch, ...]`, otherwise alike.

An edit that makes several copies of one says how many in an attribute `copies`; one that leaves
most heads alone may offer `heads` and `of_heads`, as `anamorph.auditing.stacks.StackedEdit` does.
"""

Edits = Mapping[LayerKind, Edit]

Recording = dict[LayerKind | Site, Tensor | None]
"""The caller puts in what it wants, with None; a layer fills in the tensors, after edits.

A `LayerKind` stands for all heads, `[copy, batch, head, ...]`; a `Site` for one,
`[copy, batch, ...]`.
"""


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences.

    Attributes:
        tokens: [batch, position] int64 token ids; anything where the mask is False.
        mask: [batch, position] True at real tokens, which stand at the left.
    """

    tokens: Tensor
    mask: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return replace(self, tokens=self.tokens.to(device), mask=self.mask.to(device))


@dataclass(frozen=True)
class State:
    """What one layer hands to the next.

    Attributes:
        residual: [copy, batch, position, width], or [copy, batch, query, width] of the positions
            `at` after a last layer that was given them.
        mask: [batch, position] True at real tokens.
        at: None, or [batch, query] the positions that the residual holds.
    """

    residual: Tensor
    mask: Tensor
    at: Tensor | None = None


class Model(ABC):
    """A Transformer that the audit can run layer by layer.

    What most models agree on stands here as a default; a model that differs says so.

    Attributes:
        causal: whether no position sees those behind it.
        context: the longest sequence, in tokens; None if there is none.
        parallel: whether two threads may run it at once. A model that keeps something of one run
            where another run can see it must say no: its batches then run one after the other.
        batch_tokens: tokens of a batch, padding included, with which an audit of it is fastest.
    """

    causal: bool = True
    context: int | None = None
    parallel: bool = True
    batch_tokens: int = 4_096

    @property
    @abstractmethod
    def sites(self) -> Sequence[Site]:
        """Every tensor that can be read and replaced."""

    @property
    @abstractmethod
    def layers(self) -> int:
        """The number of blocks."""

    @property
    @abstractmethod
    def vocabulary(self) -> int:
        """The number of logits."""

    @property
    def device(self) -> torch.device:
        """Where its weights are, and where it wants its batches."""
        return torch.device("cpu")

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

    def check(self, batch: Batch) -> None:
        """Make sure, before an audit, that it runs as its owner would run it.

        Args:
            batch: a few right-padded sequences of the data.

        Raises:
            AnamorphError: if it does not; says what differs.
        """
        return None

    @abstractmethod
    def start(self, batch: Batch) -> State:
        """Embed the tokens: the state before layer 0."""

    @abstractmethod
    def layer(
        self,
        index: int,
        state: State,
        edits: Edits | None = None,
        record: Recording | None = None,
        at: Tensor | None = None,
    ) -> State:
        """Run one block.

        Args:
            index: which layer.
            state: what came out of the layer before, at all positions.
            edits: replacements for this layer's tensors; keys of other layers are left alone.
            record: its keys of this layer are filled in.
            at: [batch, query] the positions that count. Recorded patterns hold these rows only, and
                in the last layer nothing is computed for other positions that they do not need
                (recorded queries and what follows from them then hold these rows too).
        """

    @abstractmethod
    def logits(self, state: State, at: Tensor | None = None) -> Tensor:
        """[copy, batch, query, vocabulary] at the positions `at` [batch, query], or all."""
