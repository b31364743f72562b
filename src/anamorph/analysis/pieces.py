"""Tokens as a reader sees them: the text that a token stands for, from the names of all tokens.

Names are as tokenizers have them. Which kind of tokenizer it is, the vocabulary itself tells:
`Ġthe` of byte-level BPE (GPT-2), `▁the` and `<0xE2>` of SentencePiece, `##ing` of WordPiece, single
characters, or the bytes `00` to `ff`. Of anything else, such as brackets or numbers, the names are
shown with a space between them.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # of SentencePiece
HEXADECIMAL = {f"{byte:02x}": byte for byte in range(256)}  # of the code task
MOST_OTHERS = 0.1  # of the names of a byte-level vocabulary, as special tokens are none of bytes
SOME = 0.05  # of the names of a vocabulary that are marked as its kind marks them, at least


@cache
def _alphabet() -> dict[str, int]:
    """The byte that each character of byte-level BPE stands for (Radford et al. 2019, GPT-2)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): b for n, b in enumerate(others)}


@dataclass(frozen=True)
class Pieces:
    """The texts of a vocabulary's tokens.

    Attributes:
        contents: by token id the bytes of its text in UTF-8, maybe of a part of a character.
        separate: whether tokens are shown with a space between them, as their names are no text.
        characters: whether every token is a character or a byte, but for a few.
    """

    contents: Sequence[bytes]
    separate: bool
    characters: bool

    @classmethod
    def of(cls, vocabulary: Sequence[str]) -> "Pieces":
        """The pieces of token names."""
        read = _reader(vocabulary)
        of_characters = read in (_characters, _hexadecimal)
        return cls([read(name) for name in vocabulary], read is _name, of_characters)

    def alone(self, token: int) -> str:
        """One token; bytes that are no whole character are written as ⟨e2⟩.

        One without a name, as of a vocabulary that is padded, is its number: ⟨50300⟩.
        """
        if token >= len(self.contents):
            return f"⟨{token}⟩"
        return visible(self.contents[token].decode("utf-8", "surrogateescape"))

    def together(self, tokens: Sequence[int]) -> list[str]:
        """A text for each of consecutive tokens.

        A character of several tokens stands at the one with its first byte; those that only go on
        with it are written as their bytes, ⟨e2⟩.
        """
        contents = [self.contents[token] for token in tokens]
        text = b"".join(contents).decode("utf-8", "surrogateescape")
        parts: list[list[str]] = [[] for _ in contents]
        ends, total = [], 0
        for content in contents:
            total += len(content)
            ends.append(total)
        owner = place = 0
        for character in text:
            while ends[owner] <= place:
                owner += 1
            parts[owner].append(visible(character))
            whole = place + len(character.encode("utf-8", "surrogateescape"))
            for later in range(owner + 1, len(contents)):
                start = ends[later - 1]
                if start >= whole:
                    break
                parts[later] += [_bracketed(byte) for byte in contents[later][: whole - start]]
            place = whole
        return ["".join(part) for part in parts]

    def joined(self, texts: Sequence[str]) -> str:
        """The texts of consecutive tokens as one."""
        return (" " if self.separate else "").join(texts)


def visible(text: str) -> str:
    """A text without anything that does what is not seen: it is written as a symbol or in hex.

    Control characters, marks of the direction of writing and invisible ones could hide a text or
    turn it around; a terminal would obey some. Line ends, tabs and spaces stay.
    """
    return text if text.isprintable() else "".join(map(_seen, text))


def _seen(character: str) -> str:
    code = ord(character)
    if character.isprintable() or character in "\n\t":
        return character
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no whole character
        return _bracketed(code - 0xDC00)
    if code < 0x20:
        return chr(0x2400 + code)  # ␀ to ␟
    return character if unicodedata.category(character) == "Zs" else _bracketed(code)


def _bracketed(code: int) -> str:
    return f"⟨{code:02x}⟩"


def _reader(vocabulary: Sequence[str]) -> Callable[[str], bytes]:
    """How the names of a vocabulary are read."""
    names = [name for name in vocabulary if name]
    count = max(1, len(names))
    if HEXADECIMAL.keys() <= set(names):
        return _hexadecimal
    if sum(len(name) == 1 for name in names) * 2 > count:
        # of characters; but a small byte-level vocabulary has mostly those as well
        marked = any(name.startswith("Ġ") and len(name) > 1 for name in names)
        return _byte_level if marked and _are_bytes(names) else _characters
    if any(name.startswith("Ġ") for name in names) and _are_bytes(names):
        return _byte_level
    if sum("▁" in name for name in names) >= SOME * count:
        return _sentence_piece
    if sum(name.startswith("##") for name in names) >= SOME * count:
        return _word_piece
    return _name


def _are_bytes(names: Sequence[str]) -> bool:
    alphabet = _alphabet()
    others = sum(not all(character in alphabet for character in name) for name in names)
    return others <= MOST_OTHERS * len(names)


def _encoded(text: str) -> bytes:
    """In UTF-8; half of a surrogate pair, which has none, is written out."""
    whole = "".join(_bracketed(ord(c)) if "\ud800" <= c <= "\udfff" else c for c in text)
    return whole.encode()


def _name(name: str) -> bytes:
    return _encoded(name)


def _characters(name: str) -> bytes:
    return _encoded(name if len(name) == 1 else f"⟨{name}⟩")


def _hexadecimal(name: str) -> bytes:
    return bytes([HEXADECIMAL[name]]) if name in HEXADECIMAL else _characters(name)


def _byte_level(name: str) -> bytes:
    alphabet = _alphabet()
    if all(character in alphabet for character in name):
        return bytes(alphabet[character] for character in name)
    return _encoded(name)


def _sentence_piece(name: str) -> bytes:
    if of_byte := BYTE.fullmatch(name):
        return bytes([int(of_byte[1], 16)])
    return _encoded(name.replace("▁", " "))


def _word_piece(name: str) -> bytes:
    return _encoded(name[2:] if name.startswith("##") else f" {name}")
