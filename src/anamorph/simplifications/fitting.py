"""One pass over a split fits every simplification of every proxy that is fitted on it.

Sites are recorded as the model runs. For each stream of points that a fit sees (of a site alone, or
of the joint sites of a head) and each distinct statistic, points come in sequence by sequence, so
that nothing depends on how the sequences are batched. Then everything is learnt.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from anamorph.errors import AnamorphError, told_where
from anamorph.machine.threads import side_by_side, torch_threads
from anamorph.models.base import Batch, LayerKind, Model, Recorded
from anamorph.models.sites import Site
from anamorph.simplifications.base import Attachment, Simplification, Simplified
from anamorph.simplifications.estimator import Where
from anamorph.simplifications.fitted import FittedProxies
from anamorph.simplifications.placing import placements
from anamorph.simplifications.statistics.base import Statistic, beside
from anamorph.simplifications.streamed import Steps
from anamorph.simplifications.weight_change import WeightChange
from anamorph.simplifications.weight_fitting import WeightFits
from anamorph.tasks.fitted_on import refuse_unfitted

Place = tuple[Site, ...]
"""Where a point is taken: at a site; or at those that a replacement reads and, last, the one that
it writes."""


class Stream(NamedTuple):
    """The points that one fit sees.

    Attributes:
        places: in the model's order; several if a fit is joint.
        keep: of every sequence, points before this position are left out.
    """

    places: tuple[Place, ...]
    keep: int


def check_proxies(
    model: Model,
    proxies: Sequence[Simplified],
    data: Mapping[str, Iterable[Batch]],
    train: str = "train",
) -> None:
    """Find out on one batch, before anything is trained, whether proxies suit a model.

    Args:
        model: it is run without gradients.
        proxies: what will be fitted.
        data: as for `fit`; the first batch of a split is enough.
        train: likewise.

    Raises:
        AnamorphError: as `sites_of`, for splits that there are not, and for sizes above the
            dimension of a site.
    """
    for name, fitting in _passes(model, proxies, data, train).items():
        for batch in islice(data[name], 1 if fitting.sees else 0):
            fitting.take(fitting.points((0, batch)))


def fit(
    model: Model,
    proxies: Sequence[Simplified],
    data: Mapping[str, Iterable[Batch]],
    train: str = "train",
) -> FittedProxies:
    """Fit all proxies, in one pass over each split that some are fitted on; padding is left out.

    Args:
        model: it is run without gradients.
        proxies: what to fit; they are not changed.
        data: by the name of a split its batches, on any device. A split is read only if there is
            something to fit on it.
        train: the split on which is fitted what does not name another (`on=`).

    Raises:
        AnamorphError: if a proxy does not suit the model or the data, or if an activation is a NaN
            or infinity.
    """
    fits: dict[Attachment, dict[Site, Simplification]] = {}
    on_cpu = model.device.type == "cpu"
    with model.session(), torch_threads(1) as threads:
        passes = _passes(model, proxies, data, train, threads)
        for name in list(passes):
            fitting = passes.pop(name)  # what it counts goes before the next begins
            try:
                one = not (model.parallel and on_cpu) or bool(fitting.weights.statistics)
                workers = 1 if one else threads
                if fitting.sees:
                    for points in side_by_side(fitting.points, _numbered(data[name]), workers):
                        fitting.take(points)
                        if not (fitting.statistics or fitting.weights.statistics):
                            break  # widths alone had to be known
                fits |= fitting.learn()
            except AnamorphError as error:
                raise AnamorphError(f"Split {name!r}: {error}") from error
    placed = {
        proxy: {site: fitted for a in proxy.attachments for site, fitted in fits[a].items()}
        for proxy in proxies
    }
    return FittedProxies(placed, model.layers)


def _passes(
    model: Model,
    proxies: Sequence[Simplified],
    data: Mapping[str, Iterable[Batch]],
    train: str,
    threads: int = 1,
) -> dict[str, _Pass]:
    """What is fitted on each split."""
    wanted: dict[str, dict[Attachment, list[Site]]] = {}
    for placement in placements(proxies, model.sites):
        for attachment, sites in placement:
            name = train if attachment.on is None else attachment.on
            if name not in data:
                raise AnamorphError(
                    f"{attachment}: there is no split {name!r} to fit on; there are: "
                    f"{', '.join(data)}."
                )
            wanted.setdefault(name, {})[attachment] = sites
    return {name: _Pass(model, placed, threads) for name, placed in wanted.items()}


def _numbered(batches: Iterable[Batch]) -> Iterator[tuple[int, Batch]]:
    """Each batch with the number of its first sequence."""
    first = 0
    for batch in batches:
        yield first, batch
        first += len(batch.tokens)


class _Pass:
    """The statistics of one pass over a split.

    Args:
        model: whose activations are the points.
        placed: what is fitted, with the sites of each.
        threads: how many a learner may use.
    """

    def __init__(
        self, model: Model, placed: Mapping[Attachment, Sequence[Site]], threads: int
    ) -> None:
        of_weights = {a: s for a, s in placed.items() if isinstance(a.simplification, WeightChange)}
        self.model, self.weights, self.threads = model, WeightFits(model, of_weights), threads
        self.placed = {a: sites for a, sites in placed.items() if a not in of_weights}
        self.described = model.describe()  # once: there may be thousands of fits
        seen = {
            seen
            for attachment, sites in self.placed.items()
            for site in sites
            for seen in (site, *attachment.simplification.reads(site))
        }
        # A pattern is as wide as its sequence is long, so that nothing can be fitted to it.
        self.sites = [site for site in model.sites if site.kind != "pattern" and site in seen]
        self.keys = list(dict.fromkeys(LayerKind(site.layer, site.kind) for site in self.sites))
        self.streams: dict[Attachment, list[Stream]] = {}
        self.statistics: dict[Stream, dict[Hashable, Statistic]] = {}
        self.fits: dict[tuple[Simplification, Stream], Statistic | None] = {}
        self.learners: dict[tuple[Simplification, Stream], Simplification] = {}
        self.seen = 0  # batches
        self.taken: dict[Stream, int] = {}  # points
        self.learnt: dict[tuple[Simplification, Stream], Simplification] = {}
        if not self.keys:
            self._begin({})

    @property
    def sees(self) -> bool:
        """Whether anything of the data is seen."""
        return bool(self.keys or self.weights.statistics)

    def _begin(self, dims: Mapping[Site, int]) -> None:
        """Prepare what is fitted to points of these widths; what needs no points learns at once."""
        for attachment in self.placed:
            self.streams[attachment] = self._streams(attachment, dims)
            for stream in self.streams[attachment]:
                fit = attachment.simplification, stream
                known = all(site in dims for site in stream.places[0])
                widths = tuple(dims[site] for site in stream.places[0] if known)
                with told_where(attachment, _written(stream)):
                    placed = attachment.simplification.clone().placed(self._where(stream, widths))
                    statistic = placed.statistic(*widths) if known else None
                self.learners[fit] = placed
                if statistic is not None:
                    fed = self.statistics.setdefault(stream, {})
                    statistic = fed.setdefault(statistic.key, statistic)
                if isinstance(statistic, Steps):
                    statistic.threads = self.threads
                self.fits[fit] = statistic
                if statistic is None:
                    refuse_unfitted(attachment, attachment.on, attachment.joint)
                    self._learn(attachment, stream)

    def take(self, points: _Points) -> None:
        """Take in the activations of the next batch."""
        self.seen += 1
        if not self.streams:
            self._begin({site: x.shape[1] for site, x in points.at.items()})
        for stream, statistics in self.statistics.items():
            x = points.of(stream)
            self.taken[stream] = self.taken.get(stream, 0) + len(x)
            for statistic in statistics.values() if len(x) else ():
                statistic.update(x)

    def learn(self) -> dict[Attachment, dict[Site, Simplification]]:
        """Of each attachment the fitted simplification at every site; equal ones are one object."""
        if self.sees and not self.seen:
            raise AnamorphError("There is no data to fit to; give at least one batch.")
        return self.weights.learn() | {
            attachment: {
                place[-1]: self._learn(attachment, stream)
                for stream in streams
                for place in stream.places
            }
            for attachment, streams in self.streams.items()
        }

    def _learn(self, attachment: Attachment, stream: Stream) -> Simplification:
        fit = attachment.simplification, stream
        if self.fits[fit] is not None and not self.taken.get(stream):
            raise AnamorphError(
                f"{attachment}: no sequence that is fitted on is longer than keep={stream.keep}."
            )
        if fit not in self.learnt:
            self.learnt[fit] = self.learners[fit]
            with told_where(attachment, _written(stream)):
                self.learnt[fit].learn(self.fits[fit])
        return self.learnt[fit]

    def _where(self, stream: Stream, widths: tuple[int, ...]) -> Where:
        *reads, _ = stream.places[0]
        sites = tuple(place[-1] for place in stream.places)
        return Where(sites, tuple(reads), widths, self.described)

    def _streams(self, attachment: Attachment, dims: Mapping[Site, int]) -> list[Stream]:
        """The points of each fit of an attachment."""
        groups: dict[Hashable, list[Place]] = {}
        for site in self.placed[attachment]:
            place = (*attachment.simplification.reads(site), site)
            same_fit: Hashable = site
            if attachment.simplification.one_fit:
                same_fit = "all"
            elif attachment.joint:
                same_fit = (site.layer, site.head, *map(dims.get, place))
            groups.setdefault(same_fit, []).append(place)
        return [Stream(tuple(places), attachment.keep) for places in groups.values()]

    def points(self, numbered: tuple[int, Batch]) -> _Points:
        """What the model computes at the sites, sequence by sequence and without padding.

        Args:
            numbered: a batch and the number of its first sequence, which an error names.
        """
        first, batch = numbered
        # On the host, which would have to wait for a device to know how many points there are.
        sequence, position = batch.mask.cpu().nonzero(as_tuple=True)  # [points] without padding
        batch = batch.to(self.model.device)
        rows = sequence * batch.tokens.shape[1] + position
        rows = rows.to(batch.tokens.device, non_blocking=batch.tokens.is_cuda)
        with self.weights.watching(batch, rows, first + sequence):
            recorded = _record(self.model, batch, self.keys, whole=bool(self.weights.statistics))
        points: dict[Site, Tensor] = {}
        sums: list[Tensor] = []
        for key in self.keys:
            sites = [site for site in self.sites if (site.layer, site.kind) == key]
            if key not in recorded:
                raise AnamorphError(f"The model recorded nothing at {sites[0]}, which it lists.")
            (x,) = recorded.pop(key)  # so that it goes as soon as its points are taken out
            x = x if x.ndim == 3 else x.transpose(1, 2)
            x = x.flatten(0, 1)  # [batch * position, (head,) dim]
            if len(rows) < len(x):
                x = x.index_select(0, rows)
            points |= {site: x if site.head is None else x[:, site.head] for site in sites}
            sums.append(x.sum(dtype=torch.float32))
        if sums and not torch.stack(sums).isfinite().all():  # one look at a device for all
            for site in self.sites:  # it may be overflow, or at a head that nobody asked for
                _require_finite(site, points[site], first + sequence)
        return _Points(sequence, position, points)


@dataclass(frozen=True)
class _Points:
    """Activations of a batch.

    Attributes:
        sequence: [points] on the CPU: the row of the batch that each point comes from.
        position: [points] likewise: where in it.
        at: for each site [points, dim].
    """

    sequence: Tensor
    position: Tensor
    at: dict[Site, Tensor]
    orders: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def of(self, stream: Stream) -> Tensor:
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


def _require_finite(site: Site, points: Tensor, sequence: Tensor) -> None:
    bad = (~points.isfinite()).any(dim=1).nonzero().cpu()
    if len(bad):
        raise AnamorphError(
            f"Cannot fit at {site}: sequence {int(sequence[bad[0, 0]])} of the data gives a NaN or "
            "infinity there; check the model's weights."
        )


@torch.inference_mode()
def _record(model: Model, batch: Batch, keys: Sequence[LayerKind], whole: bool) -> Recorded:
    """What the model has at some sites; it runs no further than these, or whole if asked to."""
    stop = None if whole else max(key.layer for key in keys) + 1
    return model.run(batch, record=keys, stop=stop).recorded


def _written(stream: Stream) -> str:
    """The sites that a fit is for."""
    return ", ".join(str(place[-1]) for place in stream.places)
