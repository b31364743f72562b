"""Dyck-(k, m): well-nested brackets, split by which structures and depths were seen in training.

The splits follow Murty et al. 2023 (arXiv 2211.01288) and the paper under test (arXiv 2312.03656).
A *skeleton* is a sentence without its bracket types; test sentences are sorted by whether their
skeleton occurs in the training sample at all.

=====================  ======  ===================================================================
split                  role    sentences
=====================  ======  ===================================================================
train                  train   a sample
iid                    iid     a fresh sample without the sentences of train
seen_structure         ood     the part of a fresh sample whose skeletons occur in train
unseen_short           ood     ... whose skeletons do not, at most 32 brackets
unseen_long            ood     ... whose skeletons do not, more than 32 brackets
unseen_depth           ood     depth m+1 to 2m, from a sampler with twice the depth
unseen_depth_matched   ood     the same, sentence by sentence as long as those of unseen_long
=====================  ======  ===================================================================

No test sentence occurs in train, with the same types, in any split; test sentences without a scored
position, which say nothing, are left out: they are shorter, so that the sentences of a test split
are longer than those of train (mean 88 brackets against 49 at the defaults). The order of every
split is random, so that its beginning is a sample of it. Each sequence is `START`, the brackets,
`END`. Scored are closing brackets, by default those at least 10 tokens from their opener.

With `structure="segment", scored="closers"`, `seen_structure` is the in-distribution set of Murty
et al.
"""

import warnings
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from anamorph.errors import AnamorphError, require
from anamorph.tasks.base import NOT_APPLICABLE, Facet, Split, Task, role_of
from anamorph.tasks.bins import bin_names, binned
from anamorph.tasks.dyck.about import about
from anamorph.tasks.dyck.sampler import MOST, MOST_BLOCKS, Sentences, concatenate, first, stream
from anamorph.tasks.ragged import Rows

START, END, FIRST_BRACKET = 0, 1, 2
SHORT = 32  # brackets; the paper's border between short and long
FAR = 10  # tokens between a closer and its opener, from which a prediction counts as far
BINS = (1, 2, 4, 8, FAR, 16, 32, 64, 128, 256, 512, 1024)  # lower ends, for distance and position
TRAINED_DEPTH, WITHIN = "trained depth", "within"  # a facet, and its level up to depth m

LEARNT = 0.9  # accuracy: every scored position has one right answer, given by the brackets
MATCHED_WITHIN = 0.02  # of the mean length; beyond it, a warning

Scored = Literal["closers", "far_closers"]
LEAST_DISTANCE: dict[Scored, int] = {"closers": 1, "far_closers": FAR}
Structure = Literal["sentence", "segment"]


def dyck(
    *,
    k: int = 20,
    m: int = 10,
    train: int = 200_000,
    test: int = 2_000,
    max_length: int = 510,
    scored: Scored = "far_closers",
    structure: Structure = "sentence",
    seed: int = 0,
) -> Task:
    """Make the Dyck task with all its splits.

    Args:
        k: kinds of brackets.
        m: maximum depth in training.
        train: training sentences.
        test: sentences in each other split (fewer where the language has not as many).
        max_length: longer sentences, in brackets, are drawn again, in every split.
        scored: `far_closers` (at least 10 tokens from the opener) or all `closers`.
        structure: a skeleton counts as seen if the whole `sentence` has it in train, or if every
            top-level `segment` does (Murty et al.'s rule).
        seed: of the sample.

    Raises:
        AnamorphError: if an argument is out of range.

    Warns:
        UserWarning: if there are too few deep sentences that are as long as those of unseen_long.
    """
    spec = dict(locals())
    _check(spec)
    seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(3)]
    sentences = {"train": first(_bounded(stream(k, m, seeds[0]), max_length), train)}
    seen = _Seen(sentences["train"], structure)
    least = LEAST_DISTANCE[scored]
    fresh = (
        part.where(~seen.sentence(part))
        for part in _bounded(stream(k, m, seeds[1]), max_length, least)
    )
    sentences["iid"] = first(fresh, test)
    if not len(sentences["iid"]):
        raise AnamorphError(
            f"dyck: Dyck-({k}, {m}) has no test sentences for scored={scored!r} that are not among "
            f"{train} training sentences. Choose a larger k or m, fewer training sentences, or "
            "scored='closers'."
        )
    sentences |= _sort(fresh, test, seen)
    deep = (
        part.where(part.max_depth > m)
        for part in _bounded(stream(k, 2 * m, seeds[2]), max_length, least)
    )
    sentences["unseen_depth"] = first(deep, test)
    sentences["unseen_depth_matched"] = _matching(deep, sentences["unseen_long"].lengths)
    kinds = range(1, k + 1)
    return Task(
        name="dyck",
        spec={"name": "dyck", **spec},
        vocabulary=("START", "END", *(f"({i}" for i in kinds), *(f"{i})" for i in kinds)),
        candidates=np.arange(FIRST_BRACKET + k, FIRST_BRACKET + 2 * k),
        splits={
            name: to_split(name, part, m, scored) for name, part in sentences.items() if len(part)
        },
        learnt=LEARNT,
        about=about(spec),
    )


