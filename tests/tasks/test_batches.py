"""Batches and targets against plain loops over the sequences."""

from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anamorph.tasks.base import Split
from anamorph.tasks.batches import collate, plan, shuffled, targets


def ragged(lengths: list[int], seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    scored = rng.random(offsets[-1]) < 0.4
    scored[offsets[:-1]] = False
    tokens = rng.integers(1, 99, offsets[-1]).astype(np.int16)
    return Split("s", "iid", tokens, offsets, scored)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 120))
def test_a_plan_covers_all_in_order_within_the_bound(lengths: list[int], bound: int) -> None:
    batches = plan(np.array(lengths, dtype=np.int64), bound)
    assert [i for batch in batches for i in batch.tolist()] == list(range(len(lengths)))
    for batch in batches:
        padded = max(lengths[i] for i in batch) * len(batch)
        assert padded <= bound or len(batch) == 1
    for batch, after in pairwise(batches):  # none is cut short early
        more = [lengths[i] for i in (*batch, after[0])]
        assert max(more) * len(more) > bound


def test_a_plan_by_hand() -> None:
    batches = plan(np.array([3, 3, 4, 9, 1, 1]), batch_tokens=12)
    # 3 + 3 + 4 pads to 12; 9 with any other passes 12 and so does 1 behind it; then 1 and 1
    assert [b.tolist() for b in batches] == [[0, 1, 2], [3], [4, 5]]


def test_an_epoch_is_every_sequence_once_and_epochs_differ() -> None:
    lengths = np.random.default_rng(1).integers(1, 40, 300)
    size = len(plan(np.sort(lengths), 200))
    batches = list(islice(shuffled(lengths, 200, seed=4), 2 * size))
    first, second = batches[:size], batches[size:]
    assert sorted(np.concatenate(first).tolist()) == list(range(300))
    assert sorted(np.concatenate(second).tolist()) == list(range(300))
    assert [b.tolist() for b in first] != [b.tolist() for b in second]
    sets = {frozenset(b.tolist()) for b in first}
    assert not sets >= {frozenset(b.tolist()) for b in second}, "sequences must change company"
    # alike in length: little is padding; and the batches themselves are not sorted by it
    padded = sum(int(lengths[b].max()) * len(b) for b in first)
    assert lengths.sum() / padded > 0.9
    longest = [int(lengths[b].max()) for b in first]
    assert longest != sorted(longest)


def test_the_order_is_the_seeds() -> None:
    lengths = np.random.default_rng(1).integers(1, 40, 300)

    def order(seed: int) -> list[list[int]]:
        return [b.tolist() for b in islice(shuffled(lengths, 200, seed), 20)]

    assert order(4) == order(4) != order(5)


def test_collating_against_a_loop() -> None:
    split = ragged([4, 1, 6, 3])
    sequences = [x.tolist() for x in split]
    batch = collate(split, np.array([3, 0, 1]))
    assert batch.tokens.shape == batch.mask.shape == (3, 4)
    for row, number in enumerate((3, 0, 1)):
        length = len(sequences[number])
        assert batch.tokens[row, :length].tolist() == sequences[number]
        assert batch.mask[row].tolist() == [True] * length + [False] * (4 - length)


@pytest.mark.parametrize("chosen", [[0, 1, 2, 3, 4], [4, 2], [1], [3, 3]])
def test_targets_against_a_loop(chosen: list[int]) -> None:
    split = ragged([9, 1, 5, 12, 7], seed=2)
    split.scored[split.offsets[2] : split.offsets[3]] = False  # a sequence without any
    number = 0
    expected: dict[int, list[tuple[int, int, int]]] = {}
    for sequence in range(5):
        start, stop = split.offsets[sequence], split.offsets[sequence + 1]
        expected[sequence] = []
        for place in range(start, stop):
            if split.scored[place]:
                expected[sequence].append((place - start - 1, int(split.tokens[place]), number))
                number += 1
    found = targets(split, np.array(chosen))
    assert found.at.shape == found.token.shape == found.number.shape == found.valid.shape
    assert found.at.shape[1] == max(1, *(len(expected[s]) for s in chosen))
    for row, sequence in enumerate(chosen):
        valid = found.valid[row]
        assert valid.tolist() == sorted(valid.tolist(), reverse=True)
        rows = (x[row][valid].tolist() for x in (found.at, found.token, found.number))
        assert list(zip(*rows, strict=True)) == expected[sequence]
    length = max(len(list(split)[s]) for s in chosen)
    assert found.at.min() >= 0 and found.at.max() < length, "padding must be a position too"


def test_targets_of_a_split_that_scores_nothing() -> None:
    split = ragged([3, 2])
    split.scored[:] = False
    found = targets(split, np.array([0, 1]))
    assert not found.valid.any() and found.at.shape == (2, 1)
