"""Documents to sequences of tokens, in one of three ways.

`truncate` keeps the beginning of each document, `window` all of it in consecutive windows, and
`pack` joins the documents and cuts the whole. A tokenizer that puts tokens in front of a text, such
as BOS, does so in front of every sequence, as the model saw it in training.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anamorph.errors import AnamorphError
from anamorph.tasks.base import NOT_APPLICABLE
from anamorph.tasks.ragged import Ragged, Rows, joined
from anamorph.tasks.text.rows import Document
from anamorph.tasks.text.sources import Source
from anamorph.tasks.text.tokenizer import Tokenizer, separator, special_ids, special_tokens

Packing = Literal["truncate", "window", "pack"]
Chosen = Literal["all", "at random", "the first"]

BATCH = 256  # documents that are in memory as text at a time


@dataclass(frozen=True)
class Encoded(Ragged):
    """Token sequences with a label for each token.

    Attributes:
        tokens: [tokens] token ids.
        offsets: [sequences + 1] where each begins, and the end.
        labels: [tokens] a code for the label of the span around each; -1 outside all spans.
        names: [sequences] the document in which each begins, and the token if it is not the first.
    """

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    labels: NDArray[np.int16]
    names: pl.Series

    def take(self, sequences: NDArray[np.int64]) -> "Encoded":
        """Only the given sequences, in the given order."""
        taken = self.slices(self.offsets[sequences], self.lengths[sequences])
        return replace(taken, names=self.names.gather(sequences))

    def slices(
        self, starts: NDArray[np.int64], lengths: NDArray[np.int64], prefix: Sequence[int] = ()
    ) -> "Encoded":
        """New sequences: the prefix, then `lengths` tokens from `starts` on."""
        body = Rows.of(lengths)
        index = body.position + starts[body.owner]
        front = np.repeat(body.offsets[:-1], len(prefix))  # where in the body prefixes go
        return Encoded(
            np.insert(self.tokens[index], front, np.tile(prefix, len(starts))),
            Rows.of(lengths + len(prefix)).offsets,
            np.insert(self.labels[index], front, NOT_APPLICABLE),
            self._names_at(starts),
        )

    def _names_at(self, starts: NDArray[np.int64]) -> pl.Series:
        """[starts] what new sequences that begin there are called."""
        owner = np.searchsorted(self.offsets, starts, side="right") - 1
        found = pl.DataFrame({"name": self.names.gather(owner), "at": starts - self.offsets[owner]})
        later = pl.format("{}, from token {}", "name", "at")
        return found.select(pl.when(pl.col("at") > 0).then(later).otherwise("name")).to_series()


@dataclass(frozen=True)
class Cut:
    """How documents become sequences.

    Attributes:
        packing: see the top of this file.
        length: tokens in a sequence: at most, or exactly with `pack`.
        front: token ids in front of every sequence (none with `truncate`: the tokenizer adds them).
        behind: token ids behind every document (none with `truncate`).
    """

    packing: Packing
    length: int
    front: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()

    @classmethod
    def of(cls, tokenizer: Tokenizer, packing: Packing, length: int) -> "Cut":
        """The way of cutting that suits a tokenizer.

        Raises:
            AnamorphError: if it has no token to join documents with, or leaves no room for text.
        """
        if packing == "truncate":
            return cls(packing, length)
        front, behind = special_tokens(tokenizer)
        if len(front) >= length:
            raise AnamorphError(
                f"The tokenizer puts {len(front)} token(s) in front of every sequence, which "
                f"leaves no room in length={length}; give a greater length."
            )
        return cls(packing, length, front, (separator(tokenizer),) if packing == "pack" else behind)

    @property
    def step(self) -> int:
        """The most tokens of a document's own that a sequence holds."""
        return self.length - len(self.front)

    @property
    def least(self) -> int:
        """Fewer tokens than this make no sequence, as nothing in it could be scored."""
        return max(1, 2 - len(self.front))

    def windows(self, offsets: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where sequences start in the documents' tokens, and how many tokens each takes.

        Args:
            offsets: [documents + 1] where each document begins, and the end.
        """
        if self.packing == "pack":
            starts = np.arange(offsets[-1] // self.step) * self.step
            return starts, np.full(len(starts), self.step)
        number = -(-np.diff(offsets) // self.step)
        if self.packing == "truncate":
            number = np.minimum(number, 1)
        pieces = Rows.of(number)
        starts = offsets[pieces.owner] + pieces.position * self.step
        lengths = np.minimum(offsets[pieces.owner + 1] - starts, self.step)
        enough = lengths >= self.least
        return starts[enough], lengths[enough]

    def sentence(self, tokenizer: Tokenizer) -> str:
        """What is done, for the record."""
        front, behind = (
            " ".join(map(str, tokenizer.convert_ids_to_tokens(list(ids))))
            for ids in (self.front, self.behind)
        )
        if self.packing == "truncate":
            return (
                f"Each document is a sequence, cut to at most {self.length} tokens; special tokens "
                "are those that the tokenizer adds."
            )
        with_front = f", {front} in front of each" if front else ""
        if self.packing == "pack":
            return (
                f"Documents are joined with {behind} and cut into sequences of exactly "
                f"{self.length} tokens{with_front}; a sequence may hold several documents."
            )
        with_behind = f" {behind} stands behind each document." if behind else ""
        return (
            f"Each document is cut into consecutive windows of at most {self.length} tokens"
            f"{with_front}.{with_behind}"
        )


@dataclass(frozen=True)
class Reading:
    """What was read of a source.

    Attributes:
        documents: read, all in all.
        chosen: which those are: `all`, `at random` or `the first`.
        dropped: of them, blank or too short for anything to be scored.
        cut_tokens: tokens of the documents read that are in no sequence.
        blank: of the documents, those without anything but white space.
        doubled: of the documents, those that begin or end with what the tokenizer adds there.
        special: how often special tokens occur in the text itself, by name.
    """

    documents: int
    chosen: Chosen
    dropped: int
    cut_tokens: int
    blank: int = 0
    doubled: int = 0
    special: dict[str, int] = field(default_factory=dict)


def read(
    source: Source,
    tokenizer: Tokenizer,
    cut: Cut,
    needed: int | None,
    rng: np.random.Generator,
    labels: dict[str, int] | None,
) -> tuple[Encoded, Reading]:
    """Read as many documents as are needed, and cut them into sequences.

    The documents come in random order, unless only some are needed and the source cannot be
    counted cheaply: then they are the first ones, in their order.

    Args:
        source: of documents.
        tokenizer: for them.
        cut: how they become sequences.
        needed: sequences; None for all that there are.
        rng: draws the order of the documents.
        labels: codes of the spans' labels, to which new ones are added; None if no spans are asked
            for.
    """
    parts = [_encode([], tokenizer, cut, labels)]
    documents = tokens = windows = 0
    chosen: Chosen = "all"
    count = None if needed is None else source.count()
    for batch in _batches(source, count, min(needed or BATCH, BATCH), rng):
        part = _encode([d for d in batch if d.text.strip()], tokenizer, cut, labels)
        parts.append(part)
        documents += len(batch)
        tokens += len(part.tokens)
        windows += len(cut.windows(part.offsets)[0])
        made = tokens // cut.step if cut.packing == "pack" else windows
        if needed is not None and made >= needed and documents != count:
            chosen = "the first" if count is None else "at random"
            break
    codes = np.concatenate([part.labels for part in parts])
    names = pl.concat([part.names for part in parts])
    whole = Encoded(np.concatenate([part.tokens for part in parts]), joined(parts), codes, names)
    blank = documents - len(whole)
    short = 0 if cut.packing == "pack" else int((whole.lengths < cut.least).sum())
    doubled, special = _special(whole, tokenizer, cut)
    if needed is None:
        whole = whole.take(rng.permutation(len(whole)))
    starts, lengths = (x[:needed] for x in cut.windows(whole.offsets))
    left = len(whole.tokens) - int(lengths.sum())
    reading = Reading(documents, chosen, blank + short, left, blank, doubled, special)
    return whole.slices(starts, lengths, cut.front), reading


def _batches(
    source: Source, count: int | None, size: int, rng: np.random.Generator
) -> Iterator[list[Document]]:
    """All documents, in random order if they were counted."""
    if count is None:
        documents = iter(source)
        while batch := list(islice(documents, size)):
            yield batch
    else:
        order = rng.permutation(count)
        for start in range(0, count, size):
            batch = list(source.pick(np.sort(order[start : start + size])))
            yield [batch[i] for i in rng.permutation(len(batch))]


def _encode(
    batch: Sequence[Document], tokenizer: Tokenizer, cut: Cut, labels: dict[str, int] | None
) -> Encoded:
    """The documents' tokens, with what is put behind each."""
    names = pl.Series([document.where for document in batch], dtype=pl.String)
    if not batch:
        return Encoded(np.zeros(0, np.int32), np.zeros(1, np.int64), np.zeros(0, np.int16), names)
    options = {} if labels is None else {"return_offsets_mapping": True}
    encoded = tokenizer(
        [document.text for document in batch],
        add_special_tokens=cut.packing == "truncate",
        verbose=False,  # or it warns of texts that are longer than the model's context
        **options,
    )
    ids = [[*document, *cut.behind] for document in encoded["input_ids"]]
    offsets = Rows.of([len(document) for document in ids]).offsets
    tokens = np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=offsets[-1])
    codes = np.full(len(tokens), NOT_APPLICABLE, dtype=np.int16)
    if labels is not None:
        for document, where, start in zip(batch, encoded["offset_mapping"], offsets, strict=False):
            codes[start : start + len(where)] = token_labels(document, where, labels)
    return Encoded(tokens, offsets, codes, names)


