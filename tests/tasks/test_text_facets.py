"""Facets of text against loops over every earlier position."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anamorph.tasks.text.facets import text_facets

SEQUENCES = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=40), min_size=1, max_size=6)


def levels(sequences: list[list[int]], counts: list[int], length: int) -> dict[str, list[object]]:
    tokens = np.array([t for s in sequences for t in s], dtype=np.int32)
    offsets = np.cumsum([0, *map(len, sequences)])
    facets = text_facets(tokens, offsets, np.array(counts), length)
    for facet in facets.values():
        assert facet.codes.dtype == np.int16 and facet.codes.max(initial=-1) < len(facet.names)
    return {
        name: [None if c == -1 else facet.names[c] for c in facet.codes.tolist()]
        for name, facet in facets.items()
    }


def induction(sequence: list[int], target: int) -> str:
    """By the words of the definition, over all earlier occurrences of the current token."""
    current = target - 1
    followers = [sequence[j + 1] for j in range(current) if sequence[j] == sequence[current]]
    if sequence[target] in followers:
        return "predictable"
    return "other earlier continuation" if followers else "no earlier occurrence"


def position(place: int) -> str:
    low, high = 1, 15
    while not low <= place <= high:
        low, high = high + 1, 2 * high + 1
    return f"{low}–{high}"


def frequency(count: int) -> str:
    if count == 0:
        return "unseen"
    return ("1–9", "10–99", "100–999", "1000+")[min(len(str(count)) - 1, 3)]


@settings(deadline=None, derandomize=True)
@given(SEQUENCES, st.lists(st.integers(0, 2000), min_size=5, max_size=5))
def test_facets_against_loops(sequences: list[list[int]], counts: list[int]) -> None:
    found = levels(sequences, counts, 40)
    expected: dict[str, list[object]] = {name: [] for name in found}
    assert list(found) == ["position", "frequency", "repeated", "induction"]
    for sequence in sequences:
        for values in expected.values():
            values.append(None)
        for place in range(1, len(sequence)):
            token = sequence[place]
            expected["position"].append(position(place))
            expected["frequency"].append(frequency(counts[token]))
            expected["repeated"].append("seen before" if token in sequence[:place] else "new")
            expected["induction"].append(induction(sequence, place))
    assert found == expected


def test_induction_by_hand() -> None:
    a, b, c = 0, 1, 2
    found = levels([[a, b, a, b, b, a, c], [b, a, b]], [1, 1, 1], 8)["induction"]
    no, yes, other = "no earlier occurrence", "predictable", "other earlier continuation"
    #      a   b   a   b    b      a     c
    first = [None, no, no, yes, other, yes, other]
    # b→a was seen at 1→2 when it comes again at 4→5; and the second sequence knows nothing of it
    assert found == [*first, None, no, no]


def test_a_repeated_token_continues_itself() -> None:
    assert levels([[3, 3, 3]], [0] * 4, 4)["induction"] == [
        *(None, "no earlier occurrence", "predictable")
    ]


@pytest.mark.parametrize(
    ("length", "names"),
    [
        (2, ["1–15"]),
        (16, ["1–15"]),
        (17, ["1–15", "16–31"]),
        (128, ["1–15", "16–31", "32–63", "64–127"]),
        (300, ["1–15", "16–31", "32–63", "64–127", "128–255", "256–511"]),
    ],
)
def test_buckets_of_positions(length: int, names: list[str]) -> None:
    facets = text_facets(
        np.zeros(length, np.int32), np.array([0, length]), np.ones(1, np.int64), length
    )
    assert list(facets["position"].names) == names
    assert facets["position"].codes[-1] == len(names) - 1
