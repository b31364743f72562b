"""The sampler against the stack automaton that it claims to be, step by step and in the whole."""

import hashlib
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from scipy import stats

from anamorph.errors import AnamorphError
from anamorph.tasks.dyck.sampler import BLOCK, Sentences, concatenate, stream
from brackets import sample

COUNT = 200_000
SIGMAS = 4.5  # a right sampler fails one of these assertions in a hundred thousand


@pytest.fixture(scope="module")
def large() -> Sentences:
    return sample(COUNT, k=20, m=10, seed=1)


def exact_probabilities(k: int, m: int, longest: int) -> dict[tuple[int, ...], float]:
    """Every sentence up to a length and its probability, by walking the automaton's choices.

    Unnormalised weights as published: at depth 0 each opener 1/k and END 1, which counts for
    nothing before four brackets; in between each opener 1/k and the closer 1; at m the closer.
    """
    found: dict[tuple[int, ...], float] = {}

    def walk(sentence: tuple[int, ...], stack: tuple[int, ...], probability: float) -> None:
        choices: list[tuple[int | None, float]] = []  # None ends
        if len(stack) < m:
            choices += [(t, 1 / k) for t in range(k)]
        if stack:
            choices.append((stack[-1] + k, 1.0))
        elif len(sentence) >= 4:
            choices.append((None, 1.0))
        total = sum(weight for _, weight in choices)
        for bracket, weight in choices:
            share = probability * weight / total
            if bracket is None:
                found[sentence] = share
            elif len(sentence) < longest:
                after = (*stack, bracket) if bracket < k else stack[:-1]
                walk((*sentence, bracket), after, share)

    walk((), (), 1.0)
    return found


@pytest.mark.parametrize(("k", "m"), [(1, 1), (1, 3), (2, 2), (2, 3)])
def test_short_sentences_have_their_exact_probabilities(k: int, m: int) -> None:
    count = 100_000
    exact = exact_probabilities(k, m, longest=6)
    drawn = sample(count, k, m, seed=5)
    ends = drawn.offsets[1:]
    seen = Counter(
        tuple(drawn.brackets[a:b].tolist())
        for a, b in zip(drawn.offsets[:-1], ends, strict=True)
        if b - a <= 6
    )
    assert set(seen) <= set(exact)
    observed = [seen[s] for s in exact]
    expected = [count * p for p in exact.values()]
    observed.append(count - sum(observed))
    expected.append(count - sum(expected))
    assert min(expected) > 100, "too rare for the test"
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_maximum_depths_have_their_exact_probabilities(large: Sentences) -> None:
    # By the gambler's ruin a top-level segment stays within depth d with probability d / (d + 1),
    # and is a mere () with one half. `later`: all further segments, if any, stay within.
    within = []
    for d in range(1, 11):
        segment = d / (d + 1) if d < 10 else 1.0
        later = 1 / (2 - segment)
        # a first () is never the last; any other segment is with one half
        within.append(0.5 * segment * later + (segment - 0.5) * later)
    expected = COUNT * np.diff(within, prepend=0)
    observed = np.bincount(large.max_depth, minlength=11)[1:]
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    paper = np.array([0.167, 0.207, 0.124, 0.084, 0.059, 0.045, 0.035, 0.028, 0.023, 0.227])
    error = 0.0005 + SIGMAS * np.sqrt(2 * paper * (1 - paper) / COUNT)
    assert (np.abs(observed / COUNT - paper) < error).all()


def test_lengths_have_the_published_statistics(large: Sentences) -> None:
    lengths = large.lengths
    error = SIGMAS * lengths.std() / np.sqrt(COUNT)
    # A segment takes 2m = 20 steps, as h(x) = x (2m - x) steps lead from depth x back to 0, and
    # there are 1 + 1 of them, and half a one more for a first () that may not stand alone.
    assert abs(lengths.mean() - 2.5 * 20) < error
    assert abs(lengths.mean() - 50.2) < 0.05 + error * np.sqrt(2)  # that one was sampled too
    for percent, length in ((50, 14), (75, 58), (90, 148), (95, 216), (99, 376)):
        p = percent / 100
        slack = SIGMAS * np.sqrt(2 * p * (1 - p) / COUNT)
        assert (lengths < length).mean() - slack <= p <= (lengths <= length).mean() + slack
    for longer, p, rounding in ((32, 0.34, 0.005), (500, 0.0028, 0.00005)):
        slack = rounding + SIGMAS * np.sqrt(2 * p * (1 - p) / COUNT)
        assert abs((lengths > longer).mean() - p) < slack


