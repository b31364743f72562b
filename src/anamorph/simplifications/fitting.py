"""One pass over the data fits every simplification of every proxy.

Sites are recorded as the model runs. For each group of sites that share a fit (a site alone, or
the joint sites of a head) and each distinct statistic, points are taken in sequence by sequence,
so that nothing depends on how the sequences are batched. Then everything is learnt.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.models.base import Batch, Key, Model, Recording
from anamorph.models.sites import Site, match_sites
from anamorph.simplifications.attach import Attachment, Proxy
from anamorph.simplifications.base import Simplification, Statistic
from anamorph.simplifications.fitted import FittedProxies

Placement = list[tuple[Attachment, list[Site]]]
Group = tuple[Site, ...]
"""The sites that share one fit, in the model's order."""


def sites_of(proxy: Proxy, model_sites: Iterable[Site]) -> Placement:
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


def check_proxies(model: Model, proxies: Sequence[Proxy], batch: Batch) -> None:
    """Find out on one batch, before anything is trained, whether proxies suit a model.

    Raises:
        AnamorphError: as `sites_of`, and for sizes above the dimension of a site.
    """
    _Pass(model, proxies).update(batch)


def fit(model: Model, proxies: Sequence[Proxy], batches: Iterable[Batch]) -> FittedProxies:
    """Fit all proxies in one pass; padding is left out.

    Args:
        model: it is run without gradients.
        proxies: what to fit; they are not changed.
        batches: the data, on the model's device. Not read if there is nothing to fit.

    Raises:
        AnamorphError: if a proxy does not suit the model or the data, or if an activation is a NaN
            or infinity.
    """
    fitting = _Pass(model, proxies)
    if fitting.keys:
        for batch in batches:
            fitting.update(batch)
    return FittedProxies(fitting.learn(), model.layers)


class _Pass:
    """The statistics of one pass over the data."""

    def __init__(self, model: Model, proxies: Sequence[Proxy]) -> None:
        self.model = model
        self.placements = {proxy: sites_of(proxy, model.sites) for proxy in proxies}
        # A pattern is as wide as its sequence is long, so that nothing can be fitted to it.
        self.sites = [
            site
            for site in model.sites
            if site.kind != "pattern"
            and any(site in sites for p in self.placements.values() for _, sites in p)
        ]
        self.keys = list(dict.fromkeys(Key(site.layer, site.kind) for site in self.sites))
        self.dims: dict[Site, int] = {}
        self.statistics: dict[tuple[Group, Hashable], Statistic] = {}
        self.sequences = 0

    def update(self, batch: Batch) -> None:
        """Run the model on a batch and take in its activations."""
        if not self.keys:
            return
        streams = self._streams(batch)
        if not self.dims:
            self.dims = {site: sequences[0].shape[1] for site, sequences in streams.items()}
            self._begin()
        for index in range(len(batch.tokens)):
            for (group, _), statistic in self.statistics.items():
                for site in group:
                    statistic.update(streams[site][index])
        self.sequences += len(batch.tokens)

    def learn(self) -> dict[Proxy, dict[Site, Simplification]]:
        """The fitted simplification at every site of every proxy."""
        if self.keys and not self.dims:
            raise AnamorphError("There is no data to fit to; give at least one batch.")
        learnt: dict[tuple[Group, Simplification], Simplification] = {}
        placed: dict[Proxy, dict[Site, Simplification]] = {}
        for proxy, placement in self.placements.items():
            placed[proxy] = {}
            for attachment, sites in placement:
                for group in self._groups(attachment, sites):
                    place = group, attachment.simplification
                    if place not in learnt:
                        learnt[place] = self._learn(attachment, group)
                    placed[proxy] |= dict.fromkeys(group, learnt[place])
        return placed

    def _begin(self) -> None:
        for placement in self.placements.values():
            for attachment, sites in placement:
                for group in self._groups(attachment, sites):
                    statistic = self._statistic(attachment, group)
                    if statistic is not None:
                        self.statistics.setdefault((group, statistic.key), statistic)

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
            return simplification.learn(self.statistics[group, statistic.key])

    def _groups(self, attachment: Attachment, sites: Sequence[Site]) -> list[Group]:
        if not attachment.joint:
            return [(site,) for site in sites]
        groups: dict[Hashable, list[Site]] = {}
        for site in sites:
            groups.setdefault((site.layer, site.head, self.dims.get(site)), []).append(site)
        return [tuple(group) for group in groups.values()]

    def _streams(self, batch: Batch) -> dict[Site, list[Tensor]]:
        """For each site a tensor [points, dim] a sequence, on the CPU, without padding."""
        recording = _record(self.model, batch, self.keys)
        lengths = batch.mask.sum(dim=1).tolist()
        streams = {}
        for site in self.sites:
            recorded = recording[Key(site.layer, site.kind)]
            if recorded is None:
                raise AnamorphError(f"The model recorded nothing at {site}, which it lists.")
            activations = recorded[0] if site.head is None else recorded[0, :, site.head]
            points = activations[batch.mask].cpu()  # sequence by sequence
            streams[site] = list(torch.split(points, lengths))
            if not torch.isfinite(points).all():
                finite = [bool(torch.isfinite(x).all()) for x in streams[site]]
                raise AnamorphError(
                    f"Cannot fit at {site}: sequence {self.sequences + finite.index(False)} of the "
                    "data gives a NaN or infinity there; check the model's weights."
                )
        return streams


@torch.inference_mode()
def _record(model: Model, batch: Batch, keys: Sequence[Key]) -> Recording:
    recording: Recording = dict.fromkeys(keys)
    state = model.start(batch)
    for layer in range(max(key.layer for key in keys) + 1):
        state = model.layer(layer, state, record=recording)
    return recording


@contextmanager
def _told_where(attachment: Attachment, group: Group) -> Iterator[None]:
    try:
        yield
    except AnamorphError as error:
        sites = ", ".join(map(str, group))
        raise AnamorphError(f"{attachment}, at {sites}: {error}") from error
