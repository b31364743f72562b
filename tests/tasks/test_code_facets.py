import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from anamorph.corpora.functions import parse_function
from anamorph.corpora.languages import LANGUAGES
from anamorph.corpora.token_kinds import Spans
from anamorph.tasks.code.facets import label

TEXT = """int total(int[] total) {
  int x1 = total(0); // total (
  return x1 + "x1";
}"""


def labels(text: str, copied: int = 4, language: str = "java") -> dict[str, np.ndarray]:
    spans = parse_function(text, LANGUAGES[language])
    assert spans is not None
    return label(text, spans, copied, len(text))


def at(codes: np.ndarray, text: str, part: str, nth: int = 0) -> list[int]:
    """The codes of the nth occurrence of a part of a text."""
    start = -1
    for _ in range(nth + 1):
        start = text.index(part, start + 1)
    return codes[start : start + len(part)].tolist()


def test_identifiers_are_new_or_so_far_back() -> None:
    codes = labels(TEXT)["identifier"]
    assert at(codes, TEXT, "total") == [0] * 5
    assert at(codes, TEXT, "total", 1) == [1] * 5, "12 characters back"
    assert at(codes, TEXT, "total", 2) == [1] * 5, "20 characters from the last occurrence"
    assert at(codes, TEXT, "total", 3) == [-1] * 5, "a comment"
    assert at(codes, TEXT, "x1") == [0, 0]
    assert at(codes, TEXT, "x1", 1) == [2, 2]
    assert at(codes, TEXT, "x1", 2) == [-1, -1], "a string"
    assert at(codes, TEXT, "int") == [-1] * 3, "a keyword"


def test_closing_brackets_and_their_distance() -> None:
    codes = labels(TEXT)["closing distance"]
    found = {int(i): int(codes[i]) for i in np.flatnonzero(codes >= 0)}
    # "[" to "]": 1; "(" to ")": 12, and 2 in the second line; "{" to "}": 54
    ends = [TEXT.index("]"), TEXT.index(")"), TEXT.index(");"), TEXT.index("}")]
    assert found == dict(zip(ends, (0, 1, 0, 2), strict=True))


def test_parts_kinds_and_depths() -> None:
    found = labels(TEXT)
    assert at(found["token part"], TEXT, "total") == [0, 1, 1, 1, 1]
    assert at(found["token part"], TEXT, "\n  ") == [-1] * 3, "white space is no token"
    assert at(found["token kind"], TEXT, "return x1 ") == [0] * 6 + [7] + [1] * 2 + [7]
    assert at(found["token kind"], TEXT, "\n  int") == [7, 8, 8, 0, 0, 0]
    deep, flat = at(found["tree depth"], TEXT, "0")[0], at(found["tree depth"], TEXT, "total")[0]
    assert deep > flat == 0


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet="ab(", min_size=1, max_size=60), st.integers(1, 4))
def test_copying_against_a_search_backwards(text: str, copied: int) -> None:
    codes = label(text, Spans([len(text)], [3], [0]), copied, len(text))["copying"]
    for i, code in enumerate(codes):
        if i < copied:
            assert code == -1
            continue
        earlier = text.rfind(text[i - copied : i], 0, i - 1)
        expected = 2 if earlier < 0 else int(text[earlier + copied] != text[i])
        assert code == expected


def test_a_cut_function_has_the_labels_of_the_whole() -> None:
    spans = parse_function(TEXT, LANGUAGES["java"])
    assert spans is not None
    whole = labels(TEXT)
    for size in range(1, len(TEXT)):
        cut = label(TEXT, spans, 4, size)
        for name, codes in cut.items():
            np.testing.assert_array_equal(codes, whole[name][:size], name)
