"""What proxies do at their own sites: the number that is reported of autoencoders, beside ours.

It is taken on the model's own activations: what a view makes of them, against what the model has.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import polars as pl
import torch
from torch import Tensor

from anamorph.auditing.samples import FIT_TOKENS, scored_sequences
from anamorph.auditing.stacks import StackedEdit, stacked_edits
from anamorph.errors import AnamorphError
from anamorph.machine.devices import in_float64
from anamorph.machine.threads import side_by_side, torch_threads
from anamorph.models.base import Batch, Context, LayerKind, Model
from anamorph.models.sites import Site
from anamorph.simplifications import FittedProxy, Simplification, changes_weights
from anamorph.tasks import Split
from anamorph.tasks.batches import collate, plan

SEQUENCES = 100  # of a split, at most
LEAST = 1e-12  # of the squares, that must be left about the mean: less is rounding
POINTS = 128  # whose features are held at a time: there are thousands of each

SCHEMA = {
    **dict.fromkeys(("simplification", "split", "role", "site"), pl.String),
    **dict.fromkeys(("explained_variance", "l0", "dead"), pl.Float64),
    **dict.fromkeys(("tokens", "sequences"), pl.Int64),
}

Place = tuple[str, Site]
"""The spec string of a proxy, and a site of it."""


@dataclass(frozen=True)
class _Sums:
    """Sums over the points at a place.

    Attributes:
        squares: [3 + dim] float64: the points, and the sums of ‖y − ŷ‖², of ‖y‖² and of y.
        active: [features] at how many points each is active; empty where there are no features.
    """

    squares: Tensor
    active: Tensor

    def plus(self, other: "_Sums | None") -> "_Sums":
        """Of the points of both."""
        if other is None:
            return self
        return _Sums(self.squares + other.squares, self.active + other.active)

    @property
    def points(self) -> int:
        """How many there are."""
        return int(self.squares[0])

    def explained(self) -> float | None:
        """The explained variance; None if nothing varies."""
        points, error, energy, sums = *self.squares[:3], self.squares[3:]
        about_the_mean = energy - sums.square().sum() / points.clamp(min=1)
        return None if about_the_mean <= LEAST * energy else float(1 - error / about_the_mean)

    def features(self) -> tuple[float | None, float | None]:
        """`l0` and `dead`; None without features, or without a point."""
        if not len(self.active) or not self.points:
            return None, None
        return int(self.active.sum()) / self.points, float((self.active == 0).double().mean())


def at_sites(
    model: Model, splits: Iterable[Split], proxies: Iterable[FittedProxy], most: int = SEQUENCES
) -> pl.DataFrame:
    """How much of the variance at its sites every proxy explains, on every split.

    `explained_variance` is 1 − Σ‖y − ŷ‖² / Σ‖y − ȳ‖²: a ratio of sums over all positions, about
    the mean of the split (as SAELens and SAEBench have it since their issues 659 and 76). y is what
    the model has at the site and ŷ what the view makes of what the model has where it reads. It is
    1 where nothing is changed, 0 for the mean, and may be below.

    Of a view that has features (`Estimator.encode`), `l0` is the mean number of them that are
    active at a position, and `dead` the share of them that are active at none.

    Args:
        model: in inference mode.
        splits: with the sequences that are scored.
        proxies: sites of attention patterns are left out, as their width is not fixed, and those
            whose weights are changed. Positions that a proxy leaves as they are (`keep=`) are not
            counted.
        most: sequences of each split; the first so many.

    Returns:
        simplification, split, role, site, explained_variance (null where nothing varies), l0 and
        dead (null of views without features), tokens (all positions that are edited, not the scored
        alone) and sequences.

    Raises:
        AnamorphError: if a number is not finite.
    """
    edits = {
        str(fitted.proxy): [
            edit for key, edit in stacked_edits([fitted], led=True).items() if key.kind != "pattern"
        ]
        for fitted in proxies
        if not changes_weights(fitted.proxy)
    }
    if not any(edits.values()):
        return pl.DataFrame(schema=SCHEMA)
    rows = []
    for split in splits:
        some = scored_sequences(split, most)
        sums: dict[Place, _Sums] = {}
        batches = (collate(some, part) for part in plan(some.lengths, FIT_TOKENS))
        with model.session(), torch_threads(1) as threads:
            workers = threads if model.parallel and model.device.type == "cpu" else 1
            for found in side_by_side(partial(_sums, model, edits), batches, workers):
                sums = {place: more.plus(sums.get(place)) for place, more in found.items()}
        for (name, site), total in sums.items():
            explained = total.explained()
            if not math.isfinite(explained or 0):
                raise AnamorphError(
                    f"{name} on split {split.name!r}: what it makes at {site} is a NaN or infinity "
                    "somewhere; look for one in what its simplifications give."
                )
            about = (name, split.name, split.role, str(site))
            rows.append((*about, explained, *total.features(), total.points, len(some)))
    return pl.DataFrame(rows, SCHEMA, orient="row")


@torch.inference_mode()
def _sums(
    model: Model, edits: Mapping[str, Sequence[StackedEdit]], batch: Batch
) -> dict[Place, _Sums]:
    """Of a batch, by place."""
    batch = batch.to(model.device)
    every = [edit for some in edits.values() for edit in some]
    keys = sorted({key for edit in every for key in (edit.key, *edit.reads)})
    recorded = model.run(batch, record=keys, stop=max(key.layer for key in keys) + 1).recorded
    found = {}
    for name, some in edits.items():
        for edit in some:
            context = Context(batch.tokens, batch.mask, read={k: recorded[k] for k in edit.reads})
            made = edit(recorded[edit.key], context)[1]  # the first copy is the model's
            heads: Sequence[int | None] = edit.heads or (None,)
            for head in heads:
                site, view = edit.site(head), edit.placed[1][head]
                counted = batch.mask.clone()
                counted[:, : edit.keep.get((1, head), 0)] = False
                y = in_float64(_at(recorded, site)[counted])
                theirs = in_float64((made if head is None else made[:, head])[counted])
                sums = [counted.sum().to(y), (y - theirs).square().sum(), y.square().sum()]
                squares = torch.cat([torch.stack(sums), y.sum(0)]).cpu()
                read = [_at(recorded, place)[counted] for place in view.reads(site) or (site,)]
                found[name, site] = _Sums(squares, _active(view, read))
    return found


def _at(recorded: Mapping[LayerKind | Site, Tensor], site: Site) -> Tensor:
    """What the model has at a site, [batch, position, dim]."""
    x = recorded[LayerKind(site.layer, site.kind)][0]
    return x if site.head is None else x[:, site.head]


def _active(view: Simplification, read: Sequence[Tensor]) -> Tensor:
    """See `_Sums.active`; `read` is what the view reads, each [points, dim]."""
    parts = zip(*(torch.split(x, POINTS) for x in read), strict=True)
    encoded = (view.encode(*some) for some in parts)
    counts = [features.ne(0).sum(0) for features in encoded if features is not None]
    return torch.stack(counts).sum(0).cpu() if counts else torch.zeros(0)
