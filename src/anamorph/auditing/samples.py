"""Which sequences of a task are used for what: to try a model, to fit, to be scored."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from hashlib import blake2b
from itertools import count

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anamorph.errors import AnamorphError
from anamorph.models.base import Batch, Model
from anamorph.simplifications import ProxySpec, Simplified
from anamorph.tasks import Split, Task
from anamorph.tasks.batches import collate, plan
from anamorph.tasks.fitted_on import TRAIN, FittedOn
from anamorph.tasks.ragged import joined

TRIED = 256  # tokens of a sequence on which a model is compared with itself, at most
FIT_TOKENS = 4_096  # a batch that is fitted on


def scored_sequences(split: Split, most: int | None = None) -> Split:
    """The first `most` sequences of a split that have a scored position: the others say nothing."""
    counts = np.add.reduceat(split.scored.astype(np.int64), split.offsets[:-1])
    return split.take(np.flatnonzero(counts)[:most])


def described_sequences(split: Split) -> pl.DataFrame:
    """Which sequences these are, so that those of two runs can be told to be the same.

    Args:
        split: what is scored of it (`scored_sequences`).

    Returns:
        a row a sequence: its place `sequence` among these; `digest` of tokens, of what is scored,
        and of what a masked model is given; `length` in tokens; `scored` positions; its `number`
        in the task's split; and its `id`, what its source calls it, null where that says nothing.
    """
    arrays = [split.tokens.astype("<i8"), split.scored.astype("<i8")]
    arrays += [] if split.masked is None else [split.masked.astype("<i8")]
    bounds = zip(split.offsets[:-1], split.offsets[1:], strict=True)
    digests = [
        blake2b(b"".join(x[start:stop].tobytes() for x in arrays), digest_size=12).hexdigest()
        for start, stop in bounds
    ]
    scored = np.add.reduceat(split.scored.astype(np.int64), split.offsets[:-1])
    numbers = np.arange(len(split)) if split.numbers is None else split.numbers
    columns = {"digest": digests, "length": split.lengths, "scored": scored, "number": numbers}
    ids = pl.lit(None, pl.String) if split.ids is None else split.ids
    return pl.DataFrame(columns).with_columns(id=ids).with_row_index("sequence")


def scored_task(task: Task, proxies: Iterable[ProxySpec]) -> Task:
    """The task whose evaluated splits hold only what is scored; the task itself if that is all.

    What any of the proxies is fitted on by `on=` is scored of none of them, so that all stand side
    by side. Sequences with the same tokens are the same, whichever split they are in. What is
    fitted on the training split is left out of nothing: tasks see to it that it is another.

    Raises:
        AnamorphError: if `on=` names a split or sequences that there are not, or if nothing of a
            split is left to be scored.
    """
    named = {
        part
        for proxy in proxies
        if isinstance(proxy, Simplified)
        for attachment in proxy.attachments
        for part in attachment.fitted_on.parts
        if part.split != TRAIN
    }
    fitted: set[bytes] = set()
    for part in sorted(named):
        ((split, sequences),) = _named(task, FittedOn((part,)))
        fitted.update(_contents(split, sequences))
    left = {}
    for split in task.evaluated if fitted else ():
        every = np.arange(len(split))
        others = [content not in fitted for content in _contents(split, every)]
        left[split.name] = split.take(every[others])
        if split.scored.any() and not left[split.name].scored.any():
            raise AnamorphError(
                f"Nothing of the split {split.name!r} is left to be scored, as simplifications are "
                f"fitted on all of it by on=. Fit on a part, such as on={split.name}[1::2], which "
                "leaves the others."
            )
    return replace(task, splits={**task.splits, **left}) if left else task


def few_sequences(task: Task, model: Model) -> Batch:
    """Four sequences of the reference on which a model is tried: the two longest and the first two.

    They are cut to 256 tokens.
    """
    part = scored_sequences(task.reference)
    longest = np.argsort(-part.lengths, kind="stable")[:2]
    batch = collate(part, np.unique([*longest, *range(min(2, len(part)))]))
    return Batch(batch.tokens[:, :TRIED], batch.mask[:, :TRIED]).to(model.device)


def unwatched(done: int, total: int) -> None:
    """Watch nothing."""


def fit_data(
    task: Task,
    sequences: int,
    proxies: Iterable[ProxySpec] = (),
    watch: Callable[[int, int], None] = unwatched,
) -> dict[str, Iterator[Batch]]:
    """By what proxies name to be fitted on, and the name of the training split, its batches.

    Args:
        task: the data.
        sequences: how many are fitted on, at most: the first that are named, in their order. Of a
            mixture all parts together give so many (rounded up), each as many as the others: so a
            mixture differs from one split in what is fitted on, not in how much. The parts take
            turns, a sequence each; a long sequence weighs more than a short one, as it does alone.
        proxies: what is to be fitted.
        watch: told, as batches are read, how many were, and how many there are of all names.

    Raises:
        AnamorphError: if `on=` names a split or sequences that there are not.

    Warns:
        UserWarning: if another split has fewer sequences to fit on than `train`.
    """
    samples = _fitted_on(task, proxies)
    found = {name: fit_sample(task, on, sequences) for name, on in samples.items()}
    _warn_of_few(samples, found, task.train.name)
    parts = {name: plan(sample.lengths, FIT_TOKENS) for name, sample in found.items()}
    done, total = count(1), sum(map(len, parts.values()))

    def batches(name: str) -> Iterator[Batch]:
        for part in parts[name]:
            yield collate(found[name], part)
            watch(next(done), total)

    return {name: batches(name) for name in samples}


def _fitted_on(task: Task, proxies: Iterable[ProxySpec]) -> dict[str, FittedOn]:
    attachments = [a for p in proxies if isinstance(p, Simplified) for a in p.attachments]
    named = {a.on: a.fitted_on for a in attachments if a.on is not None}
    return {task.train.name: FittedOn(), **named}


def _warn_of_few(samples: Mapping[str, FittedOn], found: Mapping[str, Split], train: str) -> None:
    """A fit on other data is to tell of the data; on less of it, it tells of how much there is."""
    most = len(found[train])
    few = {n: len(found[n]) for n, on in samples.items() if on.splits and len(found[n]) < most}
    if few:
        told = ", ".join(f"on={name} has {number:,}" for name, number in few.items())
        warnings.warn(
            f"There are {most:,} sequences of {train!r} to fit on, but {told}: what differs may be "
            "the number. Give more sequences of these splits (of each, every second one is fitted "
            f"on), or compare with what is fitted on train[:{min(few.values())}].",
            stacklevel=3,
        )


def fit_sample(task: Task, on: FittedOn, sequences: int) -> Split:
    """The sequences that are fitted on, as `fit_data` has them; nothing in it is scored."""
    named = _named(task, on)
    each = min(-(-sequences // len(named)), *(len(some) for _, some in named))
    parts = [split.take(some[:each]) for split, some in named]
    tokens = np.concatenate([part.given for part in parts])
    together = Split("fit", "train", tokens, joined(parts), np.zeros(len(tokens), bool))
    return together.take(np.arange(len(parts) * each).reshape(len(parts), each).T.ravel())


def _named(task: Task, on: FittedOn) -> list[tuple[Split, NDArray[np.int64]]]:
    """Of each part its split, and the numbers of the sequences that it means."""
    found = []
    for part in on.parts:
        if part.split != TRAIN and part.split not in task.splits:
            raise AnamorphError(
                f"There is no split {part.split!r} to fit on; there are: {', '.join(task.splits)}."
            )
        split = task.train if part.split == TRAIN else task.splits[part.split]
        if part.split != TRAIN and split is task.train:
            raise AnamorphError(
                f"The split {part.split!r} is the training split, which on= calls {TRAIN!r}: write "
                f"on={TRAIN}{part.slice}, or leave it out."
            )
        sequences = part.sequences(len(split))
        if not len(sequences):
            raise AnamorphError(
                f"There is nothing to fit on in {part.split}{part.slice}: the split has "
                f"{len(split)} sequences."
            )
        found.append((split, sequences))
    return found


def _contents(split: Split, sequences: NDArray[np.int64]) -> Iterator[bytes]:
    """A digest of the tokens of each of these sequences."""
    for number in sequences:
        tokens = split.tokens[split.offsets[number] : split.offsets[number + 1]]
        yield blake2b(tokens.astype("<i8").tobytes(), digest_size=16).digest()
