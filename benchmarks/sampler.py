"""Sentences a second of the Dyck sampler, against a plain loop: on one core, all labels included.

    OMP_NUM_THREADS=1 python benchmarks/sampler.py [--sentences N] [--rounds N]

Both draw sentences of Dyck-(20, 10) and label every token: tokens with START and END, which closers
are scored, and the facets depth, distance, position and length. The plain loop is the stack
automaton as one would write it, a bracket at a time, with Python's own generator (not the torch
distribution a token of the public generators, which is far slower still). First the mean lengths
and shares of far closers are compared, then the times. The bar is 100,000 sentences a second.
"""

import argparse
import random
import statistics
import time
from bisect import bisect_right
from collections.abc import Callable

import numpy as np

from anamorph.tasks.base import Facet, Split
from anamorph.tasks.dyck.sampler import first, stream
from anamorph.tasks.dyck.task import BINS, END, FAR, FIRST_BRACKET, START, to_split

K, M, LEAST = 20, 10, 4
BAR = 100_000


def ours(sentences: int, seed: int) -> Split:
    return to_split("train", first(stream(K, M, seed), sentences), 2 * M, "far_closers")


def plain(sentences: int, seed: int) -> Split:
    rng = random.Random(seed)
    tokens: list[int] = []
    scored: list[bool] = []
    depths: list[int] = []
    distances: list[int] = []
    positions: list[int] = []
    lengths: list[int] = []
    offsets = [0]
    for _ in range(sentences):
        start = len(tokens)
        tokens.append(START)
        scored.append(False)
        depths.append(-1)
        distances.append(-1)
        stack: list[tuple[int, int]] = []
        while True:
            if not stack:
                if rng.random() < 0.5:
                    if len(tokens) - start - 1 >= LEAST:
                        break
                    continue
                opens = True
            else:
                opens = len(stack) < M and rng.random() < 0.5
            if opens:
                kind = int(rng.random() * K)
                stack.append((kind, len(tokens)))
                depths.append(len(stack) - 1)
                tokens.append(FIRST_BRACKET + kind)
                scored.append(False)
                distances.append(-1)
            else:
                depths.append(len(stack) - 1)
                kind, opened = stack.pop()
                distance = len(tokens) - opened
                tokens.append(FIRST_BRACKET + K + kind)
                scored.append(distance >= FAR)
                distances.append(bisect_right(BINS, distance) - 1)
        tokens.append(END)
        scored.append(False)
        depths.append(-1)
        distances.append(-1)
        count = len(tokens) - start
        positions += [bisect_right(BINS, place) - 1 for place in range(count)]
        lengths += [bisect_right(BINS, count - 2) - 1] * count
        offsets.append(len(tokens))
    facets = {"depth": depths, "distance": distances, "position": positions, "length": lengths}
    names = tuple(map(str, BINS))
    return Split(
        "train",
        "train",
        np.array(tokens, dtype=np.int16),
        np.array(offsets, dtype=np.int64),
        np.array(scored),
        {name: Facet(np.array(x, dtype=np.int16), names) for name, x in facets.items()},
    )


def rates(make: Callable[[int, int], Split], sentences: int, rounds: int) -> list[float]:
    """Sentences a second of processor time, in several rounds."""
    found = []
    for seed in range(rounds):
        started = time.process_time()  # of all threads: so much takes one core to itself
        make(sentences, seed)
        found.append(sentences / (time.process_time() - started))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sentences", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    for name, split in (("anamorph", ours(20_000, 0)), ("plain loop", plain(20_000, 0))):
        closers = (split.facets["distance"].codes >= 0).sum()
        print(
            f"{name:>10}: mean length {split.lengths.mean() - 2:.1f} brackets, "
            f"{split.scored.sum() / closers:.1%} of closers far"
        )
    fast = rates(ours, arguments.sentences, arguments.rounds)
    slow = rates(plain, max(1, arguments.sentences // 40), arguments.rounds)
    for name, found in (("anamorph", fast), ("plain loop", slow)):
        print(
            f"{name:>10}: {statistics.median(found):>9,.0f} sentences/s "
            f"(median of {len(found)}; best {max(found):,.0f})"
        )
    print(f"{'ratio':>10}: {statistics.median(fast) / statistics.median(slow):>9.1f} of medians")
    print(f"{'bar':>10}: {BAR:>9,} sentences/s")


if __name__ == "__main__":
    main()
