"""Where the tensors of a run pass: each is edited, then recorded, then kept for who reads it."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.models.base import Context, Edit, Edits, LayerKind, Recorded, State
from anamorph.models.layout import KEY_KINDS
from anamorph.models.sites import NORM_KINDS, Site

WHOLE = frozenset({*KEY_KINDS, NORM_KINDS[0]})
"""The kinds that always hold all positions, as every query may need them."""


@dataclass
class Tap:
    """What is done with the tensors of one layer, in one run.

    Attributes:
        layer: counted from 0.
        state: before the layer.
        edits: of the whole run.
        record: what is recorded.
        at: None, or [batch, query] the rows of patterns that are recorded.
        rows: None, or [batch, query] the positions that tensors of the layer hold; the kinds of
            `WHOLE` always hold all of them.
        recorded: what was recorded so far.
        read: what was kept so far for edits that read it, of this run's earlier layers too.
        changed: whether an edit was made so far; before, all copies are the model's own.
    """

    layer: int
    state: State
    edits: Edits
    record: Collection[LayerKind | Site] = ()
    at: Tensor | None = None
    rows: Tensor | None = None
    recorded: Recorded = field(default_factory=dict)
    read: dict[LayerKind, Tensor] = field(default_factory=dict)
    changed: bool = False

    def __post_init__(self) -> None:
        self.here = {key.kind: edit for key, edit in self.edits.items() if key.layer == self.layer}
        self.wanted: dict[str, list[LayerKind | Site]] = {}
        for key in self.record:
            if key.layer == self.layer:
                self.wanted.setdefault(key.kind, []).append(key)
        reads = {key for edit in self.edits.values() for key in edit.reads}
        self.kept = {key.kind for key in reads if key.layer == self.layer}
        self.read |= self.state.read

    @classmethod
    def idle(cls) -> Self:
        """One that does nothing."""
        nothing = torch.empty(0)
        return cls(0, State(nothing, nothing, nothing), {})

    def __call__(self, kind: str, x: Tensor) -> Tensor:
        """Edit, record and keep `x` [copy, batch, (head,) position, dim], all heads of it."""
        if (edit := self.here.get(kind)) is not None:
            x = edit(x, self.context(kind, edit))
            self.changed = True
        if kind in self.kept:
            self.read[LayerKind(self.layer, kind)] = x
        if kind in self.wanted:
            whole = kind == "pattern" and self.at is not None and self.rows is None
            self.keep(kind, rows_at(x, self.at) if whole else x)
        return x

    def keep(self, kind: str, x: Tensor) -> None:
        """Record `x`, all heads of it, as it is."""
        for key in self.wanted.get(kind, ()):
            head = key.head if isinstance(key, Site) else None
            self.recorded[key] = x if head is None else x[:, :, head]

    def changes(self, kind: str) -> bool:
        """Whether a kind is edited, or read by an edit: then all of it has to be computed."""
        return kind in self.here or kind in self.kept

    def concerns(self, kind: str) -> bool:
        """Whether a kind is edited, read or recorded."""
        return self.changes(kind) or kind in self.wanted

    def context(self, kind: str, edit: Edit) -> Context:
        """What an edit of a kind is told.

        Raises:
            AnamorphError: if the edit reads something that was not computed before.
        """
        rows = None if kind in WHOLE else self.rows
        read = {}
        for key in edit.reads:
            if key not in self.read:
                raise AnamorphError(
                    f"An edit of {kind} in layer {self.layer} reads {key.kind} of layer "
                    f"{key.layer}, which this run has not computed before; let it read what comes "
                    "earlier in the model."
                )
            whole = key.layer < self.layer or key.kind in WHOLE
            cut = rows if whole and key.kind not in KEY_KINDS else None
            read[key] = rows_at(self.read[key], cut)
        return Context(self.state.tokens, self.state.mask, rows, read)


def rows_at(x: Tensor, at: Tensor | None) -> Tensor:
    """The positions `at` [batch, query] of x [copy, batch, (head,) position, dim], or all."""
    if at is None:
        return x
    if x.dim() == 5:
        heads, beside = x.shape[2], x.transpose(2, 3)
        if beside.is_contiguous():  # heads lie side by side, as a projection gives them
            return rows_at(beside.flatten(3), at).unflatten(3, (heads, -1)).transpose(2, 3)  # type: ignore[no-any-return, no-untyped-call]
        rows = rows_at(x.flatten(1, 2), at.repeat_interleave(heads, 0))
        return rows.unflatten(1, (-1, heads))  # type: ignore[no-any-return, no-untyped-call]
    batch, positions = x.shape[1:3]
    places = torch.arange(batch, device=x.device)[:, None] * positions + at
    rows = x.flatten(1, 2).index_select(1, places.flatten())  # whole rows: faster than a gather
    return rows.view(len(x), *at.shape, x.shape[-1])
