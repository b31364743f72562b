"""Which sequences of a task are used for what."""

from collections.abc import Iterator

import numpy as np

from anamorph.models.base import Batch, Model
from anamorph.tasks import Split, Task
from anamorph.tasks.batches import collate, plan

TRIED = 256  # tokens of a sequence on which a model is compared with itself, at most
FIT_TOKENS = 4_096  # a batch that is fitted on


def scored_sequences(split: Split, most: int | None = None) -> Split:
    """The first `most` sequences of a split that have a scored position: the others say nothing."""
    counts = np.add.reduceat(split.scored.astype(np.int64), split.offsets[:-1])
    return split.take(np.flatnonzero(counts)[:most])


def few_sequences(task: Task, model: Model) -> Batch:
    """Four sequences of the reference on which a model is tried: the two longest and the first two.

    They are cut to 256 tokens.
    """
    part = scored_sequences(task.reference)
    longest = np.argsort(-part.lengths, kind="stable")[:2]
    batch = collate(part, np.unique([*longest, *range(min(2, len(part)))]))
    return Batch(batch.tokens[:, :TRIED], batch.mask[:, :TRIED]).to(model.device)


def fit_data(task: Task, sequences: int) -> dict[str, Iterator[Batch]]:
    """By the name of a split its first sequences, in their order, in batches."""

    def batches(split: Split) -> Iterator[Batch]:
        sample = split.take(np.arange(min(sequences, len(split))))
        for part in plan(sample.lengths, FIT_TOKENS):
            yield collate(sample, part)

    return {name: batches(split) for name, split in task.splits.items()}
