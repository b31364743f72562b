"""One forward of a hooked module: what is edited and recorded in it, and what came out."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.models.base import Edits, LayerKind, Recorded, State
from anamorph.models.changing import Changed, changed_now
from anamorph.models.hooked.hooks import Hook
from anamorph.models.sites import Site
from anamorph.models.tap import Tap
from anamorph.models.wrapped import copies_of


@dataclass
class HookedRun:
    """One forward.

    Attributes:
        start: the tokens and the mask.
        edits: by layer and kind.
        wanted: what is recorded.
        at: [batch, query] the rows of patterns and logits; None for all.
        layers: of the model.
        recorded: after edits.
        fired: how often each site was computed.
        changed: the matrices with which it runs.
        shape: (copy, batch, position).
        logits: [copy, batch, query, vocabulary].
    """

    start: State
    edits: Edits
    wanted: Collection[LayerKind | Site]
    at: Tensor | None
    layers: int
    recorded: Recorded = field(default_factory=dict)
    fired: Counter[LayerKind] = field(default_factory=Counter)
    changed: Changed | None = field(default_factory=changed_now)
    shape: tuple[int, int, int] = field(init=False)
    logits: Tensor = field(init=False)

    def __post_init__(self) -> None:
        batch, positions = self.start.tokens.shape
        self.shape = copies_of(self.edits.values()), batch, positions
        read: dict[LayerKind, Tensor] = {}
        given = self.start, self.edits, self.wanted, self.at, None, self.recorded, read
        self.taps = [Tap(layer, *given) for layer in range(self.layers)]

    def concerns(self, key: LayerKind) -> bool:
        """Whether a site is edited, read or recorded."""
        return self.taps[key.layer].concerns(key.kind)

    def serves(self, edits: Edits, wanted: Collection[LayerKind | Site], at: Tensor | None) -> bool:
        """Whether it is the run that is asked for."""
        same = self.edits == edits and self.at is at and self.changed is changed_now()
        return same and set(wanted) <= set(self.wanted)

    def tap(self, key: LayerKind, hook: Hook, whole: Tensor) -> Tensor | None:
        """Edit and record what passes; gives the submodule's tensor, None if it stays the same."""
        self.fired[key] += 1
        if self.fired[key] > 1:
            raise AnamorphError(
                f"The site {key} fired more than once: the submodule {hook.path!r} ran again in "
                "one forward, as in a recurrence or with shared weights, so it is not one tensor. "
                "Hook what runs once a layer."
            )
        try:
            x = hook.view(whole, key.kind, self.shape)
        except AnamorphError as error:
            raise AnamorphError(f"The site {key} does not fit: {error}") from error
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
                f"An edit of {key} gives {list(new.shape)} for {list(x.shape)}; expected the same "
                "shape."
            )
        edited = whole.clone(memory_format=torch.contiguous_format)
        hook.view(edited, key.kind, self.shape).copy_(new)
        return edited
