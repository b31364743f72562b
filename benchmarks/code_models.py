"""Is the model of a code study a good one? Against an n-gram model and a compressor.

    python benchmarks/code_models.py runs/code-demo

Bits a character on every split, of what is scored:

- the study's models, the mean over seeds;
- an interpolated Kneser-Ney 6-gram model (Chen and Goodman 1999, "An empirical study of smoothing
  techniques for language modeling", modified, with three discounts an order), trained on the same
  sequences;
- `xz -9` (by Python's lzma): how much longer the training text gets, compressed, with the split
  behind it. It sees the functions before each one too, which the others do not.
"""

import argparse
import lzma
import math
from collections import defaultdict

import numpy as np
import polars as pl

from anamorph.runs.folder import load_run
from anamorph.tasks import Split, load_task

ORDER = 6


class KneserNey:
    """An interpolated model of the next token from the five before, START included."""

    def __init__(self, split: Split, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        counts: list[dict[bytes, dict[int, int]]] = [
            defaultdict(lambda: defaultdict(int)) for _ in range(ORDER)
        ]
        for sequence in split:
            tokens = sequence.tolist()
            keys = sequence.astype(np.uint16).tobytes()
            for at in range(1, len(tokens)):
                low = max(0, at - ORDER + 1)
                counts[at - low][keys[2 * low : 2 * at]][tokens[at]] += 1
        for n in range(ORDER - 1, 0, -1):  # lower orders count the contexts that a token follows
            for context, following in counts[n].items():
                if len(context) == 2 * n:
                    shorter = counts[n - 1][context[2:]]
                    for token in following:
                        shorter[token] += 1
        self.counts = [
            {context: dict(following) for context, following in of.items()} for of in counts
        ]
        self.discounts = [self._discounts(of) for of in self.counts]

    @staticmethod
    def _discounts(counts: dict[bytes, dict[int, int]]) -> tuple[float, float, float]:
        of = np.zeros(5)
        for following in counts.values():
            for count in following.values():
                if count <= 4:
                    of[count] += 1
        y = of[1] / max(1, of[1] + 2 * of[2])
        return tuple(
            min(max(k - (k + 1) * y * of[k + 1] / max(1, of[k]), 0.05), k - 0.05) for k in (1, 2, 3)
        )

    def bits(self, split: Split) -> float:
        """Mean over scored tokens."""
        total = count = 0.0
        for sequence in split:
            tokens, keys = sequence.tolist(), sequence.astype(np.uint16).tobytes()
            for at in range(1, len(tokens)):
                p = 1 / self.vocabulary
                for n in range(min(ORDER - 1, at) + 1):
                    following = self.counts[n].get(keys[2 * (at - n) : 2 * at])
                    if not following:
                        break
                    one, two, more = self.discounts[n]
                    values = following.values()
                    ones, twos = sum(v == 1 for v in values), sum(v == 2 for v in values)
                    rest = len(following) - ones - twos
                    here, whole = following.get(tokens[at], 0), sum(values)
                    off = (0.0, one, two, more)[min(here, 3)]
                    p = (here - off + (one * ones + two * twos + more * rest) * p) / whole
                total -= math.log2(p)
                count += 1
        return total / count


def xz_bits(split: Split, prefix: bytes) -> float:
    """Bits a token of a split, compressed behind the training text."""
    text = b"".join(_bytes(sequence) for sequence in split)
    alone, together = (len(lzma.compress(x, preset=9)) for x in (prefix, prefix + text))
    return 8 * (together - alone) / len(text)


def _bytes(sequence: np.ndarray) -> bytes:
    return (sequence[1:] & 0xFF).astype(np.uint8).tobytes()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("run")
    run = load_run(arguments.parse_args().run)
    task = load_task(**run.spec["task"])
    own = run.results.filter(
        pl.col("seed").is_null() & pl.col("facet").is_null() & (pl.col("method") == "identity"),
        pl.col("metric") == "model_cross_entropy",
    )
    ngram = KneserNey(task.train, len(task.vocabulary))
    text = b"".join(_bytes(sequence) for sequence in task.train)
    print("| split | model | 6-gram | xz -9 |\n| --- | --- | --- | --- |")
    for split in task.evaluated:
        ours = own.filter(split=split.name)["value"][0]
        part = split.take(np.arange(min(len(split), run.spec["audit"]["sequences"])))
        print(
            f"| {split.name} | {ours:.3f} | {ngram.bits(part):.3f} | {xz_bits(part, text):.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
