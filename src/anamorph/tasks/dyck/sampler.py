"""A vectorised sampler of Dyck-(k, m): k kinds of brackets, nested at most m deep.

The distribution is that of Hewitt et al. 2020 (arXiv 2010.07515), as a stack automaton: at depth 0
open with probability ½ or end; between 0 and m open or close with ½ each; at depth m close. An end
before four brackets is drawn again. Types of openers are uniform.

Two observations turn the automaton into array operations:

* Forced to open at 0 and to close at m, the depth is a simple random walk folded into [0, m]. So
  one long walk holds many sentences; each return to 0 tosses a coin, and heads ends a sentence.
* Only a first segment of two brackets makes an end be drawn again, so whether a toss counts depends
  on the toss before it alone: runs of such tosses alternate, and their parity gives them all.

Random bits come straight from PCG64's raw stream, which NumPy guarantees never to change, so the
same seed gives the same sentences on every machine.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anamorph.errors import require
from anamorph.tasks.ragged import Ragged, Rows, joined

MOST = 16_000  # bracket types, and depth: all are numbered in 16 bits
BLOCK = 1 << 19  # steps walked at a time: the arrays of one block stay in the processor's cache
MOST_BLOCKS = 40  # that are looked through for sentences that are wanted, before it is given up


@dataclass(frozen=True)
class Sentences(Ragged):
    """Bracket sequences, one after the other in flat arrays.

    Attributes:
        brackets: [brackets] `t` opens and `k + t` closes the bracket type `t < k`.
        depth: [brackets] nesting depth of the bracket, 1 for the outermost.
        distance: [brackets] tokens from a closer back to its opener; 0 for openers.
        offsets: [sentences + 1] where each sentence starts, and the end.
    """

    brackets: NDArray[np.int16]
    depth: NDArray[np.int16]
    distance: NDArray[np.int32]
    offsets: NDArray[np.int64]

    @property
    def closes(self) -> NDArray[np.bool_]:
        """[brackets] whether a bracket closes."""
        return self.distance > 0

    @property
    def max_depth(self) -> NDArray[np.int16]:
        """[sentences] the greatest depth that each sentence reaches."""
        return np.maximum.reduceat(self.depth, self.offsets[:-1])

    def take(self, which: NDArray[np.int64]) -> "Sentences":
        """The sentences with the given numbers, in the given order."""
        return self._at(self.entries(which), self.lengths[which])

    def where(self, kept: NDArray[np.bool_]) -> "Sentences":
        """The sentences for which the given is true."""
        return self._at(np.repeat(kept, self.lengths), self.lengths[kept])

    def head(self, count: int) -> "Sentences":
        """The first sentences, at most so many."""
        lengths = self.lengths[:count]
        return self._at(slice(lengths.sum()), lengths)

    def _at(self, index: Any, lengths: NDArray[np.int64]) -> "Sentences":
        arrays = (self.brackets[index], self.depth[index], self.distance[index])
        return Sentences(*arrays, Rows.of(lengths).offsets)


def concatenate(parts: list[Sentences]) -> Sentences:
    """All sentences of all parts, in order."""
    return Sentences(
        np.concatenate([part.brackets for part in parts]),
        np.concatenate([part.depth for part in parts]),
        np.concatenate([part.distance for part in parts]),
        joined(parts),
    )


def first(parts: Iterator[Sentences], count: int) -> Sentences:
    """The first `count` sentences, or fewer if many parts in a row bring none."""
    kept, missing, fruitless = [], count, 0
    for part in parts:
        kept.append(part.head(missing))
        missing -= len(kept[-1])
        fruitless = 0 if len(part) else fruitless + 1
        if not missing or fruitless == MOST_BLOCKS:
            break
    return concatenate(kept)


def stream(k: int = 20, m: int = 10, seed: int = 0, block: int = BLOCK) -> Iterator[Sentences]:
    """Draw independent sentences of Dyck-(k, m) without end, some thousands at a time.

    The sentences do not depend on `block`; only how many come at once does.

    Raises:
        AnamorphError: if a number is out of range.
    """
    require("Dyck: k", k, whole=True, least=1, most=MOST)
    require("Dyck: m", m, whole=True, least=1, most=MOST)
    require("Dyck: seed", seed, whole=True, least=0)
    steps, coins, types = (
        np.random.PCG64(child) for child in np.random.SeedSequence([seed, k, m]).spawn(3)
    )
    walk = toss = np.empty(0, dtype=np.uint8)
    while True:
        # What the last block left unfinished starts at depth 0, so it walks the same way again.
        walk = np.concatenate([walk, _bits(steps, block)])
        toss = np.concatenate([toss, _bits(coins, block)])
        depth_after = _fold(walk, m)
        ends = _sentence_ends(depth_after, toss)
        if len(ends) == 0:
            continue
        used = int(ends[-1]) + 1
        offsets = np.concatenate([[0], ends + 1]).astype(np.int64)
        yield _label(depth_after[:used], offsets, k, types)
        walk, toss = walk[used:], toss[used:]


def _bits(source: np.random.PCG64, count: int) -> NDArray[np.uint8]:
    words = source.random_raw(count // 64).astype("<u8", copy=False)
    return np.unpackbits(words.view(np.uint8))


def _fold(walk: NDArray[np.uint8], m: int) -> NDArray[np.int16]:
    """The depth after each step: a simple random walk, reflected at 0 and at m."""
    height = np.cumsum(walk.astype(np.int8) * np.int8(2) - np.int8(1), dtype=np.int32)
    height %= 2 * m
    return (m - np.abs(height - m)).astype(np.int16)


def _sentence_ends(depth_after: NDArray[np.int16], toss: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Where sentences end: the tosses at depth 0 that come up heads and are not drawn again."""
    returns = np.flatnonzero(depth_after == 0)
    if len(returns) == 0:
        return returns
    heads = toss[returns] == 1
    short = np.diff(returns, prepend=-1) == 2
    # Heads after a short segment count only if a sentence did not just start with it, that is,
    # unless the toss before ended one: in a run of those, every other one counts.
    depends = heads & short
    index = np.arange(len(returns))
    anchor = np.maximum.accumulate(np.where(depends, -1, index))
    settled = np.where(anchor >= 0, heads[anchor], True)
    ends: NDArray[np.int64] = returns[settled ^ ((index - anchor) % 2 == 1)]
    return ends


