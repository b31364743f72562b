"""Splits and tasks: what is refused, and what taking part of a split keeps together."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from anamorph.errors import AnamorphError
from anamorph.tasks.base import Facet, Role, Split, Task


def split(
    name: str = "some",
    role: Role = "ood",
    tokens: tuple[int, ...] = (0, 5, 6, 0, 7, 0, 8, 9),
    offsets: tuple[int, ...] = (0, 3, 5, 8),
    scored: tuple[int, ...] = (0, 1, 1, 0, 0, 0, 0, 1),
    codes: tuple[int, ...] = (-1, 0, 1, -1, 2, -1, 3, 4),
) -> Split:
    return Split(
        name,
        role,
        np.array(tokens, dtype=np.int16),
        np.array(offsets, dtype=np.int64),
        np.array(scored, dtype=np.bool_),
        {"kind": Facet(np.array(codes, dtype=np.int16), ("a", "b", "c", "d", "e"))},
    )


def test_a_split_is_its_sequences() -> None:
    s = split()
    assert len(s) == 3
    assert s.lengths.tolist() == [3, 2, 3]
    assert [x.tolist() for x in s] == [[0, 5, 6], [0, 7], [0, 8, 9]]


def test_taking_keeps_labels_with_their_tokens() -> None:
    part = split().take(np.array([2, 0, 2]))
    assert [x.tolist() for x in part] == [[0, 8, 9], [0, 5, 6], [0, 8, 9]]
    assert part.scored.tolist() == [False, False, True, False, True, True, False, False, True]
    assert part.facets["kind"].codes.tolist() == [-1, 3, 4, -1, 0, 1, -1, 3, 4]
    assert part.facets["kind"].names == ("a", "b", "c", "d", "e")
    assert (part.name, part.role) == ("some", "ood")
    assert len(split().take(np.array([], dtype=np.int64))) == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"offsets": (0, 3, 5)}, r"offsets must start at 0 and end at the number of tokens \(8\)"),
        ({"offsets": (1, 3, 8)}, "offsets must start at 0"),
        ({"offsets": ()}, "offsets must start at 0"),
        ({"offsets": (0, 3, 3, 8)}, "sequence 1 is empty"),
        ({"scored": (0, 1)}, "scored has 2 entries for 8 tokens"),
        ({"codes": (0,) * 9}, "facet kind has 9 entries for 8 tokens"),
        ({"scored": (0, 1, 1, 1, 0, 0, 0, 0)}, "the first token of a sequence is scored"),
    ],
)
def test_arrays_that_do_not_fit_are_errors(wrong: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(AnamorphError, match=message):
        split(**wrong)  # type: ignore[arg-type]


def task(*roles: tuple[str, Role]) -> Task:
    splits = {  # each with other tokens at its end
        name: split(name, role, tokens=(0, 5, 6, 0, 7, 0, 8, place))
        for place, (name, role) in enumerate(roles)
    }
    return Task("toy", {}, tuple("abcdefghij"), np.array([5, 6]), splits)


def test_the_reference_comes_first_whatever_the_order() -> None:
    t = task(("far", "ood"), ("train", "train"), ("usual", "iid"), ("deep", "ood"))
    assert t.train.name == "train"
    assert t.reference.name == "usual"
    assert [s.name for s in t.evaluated] == ["usual", "far", "deep"]


@pytest.mark.parametrize(
    "roles", [(("a", "ood"),), (("a", "iid"), ("b", "iid"), ("train", "train"))]
)
def test_a_task_has_one_reference(roles: tuple[tuple[str, Role], ...]) -> None:
    with pytest.raises(AnamorphError, match=r"'toy' has [02] splits with the role 'iid'"):
        _ = task(*roles).reference


def with_mask(s: Split) -> Split:
    return replace(s, masked=np.where(s.scored, 1, s.tokens))


def with_facets(s: Split, facets: dict[str, Facet]) -> Split:
    return replace(s, facets=facets)


KIND = split().facets["kind"]
FLIPS: dict[str, Callable[[Split], Split]] = {
    "role": lambda s: replace(s, role="iid"),
    "a token": lambda s: replace(s, tokens=s.tokens + (np.arange(8) == 7)),
    "a boundary": lambda s: replace(s, offsets=np.array([0, 3, 6, 8])),
    "a sequence more": lambda s: replace(s, offsets=np.array([0, 3, 5, 6, 8])),
    "scored": lambda s: replace(s, scored=s.scored & (np.arange(8) != 1)),
    "no facets": lambda s: with_facets(s, {}),
    "a facet's name": lambda s: with_facets(s, {"sort": KIND}),
    "a facet more": lambda s: with_facets(s, {"kind": KIND, "sort": KIND}),
    "a code": lambda s: with_facets(s, {"kind": replace(KIND, codes=KIND.codes % 4)}),
    "a level's name": lambda s: with_facets(s, {"kind": replace(KIND, names=tuple("abcdx"))}),
    "levels in another order": lambda s: with_facets(s, {"kind": Facet(KIND.codes, (*"baecd",))}),
    "a level that no position has": lambda s: with_facets(
        s, {"kind": replace(KIND, names=(*"abcdef",))}
    ),
    "masked": with_mask,
    "another mask": lambda s: replace(s, masked=np.where(s.scored, 2, s.tokens)),
}


def test_every_ingredient_changes_the_fingerprint() -> None:
    plain = replace(split(), offsets=np.array([0, 3, 5, 8]), scored=split().scored)
    found = {"plain": plain.fingerprint} | {k: f(plain).fingerprint for k, f in FLIPS.items()}
    assert len(set(found.values())) == len(FLIPS) + 1, found
    assert all(len(x) == 32 and int(x, 16) >= 0 for x in found.values())


@pytest.mark.parametrize("dtype", ["int8", "int16", ">i4", "int64", ">i8", "uint16"])
def test_a_fingerprint_is_of_values_not_of_how_they_are_held(dtype: str) -> None:
    given = with_mask(split())
    wide = np.stack([given.tokens, given.tokens * 0], axis=1).astype(dtype)  # a column: strided
    codes = np.asfortranarray(np.stack([KIND.codes] * 2))[0].astype(">i2")
    other = Split(
        "another name",
        given.role,
        wide[:, 0],  # type: ignore[arg-type]
        given.offsets.astype(dtype),
        given.scored.astype(np.uint8).astype(bool),
        {"kind": Facet(codes, KIND.names)},
        given.masked.astype(dtype),  # type: ignore[union-attr]
    )
    assert other.fingerprint == given.fingerprint


def test_a_fingerprint_is_the_same_on_every_machine() -> None:
    assert split().fingerprint == "1d03506d31fdaf9147b3d9a3a817f88d"
    assert with_mask(split()).fingerprint == "0a271a621faf7d3372537f4e90a405f4"


def test_the_order_of_facets_and_a_change_in_place_are_noticed() -> None:
    both = {"kind": KIND, "sort": replace(KIND, names=(*"vwxyz",))}
    one, other = (with_facets(split(), dict(f)) for f in (both.items(), [*both.items()][::-1]))
    before = one.fingerprint
    assert before != other.fingerprint  # sums per level are laid out in this order
    one.tokens[-1] += 1
    assert one.fingerprint != before


def test_long_arrays_are_hashed_to_their_end() -> None:
    def long(last: int) -> Split:
        tokens = np.zeros(2_500_000, dtype=np.int32)
        tokens[-1] = last
        return Split("x", "iid", tokens, np.array([0, len(tokens)]), np.zeros(len(tokens), bool))

    assert long(1).fingerprint == long(1).fingerprint != long(2).fingerprint


def test_the_fingerprints_of_a_task() -> None:
    t = task(("usual", "iid"), ("far", "ood"))
    found = t.fingerprints()
    assert list(found) == ["usual", "far", "candidates"]
    assert found["far"] == t.splits["far"].fingerprint != found["usual"]
    for candidates in ([6, 5], [5], [5, 6, 7], [5, 7]):
        changed = replace(t, candidates=np.array(candidates)).fingerprints()
        assert changed.pop("candidates") != found["candidates"]
        assert changed == {k: v for k, v in found.items() if k != "candidates"}
    assert replace(t, vocabulary=tuple("ABCDEFGHIJ")).fingerprints() == found
    assert replace(t, candidates=np.array([5, 6], np.int16)).fingerprints() == found


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"a": split("b", "iid")}, "a split named 'b' under the name 'a'"),
        ({"candidates": split("candidates", "iid")}, "cannot be named 'candidates'"),
    ],
)
def test_names_that_would_be_confused(splits: dict[str, Any], message: str) -> None:
    with pytest.raises(AnamorphError, match=message):
        Task("toy", {}, tuple("abcdefghij"), np.array([5, 6]), splits)


@pytest.mark.parametrize("role", ["train", "ood"])
def test_the_same_sequences_under_two_names_are_told(role: Role) -> None:
    both = {"usual": split("usual", "iid"), "again": split("again", role, scored=(0,) * 8)}
    with pytest.warns(UserWarning, match="'usual' and 'again' hold the same sequences") as caught:
        Task("toy", {}, tuple("abcdefghij"), np.array([5, 6]), both)
    assert [w.filename for w in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both["again"] = split("again", role, offsets=(0, 3, 6, 8), scored=(0,) * 8)
        Task("toy", {}, tuple("abcdefghij"), np.array([5, 6]), both)
