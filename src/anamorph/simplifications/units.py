"""Proxies that can be fitted apart, and what was fitted apart put together."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from math import ceil

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from anamorph.errors import AnamorphError
from anamorph.models.sites import Site, match_sites
from anamorph.simplifications.base import Simplification, Simplified
from anamorph.simplifications.fitted import FittedProxies, FittedProxy
from anamorph.simplifications.placing import Placement, placements
from anamorph.simplifications.streamed import Streamed
from anamorph.simplifications.weight_change import WeightChange

FITS = 256
"""Fits of a unit, about. An optimisation, such as that of an autoencoder, counts as so many."""


def fit_units(proxies: Sequence[Simplified], sites: Sequence[Site]) -> list[list[Simplified]]:
    """Proxies in units that share no fit, so that each can be fitted apart; see `joined`.

    Nothing but the arguments decides. Proxies that read as many layers stand together, because the
    model runs to the last layer that any of a unit reads. So do sizes of a family, which see the
    same points.

    Args:
        proxies: all that are to be fitted, each once.
        sites: of the model.

    Returns:
        every proxy once, in each unit in the order in which they were given.

    Raises:
        AnamorphError: as `placements`.
    """
    placed = list(placements(proxies, sites))
    fits, last = [_fits_of(some) for some in placed], [_last_layer(some, sites) for some in placed]
    groups: dict[int, list[int]] = {}
    for number, label in enumerate(_linked(fits)):
        groups.setdefault(label, []).append(number)
    ordered = sorted(
        groups.values(), key=lambda some: (max(last[n] for n in some), proxies[some[0]].sites, some)
    )
    costs = [_cost(set().union(*(fits[n] for n in some))) for some in ordered]
    total = sum(costs)
    count = max(1, ceil(total / FITS))
    units: dict[int, list[int]] = {}
    done = 0
    for some, cost in zip(ordered, costs, strict=True):
        middle = done + cost / 2  # so that units are alike in size
        units.setdefault(int(middle * count / max(total, 1)), []).extend(some)
        done += cost
    return [[proxies[number] for number in sorted(unit)] for unit in units.values()]


def _fits_of(placed: Placement) -> set[tuple[Hashable, ...]]:
    """What is fitted of a proxy; at patterns nothing is. What two proxies share is equal."""
    return {
        (a.simplification, a.on, a.keep, a.joint, site)
        for a, some in placed
        for site in some
        if site.kind != "pattern"
    }


def _last_layer(placed: Placement, sites: Sequence[Site]) -> int:
    """The last layer to which the model runs; to the end for the inputs of matrices."""
    if any(isinstance(a.simplification, WeightChange) for a, _ in placed):
        return max(site.layer for site in sites)
    return max((site.layer for _, some in placed for site in some), default=0)


def _linked(fits: Sequence[set[tuple[Hashable, ...]]]) -> list[int]:
    """For each proxy the number of its group; proxies that share a fit are of one group."""
    numbers = {fit: n for n, fit in enumerate(dict.fromkeys(f for some in fits for f in some))}
    pairs = np.array([(n, numbers[fit]) for n, some in enumerate(fits) for fit in some])
    rows, columns = pairs.reshape(-1, 2).astype(np.int64).T
    size = len(fits) + len(numbers)
    links = coo_array((np.ones(len(rows)), (rows, len(fits) + columns)), shape=(size, size))
    labels: list[int] = connected_components(links, directed=False)[1][: len(fits)].tolist()
    return labels


def _cost(fits: Iterable[tuple[Hashable, ...]]) -> int:
    return sum(FITS if isinstance(simplification, Streamed) else 1 for simplification, *_ in fits)


def joined(proxies: Iterable[Simplified], units: Iterable[FittedProxies]) -> FittedProxies:
    """What was fitted apart, as if it had been fitted together: saved, it is the same to the byte.

    Args:
        proxies: all of them, in order.
        units: what was fitted of each unit, in any order.

    Raises:
        AnamorphError: if a proxy is in none of them.
    """
    units, proxies = list(units), list(proxies)
    found = {proxy: fitted for unit in units for proxy, fitted in unit.items()}
    if missing := [str(proxy) for proxy in proxies if proxy not in found]:
        raise AnamorphError(f"Not fitted: {', '.join(missing)}. Give every unit of fit_units.")
    once: dict[Hashable, Simplification] = {}
    placed = {
        proxy: {site: once.setdefault(same, fit) for site, same, fit in _fits(found[proxy])}
        for proxy in proxies
    }
    return FittedProxies(placed, units[0].layers if units else 0)


def _fits(fitted: FittedProxy) -> Iterator[tuple[Site, Hashable, Simplification]]:
    """Each site with what tells its fit from others, and the fit."""
    for attachment in fitted.proxy.attachments:
        simplification = attachment.simplification
        sites = match_sites(attachment.sites, fitted.by_site)
        shared: dict[int, list[Site]] = {}
        for site in sites:
            shared.setdefault(id(fitted.by_site[site]), []).append(site)
        for fit in shared.values():
            same: Hashable = (simplification, attachment.on, attachment.keep, frozenset(fit))
            if isinstance(simplification, WeightChange):
                same = attachment, frozenset(fit)
            for site in fit:
                yield site, same, fitted.by_site[site]