def _label(
    depth_after: NDArray[np.int16], offsets: NDArray[np.int64], k: int, types: np.random.PCG64
) -> Sentences:
    """Match the brackets of a walk and draw their types."""
    before = np.roll(depth_after, 1)  # the last sentence ends at depth 0, as the first begins
    opens = depth_after > before
    depth = np.maximum(depth_after, before)
    # At one depth openers and closers alternate, so a stable sort by depth puts every closer right
    # behind its opener. (NumPy sorts integers of 8 and 16 bits in linear time.)
    by_depth = depth.astype(np.uint8) if depth.max() < 256 else depth
    pairs = np.argsort(by_depth, kind="stable").astype(np.int32).reshape(-1, 2)
    opener, closer = pairs[:, 0], pairs[:, 1]
    brackets = np.empty(len(depth), dtype=np.int16)
    brackets[opens] = _uniform(types, len(pairs), k)
    brackets[closer] = brackets[opener] + np.int16(k)
    distance = np.zeros(len(depth), dtype=np.int32)
    distance[closer] = closer - opener
    return Sentences(brackets, depth, distance, offsets)


def _uniform(source: np.random.PCG64, count: int, k: int) -> NDArray[np.int16]:
    """Integers below k, from 32 random bits each (a bias of at most k / 2³²)."""
    words = source.random_raw(count) >> np.uint64(32)
    return ((words * np.uint64(k)) >> np.uint64(32)).astype(np.int16)