def _special(part: Encoded, tokenizer: Tokenizer, cut: Cut) -> tuple[int, dict[str, int]]:
    """How many documents have their first or last special token twice, and those in their text.

    `part` has a document a sequence. The second result is how often each token occurs, by name.
    """
    try:
        before, after = special_tokens(tokenizer)
    except AnamorphError:  # they cannot be found out
        before, after = (), ()
    whole = cut.packing == "truncate"  # then the tokenizer has added them to the part
    front, behind = (len(before), after) if whole else (0, cut.behind)
    lengths, place = part.lengths, part.position
    inside = (place >= front) & (place < (lengths - len(behind))[part.owner])
    if whole:
        inside &= place < cut.length
    in_text = part.tokens[inside & np.isin(part.tokens, special_ids(tokenizer))]
    found, times = np.unique(in_text, return_counts=True)
    some = lengths > front + len(behind)
    first = part.tokens[(part.offsets[:-1] + front)[some]]
    last = part.tokens[(part.offsets[1:] - len(behind) - 1)[some]]
    twice = np.isin(first, before[-1:]) | np.isin(last, behind[:1])
    names = tokenizer.convert_ids_to_tokens(found.tolist())
    return int(twice.sum()), dict(zip(map(str, names), times.tolist(), strict=True))


