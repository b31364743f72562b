"""Splits and tasks: what is refused, and what taking part of a split keeps together."""

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
    splits = {name: split(name, role) for name, role in roles}
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
