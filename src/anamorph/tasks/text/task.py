"""Text of one's own as a task: any files, any Hugging Face tokenizer.

Every token but the first of a sequence is scored, and predicted among the whole vocabulary; for
masked models, some tokens are hidden, and these are scored. The
facets `position`, `frequency`, `repeated` and `induction` are made for any text (see
`anamorph.tasks.text.facets`), and one more from labelled spans of characters.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from anamorph.errors import AnamorphError, require
from anamorph.tasks.about import About, Choice
from anamorph.tasks.base import Facet, Role, Split, Task
from anamorph.tasks.own_facets import with_own_facets
from anamorph.tasks.text.data import ROLES, Data, TextData, all_data, held_out_split
from anamorph.tasks.text.facets import text_facets
from anamorph.tasks.text.files import checksum, open_source
from anamorph.tasks.text.masking import Mask
from anamorph.tasks.text.rows import Fields
from anamorph.tasks.text.sequences import Cut, Encoded, Packing, Reading, read
from anamorph.tasks.text.tokenizer import Tokenizer, to_tokenizer, token_names, tokenizer_name
from anamorph.tasks.text.told import Found, tell

DEPENDENT = "Windows and packs of one document are not independent; intervals assume it."
FACETS = ("position", "frequency", "repeated", "induction")


def text_task(
    data: Data,
    tokenizer: Tokenizer | str | Path,
    *,
    length: int = 128,
    packing: Packing = "truncate",
    sequences: int | None = None,
    fit_on: str = "train",
    fit_sequences: int = 200,
    fit_also: Sequence[str] = (),
    text_field: str = "text",
    spans_field: str | None = None,
    masked: float | None = None,
    vocabulary: int | None = None,
    seed: int = 0,
) -> Task:
    """Make a task from text.

    Sequences of a split are in random order, so that its first ones are a sample of it. Windows
    of one document, and sequences of one pack, are not independent of each other: intervals, which
    take sequences as independent, are then too narrow.

    Args:
        data: `ROLE=PATH` or `ROLE:NAME=PATH` for each split, or a mapping from `ROLE` or
            `ROLE:NAME` to a path or to strings, mappings or a `datasets.Dataset`. A path is a file
            (JSON, CSV, Parquet, Arrow, plain text; compressed or not), a folder, or a pattern with
            `*`: see `anamorph.tasks.text.files.open_source`. One split has the role `iid`, at most
            one `train`, any number `ood`.
        tokenizer: the model's, of Hugging Face's kind, or a folder or name to load it from.
        length: tokens in a sequence: at most, or exactly with `pack`.
        packing: `truncate` each document, cut it in consecutive `window`s, or `pack` documents
            together.
        sequences: in each evaluated split, at most; only as many documents are read, at random
            where the source can be counted cheaply (`spec["read"]` says so). `train` then has at
            most `fit_sequences`. None reads everything.
        fit_on: `train`, or without a split of that role the evaluated split whose first sequences
            are taken out of it to be the split `train`.
        fit_sequences: how many those are.
        fit_also: evaluated splits that simplifications are fitted on too (`on=`), on every second
            sequence of them unless they say otherwise. If `sequences` is given, as many are read of
            these splits as it takes to fit on `fit_sequences` and to score `sequences` others.
        text_field: the field or column with the text.
        spans_field: the field or column with `[start, end, label]` in characters, for a facet of
            that name; None for no such facet.
        masked: for masked models, the share of each sequence's tokens (at least one; none that is
            special or the first) that is hidden behind the tokenizer's mask token, to be predicted
            from both sides. The facets are then `position` and `frequency` alone. None for
            predicting every token from those before it.
        vocabulary: number of token ids among which a prediction is chosen; None for the
            tokenizer's own.
        seed: of every random choice.

    Returns:
        the task; its `spec` holds these arguments, and in sentences and numbers how simplifications
        are fitted (`fit`), how sequences are made (`made`), checksums of the files that were read
        (`files`), what was read of each source (`read`) and what the splits hold (`splits`).

    Raises:
        AnamorphError: if an argument is out of range, data cannot be read, or a split has fewer
            than two sequences.

    Warns:
        UserWarning: if an evaluated split shares sequences with `train`, or many with another; if
            many documents are blank, or the same; and if special tokens occur in the text, above
            all where the tokenizer adds them a second time.
    """
    spec = {key: value for key, value in locals().items() if key not in ("data", "tokenizer")}
    spec["fit_also"] = sorted({fit_also} if isinstance(fit_also, str) else {*fit_also})
    _check(spec)
    given = all_data(data)
    _check_names(spec["fit_also"], [d.name for d in given])
    held_out = held_out_split(given, fit_on)
    tokenizer_ = to_tokenizer(tokenizer, spans_field)
    mask = None if masked is None else Mask.of(tokenizer_, masked)
    cut = Cut.of(tokenizer_, packing, length)
    labels: dict[str, int] | None = None if spans_field is None else {}
    found = [_found(d, spec, tokenizer_, cut, d.name == held_out, labels) for d in given]
    parts: list[_Part] = [("train", "train", f.held) for f in found if f.data.name == held_out]
    parts += [(f.data.name, f.data.role, f.part) for f in found]
    parts.sort(key=lambda part: ROLES.index(part[1]))
    train, _, fitted = parts[0]
    size = len(tokenizer_) if vocabulary is None else vocabulary
    _check_ids(parts, size)
    counts = np.bincount(fitted.tokens, minlength=size)
    splits = {part[0]: _split(*part, counts, spec, mask, labels) for part in parts}
    shared = tell(splits, found)
    made = cut.sentence(tokenizer_) + ("" if mask is None else mask.sentence())
    task = Task(
        name="text",
        spec={
            "name": "text",
            "data": [str(d) for d in given],
            "tokenizer": tokenizer_name(tokenizer),
            **spec,
            "vocabulary": size,
            "fit": _fit_sentence(train, held_out, len(fitted), packing),
            "made": made,
            "files": {str(f.data.source): f.checksum for f in found if f.checksum},
            "read": {f.data.name: asdict(f.reading) for f in found},
            "splits": _described(splits, shared),
        },
        vocabulary=token_names(tokenizer_, size),
        candidates=np.arange(size),
        splits=splits,
        about=About(choices=(Choice(what="Sequences", choice=made, why=DEPENDENT),)),
    )
    return with_own_facets(task)


def _described(splits: Mapping[str, Split], shared: Mapping[str, int]) -> dict[str, Any]:
    """What the splits hold, and how many of their sequences are fitted on too."""
    return {
        name: {"role": split.role, "sequences": len(split), "tokens": len(split.tokens)}
        | ({"shared_with_fit": shared[name]} if name in shared else {})
        for name, split in splits.items()
    }


_Part = tuple[str, Role, Encoded]  # a split's name, its role and its sequences


def _found(
    d: TextData,
    spec: Mapping[str, Any],
    tokenizer: Tokenizer,
    cut: Cut,
    holding_out: bool,
    labels: dict[str, int] | None,
) -> Found:
    """Read what a split needs, and what is held out of it for the fit.

    Raises:
        AnamorphError: if it cannot be read, or there is too little of it.
    """
    held, needed = spec["fit_sequences"] if holding_out else 0, spec["sequences"]
    if needed is not None:
        if d.name in spec["fit_also"]:
            needed = 2 * max(needed, spec["fit_sequences"])
        needed = spec["fit_sequences"] if d.role == "train" else needed + held
    rng = np.random.default_rng([spec["seed"], crc32(d.name.encode())])  # each has its own
    source = open_source(d.source, Fields(spec["text_field"], spec["spans_field"]))
    digest = checksum(d.source, source.paths) if isinstance(d.source, (str, Path)) else None
    whole, reading = read(source, tokenizer, cut, needed, rng, labels)
    if source.paths:  # named from the folder on that all of them are in
        above = os.path.commonpath([path.parent for path in source.paths])
        whole = replace(whole, names=whole.names.str.strip_prefix(os.path.join(above, "")))
    first, rest = whole.take(np.arange(0)), whole
    if holding_out:
        first, rest = (whole.take(some) for some in np.split(np.arange(len(whole)), [held]))
        first = first.take(rng.permutation(len(first)))
    _check_size(d, len(rest), reading, held)
    return Found(d, rest.take(rng.permutation(len(rest))), first, reading, source.paths, digest)


def _split(
    name: str,
    role: Role,
    part: Encoded,
    counts: NDArray[np.int64],
    spec: Mapping[str, Any],
    mask: Mask | None,
    labels: Mapping[str, int] | None,
) -> Split:
    """A split with its facets; `counts` are [vocabulary] those of each token in train."""
    scored = part.position > 0
    facets = text_facets(part.tokens, part.offsets, counts, spec["length"])
    masked = None
    if mask is not None:
        rng = np.random.default_rng([spec["seed"], crc32(name.encode()), 1])
        scored = mask.choose(part.tokens, part.offsets, scored, rng)
        masked = np.where(scored, np.int32(mask.token), part.tokens)
        facets = {key: facets[key] for key in FACETS[:2]}  # the others are of what comes before
    if labels is not None:
        names = tuple(sorted(labels))  # not in the order in which chance brought them up
        rank = np.array([*map(names.index, labels), -1], dtype=np.int16)
        codes = np.where(scored, rank[part.labels], np.int16(-1))
        facets[spec["spans_field"]] = Facet(codes, names)
    return Split(name, role, part.tokens, part.offsets, scored, facets, masked, part.names)


def _fit_sentence(train: str, held_out: str | None, number: int, packing: Packing) -> str:
    if held_out is None:
        return f"Simplifications are fitted on sequences of {train!r}, which is not evaluated."
    both = "" if packing == "truncate" else " At most one document reaches into both."
    return (
        f"Simplifications are fitted on {number} sequences held out of {held_out!r}, as there are "
        f"no data for the fit alone; what is left of {held_out!r} is evaluated.{both}"
    )


def _check(spec: Mapping[str, Any]) -> None:
    least = {"length": 2, "fit_sequences": 2, "seed": 0, "sequences": 2, "vocabulary": 1}
    for name, minimum in least.items():
        if spec[name] is not None or name not in ("sequences", "vocabulary"):
            require(f"text: {name}", spec[name], whole=True, least=minimum)
    if spec["masked"] is not None:
        require("text: masked", spec["masked"], above=0, below=1)
    require("text: packing", spec["packing"], among=get_args(Packing))
    if spec["spans_field"] in (*FACETS, spec["text_field"]):
        raise AnamorphError(
            f"text: spans_field={spec['spans_field']!r} is taken; facets of any text are "
            f"{', '.join(FACETS)}, and {spec['text_field']!r} is the text. Rename the field."
        )


def _check_names(fit_also: Sequence[str], names: Sequence[str]) -> None:
    for name in fit_also:
        if name not in names:
            raise AnamorphError(
                f"There is no split {name!r} to fit on; there are: {', '.join(names)}."
            )


def _check_size(d: TextData, sequences: int, reading: Reading, held: int) -> None:
    """Whether a split has two sequences, with so many `held` out of it."""
    if sequences >= 2:
        return
    if reading.documents and reading.blank == reading.documents:
        raise AnamorphError(
            f"Split {d.name!r} ({d}): all of its {reading.documents} document(s) are empty or "
            "nothing but white space. Name the right field with text_field, or give other text."
        )
    if held:
        raise AnamorphError(
            f"Split {d.name!r} ({d}): {sequences} sequence(s) are left to evaluate when "
            f"fit_sequences={held} are held out; give fewer, or more text, or data to fit on as "
            "train=PATH."
        )
    what = "a single sequence" if sequences else "no sequence of two tokens or more"
    raise AnamorphError(
        f"Split {d.name!r} ({d}) has {what}; expected at least 2. Give more text (a plain text "
        "file is one document), or packing='window' with a smaller length."
    )


def _check_ids(parts: Sequence[_Part], size: int) -> None:
    for name, _, part in parts:
        most = int(part.tokens.max(initial=0))
        if most >= size:
            raise AnamorphError(
                f"The tokenizer gives the token id {most} (in split {name!r}), but the vocabulary "
                f"has {size} ids, 0 to {size - 1}; give vocabulary={most + 1} or more, the size of "
                "the model's embedding."
            )