def token_labels(
    document: Document, where: Sequence[tuple[int, int]], labels: dict[str, int]
) -> NDArray[np.int16]:
    """The label of each token: that of the span around its first character that is not white space.

    Args:
        document: the text and its spans.
        where: [tokens] the characters of each token; the end is exclusive.
        labels: their codes, to which new ones are added.

    Returns:
        [tokens] codes; -1 outside all spans, and where there is nothing but white space.
    """
    length = len(document.text)
    covered = np.full(length + 1, NOT_APPLICABLE, dtype=np.int16)
    for start, end, label in document.spans:
        code = labels.setdefault(label, len(labels))
        if code > np.iinfo(np.int16).max:
            raise AnamorphError(
                f"{document.where}: the spans have more than {code} different labels; a facet "
                "needs few. Give kinds of spans, not their contents."
            )
        covered[start:end] = code
    characters = np.frombuffer(document.text.encode("utf-32-le"), dtype="<U1")
    seen = np.where(np.strings.isspace(characters), length, np.arange(length))
    next_seen = np.minimum.accumulate(np.append(seen, length)[::-1])[::-1]
    starts, ends = np.array(where, dtype=np.int64).reshape(-1, 2).T
    place = next_seen[starts]
    return np.where(place < ends, covered[place], np.int16(NOT_APPLICABLE))