def to_split(name: str, sentences: Sentences, m: int, scored: Scored) -> Split:
    """Put START and END around the sentences, and label every token; m is the trained depth."""
    framed = Rows.of(sentences.lengths + 2)
    inside = np.ones(framed.offsets[-1], dtype=np.bool_)
    inside[framed.offsets[:-1]] = inside[framed.offsets[1:] - 1] = False

    def spread(values: NDArray[Any], fill: int) -> NDArray[np.int16]:
        out = np.full(len(inside), fill, dtype=np.int16)
        out[inside] = values
        return out

    tokens = spread(sentences.brackets + FIRST_BRACKET, START)
    tokens[framed.offsets[1:] - 1] = END
    counted = sentences.distance >= LEAST_DISTANCE[scored]
    depth = spread(sentences.depth - 1, NOT_APPLICABLE)
    beyond = np.where(depth == NOT_APPLICABLE, depth, depth >= m).astype(np.int16)
    names = bin_names(BINS)
    return Split(
        name=name,
        role=role_of(name),
        tokens=tokens,
        offsets=framed.offsets,
        scored=spread(counted, 0).astype(np.bool_),
        facets={
            "depth": Facet(depth, tuple(str(d) for d in range(1, 2 * m + 1))),
            TRAINED_DEPTH: Facet(beyond, (WITHIN, "beyond")),
            "distance": Facet(spread(binned(sentences.distance, BINS), NOT_APPLICABLE), names),
            "position": Facet(binned(framed.position, BINS), names),
            "length": Facet(np.repeat(binned(sentences.lengths, BINS), framed.lengths), names),
        },
    )


def skeletons(sentences: Sentences) -> NDArray[np.uint64]:
    """[sentences] a 64-bit hash of each sentence without its bracket types.

    Equal skeletons have equal hashes; different ones collide with probability 2⁻⁶⁴ a pair.
    """
    return _hash(sentences.closes, sentences.offsets)


def segments(sentences: Sentences) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The hash of every top-level segment's skeleton, and the sentence that it belongs to."""
    ends = np.flatnonzero(sentences.closes & (sentences.depth == 1)) + 1
    offsets = np.concatenate([[0], ends])
    owner = np.searchsorted(sentences.offsets, ends, side="left") - 1
    return _hash(sentences.closes, offsets), owner


class _Seen:
    """Which sentences, and which structures, the training sample holds."""

    def __init__(self, train: Sentences, structure: Structure) -> None:
        self.structure = structure
        self.sentences = np.unique(_hash(train.brackets, train.offsets))
        seen = skeletons(train) if structure == "sentence" else segments(train)[0]
        self.skeletons = np.unique(seen)

    def sentence(self, sentences: Sentences) -> NDArray[np.bool_]:
        return np.isin(_hash(sentences.brackets, sentences.offsets), self.sentences)

    def structures(self, sentences: Sentences) -> NDArray[np.bool_]:
        if self.structure == "sentence":
            return np.isin(skeletons(sentences), self.skeletons)
        hashes, owner = segments(sentences)
        unseen = owner[~np.isin(hashes, self.skeletons)]
        return ~np.isin(np.arange(len(sentences)), unseen)


