"""What is told of text before an audit: what makes numbers mean less than they seem to."""

import warnings
from collections.abc import Callable, Mapping
from hashlib import blake2b
from itertools import combinations

from anamorph.tasks.base import Split
from anamorph.tasks.text_sequences import Reading

LITTLE = 0.05  # a share of sequences up to which chance may make them equal

Say = Callable[[str], None]


def tell(
    splits: Mapping[str, Split],
    readings: Mapping[str, Reading],
    checksums: Mapping[str, str],
    stacklevel: int,
) -> dict[str, int]:
    """Warn of sequences in several splits, of repeated ones, and of special tokens in the text.

    Args:
        splits: of a task.
        readings: what was read for them, by split.
        checksums: of the files that were read for them, by split; none for objects in memory.
        stacklevel: of the warnings, as in `warnings.warn`, counted from the caller.

    Returns:
        how many sequences of each evaluated split stand in `train` too.
    """

    def say(sentence: str) -> None:
        warnings.warn(sentence, stacklevel=stacklevel + 2)  # behind `say`, and what calls it

    for name, reading in readings.items():
        _tell_of_reading(name, reading, say)
    known = {name: [_digest(s.tobytes()) for s in split] for name, split in splits.items()}
    for name, digests in known.items():
        different = len(set(digests))
        if len(digests) - different > LITTLE * len(digests):
            say(
                f"Of the {len(digests)} sequences of the split {name!r} only {different} are "
                "different. Leave repeated documents out: to intervals, each is evidence of its "
                "own, and to a fit it counts as often."
            )
    (train,) = (split for split in splits.values() if split.role == "train")
    evaluated = [split for split in splits.values() if split.role != "train"]
    shared = {s.name: _common(known[s.name], known[train.name]) for s in evaluated}
    for name, number in shared.items():
        if number:
            say(
                f"The split {name!r} shares {number} of its {len(splits[name])} sequences with "
                f"the fit data ({train.name!r}); on these a proxy is not tested on anything new."
            )
    for one, other in combinations([split.name for split in evaluated], 2):
        _tell_of_pair(one, other, known, checksums, say)
    return shared


def _tell_of_pair(
    one: str,
    other: str,
    known: Mapping[str, list[bytes]],
    checksums: Mapping[str, str],
    say: Say,
) -> None:
    """Warn of two evaluated splits that are much the same."""
    number = _common(known[other], known[one])
    if set(known[one]) == set(known[other]):
        say(
            f"The splits {one!r} and {other!r} hold the same sequences, so that a gap between them "
            "says nothing. Was the same text given twice?"
        )
    elif one in checksums and checksums[one] == checksums.get(other):
        say(
            f"The splits {one!r} and {other!r} are drawn from the same text, so that a gap between "
            "them is chance. Give each its own."
        )
    elif number > LITTLE * min(len(known[one]), len(known[other])):
        say(
            f"{number} of the {len(known[other])} sequences of the split {other!r} stand in "
            f"{one!r} too, so that a gap between them is smaller than it would be."
        )


def _tell_of_reading(name: str, reading: Reading, say: Say) -> None:
    """Warn of what the documents of a split hold."""
    if reading.blank > LITTLE * reading.documents:
        say(
            f"{reading.blank} of the {reading.documents} documents of the split {name!r} are empty "
            "or nothing but white space, and are left out."
        )
    if reading.doubled:
        say(
            f"{reading.doubled} of the {reading.documents} documents of the split {name!r} begin "
            "or end with the special token that the tokenizer adds there itself, so that the model "
            "sees it twice. Leave it out of the text: chat templates write it there."
        )
    if reading.special:
        tokens = ", ".join(f"{token} ({count})" for token, count in reading.special.items())
        say(
            f"The text of the split {name!r} spells special tokens, which the tokenizer takes for "
            f"those and not for text: {tokens}. If they are not meant, leave them out."
        )


def _common(digests: list[bytes], others: list[bytes]) -> int:
    there = set(others)
    return sum(digest in there for digest in digests)


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()
