"""What kind of token every character of a function belongs to, from the leaves of its tree."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tree_sitter

KINDS = (
    *("keyword", "identifier", "string", "comment", "number"),
    *("operator", "punctuation", "whitespace", "indentation"),
)
(KEYWORD, IDENTIFIER, STRING, COMMENT, NUMBER, OPERATOR, PUNCTUATION, WHITESPACE, INDENTATION) = (
    range(len(KINDS))
)
DEEPEST = 255  # of the tree, as it is stored

_STRINGS = frozenset(  # of every language: no name means two things
    [
        *("string", "string_literal", "character_literal", "template_string", "regex"),
        *("encapsed_string", "heredoc", "nowdoc", "heredoc_body", "heredoc_beginning"),
        *("string_array", "symbol_array", "interpreted_string_literal", "raw_string_literal"),
        *("rune_literal", "char_literal", "system_lib_string", "simple_symbol", "delimited_symbol"),
        *("hash_key_symbol", "subshell", "bare_string", "bare_symbol", "shell_command_expression"),
        *("character", "chained_string", "concatenated_string_part"),
    ]
)
_CODE_IN_STRINGS = frozenset(
    [
        *("interpolation", "template_substitution", "variable_name", "dynamic_variable_name"),
        *("subscript_expression", "member_access_expression"),
    ]
)
_WHOLE = frozenset(["variable_name"])  # identifiers that are not leaves
_NAMED_KEYWORDS = frozenset(
    [
        *("primitive_type", "void_type", "boolean_type", "null_literal", "mutable_specifier"),
        "relative_scope",
    ]
)
_NAMES = re.compile(r"(identifier|name|variable|constant|label)$")
_NUMBER = re.compile(r"\.?\d")
_LETTER = re.compile(r"[^\W\d]")
_WHITE_OR_NOT = re.compile(r"\s+|\S+")


@dataclass(frozen=True)
class Spans:
    """A function's source as consecutive spans: tokens, and the white space between them.

    Attributes:
        lengths: [span] in characters; they sum to the length of the source.
        kinds: [span] indexes of `KINDS`.
        depths: [span] the depth of the token in the tree, counted from the function; that of the
            token before for white space.
    """

    lengths: list[int]
    kinds: list[int]
    depths: list[int]

    def texts(self, source: str) -> list[tuple[int, str]]:
        """The kind and the text of every span."""
        found, start = [], 0
        for length, kind in zip(self.lengths, self.kinds, strict=True):
            found.append((kind, source[start : start + length]))
            start += length
        return found


def spans_of(node: "tree_sitter.Node", source: bytes, start: int, stop: int) -> Spans:
    """The spans of a part of a tree; every character is in exactly one.

    Args:
        node: of a tree, such as a function.
        source: that was parsed, in UTF-8.
        start: of the part, in bytes.
        stop: its end, in bytes.
    """
    spans: list[tuple[int, int, int]] = []
    cursor, depth = start, 0
    for begin, end, kind, depth_here in _leaves(node, source):
        begin, end = max(begin, cursor), min(end, stop)  # some grammars give a leaf out of order
        if begin < end:
            if cursor < begin:
                spans += _between(source[cursor:begin], depth)
            depth = min(depth_here, DEEPEST)
            spans.append((len(source[begin:end].decode()), kind, depth))
            cursor = end
    spans += _between(source[cursor:stop], depth)
    return Spans(*([span[field] for span in spans if span[0]] for field in range(3)))


def _leaves(whole: "tree_sitter.Node", source: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Start and end in bytes, kind and depth of what counts as one token, in the source's order."""
    pending: list[tuple[tree_sitter.Node | tuple[int, int], int]] = [(whole, 0)]
    while pending:
        node, depth = pending.pop()
        if isinstance(node, tuple):
            yield *node, STRING, depth
            continue
        name, named, begin, end = node.type, node.is_named, node.start_byte, node.end_byte
        if named and "comment" in name:
            yield begin, end, COMMENT, depth
        elif named and name in _STRINGS:
            pending.extend((part, depth + 1) for part in reversed(_string_parts(node)))
        elif children := () if name in _WHOLE else node.children:
            pending.extend((child, depth + 1) for child in reversed(children))
        else:
            yield begin, end, _kind(source[begin:end].decode(), name, named), depth


def _string_parts(node: "tree_sitter.Node") -> "list[tree_sitter.Node | tuple[int, int]]":
    """A string as stretches of text and, between them, the code that it holds."""
    parts: list[tree_sitter.Node | tuple[int, int]] = []
    start = node.start_byte
    pending = node.children[::-1]
    while pending:
        child = pending.pop()
        if child.type in _CODE_IN_STRINGS:
            parts += [(start, child.start_byte), child]
            start = child.end_byte
        else:
            pending.extend(child.children[::-1])
    return [*parts, (start, node.end_byte)]


def _kind(text: str, name: str, named: bool) -> int:
    """The kind of a leaf by its text and, where that is not enough, by its name."""
    if _NUMBER.match(text):
        return NUMBER
    if text.isspace() or not text:
        return WHITESPACE
    if _LETTER.search(text) or not text.strip("_$"):
        reserved = name in _NAMED_KEYWORDS or (name == text.lower() and not _NAMES.search(name))
        return KEYWORD if reserved or not named else IDENTIFIER
    return OPERATOR if text.strip("#$").strip("()[]{};,.:@\\") else PUNCTUATION


def _between(tokens: bytes, depth: int) -> Iterator[tuple[int, int, int]]:
    """Length, kind and depth of what is between two tokens; some are empty."""
    for part in _WHITE_OR_NOT.findall(tokens.decode()):
        if not part.isspace():  # such as the backslash at the end of a line in Python
            yield len(part), _kind(part, "", False), depth
        else:
            line_end = part.rfind("\n") + 1
            yield line_end, WHITESPACE, depth
            yield len(part) - line_end, INDENTATION if line_end else WHITESPACE, depth
