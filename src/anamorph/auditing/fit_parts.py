"""Fitting on a task in parts, which may be seen in different processes.

Each part of `fit_parts` is seen by `see_on_task`, anywhere, for all units of proxies at once. Then
`learn_on_task` fits each unit, anywhere, to what was seen of all parts, and `joined` puts the units
together: to the byte what `fit_on_task` gives. What is seen, and what is fitted, can be pickled.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from anamorph.auditing.samples import FIT_TOKENS, fit_data, fit_sample
from anamorph.models.base import Batch, Model
from anamorph.simplifications import FittedProxies, ProxySpec, Simplified
from anamorph.simplifications.fitting import learn_parts, see_part, shares
from anamorph.simplifications.points import part_ends
from anamorph.simplifications.seen_part import SeenPart
from anamorph.tasks import Split, Task
from anamorph.tasks.batches import collate, plan
from anamorph.tasks.fitted_on import FittedOn


class FitPart(NamedTuple):
    """A part of a split that is fitted on, as plain data.

    Attributes:
        split: what proxies call it (`on=`), or the name of the training split.
        number: which of its parts it is.
        bounds: where its batches begin and the last ends, in sequences of those that are fitted on.
    """

    split: str
    number: int
    bounds: tuple[int, ...]


def fit_parts(task: Task, sequences: int, proxies: Iterable[ProxySpec]) -> list[FitPart]:
    """The parts of every split that is fitted on, in order; no model is run.

    They follow from the data alone, and are those in which `fit` rounds its sums.

    Args:
        task: the data.
        sequences: how many are fitted on, at most, as for `fit_on_task`.
        proxies: what is to be fitted.

    Raises:
        AnamorphError: as `anamorph.auditing.samples.fit_data`.
    """
    attachments = [a for proxy in _simplified(proxies) for a in proxy.attachments]
    names = dict.fromkeys(task.train.name if a.on is None else a.on for a in attachments)
    return [part for name in names for part in _parts(name, _sample(task, sequences, name))]


def _sample(task: Task, sequences: int, name: str) -> Split:
    on = FittedOn() if name == task.train.name else FittedOn.read(name)
    return fit_sample(task, on, sequences)


def _parts(name: str, sample: Split) -> Iterator[FitPart]:
    bounds, tokens, number = [0], 0, 0
    for batch in plan(sample.lengths, FIT_TOKENS):
        if part_ends(tokens):
            yield FitPart(name, number, tuple(bounds))
            bounds, tokens, number = bounds[-1:], 0, number + 1
        bounds.append(int(batch[-1]) + 1)
        tokens += int(sample.lengths[batch].sum())
    yield FitPart(name, number, tuple(bounds))


def see_on_task(
    model: Model,
    units: Sequence[Sequence[ProxySpec]],
    task: Task,
    sequences: int,
    part: FitPart,
) -> list[SeenPart]:
    """What is seen of a part, in one run of the model, for `learn_on_task`; see `see_part`.

    Args:
        model: the original.
        units: what is to be fitted: proxies that will be learnt together, and others; see
            `fit_units`. Other models are passed over.
        task: its data, of which batches are made of the part's sequences alone.
        sequences: as `fit_parts` was given.
        part: one of those.

    Returns:
        what each unit has to know. This travels: `SeenPart` says how large it is.

    Raises:
        AnamorphError: as `see_part`.
    """
    sample = _sample(task, sequences, part.split)
    whole = sample.lengths.tolist()
    before, batches = Counter(whole[: part.bounds[0]]), _batches(sample, part)
    chosen, train = [_simplified(unit) for unit in units], task.train.name
    proxies = list(dict.fromkeys(proxy for unit in chosen for proxy in unit))
    seen = see_part(model, proxies, part.split, batches, before, train, Counter(whole))
    return [seen] if len(chosen) == 1 else shares(model, chosen, part.split, seen, train)


def _batches(sample: Split, part: FitPart) -> Iterator[Batch]:
    for start, stop in pairwise(part.bounds):
        yield collate(sample, np.arange(start, stop))


def learn_on_task(
    model: Model,
    proxies: Sequence[ProxySpec],
    task: Task,
    sequences: int,
    seen: Mapping[str, Iterable[SeenPart]],
) -> FittedProxies:
    """Fit proxies to what was seen of all parts.

    Args:
        model: the original; it is run only for what cannot be merged.
        proxies: a unit that `see_on_task` was given.
        task: likewise.
        sequences: likewise.
        seen: by the name of a split, what was seen for the unit of all its parts, in order. They
            are taken one at a time, and used up.

    Raises:
        AnamorphError: as `learn_parts`.
    """
    data = fit_data(task, sequences, proxies)
    return learn_parts(model, _simplified(proxies), seen, data, task.train.name)


def _simplified(proxies: Iterable[ProxySpec]) -> list[Simplified]:
    return [proxy for proxy in proxies if isinstance(proxy, Simplified)]
