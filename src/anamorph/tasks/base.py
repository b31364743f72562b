"""What a task is: sequences in named splits, and the positions at which predictions count.

All labels are at the token they describe: `scored[t]` and the facet codes at `t` are about the
prediction *of* token `t`, which a model makes at input position `t - 1`. The first token of a
sequence is therefore never scored. A masked split is the exception: it hides the scored tokens from
the model, which predicts each at its own position.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import combinations
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anamorph.errors import AnamorphError
from anamorph.showing import Card, Cell, Showing
from anamorph.tasks.about import About
from anamorph.tasks.ragged import Ragged, Rows

Role = Literal["train", "iid", "ood"]

Tokens = NDArray[np.signedinteger[Any]]  # int16 where the vocabulary allows it, otherwise int32

NOT_APPLICABLE = -1  # the facet code of a position that the facet does not apply to
CANDIDATES = "candidates"  # among a task's fingerprints; no split can have this name

MOST_TOKENS = 40  # of a sequence, where it is shown

_BLOCK = 1 << 20  # entries of an array that are hashed at a time


@dataclass(frozen=True)
class Facet:
    """A label on every position, to break results down.

    Attributes:
        codes: [tokens] small integers; `names[code]` is the level, -1 means not applicable.
        names: the level names, in the order in which they are shown.
    """

    codes: NDArray[np.int16]
    names: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class Split(Showing, Ragged):
    """Ragged integer sequences with a role.

    Attributes:
        name: the split's name, unique in its task.
        role: `train`, `iid` (the reference) or `ood`.
        tokens: [tokens] all sequences one after the other.
        offsets: [sequences + 1] sequence `i` is `tokens[offsets[i]:offsets[i + 1]]`.
        scored: [tokens] whether the prediction of this token counts.
        facets: labels on every token.
        masked: [tokens] what the model is given instead of the tokens, the scored ones hidden; None
            if it is given the tokens and predicts each from those before it.
        ids: [sequences] what their source calls them, such as a file and a line; None if it does
            not say. No number depends on them.
        numbers: [sequences] their places in the split that they were taken of; None if it is this.

    Raises:
        AnamorphError: if the arrays do not fit together.
    """

    name: str
    role: Role
    tokens: Tokens
    offsets: NDArray[np.int64]
    scored: NDArray[np.bool_]
    facets: Mapping[str, Facet] = field(default_factory=dict)
    masked: Tokens | None = None
    ids: pl.Series | None = None
    numbers: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        total = len(self.tokens)
        lengths = np.diff(self.offsets)
        if len(self.offsets) == 0 or self.offsets[0] != 0 or self.offsets[-1] != total:
            raise AnamorphError(
                f"Split {self.name!r}: offsets must start at 0 and end at the number of tokens "
                f"({total}); got {self.offsets[:1]} … {self.offsets[-1:]}."
            )
        if len(lengths) and lengths.min() < 1:
            raise AnamorphError(
                f"Split {self.name!r}: sequence {int(lengths.argmin())} is empty; drop it."
            )
        for label, array in self._arrays().items():
            if len(array) != total:
                raise AnamorphError(
                    f"Split {self.name!r}: {label} has {len(array)} entries for {total} tokens; "
                    "give one per token."
                )
        if self.ids is not None and len(self.ids) != len(lengths):
            raise AnamorphError(
                f"Split {self.name!r}: ids has {len(self.ids)} entries for {len(lengths)} "
                "sequences; give one per sequence."
            )
        if self.masked is not None:
            if (self.masked == self.tokens)[self.scored].any():
                raise AnamorphError(
                    f"Split {self.name!r}: a scored token is not hidden; put a mask token in its "
                    "place in masked."
                )
        elif len(lengths) and self.scored[self.offsets[:-1]].any():
            raise AnamorphError(
                f"Split {self.name!r}: the first token of a sequence is scored, but nothing "
                "comes before it to predict it from; put a start token in front."
            )

    def __iter__(self) -> Iterator[Tokens]:
        for start, stop in zip(self.offsets[:-1], self.offsets[1:], strict=True):
            yield self.tokens[start:stop]

    @property
    def fingerprint(self) -> str:
        """32 hex digits of all that numbers depend on: role, tokens, offsets, scored, facets, mask.

        Equal for equal values, whatever the integer type, memory order and machine, and whatever
        the split's name. It is taken anew each time, so that arrays changed in place are noticed.
        """
        names = [(name, list(facet.names)) for name, facet in self.facets.items()]  # in their order
        arrays = self._arrays() | {"offsets": self.offsets}
        return _fingerprint({"role": self.role, "facets": names}, arrays)

    @property
    def given(self) -> Tokens:
        """[tokens] what the model is given."""
        return self.tokens if self.masked is None else self.masked

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """All that has an entry a token."""
        arrays: dict[str, NDArray[Any]] = {"tokens": self.tokens, "scored": self.scored}
        arrays |= {f"facet {name}": facet.codes for name, facet in self.facets.items()}
        return arrays if self.masked is None else arrays | {"masked": self.masked}

    def __repr__(self) -> str:
        return self._card().line

    def _card(self) -> Card:
        lengths = self.lengths
        spread = f"{lengths.min()} to {lengths.max()} tokens" if len(self) else "none"
        facets = [f"{name} ({len(facet.names)} levels)" for name, facet in self.facets.items()]
        facts = {
            "role": self.role,
            "sequences": f"{len(self):,}",
            "lengths": spread,
            "tokens": f"{len(self.tokens):,}",
            "scored": f"{self.scored.sum():,}" + (" (hidden)" if self.masked is not None else ""),
            "facets": ", ".join(facets),
        }
        return Card(f"Split {self.name}", [(name, fact) for name, fact in facts.items() if fact])

    def take(self, sequences: NDArray[np.int64]) -> "Split":
        """The split that holds only the given sequences, in the given order."""
        index = self.entries(sequences)
        return replace(
            self,
            tokens=self.tokens[index],
            offsets=Rows.of(self.lengths[sequences]).offsets,
            scored=self.scored[index],
            facets={k: Facet(f.codes[index], f.names) for k, f in self.facets.items()},
            masked=None if self.masked is None else self.masked[index],
            ids=None if self.ids is None else self.ids.gather(sequences),
            numbers=np.asarray(sequences if self.numbers is None else self.numbers[sequences]),
        )


@dataclass(frozen=True, repr=False)
class Task(Showing):
    """Data with named splits, and where predictions are scored.

    Attributes:
        name: the task's name in the registry.
        spec: every argument that made it, resolved; JSON values only.
        vocabulary: token names, by token id.
        candidates: [candidates] token ids among which a prediction is chosen.
        splits: by name; exactly one has the role `iid`.
        learnt: accuracy on `iid` above which a model counts as having learnt the task; None where
            it is not known.
        about: what a report says of the task.

    Raises:
        AnamorphError: if a split is under another name than its own, or under a reserved one.

    Warns:
        UserWarning: if two splits hold the same sequences.
    """

    name: str
    spec: Mapping[str, Any]
    vocabulary: tuple[str, ...]
    candidates: NDArray[np.int64]
    splits: Mapping[str, Split]
    learnt: float | None = None
    about: About = field(default_factory=About)

    def __post_init__(self) -> None:
        for name, split in self.splits.items():
            if name != split.name:
                raise AnamorphError(
                    f"Task {self.name!r} has a split named {split.name!r} under the name {name!r}; "
                    "put it under its own."
                )
            if name == CANDIDATES:
                raise AnamorphError(
                    f"Task {self.name!r}: a split cannot be named {name!r}, which is what a run "
                    "calls the tokens to choose among; give it another name."
                )
        for one, other in combinations(self.splits.values(), 2):
            pairs = ((one.offsets, other.offsets), (one.tokens, other.tokens))
            if all(np.array_equal(*pair) for pair in pairs):
                warnings.warn(
                    f"The splits {one.name!r} and {other.name!r} hold the same sequences, so that "
                    "comparing them says nothing. Were the same data given twice?",
                    stacklevel=3,  # where the task is made
                )

    def _card(self) -> Card:
        rows = []
        for split in self.splits.values():
            counts = (len(split), len(split.tokens), int(split.scored.sum()))
            numbers = [
                *(f"{n:,}" for n in counts),
                f"{split.lengths.mean() if len(split) else 0:.1f}",
            ]
            rows.append((split.name, [Cell(split.role, number=False), *map(Cell, numbers)]))
        among = f"{len(self.candidates):,} of {len(self.vocabulary):,} tokens"
        facts = [("predictions", f"chosen among {among}")]
        if said := ", ".join(self.about.facts):
            facts.insert(0, ("data", said))
        heads = ["split", "role", "sequences", "tokens", "scored", "mean length"]
        return Card(f"Task {self.name}", facts, heads=heads, rows=rows, notes=self._beginnings())

    def _beginnings(self) -> list[str]:
        """How the reference begins: a space between two tokens, what is scored in brackets."""
        notes = []
        for split in self.splits.values():
            if split.role == "iid" and len(split):
                stop = min(int(split.offsets[1]), MOST_TOKENS)
                names = [self.vocabulary[token] for token in split.tokens[:stop]]
                names = [name if name.isprintable() else repr(name)[1:-1] for name in names]
                shown = zip(names, split.scored[:stop], strict=True)
                text = " ".join(f"[{name}]" if scored else name for name, scored in shown)
                notes.append(f"{split.name} begins, what is scored in brackets: {text}")
        return notes

    def fingerprints(self) -> dict[str, str]:
        """The fingerprint of every split by its name, and that of `candidates` under this word.

        Names of tokens are left out: no number depends on them.
        """
        found = {name: split.fingerprint for name, split in self.splits.items()}
        return {**found, CANDIDATES: _fingerprint({}, {CANDIDATES: self.candidates})}

    @property
    def train(self) -> Split:
        """The split with the role `train`."""
        return self._with_role("train")

    @property
    def reference(self) -> Split:
        """The split with the role `iid`, against which gaps are measured."""
        return self._with_role("iid")

    @property
    def evaluated(self) -> list[Split]:
        """The splits that an audit runs over: the reference first, then every `ood` split."""
        return [self.reference, *(s for s in self.splits.values() if s.role == "ood")]

    def _with_role(self, role: Role) -> Split:
        found = [s for s in self.splits.values() if s.role == role]
        if len(found) != 1:
            raise AnamorphError(
                f"Task {self.name!r} has {len(found)} splits with the role {role!r}; "
                f"expected one. Splits: { {s.name: s.role for s in self.splits.values()} }."
            )
        return found[0]


def role_of(name: str) -> Role:
    """The role of a split that a task names itself: `train` and `iid` are what they are called."""
    return "train" if name == "train" else "iid" if name == "iid" else "ood"


def _fingerprint(facts: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """32 hex digits of JSON values and whole numbers, each array with its name and length."""
    lengths = {name: len(array) for name, array in arrays.items()}
    digest = blake2b(json.dumps([facts, lengths], sort_keys=True).encode(), digest_size=16)
    for name in sorted(arrays):
        for start in range(0, len(arrays[name]), _BLOCK):
            digest.update(arrays[name][start : start + _BLOCK].astype("<i8").tobytes())
    return digest.hexdigest()
