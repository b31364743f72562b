"""Ragged sequences to padded batches, so that little of a batch is padding."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anamorph.models.base import Batch
from anamorph.tasks.base import Split
from anamorph.tasks.ragged import Rows


def plan(lengths: NDArray[np.int64], batch_tokens: int) -> list[NDArray[np.int64]]:
    """Cut consecutive sequences into batches of at most `batch_tokens` tokens, padding included.

    A longer sequence gets a batch of its own. Sort the lengths first to pad little.

    Returns:
        for each batch, [sequences] the indices of its sequences.
    """
    batches, start, longest = [], 0, 0
    for index, length in enumerate(lengths.tolist()):
        longest = max(longest, length)
        if index > start and longest * (index + 1 - start) > batch_tokens:
            batches.append(np.arange(start, index))
            start, longest = index, length
    if start < len(lengths):
        batches.append(np.arange(start, len(lengths)))
    return batches


def even_batches(
    split: Split, sequences: NDArray[np.int64], batch_tokens: int, workers: int = 1
) -> list[NDArray[np.int64]]:
    """Batches of the given sequences, alike in length, as many for every worker.

    Returns:
        for each batch, [sequences] their numbers in the split, shortest first; at most
        `batch_tokens` tokens each, and few fewer.
    """
    order = sequences[np.argsort(split.lengths[sequences], kind="stable")]
    lengths = split.lengths[order]
    batches = plan(lengths, batch_tokens)
    most = -(-len(batches) // workers) * workers
    even = sum(int(lengths[part].max()) * len(part) for part in batches) // most
    while workers > 1 and even < batch_tokens:
        smaller = plan(lengths, even)
        if len(smaller) <= most:
            batches = smaller
            break
        even += 1 + even // 50
    return [order[part] for part in batches]


def shuffled(
    lengths: NDArray[np.int64], batch_tokens: int, seed: int
) -> Iterator[NDArray[np.int64]]:
    """Batches for training, epoch after epoch without end: alike in length, in random order."""
    for epoch in range(2**31):
        rng = np.random.default_rng([seed, epoch])
        order = np.lexsort((rng.random(len(lengths)), lengths))
        batches = plan(lengths[order], batch_tokens)
        for number in rng.permutation(len(batches)):
            yield order[batches[number]]


def collate(split: Split, sequences: NDArray[np.int64]) -> Batch:
    """The given sequences, padded at the right to the longest of them."""
    index, mask = split.rectangle(sequences)
    tokens = np.where(mask, split.given[index], 0)
    return Batch(torch.from_numpy(tokens.astype(np.int64)), torch.from_numpy(mask))


@dataclass(frozen=True)
class Targets:
    """The scored positions of a batch, as a rectangle.

    Attributes:
        at: [batch, query] the input positions whose predictions count: one before their token, or
            in a masked split their token's own.
        token: [batch, query] the token to be predicted.
        number: [batch, query] the position's number among all scored positions of the split.
        valid: [batch, query] False where a sequence has fewer than the others.
    """

    at: Tensor
    token: Tensor
    number: Tensor
    valid: Tensor

    def to(self, device: torch.device | str) -> "Targets":
        """The same targets on another device."""
        return Targets(*(x.to(device) for x in (self.at, self.token, self.number, self.valid)))


def targets(split: Split, sequences: NDArray[np.int64]) -> Targets:
    """Where the given sequences are scored, and on what."""
    scored = Rows(Rows.of(split.scored).offsets[split.offsets])  # the scored positions, numbered
    number, valid = scored.rectangle(sequences, least=1)
    place = np.flatnonzero(split.scored)
    index = place[number] if len(place) else np.zeros_like(number)
    before_it = 1 if split.masked is None else 0
    at = np.where(valid, index - split.offsets[sequences][:, None] - before_it, 0)
    token = np.where(valid, split.tokens[index], 0)
    arrays = (at, token.astype(np.int64), number, valid)
    return Targets(*(torch.from_numpy(a) for a in arrays))
