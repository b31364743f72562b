"""Token kinds against Pygments, where both define the kind."""

import ast
import inspect
import json
import textwrap
from collections import Counter
from pathlib import Path

import pygments.lexers
import pytest
from pygments.token import Comment, Keyword, Name, Number, Operator, Punctuation, String, Whitespace

from anamorph.corpora import cache_folder, from_recipe
from anamorph.corpora.functions import functions_in
from anamorph.corpora.languages import LANGUAGES
from anamorph.corpora.recipe import recipe_names
from anamorph.corpora.token_kinds import (
    COMMENT,
    IDENTIFIER,
    INDENTATION,
    KEYWORD,
    KINDS,
    NUMBER,
    OPERATOR,
    PUNCTUATION,
    STRING,
    WHITESPACE,
    Spans,
)

COLUMNS = ("original_string", "span_lengths", "span_kinds", "span_depths")
THEIRS = (  # the first that fits
    (Operator.Word, KEYWORD),
    (Keyword, KEYWORD),
    (String.Interpol, None),
    (String, STRING),
    (Number, NUMBER),
    (Name, IDENTIFIER),
    (Operator, OPERATOR),
    (Punctuation, PUNCTUATION),
    (Comment, COMMENT),
    (Whitespace, WHITESPACE),
)


def agreement(language: str, text: str, spans: Spans) -> Counter[tuple[int, int]]:
    """How many characters have which kind by us, and which by Pygments."""
    lexer = pygments.lexers.get_lexer_by_name(language, stripnl=False, ensurenl=False)
    theirs: list[int | None] = []
    for token, part in lexer.get_tokens(text):
        kind = next((ours for base, ours in THEIRS if token in base), None)
        theirs.extend([kind] * len(part))
    # Pygments takes carriage returns away.
    ours = [kind for kind, part in spans.texts(text) for x in part if x != "\r"]
    assert len(theirs) == len(ours)
    plain = [WHITESPACE if kind == INDENTATION else kind for kind in ours]
    return Counter((a, b) for a, b in zip(plain, theirs, strict=True) if b is not None)


def share(found: Counter[tuple[int, int]]) -> float:
    worst = {(KINDS[a], KINDS[b]): n for (a, b), n in found.most_common() if a != b}
    print(found.total(), worst)
    return sum(n for (a, b), n in found.items() if a == b) / found.total()


def test_python_as_pygments_has_it() -> None:
    found: Counter[tuple[int, int]] = Counter()
    for module in (ast, inspect, json.decoder, textwrap):
        source = Path(module.__file__ or "").read_text("utf-8")
        for function in functions_in(source, LANGUAGES["python"]):
            found += agreement("python", function.text, function.spans)
    assert found.total() > 50_000
    assert share(found) >= 0.95


@pytest.mark.network
@pytest.mark.parametrize("language", ["java", "python"])
def test_packages_as_pygments_has_them(language: str) -> None:
    table = from_recipe("demo", [language], cache_folder()).functions[language]
    found: Counter[tuple[int, int]] = Counter()
    for text, *spans in table.sample(1000, seed=0).select(*COLUMNS).iter_rows():
        found += agreement(language, text, Spans(*spans))
    assert share(found) >= 0.95


@pytest.mark.network
@pytest.mark.parametrize("recipe", recipe_names())
def test_spans_give_every_function_back(recipe: str) -> None:
    tables = from_recipe(recipe, None, cache_folder()).functions
    assert all(len(table) > 400 for table in tables.values())
    for language, table in tables.items():
        for text, lengths, kinds, depths in table.select(*COLUMNS).iter_rows():
            parts = Spans(lengths, kinds, depths).texts(text)
            assert "".join(part for _, part in parts) == text, language
            assert sum(lengths) == len(text)
