"""Warnings about text before an audit: what makes numbers mean less than they seem to."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, combinations
from pathlib import Path

from anamorph.tasks.base import Split
from anamorph.tasks.text.content import ending, named_kind
from anamorph.tasks.text.data import TextData
from anamorph.tasks.text.sequences import Encoded, Reading

LITTLE = 0.05  # a share of sequences up to which chance may make them equal


@dataclass(frozen=True)
class Found:
    """What was read for a split.

    Attributes:
        data: where it comes from.
        part: its sequences, in random order.
        held: those that are held out of it for the fit, likewise.
        reading: how they were read.
        paths: of the files that were read; objects in memory have none.
        checksum: of these files; None for objects in memory.
    """

    data: TextData
    part: Encoded
    held: Encoded
    reading: Reading
    paths: Sequence[Path]
    checksum: str | None


def tell(splits: Mapping[str, Split], found: Sequence[Found]) -> dict[str, int]:
    """Warn of sequences in several splits, of repeated ones, and of special tokens in the text.

    Returns:
        how many sequences of each evaluated split are in `train` too.
    """
    known = {
        name: [blake2b(s.tobytes(), digest_size=16).digest() for s in split]
        for name, split in splits.items()
    }
    (train,) = (split.name for split in splits.values() if split.role == "train")
    evaluated = [name for name in splits if name != train]
    shared = {name: _common(known[name], known[train]) for name in evaluated}
    files = {f.data.name: f.checksum for f in found if f.checksum}
    sentences = [
        *chain.from_iterable(map(_of_reading, found)),
        *chain.from_iterable(map(_of_formats, found)),
        *chain.from_iterable(_of_repeated(name, digests) for name, digests in known.items()),
    ]
    for name, number in shared.items():
        if number:
            sentences.append(
                f"The split {name!r} shares {number} of its {len(splits[name])} sequences with the "
                f"fit data ({train!r}); on these a proxy is not tested on anything new."
            )
        elif name in files and files[name] == files.get(train):
            sentences.append(
                f"The split {name!r} is drawn from the same text as the fit data ({train!r}), so "
                "that it is not a test on new text. Give each its own."
            )
    for one, other in combinations(evaluated, 2):
        same_file = one in files and files[one] == files.get(other)
        sentences += _of_pair(one, other, known, same_file)
    for sentence in sentences:
        warnings.warn(sentence, stacklevel=3)  # where the task is made
    return shared


def _of_reading(found: Found) -> Iterator[str]:
    """What is odd in the documents of a split."""
    name, reading = found.data.name, found.reading
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


def _of_formats(found: Found) -> Iterator[str]:
    """Whether the files of a split are of several formats."""
    kinds = sorted({ending(file) for file in found.paths if named_kind(file) is not None})
    if len(kinds) > 1:
        yield (
            f"The split {found.data.name!r} is read from {len(found.paths)} files of several "
            f"formats ({', '.join(kinds)}), such as {found.paths[0].name}."
        )


def _of_repeated(name: str, digests: Sequence[bytes]) -> Iterator[str]:
    """Whether many sequences of a split are the same."""
    different = len(set(digests))
    if len(digests) - different > LITTLE * len(digests):
        yield (
            f"Of the {len(digests)} sequences of the split {name!r} only {different} are "
            "different. Leave repeated documents out: to intervals, each is evidence of its "
            "own, and to a fit it counts as often."
        )


def _of_pair(
    one: str, other: str, known: Mapping[str, Sequence[bytes]], same_file: bool
) -> Iterator[str]:
    """Whether two evaluated splits are much the same."""
    both = f"The splits {one!r} and {other!r}"
    number = _common(known[other], known[one])
    if set(known[one]) == set(known[other]):
        yield (
            f"{both} hold the same sequences, so that a gap between them says nothing. Was the "
            "same text given twice?"
        )
    elif same_file:
        yield (
            f"{both} are drawn from the same text, so that a gap between them is chance. Give each "
            "its own."
        )
    elif number > LITTLE * min(len(known[one]), len(known[other])):
        yield (
            f"{number} of the {len(known[other])} sequences of the split {other!r} are in {one!r} "
            "too, so that a gap between them is smaller than it would be."
        )


def _common(digests: Sequence[bytes], others: Sequence[bytes]) -> int:
    there = set(others)
    return sum(digest in there for digest in digests)
