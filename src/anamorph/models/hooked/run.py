"""One forward of a hooked module: what is edited and recorded in it, and what came out."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.models.base import Edits, LayerKind, Recording
from anamorph.models.hooked.hooks import Hook
from anamorph.models.sites import HEAD_KINDS, Site
from anamorph.models.wrapped import rows_at


@dataclass
class HookedRun:
    """One forward.

    Attributes:
        edits: by layer and kind.
        wanted: what is recorded.
        at: [batch, query] the rows of patterns and logits; None for all.
        shape: (copy, batch, position).
        recorded: after edits.
        fired: how often each site was computed.
        logits: [copy, batch, query, vocabulary].
    """

    edits: Edits
    wanted: Collection[LayerKind | Site]
    at: Tensor | None
    shape: tuple[int, int, int]
    recorded: Recording = field(default_factory=dict)
    fired: Counter[LayerKind] = field(default_factory=Counter)
    logits: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.keys = {*self.edits, *(LayerKind(key.layer, key.kind) for key in self.wanted)}

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
        edited = None
        if key in self.edits:
            new = self.edits[key](x)
            if new.shape != x.shape:
                raise AnamorphError(
                    f"An edit of {site_name(key)} gives {list(new.shape)} for {list(x.shape)}; "
                    "expected the same shape."
                )
            edited = whole.clone(memory_format=torch.contiguous_format)
            hook.view(edited, key.kind, self.shape).copy_(new)
            x = new
        for wanted in self.wanted:
            if (wanted.layer, wanted.kind) == key:
                kept = x if isinstance(wanted, LayerKind) else x[:, :, wanted.head]
                if key.kind == "pattern" and self.at is not None:
                    kept = rows_at(kept, self.at)
                self.recorded[wanted] = kept.clone()  # the module may go on in place
        return edited


def site_name(key: LayerKind) -> str:
    """As patterns of sites name it, all heads of it."""
    return f"{key.layer}.*.{key.kind}" if key.kind in HEAD_KINDS else f"{key.layer}.{key.kind}"
