"""The programming languages that functions can be taken from, and their grammars."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from anamorph.errors import AnamorphError

if TYPE_CHECKING:
    import tree_sitter


@dataclass(frozen=True)
class Language:
    """A programming language.

    Attributes:
        name: as CodeSearchNet calls it.
        suffixes: of its files.
        functions: the grammar's node types that are a function with a body.
        wrappers: what to put around a function without a file, so that the grammar takes it; the
            first that parses without an error counts.
        grammar: the function of the grammar's package that gives the grammar.
    """

    name: str
    suffixes: tuple[str, ...]
    functions: tuple[str, ...]
    wrappers: tuple[tuple[str, str], ...] = (("", ""),)
    grammar: str = "language"


_CLASS = ("class A {\n", "\n}")

LANGUAGES: dict[str, Language] = {
    language.name: language
    for language in (
        Language("java", (".java",), ("method_declaration",), (("", ""), _CLASS)),
        Language("python", (".py",), ("function_definition",)),
        Language(
            "javascript",
            (".js", ".mjs", ".cjs"),
            ("function_declaration", "method_definition", "function_expression", "arrow_function"),
            (("", ""), _CLASS, ("(", ")")),
        ),
        Language(
            "php",
            (".php",),
            ("method_declaration", "function_definition"),
            (("", ""), _CLASS),
            "language_php_only",
        ),
        Language("ruby", (".rb",), ("method", "singleton_method")),
        Language("go", (".go",), ("function_declaration", "method_declaration")),
        Language("c", (".c",), ("function_definition",)),
        Language("rust", (".rs",), ("function_item",), (("", ""), ("impl A {\n", "\n}"))),
    )
}


def language_of(name: str) -> Language:
    """A language by its name.

    Raises:
        AnamorphError: if it is not among those that functions can be taken from.
    """
    if name not in LANGUAGES:
        raise AnamorphError(
            f"Functions cannot be taken from {name!r}; there are: {', '.join(LANGUAGES)}."
        )
    return LANGUAGES[name]


@cache
def parser(name: str) -> Callable[[bytes], "tree_sitter.Tree"]:
    """What turns a language's source into a syntax tree.

    Raises:
        AnamorphError: if the grammar is not installed.
    """
    language = language_of(name)
    try:
        import tree_sitter

        grammar = import_module(f"tree_sitter_{name}")
    except ImportError as error:
        raise AnamorphError(
            f"Source code in {name} is read with tree-sitter, which is not installed ({error}); "
            "install the extra: pip install 'anamorph[code]'."
        ) from error
    made = tree_sitter.Parser(tree_sitter.Language(getattr(grammar, language.grammar)()))
    return made.parse
