"""One pass over the data fits every simplification of every proxy.

Sites are recorded as the model runs. For each group of sites that share a fit (a site alone, or
the joint sites of a head) and each distinct statistic, points stream in sequence by sequence, so
that nothing depends on how the sequences are batched. Then everything is learnt.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.machine.threads import side_by_side, torch_threads
from anamorph.models.base import Batch, LayerKind, Model, Recorded
from anamorph.models.sites import Site, match_sites
from anamorph.simplifications.base import Attachment, Simplification, Simplified
from anamorph.simplifications.fitted import FittedProxies
from anamorph.simplifications.statistics.base import Statistic

Placement = list[tuple[Attachment, list[Site]]]
Group = tuple[Site, ...]
"""The sites that share one fit, in the model's order."""


def sites_of(proxy: Simplified, model_sites: Iterable[Site]) -> Placement:
    """Each attachment of a proxy with the sites that its pattern names.

    Raises:
        AnamorphError: if a pattern names no site, or one at which the simplification may not
            stand, or if two attachments name the same site.
    """
    model_sites = list(model_sites)
    taken: set[Site] = set()
    placement = []
    for attachment in proxy.attachments:
        simplification = attachment.simplification
        sites = match_sites(attachment.sites, model_sites)
        for site in sites:
            if site.kind not in simplification.kinds:
                raise AnamorphError(
                    f"{attachment}: {simplification} cannot stand at {site}; it can stand at "
                    f"sites of the kinds {', '.join(sorted(simplification.kinds))}."
                )
            if site in taken:
                raise AnamorphError(
                    f"{proxy}: two attachments edit {site}. To apply two simplifications one after "
                    "the other, chain them with '+', such as svd(rank=8)+kmeans(clusters=64)@…"
                )
            taken.add(site)
        placement.append((attachment, sites))
    return placement


def check_proxies(model: Model, proxies: Sequence[Simplified], batch: Batch) -> None:
    """Find out on one batch, before anything is trained, whether proxies suit a model.

    Raises:
        AnamorphError: as `sites_of`, and for sizes above the dimension of a site.
    """
    fitting = _Pass(model, proxies)
    if fitting.keys:
        fitting.take(fitting.points((0, batch)))


def fit(model: Model, proxies: Sequence[Simplified], batches: Iterable[Batch]) -> FittedProxies:
    """Fit all proxies in one pass; padding is left out.

    Args:
        model: it is run without gradients.
        proxies: what to fit; they are not changed.
        batches: the data, on any device. Not read if there is nothing to fit.

    Raises:
        AnamorphError: if a proxy does not suit the model or the data, or if an activation is a NaN
            or infinity.
    """
    fitting = _Pass(model, proxies)
    on_cpu = model.device.type == "cpu"
    one_thread = threadpool_limits(1, user_api="blas")  # in NumPy: the same numbers everywhere
    with model.session(), torch_threads(1) as threads, one_thread:
        if fitting.keys:
            workers = threads if model.parallel and on_cpu else 1
            for points in side_by_side(fitting.points, _numbered(batches), workers):
                fitting.take(points)
        return FittedProxies(fitting.learn(), model.layers)


def _numbered(batches: Iterable[Batch]) -> Iterator[tuple[int, Batch]]:
    """Each batch with the number of its first sequence."""
    first = 0
    for batch in batches:
        yield first, batch
        first += len(batch.tokens)


