"""One pass over a split fits every simplification of every proxy that is fitted on it.

Sites are recorded as the model runs. For each stream of points that a fit sees (of a site alone, or
of the joint sites of a head) and each distinct statistic, points come in sequence by sequence, so
that nothing depends on how the sequences are batched. Then everything is learnt.

A split is cut into parts, and what is seen of each is merged in order. So parts can be seen in
different processes: `fit` is `see_part` of one part after the other, and `learn_parts`. What cannot
be merged, such as the steps of an optimisation, sees the whole split, in order, where it is learnt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from itertools import islice

from anamorph.errors import AnamorphError
from anamorph.machine.threads import torch_threads
from anamorph.models.base import Batch, Model
from anamorph.models.sites import Site
from anamorph.simplifications.base import Attachment, Simplified
from anamorph.simplifications.fitted import FittedProxies
from anamorph.simplifications.one_pass import Pass, Placed
from anamorph.simplifications.placing import placements
from anamorph.simplifications.points import Lengths, numbered
from anamorph.simplifications.seen_part import SeenPart
from anamorph.simplifications.statistics.base import Statistic, can_merge
from anamorph.simplifications.weight_fitting import Fits


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
    for name, placed in _by_split(model, proxies, train, data).items():
        fitting = Pass(model, placed)
        for batch in numbered(islice(data[name], int(fitting.sees)), Lengths(), cut=False):
            fitting.take(fitting.points(batch))
        fitting.learn_unfitted()


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
            something to fit on it. It is seen in parts of 65,536 tokens, by whose ends sums are
            rounded: the last batch of a part brings it to so many.
        train: the split on which is fitted what does not name another (`on=`).

    Raises:
        AnamorphError: if a proxy does not suit the model or the data, or if an activation is a NaN
            or infinity.
    """
    fits: Fits = {}
    by_split = _by_split(model, proxies, train, data)
    with model.session(), torch_threads(1) as threads:
        for name, placed in by_split.items():
            with _told_of(name):  # what is counted on one split goes before the next is read
                fits |= _fit(Pass(model, placed, threads), data[name])
    return _fitted(model, proxies, fits)


def _fit(fitting: Pass, batches: Iterable[Batch]) -> Fits:
    return fitting.learn(fitting.see(numbered(batches, Lengths(), cut=True)))


def see_part(
    model: Model,
    proxies: Sequence[Simplified],
    split: str,
    batches: Iterable[Batch],
    before: Lengths,
    train: str = "train",
    whole: Lengths | None = None,
) -> SeenPart:
    """What `fit` sees of a part of a split, for `learn_parts`.

    Args:
        model: it is run without gradients, no further than to the last layer that is read.
        proxies: what is to be fitted.
        split: the name of the split; what is fitted on another is passed over.
        batches: of the part, whole and in order; see `part_ends`.
        before: how many sequences of each length come before the part.
        train: as for `fit`.
        whole: how many the whole split has, if that is known: of a sample, only points are then
            kept that stay in it, so that all parts together are as large as the sample.

    Returns:
        the statistics that can be merged. What travels to whoever learns is this, pickled: see
        `SeenPart` for its size.

    Raises:
        AnamorphError: as `fit`.
    """
    placed = _by_split(model, proxies, train).get(split, {})
    with model.session(), torch_threads(1) as threads, _told_of(split):
        fitting = Pass(model, placed, threads, can_merge, whole)
        places = numbered(batches, before, cut=False)
        for first in islice(places, int(fitting.sees)):
            fitting.take(fitting.points(first))  # it tells what can be merged:
            fitting.look_at_fed()  # nothing else is recorded of the other batches
        return fitting.see(places)


def shares(
    model: Model,
    units: Sequence[Sequence[Simplified]],
    split: str,
    seen: SeenPart,
    train: str = "train",
) -> list[SeenPart]:
    """What each unit of proxies must know of what was seen of a part for all of them.

    So the model runs once on a part, and units are learnt apart, by `learn_parts`, each of its own
    shares of all parts.

    Args:
        model: as `see_part` was given.
        units: together the proxies that it was given, in any order.
        split: likewise.
        seen: what it gave; it is used up.
        train: likewise.

    Returns:
        a share a unit. What two units need is in both.
    """
    every = dict.fromkeys(proxy for unit in units for proxy in unit)
    names = Pass(model, _by_split(model, [*every], train).get(split, {})).weights.names
    found = []
    for unit in units:
        fitting = Pass(model, _by_split(model, unit, train).get(split, {}), fed=can_merge)
        found.append(deepcopy(fitting.share(seen, names)))
    return found


def learn_parts(
    model: Model,
    proxies: Sequence[Simplified],
    seen: Mapping[str, Iterable[SeenPart]],
    data: Mapping[str, Iterable[Batch]],
    train: str = "train",
) -> FittedProxies:
    """Fit all proxies to what was seen of all parts; to the byte what `fit` gives of whole splits.

    Args:
        model: it is run only for what cannot be merged.
        proxies: as `see_part` was given.
        seen: by the name of a split what was seen of its parts, all of them and in order. They are
            taken one at a time, and used up.
        data: as for `fit`; a split is read only if something cannot be merged.
        train: as for `fit`.

    Raises:
        AnamorphError: as `fit`; and for parts that do not follow each other.
    """
    fits: Fits = {}
    by_split = _by_split(model, proxies, train, data)
    with model.session(), torch_threads(1) as threads:
        for name, placed in by_split.items():
            with _told_of(name):
                fitting = Pass(model, placed, threads, _cannot_merge)
                fits |= _learn(fitting, iter(seen.get(name, ())), data[name])
    return _fitted(model, proxies, fits)


def _learn(fitting: Pass, parts: Iterator[SeenPart], batches: Iterable[Batch]) -> Fits:
    if not fitting.needs_data:
        return fitting.learn(SeenPart(Lengths()))
    seen = next(parts, None)
    if seen is None:
        raise AnamorphError("Nothing was seen of it; give what see_part gave of all its parts.")
    for part in parts:
        seen.merge(part)
    fitting.begin(seen.widths)
    if fitting.look_at_fed():
        seen.add(fitting.see(numbered(batches, Lengths(), cut=False)))
    return fitting.learn(seen)


@contextmanager
def _told_of(split: str) -> Iterator[None]:
    try:
        yield
    except AnamorphError as error:
        raise AnamorphError(f"Split {split!r}: {error}") from error


def _cannot_merge(statistic: Statistic) -> bool:
    return not can_merge(statistic)


def _by_split(
    model: Model,
    proxies: Sequence[Simplified],
    train: str,
    data: Mapping[str, object] | None = None,
) -> dict[str, Placed]:
    """What is fitted on each split."""
    wanted: dict[str, dict[Attachment, list[Site]]] = {}
    for placement in placements(proxies, model.sites):
        for attachment, sites in placement:
            name = train if attachment.on is None else attachment.on
            if data is not None and name not in data:
                raise AnamorphError(
                    f"{attachment}: there is no split {name!r} to fit on; there are: "
                    f"{', '.join(data)}."
                )
            wanted.setdefault(name, {})[attachment] = sites
    return {**wanted}


def _fitted(model: Model, proxies: Sequence[Simplified], fits: Fits) -> FittedProxies:
    placed = {
        proxy: {site: fitted for a in proxy.attachments for site, fitted in fits[a].items()}
        for proxy in proxies
    }
    return FittedProxies(placed, model.layers)