def _hash(values: NDArray[Any], offsets: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A linear hash modulo 2⁶⁴ with a random odd coefficient for each position."""
    rows = Rows(offsets)
    longest = int(rows.lengths.max(initial=0))
    coefficients = np.random.PCG64(2023).random_raw(longest) | np.uint64(1)
    terms = (values.astype(np.uint64) + np.uint64(1)) * coefficients[rows.position]
    return np.add.reduceat(terms, offsets[:-1])


def _bounded(
    parts: Iterator[Sentences], max_length: int, least_distance: int = 0
) -> Iterator[Sentences]:
    """Only the sentences that are short enough and have a closer that far from its opener."""
    for part in parts:
        farthest = np.maximum.reduceat(part.distance, part.offsets[:-1])
        yield part.where((part.lengths <= max_length) & (farthest >= least_distance))


def _sort(fresh: Iterator[Sentences], count: int, seen: _Seen) -> dict[str, Sentences]:
    """Fill each structure split, from sentences that come after those of `iid`."""
    kept: dict[str, list[Sentences]] = {"seen_structure": [], "unseen_short": [], "unseen_long": []}
    for part in islice(fresh, MOST_BLOCKS):
        known = seen.structures(part)
        long = part.lengths > SHORT
        kept["seen_structure"].append(part.where(known))
        kept["unseen_short"].append(part.where(~known & ~long))
        kept["unseen_long"].append(part.where(~known & long))
        if min(sum(map(len, parts)) for parts in kept.values()) >= count:
            break
    return {name: concatenate(parts).head(count) for name, parts in kept.items()}


def _matching(deep: Iterator[Sentences], lengths: NDArray[np.int64]) -> Sentences:
    """For each of the lengths a deep sentence of this length, in the order of the lengths.

    Where there are too few the next greater length is taken; the greatest may be left out.
    """
    pool = concatenate(list(islice(deep, MOST_BLOCKS)))
    order = np.argsort(pool.lengths, kind="stable")
    wanted = np.argsort(lengths, kind="stable")
    # from short to long, each takes the first that is long enough and behind the one taken before
    rank = np.arange(len(lengths))
    long_enough = np.searchsorted(pool.lengths[order], lengths[wanted])
    taken = np.maximum.accumulate(long_enough - rank) + rank
    there = taken < len(order)
    chosen = np.full(len(lengths), -1)
    chosen[wanted[there]] = order[taken[there]]
    found = pool.take(chosen[chosen >= 0])
    missing = len(lengths) - len(found)
    if missing or found.lengths.sum() > (1 + MATCHED_WITHIN) * lengths.sum():
        mean = f"{found.lengths.mean():.0f}" if len(found) else "none"
        warnings.warn(
            "dyck: unseen_depth_matched is not as long as unseen_long: there are too few deep "
            "sentences of these lengths, so that longer ones are taken instead (mean length "
            f"{mean} against {lengths.mean():.0f}; {missing:,} of {len(lengths):,} sentences "
            "missing). Ask for fewer test sentences (task.test), or do not read depth off this "
            "split alone.",
            stacklevel=3,  # where the task is made
        )
    return found


def _check(spec: Mapping[str, Any]) -> None:
    for name, most in (("k", MOST), ("m", MOST // 2), ("train", None), ("test", None)):
        require(f"dyck: {name}", spec[name], whole=True, least=1, most=most)
    require("dyck: seed", spec["seed"], whole=True, least=0)
    require("dyck: scored", spec["scored"], among=get_args(Scored))
    require("dyck: structure", spec["structure"], among=get_args(Structure))
    deepest = 2 * (spec["m"] + 1)
    if not isinstance(spec["max_length"], int) or spec["max_length"] < deepest:
        raise AnamorphError(
            f"dyck: max_length must leave room for unseen depths, at least {deepest} brackets for "
            f"m={spec['m']}; got {spec['max_length']!r}."
        )