class _Pass:
    """The statistics of one pass over the data."""

    def __init__(self, model: Model, proxies: Sequence[Simplified]) -> None:
        self.model = model
        self.placements = {proxy: sites_of(proxy, model.sites) for proxy in proxies}
        # A pattern is as wide as its sequence is long, so that nothing can be fitted to it.
        self.sites = [
            site
            for site in model.sites
            if site.kind != "pattern"
            and any(site in sites for p in self.placements.values() for _, sites in p)
        ]
        self.keys = list(dict.fromkeys(LayerKind(site.layer, site.kind) for site in self.sites))
        self.dims: dict[Site, int] = {}
        self.statistics: dict[Group, dict[Hashable, Statistic]] = {}

    def take(self, points: _Points) -> None:
        """Take in the activations of the next batch."""
        if not self.dims:
            self.dims = {site: x.shape[1] for site, x in points.at.items()}
            self._begin()
        orders = {
            size: points.sequence.repeat(size).argsort(stable=True)
            for size in set(map(len, self.statistics)) - {1}
        }
        for group, statistics in self.statistics.items():
            x = points.at[group[0]]
            if len(group) > 1:  # a sequence at all sites, then the next
                x = torch.cat([points.at[site] for site in group])[orders[len(group)]]
            for statistic in statistics.values():
                statistic.update(x)

    def learn(self) -> dict[Simplified, dict[Site, Simplification]]:
        """The fitted simplification at every site of every proxy."""
        if self.keys and not self.dims:
            raise AnamorphError("There is no data to fit to; give at least one batch.")
        learnt: dict[Simplification, dict[Group, Simplification]] = {}
        placed: dict[Simplified, dict[Site, Simplification]] = {}
        for proxy, placement in self.placements.items():
            placed[proxy] = {}
            for attachment, sites in placement:
                fits = learnt.setdefault(attachment.simplification, {})
                for group in self._groups(attachment, sites):
                    if group not in fits:
                        fits[group] = self._learn(attachment, group)
                    placed[proxy] |= dict.fromkeys(group, fits[group])
        return placed

    def _begin(self) -> None:
        for placement in self.placements.values():
            for attachment, sites in placement:
                for group in self._groups(attachment, sites):
                    statistic = self._statistic(attachment, group)
                    if statistic is not None:
                        self.statistics.setdefault(group, {}).setdefault(statistic.key, statistic)

    def _statistic(self, attachment: Attachment, group: Group) -> Statistic | None:
        if group[0] not in self.dims:
            return None
        with _told_where(attachment, group):
            return attachment.simplification.statistic(self.dims[group[0]])

    def _learn(self, attachment: Attachment, group: Group) -> Simplification:
        simplification = attachment.simplification.clone()
        statistic = self._statistic(attachment, group)
        if statistic is None:
            return simplification
        with _told_where(attachment, group):
            return simplification.learn(self.statistics[group][statistic.key])

    def _groups(self, attachment: Attachment, sites: Sequence[Site]) -> list[Group]:
        if not attachment.joint:
            return [(site,) for site in sites]
        groups: dict[Hashable, list[Site]] = {}
        for site in sites:
            groups.setdefault((site.layer, site.head, self.dims.get(site)), []).append(site)
        return [tuple(group) for group in groups.values()]

    def points(self, numbered: tuple[int, Batch]) -> _Points:
        """What the model computes at the sites, sequence by sequence and without padding.

        Args:
            numbered: a batch and the number of its first sequence, which an error names.
        """
        first, batch = numbered
        batch = batch.to(self.model.device)
        sequence, place = batch.mask.nonzero(as_tuple=True)  # [points] each, without padding
        recorded = _record(self.model, batch, self.keys)
        rows = sequence * batch.tokens.shape[1] + place
        points: dict[Site, Tensor] = {}
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
            if not x.sum().isfinite():  # it may be overflow, or at a head that nobody asked for
                for site in sites:
                    _require_finite(site, points[site], first + sequence)
        return _Points(sequence, points)


class _Points(NamedTuple):
    """Activations of a batch.

    Attributes:
        sequence: [points] the row of the batch that each point comes from.
        at: for each site [points, dim].
    """

    sequence: Tensor
    at: dict[Site, Tensor]


def _require_finite(site: Site, points: Tensor, sequence: Tensor) -> None:
    bad = (~points.isfinite()).any(dim=1).nonzero()
    if len(bad):
        raise AnamorphError(
            f"Cannot fit at {site}: sequence {int(sequence[bad[0, 0]])} of the data gives a NaN or "
            "infinity there; check the model's weights."
        )


@torch.inference_mode()
def _record(model: Model, batch: Batch, keys: Sequence[LayerKind]) -> Recorded:
    return model.run(batch, record=keys, stop=max(key.layer for key in keys) + 1).recorded


@contextmanager
def _told_where(attachment: Attachment, group: Group) -> Iterator[None]:
    try:
        yield
    except AnamorphError as error:
        sites = ", ".join(map(str, group))
        raise AnamorphError(f"{attachment}, at {sites}: {error}") from error
