"""Tokens as a reader sees them."""

import pytest

from anamorph.analysis.pieces import Pieces, visible
from anamorph.tasks.text.tokenizer import token_names
from tiny_tokenizers import byte_level

TEXTS = [
    "naïve café: 12 € for two, 日本語 and 😀 as well",
    "def f(a):\n\treturn  a\r\n",
    "e\u0301 \u200b\u202edne\u202c \x00\x1b[31m",
]


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_pieces_make_the_text(text: str) -> None:
    """Without the bytes that only go on with a character, the pieces are the text."""
    tokenizer = byte_level(bos=True)
    names = token_names(tokenizer, len(tokenizer))
    pieces = Pieces.of(names)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    shown = pieces.together(tokens)
    assert len(shown) == len(tokens)
    # by hand: every character at the token that has its first byte, by GPT-2's own table
    own = tokenizer.backend_tokenizer.decoder
    contents = [b"".join(_byte(c) for c in names[t]) for t in tokens]
    assert own.decode([names[t] for t in tokens]) == text
    starts = [sum(map(len, contents[:i])) for i in range(len(contents) + 1)]
    expected = [""] * len(tokens)
    at = 0
    for character in text:
        owner = max(i for i, start in enumerate(starts[:-1]) if start <= at)
        expected[owner] += visible(character)
        for place in range(at + 1, at + len(character.encode())):
            later = max(i for i, start in enumerate(starts[:-1]) if start <= place)
            if later != owner:
                expected[later] += f"⟨{text.encode()[place]:02x}⟩"
        at += len(character.encode())
    assert shown == expected


def _byte(character: str) -> bytes:
    """By GPT-2's rule: printable bytes stand for themselves, the others for 256 and up."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    if ord(character) < 256:
        return bytes([ord(character)])
    return bytes([[byte for byte in range(256) if byte not in plain][ord(character) - 256]])


def test_a_part_of_a_character_is_its_bytes() -> None:
    pieces = Pieces.of(token_names(byte_level(), len(byte_level())))
    names = token_names(byte_level(), len(byte_level()))
    assert pieces.alone(names.index("\u0122")) == "⟨80⟩"  # byte 0x80, by GPT-2's table
    assert pieces.alone(names.index("\u0120")) == " "
    assert not pieces.separate and not pieces.characters


@pytest.mark.parametrize(
    ("names", "shown", "separate"),
    [
        (["START", "END", "(1", "1)"], ["START", "END", "(1", "1)"], True),
        (["0", "1", "17", "253"], ["0", "1", "17", "253"], True),
        (["UNKNOWN", "a", "b", "\n", "é"], ["⟨UNKNOWN⟩", "a", "b", "\n", "é"], False),
        (["[CLS]", "play", "##ing", "##s"], [" [CLS]", " play", "ing", "s"], False),
        (
            ["<s>", "▁the", "<0xE2>", "<0x82>", "<0xAC>"],
            ["<s>", " the", "€", "⟨82⟩", "⟨ac⟩"],
            False,
        ),
        (["ab\ud800", "b\x00"], ["ab⟨d800⟩", "b␀"], True),
    ],
)
def test_kinds_of_vocabularies(names: list[str], shown: list[str], separate: bool) -> None:
    pieces = Pieces.of(names)
    assert pieces.together(range(len(names))) == shown
    assert pieces.separate is separate


def test_bytes_of_code() -> None:
    pieces = Pieces.of(["START", *(f"{byte:02x}" for byte in range(256))])
    assert pieces.characters
    assert pieces.together([1 + byte for byte in "é (a)".encode()]) == [*"é", "⟨a9⟩", *" (a)"]
    assert pieces.alone(1 + 0xC3) == "⟨c3⟩" and pieces.alone(0) == "⟨START⟩"


def test_nothing_unseen_is_left() -> None:
    assert visible("a b\n\tc") == "a b\n\tc"
    assert visible("\x1b[31m\u202e\u2066\u200f\ufeff\x7f") == ("␛[31m⟨202e⟩⟨2066⟩⟨200f⟩⟨feff⟩⟨7f⟩")


def test_a_token_without_a_name_is_its_number() -> None:
    """As of a model whose vocabulary is padded: it may be what it predicts."""
    assert Pieces.of(["a", "b"]).alone(7) == "⟨7⟩"
