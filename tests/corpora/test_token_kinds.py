import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anamorph.corpora.functions import parse_function
from anamorph.corpora.languages import LANGUAGES
from anamorph.corpora.token_kinds import (
    COMMENT,
    INDENTATION,
    KEYWORD,
    NUMBER,
    STRING,
    WHITESPACE,
    Spans,
)
from snippets import FUNCTIONS, KEYWORDS, NUMBERS, STRINGS


def spans(language: str, text: str) -> Spans:
    found = parse_function(text, LANGUAGES[language])
    assert found is not None, f"{language} has a syntax error"
    return found


@pytest.mark.parametrize("language", LANGUAGES)
def test_spans_give_the_source_back_and_kinds_are_what_a_reader_sees(language: str) -> None:
    text = FUNCTIONS[language]
    parts = spans(language, text).texts(text)
    assert "".join(part for _, part in parts) == text
    of = {kind: [part for k, part in parts if k == kind] for kind in range(9)}
    assert of[KEYWORD] == KEYWORDS[language].split()
    assert of[STRING] == STRINGS[language]
    assert of[NUMBER] == NUMBERS[language].split()
    assert all(part.isspace() for part in of[WHITESPACE] + of[INDENTATION])
    code = "".join(part for kind, part in parts if kind not in (STRING, COMMENT))
    white = "".join(of[WHITESPACE] + of[INDENTATION])
    assert len(white) == len(re.findall(r"\s", code)), "white space is never part of a token"


def test_indentation_is_what_stands_in_front_of_a_line() -> None:
    text = "def f():\n\n    a = 1\n    if a:\n        b = 2\n    return a"
    parts = spans("python", text).texts(text)
    assert [part for kind, part in parts if kind == INDENTATION] == [" " * n for n in (4, 4, 8, 4)]
    assert "\n\n" in [part for kind, part in parts if kind == WHITESPACE]


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("java", "public void f() {\n}"),  # a method without its class
        ("javascript", "get(a) {\n  return a;\n}"),
        ("javascript", "function (a) {\n  return a;\n}"),
        ("javascript", "(a) => {\n  return a;\n}"),
        ("php", "public function f() {\n}"),
        ("php", "function f() {\n}"),
        ("rust", "fn f(&self) -> A {\n}"),
        ("python", "def f(self):\n        a\n        return b"),  # as it stands in a class
    ],
)
def test_functions_stand_alone(language: str, text: str) -> None:
    assert sum(spans(language, text).lengths) == len(text)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_syntax_error_is_no_function(language: str) -> None:
    assert parse_function("f ( {{ ] = = \n 1 1", LANGUAGES[language]) is None


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="aé𝒳 \n\t\"'#/*(){}$`\\", max_size=30))
def test_strings_with_anything_in_them_give_the_source_back(inside: str) -> None:
    text = f"def f():\n    a = 1 # é{inside.replace(chr(10), '')}\n    return {inside!r}"
    assert "".join(part for _, part in spans("python", text).texts(text)) == text
