"""Warnings about text before an audit: what makes numbers mean less than they seem to."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import chain, combinations
from pathlib import Path

from anamorph.tasks.base import Split
from anamorph.tasks.text.content import ending, named_kind
from anamorph.tasks.text.sequences import Reading

LITTLE = 0.05  # a share of sequences up to which chance may make them equal


def tell(
    splits: Mapping[str, Split],
    readings: Mapping[str, Reading],
    checksums: Mapping[str, str],
    paths: Mapping[str, Sequence[Path]],
) -> dict[str, int]:
    """Warn of sequences in several splits, of repeated ones, and of special tokens in the text.

    Args:
        splits: of a task.
        readings: what was read for them, by split.
        checksums: of the files that were read for them, by split; objects in memory have none.
        paths: of these files.

    Returns:
        how many sequences of each evaluated split are in `train` too.
    """
    known = {
        name: [blake2b(s.tobytes(), digest_size=16).digest() for s in split]
        for name, split in splits.items()
    }
    (train,) = (split.name for split in splits.values() if split.role == "train")
    evaluated = [split.name for split in splits.values() if split.role != "train"]
    shared = {name: _common(known[name], known[train]) for name in evaluated}
    sentences = [
        *chain.from_iterable(_of_reading(name, reading) for name, reading in readings.items()),
        *_of_formats(paths),
        *_of_repeated(known),
    ]
    for name, number in shared.items():
        if number:
            sentences.append(
                f"The split {name!r} shares {number} of its {len(splits[name])} sequences with the "
                f"fit data ({train!r}); on these a proxy is not tested on anything new."
            )
    for name in evaluated if train in checksums else ():
        if checksums.get(name) == checksums[train] and not shared[name]:
            sentences.append(
                f"The split {name!r} is drawn from the same text as the fit data ({train!r}), so "
                "that it is not a test on new text. Give each its own."
            )
    for one, other in combinations(evaluated, 2):
        same_file = one in checksums and checksums[one] == checksums.get(other)
        sentences += _of_pair((one, known[one]), (other, known[other]), same_file)
    for sentence in sentences:
        warnings.warn(sentence, stacklevel=3)  # where the task is made
    return shared


def _of_reading(name: str, reading: Reading) -> Iterator[str]:
    """What is odd in the documents of a split."""
    if reading.blank > LITTLE * reading.documents:
        yield (
            f"{reading.blank} of the {reading.documents} documents of the split {name!r} are empty "
            "or nothing but white space, and are left out."
        )
    if reading.doubled:
        yield (
            f"{reading.doubled} of the {reading.documents} documents of the split {name!r} begin "
            "or end with the special token that the tokenizer adds there itself, so that the model "
            "sees it twice. Leave it out of the text: chat templates write it there."
        )
    if reading.special:
        tokens = ", ".join(f"{token} ({count})" for token, count in reading.special.items())
        yield (
            f"The text of the split {name!r} spells special tokens, which the tokenizer takes for "
            f"those and not for text: {tokens}. If they are not meant, leave them out."
        )


def _of_formats(paths: Mapping[str, Sequence[Path]]) -> Iterator[str]:
    """Whether the files of a split are of several formats."""
    for name, files in paths.items():
        kinds = sorted({ending(file) for file in files if named_kind(file) is not None})
        if len(kinds) > 1:
            yield (
                f"The split {name!r} is read from {len(files)} files of several formats "
                f"({', '.join(kinds)}), such as {files[0].name}."
            )


def _of_repeated(known: Mapping[str, Sequence[bytes]]) -> Iterator[str]:
    """Whether many sequences of a split are the same."""
    for name, digests in known.items():
        different = len(set(digests))
        if len(digests) - different > LITTLE * len(digests):
            yield (
                f"Of the {len(digests)} sequences of the split {name!r} only {different} are "
                "different. Leave repeated documents out: to intervals, each is evidence of its "
                "own, and to a fit it counts as often."
            )


def _of_pair(
    one: tuple[str, Sequence[bytes]], other: tuple[str, Sequence[bytes]], same_file: bool
) -> Iterator[str]:
    """Whether two evaluated splits, each with its name and sequences, are much the same."""
    both = f"The splits {one[0]!r} and {other[0]!r}"
    number = _common(other[1], one[1])
    if set(one[1]) == set(other[1]):
        yield (
            f"{both} hold the same sequences, so that a gap between them says nothing. Was the "
            "same text given twice?"
        )
    elif same_file:
        yield (
            f"{both} are drawn from the same text, so that a gap between them is chance. Give each "
            "its own."
        )
    elif number > LITTLE * min(len(one[1]), len(other[1])):
        yield (
            f"{number} of the {len(other[1])} sequences of the split {other[0]!r} are in "
            f"{one[0]!r} too, so that a gap between them is smaller than it would be."
        )


def _common(digests: Sequence[bytes], others: Sequence[bytes]) -> int:
    there = set(others)
    return sum(digest in there for digest in digests)
