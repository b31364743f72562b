"""One forward of a hooked module: what is edited and recorded in it, and what came out."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.models.base import Edits, LayerKind, Recorded, State
from anamorph.models.hooked.hooks import Hook
from anamorph.models.sites import HEAD_KINDS, Site
from anamorph.models.tap import Tap


@dataclass
class HookedRun:
    """One forward.

    Attributes:
        start: the tokens and the mask.
        edits: by layer and kind.
        wanted: what is recorded.
        at: [batch, query] the rows of patterns and logits; None for all.
        shape: (copy, batch, position).
        recorded: after edits.
        fired: how often each site was computed.
        logits: [copy, batch, query, vocabulary].
    """

    start: State
    edits: Edits
    wanted: Collection[LayerKind | Site]
    at: Tensor | None
    shape: tuple[int, int, int]
    recorded: Recorded = field(default_factory=dict)
    fired: Counter[LayerKind] = field(default_factory=Counter)
    logits: Tensor = field(init=False)

    def __post_init__(self) -> None:
        reads = {key for edit in self.edits.values() for key in edit.reads}
        self.keys = {*self.edits, *reads, *(LayerKind(key.layer, key.kind) for key in self.wanted)}
        read: dict[LayerKind, Tensor] = {}
        self.taps = {
            layer: Tap(
                layer, self.start, self.edits, self.wanted, self.at, None, self.recorded, read
            )
            for layer in {key.layer for key in self.keys}
        }

    def concerns(self, key: LayerKind) -> bool:
        """Whether a site is edited or recorded."""
        return key in self.keys

    def has(self, wanted: Collection[LayerKind | Site]) -> bool:
        """Whether all this was recorded, as far as it exists."""
        return set(wanted) <= set(self.wanted)

    def tap(self, key: LayerKind, hook: Hook, whole: Tensor) -> Tensor | None:
        """Edit and record what passes; gives the submodule's tensor, None if it stays the same."""
        self.fired[key] += 1
        if self.fired[key] > 1:
            raise AnamorphError(
                f"The site {site_name(key)} fired more than once: the submodule {hook.path!r} ran "
                "again in one forward, as in a recurrence or with shared weights, so it is not "
                "one tensor. Hook what runs once a layer."
            )
        try:
            x = hook.view(whole, key.kind, self.shape)
        except AnamorphError as error:
            raise AnamorphError(f"The site {site_name(key)} does not fit: {error}") from error
        tap = self.taps[key.layer]
        if key.kind in tap.kept:
            x = x.clone()  # the module may go on in place
        new = tap(key.kind, x)
        for wanted in tap.wanted.get(key.kind, ()):
            tap.recorded[wanted] = tap.recorded[wanted].clone()  # likewise
        if key not in self.edits:
            return None
        if new.shape != x.shape:
            raise AnamorphError(
                f"An edit of {site_name(key)} gives {list(new.shape)} for {list(x.shape)}; "
                "expected the same shape."
            )
        edited = whole.clone(memory_format=torch.contiguous_format)
        hook.view(edited, key.kind, self.shape).copy_(new)
        return edited


def site_name(key: LayerKind) -> str:
    """As patterns of sites name it, all heads of it."""
    return f"{key.layer}.*.{key.kind}" if key.kind in HEAD_KINDS else f"{key.layer}.{key.kind}"