def test_closers_have_the_published_distances(large: Sentences) -> None:
    distances = large.distance[large.closes]
    # Closers of one sentence depend on each other: the error of the ratio comes from sentences.
    index = large.offsets[:-1]
    closers = np.add.reduceat(large.closes.astype(int), index)
    for chosen, p, rounding in ((distances >= 10, 0.189, 0.0005), (distances == 1, 0.55, 0.005)):
        flags = np.zeros(len(large.brackets))
        flags[large.closes] = chosen
        counts = np.add.reduceat(flags, index)
        ratio = counts.sum() / closers.sum()
        residuals = (counts - ratio * closers).std() / closers.mean()
        assert abs(ratio - p) < rounding + SIGMAS * np.sqrt(2 / COUNT) * residuals


def test_openers_are_uniform_and_independent(large: Sentences) -> None:
    openers = large.brackets[~large.closes]
    assert stats.chisquare(np.bincount(openers, minlength=20)).pvalue > 1e-3
    pairs = openers[0::2][: len(openers) // 2].astype(int) * 20 + openers[1::2]
    assert stats.chisquare(np.bincount(pairs, minlength=400)).pvalue > 1e-3


@pytest.mark.parametrize(
    ("k", "m", "count", "least"),
    [(20, 10, 2_000, 10), (1, 1, 500, 1), (3, 2, 500, 2), (2, 300, 150, 256)],  # above uint8
)
def test_every_label_against_a_stack(k: int, m: int, count: int, least: int) -> None:
    sentences = sample(count, k, m, seed=0)
    brackets, depth = sentences.brackets.tolist(), sentences.depth.tolist()
    distance, closes = sentences.distance.tolist(), sentences.closes.tolist()
    offsets, max_depth = sentences.offsets.tolist(), sentences.max_depth.tolist()
    assert offsets[0] == 0 and offsets[-1] == len(brackets) == len(depth) == len(distance)
    for number in range(count):
        assert offsets[number + 1] - offsets[number] >= 4
        stack: list[tuple[int, int]] = []
        reached = 0
        for place in range(offsets[number], offsets[number + 1]):
            if brackets[place] < k:
                stack.append((brackets[place], place))
                expected = (len(stack), 0, False)
            else:
                kind, opened = stack.pop()
                assert brackets[place] == kind + k
                expected = (len(stack) + 1, place - opened, True)
            assert (depth[place], distance[place], closes[place]) == expected
            reached = max(reached, len(stack))
        assert not stack
        assert max_depth[number] == reached <= m
    assert max(max_depth) >= least


def test_sentences_do_not_depend_on_the_block() -> None:
    blocks = (64, 4096, BLOCK)
    first, *others = (
        concatenate(list(islice(stream(5, 4, seed=9, block=block), parts))).take(np.arange(300))
        for block, parts in zip(blocks, (400, 10, 1), strict=True)
    )
    for other in others:
        for name in ("brackets", "depth", "distance", "offsets"):
            np.testing.assert_array_equal(getattr(first, name), getattr(other, name))


def test_a_smaller_sample_is_the_beginning_of_a_larger() -> None:
    small, more = sample(10, 4, 3, seed=2), sample(25_000, 4, 3, seed=2)
    np.testing.assert_array_equal(small.brackets, more.brackets[: small.offsets[-1]])
    np.testing.assert_array_equal(small.offsets, more.offsets[:11])


def test_the_same_seed_gives_the_same_bytes_everywhere() -> None:
    def digest(seed: int) -> str:
        s = sample(20_000, k=20, m=10, seed=seed)
        arrays = (s.brackets, s.depth, s.distance, s.offsets)
        return hashlib.sha256(b"".join(a.astype("<i8").tobytes() for a in arrays)).hexdigest()

    # Pinned: another value means that every published number belongs to other data.
    assert digest(0) == "5c09748c6f177d3d337f530bde106ce5a1066a7080edfb0329cde750085dd910"
    assert digest(1) != digest(0)


def test_taking_and_joining() -> None:
    sentences = sample(6, 3, 3, seed=0)
    texts = [
        sentences.brackets[a:b].tolist()
        for a, b in zip(sentences.offsets[:-1], sentences.offsets[1:], strict=True)
    ]
    taken = sentences.take(np.array([4, 0, 4]))
    assert taken.brackets.tolist() == texts[4] + texts[0] + texts[4]
    assert taken.lengths.tolist() == [len(texts[4]), len(texts[0]), len(texts[4])]
    both = concatenate([taken, sentences])
    assert both.brackets.tolist() == taken.brackets.tolist() + sentences.brackets.tolist()
    assert len(both) == 9 and both.offsets[-1] == len(both.brackets)
    assert len(sample(0)) == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"count": 1, "k": 0}, "k must be .* from 1 to 16000; got 0"),
        ({"count": 1, "k": 16_001}, "k must be .*; got 16001"),
        ({"count": 1, "m": 0}, "m must be .* from 1 to 16000; got 0"),
        ({"count": 1, "seed": -2}, "seed must be .* from 0; got -2"),
    ],
)
def test_numbers_out_of_range_are_errors(arguments: dict[str, int], named: str) -> None:
    with pytest.raises(AnamorphError, match=named):
        sample(**arguments)
