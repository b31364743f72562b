"""Points: what a model computes at sites, sequence by sequence, and which of them a fit sees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.models.base import Batch, LayerKind, Model, Recorded
from anamorph.models.sites import Site
from anamorph.simplifications.statistics.base import beside

PART = 65_536
"""Tokens of a part of a split, without padding: it ends with the batch that brings them to so many.

Parts follow from the data alone, because sums are rounded part by part."""

Place = tuple[Site, ...]
"""Where a point is taken: at a site; or at those that a replacement reads and, last, the one that
it writes."""

Lengths = Counter[int]
"""How many sequences there are of each length."""


class Stream(NamedTuple):
    """The points that one fit sees.

    Attributes:
        places: in the model's order; several if a fit is joint.
        keep: of every sequence, points before this position are left out.
    """

    places: tuple[Place, ...]
    keep: int

    def __str__(self) -> str:
        return ", ".join(str(place[-1]) for place in self.places)


def part_ends(tokens: int) -> bool:
    """Whether a part that has so many tokens ends, and the next batch begins another."""
    return tokens >= PART


class Numbered(NamedTuple):
    """A batch and where it is in its split.

    Attributes:
        batch: on any device.
        mask: [batch, position] on the CPU: True at real tokens.
        lengths: of its sequences.
        first: the number of its first sequence.
        part: the number of its part, counted from the first batch that is read.
        before: of the sequences before its part.
    """

    batch: Batch
    mask: Tensor
    lengths: Lengths
    first: int
    part: int
    before: Lengths


def numbered(batches: Iterable[Batch], before: Lengths, cut: bool) -> Iterator[Numbered]:
    """Each batch with its place.

    Args:
        batches: of a split, in order.
        before: of the sequences that come before them.
        cut: whether they may be of several parts; otherwise they are one.
    """
    known = Counter(before)
    first, part, tokens = before.total(), 0, 0
    for batch in batches:
        if cut and part_ends(tokens):
            before, part, tokens = Counter(known), part + 1, 0
        mask = batch.mask.cpu()
        each = mask.sum(1).tolist()
        yield Numbered(batch, mask, Counter(each), first, part, before)
        known.update(each)
        first, tokens = first + len(each), tokens + sum(each)


@dataclass(frozen=True)
class Points:
    """Activations of a batch, sequence by sequence and without padding.

    Attributes:
        of: the batch.
        sequence: [points] on the CPU: the row of the batch that each point comes from.
        position: [points] likewise: where in it.
        at: for each site [points, dim].
    """

    of: Numbered
    sequence: Tensor
    position: Tensor
    at: dict[Site, Tensor]
    orders: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def seen_by(self, stream: Stream) -> Tensor:
        """What a fit sees [points, dim]: a sequence at all sites that share it, then the next."""
        each = [beside([self.at[site] for site in place]) for place in stream.places]
        wanted = len(each), stream.keep
        if wanted == (1, 0):
            return each[0]
        if wanted not in self.orders:
            order = self.sequence.repeat(len(each)).argsort(stable=True)
            order = order[self.position.repeat(len(each))[order] >= stream.keep]
            self.orders[wanted] = order.to(each[0].device)
        return torch.cat(each).index_select(0, self.orders[wanted])


def points_at(
    recorded: Recorded, sites: Sequence[Site], rows: Tensor, sequence: Tensor
) -> dict[Site, Tensor]:
    """For each site its points [points, dim].

    Args:
        recorded: what the model had there; it is used up, so that it goes as soon as it can.
        sites: of which.
        rows: [points] on the model's device: which of the batch's tokens are no padding.
        sequence: [points] on the CPU: the number of the sequence of each, which an error names.

    Raises:
        AnamorphError: if there is nothing of a site, or a NaN or infinity.
    """
    points: dict[Site, Tensor] = {}
    sums: list[Tensor] = []
    for key, of_key in by_key(sites).items():
        if key not in recorded:
            raise AnamorphError(f"The model recorded nothing at {of_key[0]}, which it lists.")
        (x,) = recorded.pop(key)
        x = x if x.ndim == 3 else x.transpose(1, 2)
        x = x.flatten(0, 1)  # [batch * position, (head,) dim]
        if len(rows) < len(x):
            x = x.index_select(0, rows)
        points |= {site: x if site.head is None else x[:, site.head] for site in of_key}
        sums.append(x.sum(dtype=torch.float32))
    if sums and not torch.stack(sums).isfinite().all():  # one look at a device for all
        for site in sites:  # it may be overflow, or at a head that nobody asked for
            _require_finite(site, points[site], sequence)
    return points


def by_key(sites: Iterable[Site]) -> dict[LayerKind, list[Site]]:
    """Sites by the tensor, of all heads, that holds them."""
    found: dict[LayerKind, list[Site]] = {}
    for site in sites:
        found.setdefault(LayerKind(site.layer, site.kind), []).append(site)
    return found


def _require_finite(site: Site, points: Tensor, sequence: Tensor) -> None:
    bad = (~points.isfinite()).any(dim=1).nonzero().cpu()
    if len(bad):
        raise AnamorphError(
            f"Cannot fit at {site}: sequence {int(sequence[bad[0, 0]])} of the data gives a NaN or "
            "infinity there; check the model's weights."
        )


@torch.inference_mode()
def record(model: Model, batch: Batch, sites: Sequence[Site], whole: bool) -> Recorded:
    """What the model has at some sites; it runs no further than these, or whole if asked to."""
    stop = None if whole else max(site.layer for site in sites) + 1
    return model.run(batch, record=list(by_key(sites)), stop=stop).recorded
