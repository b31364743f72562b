"""Tokenizing and cutting, against lists and loops."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anamorph.errors import AnamorphError
from anamorph.tasks.text.files import open_source
from anamorph.tasks.text.rows import Document, Fields
from anamorph.tasks.text.sequences import BATCH, Cut, Encoded, Packing, Reading, read, token_labels
from anamorph.tasks.text.tokenizer import separator, special_tokens, to_tokenizer, token_names
from tiny_tokenizers import byte_level, letters, tokenizers, transformers

LETTERS = "?.abcdefghijklmnopqrstuvwxyz"  # the names of the ids of `letters`


def spell(part: Encoded) -> list[str]:
    return ["".join(LETTERS[t] for t in s) for s in np.split(part.tokens, part.offsets[1:-1])]


def reading(
    texts: Any, packing: Packing, length: int, needed: int | None = None, **cut: Any
) -> tuple[list[str], Reading]:
    tokenizer = letters()
    way = Cut(packing, length, **cut) if cut else Cut.of(tokenizer, packing, length)
    rng = np.random.default_rng(0)
    part, about = read(open_source(texts, Fields()), tokenizer, way, needed, rng, None)
    return spell(part) if len(part) else [], about


def chunks(text: str, step: int) -> list[str]:
    return [text[i : i + step] for i in range(0, len(text), step)]


def test_truncate_by_hand() -> None:
    found, about = reading(["abcdefg", "hi", "j", " \n", "klm"], "truncate", 3)
    assert sorted(found) == ["abc", "hi", "klm"]
    # dropped: j, of which nothing could be scored, and the blank; cut: defg and j
    assert about == Reading(documents=5, chosen="all", dropped=2, cut_tokens=5, blank=1)


def test_window_by_hand() -> None:
    found, about = reading(["abcdefg", "hi", "j", "klmnop"], "window", 3)
    assert sorted(found) == ["abc", "def", "hi", "klm", "nop"]
    assert about == Reading(documents=4, chosen="all", dropped=1, cut_tokens=2)  # g, j
    found, about = reading(["abcdefg", "j"], "window", 3, front=(0,), behind=(1,))
    assert sorted(found) == ["?ab", "?cd", "?ef", "?g.", "?j."]
    assert about.dropped == about.cut_tokens == 0


def test_pack_by_hand() -> None:
    found, about = reading(iter(["abcd", "", "efg", "hi", "jkl"]), "pack", 4, needed=3)
    assert found == ["abcd", ".efg", ".hi."]  # in the order of a stream
    # read three at a time; `jkl` and its EOS were not needed
    assert about == Reading(documents=5, chosen="the first", dropped=1, cut_tokens=4, blank=1)
    found, about = reading(["abcd"], "pack", 3, front=(0,), behind=(1,))
    assert found == ["?ab", "?cd"] and about.cut_tokens == 1


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.lists(st.text("abcxyz", max_size=25), max_size=12),
    st.integers(2, 9),
    st.booleans(),
    st.booleans(),
)
def test_cutting_against_strings(texts: list[str], length: int, bos: bool, eos: bool) -> None:
    front, behind = ((0,) if bos else ()), ((1,) if eos else ())
    step, least = length - len(front), 1 if bos else 2
    documents = [text + "." * eos for text in texts if text]
    windows = ["?" * bos + x for d in documents for x in chunks(d, step) if len(x) >= least]
    found, about = reading(texts, "window", length, front=front, behind=behind)
    assert sorted(found) == sorted(windows)
    assert about.cut_tokens + sum(map(len, found)) - bos * len(found) == sum(map(len, documents))
    assert about.dropped == len(texts) - sum(len(d) >= least for d in documents)

    whole = iter(texts)  # a stream of which less than all is needed keeps its order
    joined = "".join(documents)
    packed = ["?" * bos + x for x in chunks(joined, step) if len(x) == step]
    if len(packed) > 1:
        found, _ = reading(whole, "pack", length, len(packed) - 1, front=front, behind=behind)
        assert found == packed[:-1]
    found, about = reading(texts, "pack", length, front=front, behind=behind)
    assert len(found) == len(packed) and {len(x) for x in found} <= {length}
    assert about.cut_tokens == len(joined) % step

    found, about = reading(texts, "truncate", length)
    assert sorted(found) == sorted(text[:length] for text in texts if len(text) >= 2)
    assert about.cut_tokens == sum(map(len, texts)) - sum(map(len, found))


def test_only_as_many_documents_are_read_as_are_needed() -> None:
    pulled: list[int] = []

    class Rows:
        def __len__(self) -> int:
            return 1000

        def __getitem__(self, number: int) -> str:
            pulled.append(number)
            return "abc"

        def __iter__(self) -> Any:
            raise AssertionError("it can be counted")

    _, about = reading(Rows(), "truncate", 8, needed=20)
    assert len(pulled) == about.documents == 20 and about.chosen == "at random"
    assert len(set(pulled)) == 20 and max(pulled) > 500 and min(pulled) < 500

    def stream() -> Any:
        for number in range(1000):
            pulled.append(number)
            yield "abc"

    pulled.clear()
    _, about = reading(stream(), "truncate", 8, needed=20)
    assert pulled == list(range(20)) and about.chosen == "the first"


def test_documents_drawn_are_a_fair_sample_of_all() -> None:
    texts = [a + b for a in LETTERS[2:] for b in LETTERS[2:]]  # 676, more than two batches
    assert len(texts) > 2 * BATCH
    drawn, about = reading(texts, "truncate", 8, needed=300)
    assert len(set(drawn)) == 300 and about.chosen == "at random"
    assert drawn != sorted(drawn)
    early = sum(text < "n" for text in drawn[:100])  # half of all are
    assert 30 < early < 70
    assert reading(texts, "truncate", 8, needed=300)[0] == drawn
    some, about = reading(texts, "truncate", 8, needed=5000)
    assert sorted(some) == sorted(texts) and about.chosen == "all"


def test_blank_documents_do_not_count_as_needed() -> None:
    found, about = reading(iter(["", " ", "a", "bc", "de", "fg"]), "truncate", 4, needed=2)
    assert found == ["bc", "de"] and about.chosen == "the first"


@pytest.mark.parametrize("packing", ["truncate", "window", "pack"])
def test_special_tokens_stand_where_the_tokenizer_puts_them(packing: Packing) -> None:
    tokenizer = byte_level(bos=True, behind=True)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    texts = ["the cat sat on the mat", "a quick brown fox jumps over the dog", "again"]
    cut = Cut.of(tokenizer, packing, 6)
    rng = np.random.default_rng(1)
    part, _ = read(open_source(texts, Fields()), tokenizer, cut, None, rng, None)
    sequences = [s.tolist() for s in np.split(part.tokens, part.offsets[1:-1])]
    assert all(s[0] == bos and bos not in s[1:] and len(s) <= 6 for s in sequences)
    if packing == "truncate":
        expected = [tokenizer(text)["input_ids"][:6] for text in texts]
        assert sorted(sequences) == sorted(expected)
    elif packing == "window":
        assert sum(s[-1] == eos for s in sequences) == 3
        assert sum(s.count(eos) for s in sequences) == 3
    else:
        assert {len(s) for s in sequences} == {6}


def test_what_tokenizers_put_around_a_text() -> None:
    assert special_tokens(letters()) == ((), ())
    assert special_tokens(byte_level(bos=True)) == ((0,), ())
    assert special_tokens(byte_level(bos=True, behind=True)) == ((0,), (1,))
    assert separator(letters()) == 1
    assert separator(byte_level(bos=True, eos=False)) == 0
    with pytest.raises(AnamorphError, match="the tokenizer has none of them"):
        Cut.of(byte_level(eos=False), "pack", 8)
    none = tokenizers.Tokenizer(tokenizers.models.WordLevel({"x": 0}, unk_token="x"))
    none.normalizer = tokenizers.normalizers.Replace(tokenizers.Regex(r"[\s\S]"), "")
    empty = transformers.PreTrainedTokenizerFast(tokenizer_object=none)
    with pytest.raises(AnamorphError, match=r"Cannot find out .* packing='truncate'"):
        Cut.of(empty, "window", 8)


def test_no_room_beside_what_stands_in_front() -> None:
    class Long:
        is_fast = False

        def __call__(self, text: list[str], *, add_special_tokens: bool, **_: Any) -> Any:
            return {"input_ids": [[7, 8] * add_special_tokens + [1] for _ in text]}

    with pytest.raises(AnamorphError, match=r"puts 2 token\(s\) in front .* length=2"):
        Cut.of(Long(), "window", 2)  # type: ignore[arg-type]


def test_what_is_no_tokenizer() -> None:
    with pytest.raises(AnamorphError, match=r"is a Tokenizer; .*PreTrainedTokenizerFast\("):
        to_tokenizer(byte_level().backend_tokenizer)
    with pytest.raises(AnamorphError, match="is a NoneType"):
        to_tokenizer(None)


def test_token_names_where_ids_have_none() -> None:
    assert token_names(letters(), 30)[-4:] == ("y", "z", "<28>", "<29>")
    assert token_names(letters(), 3) == ("?", ".", "a")


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.data(), st.text("ab \n\u00a0é日😀", min_size=1, max_size=30))
def test_labels_of_tokens_against_loops(data: st.DataObject, text: str) -> None:
    ends = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    spans = tuple(
        (start, end, data.draw(st.sampled_from(["x", "y", "z"])))
        for start, end in list(pairwise(ends))[:: data.draw(st.integers(1, 2))]
    )
    encoded = byte_level()([text], add_special_tokens=False, return_offsets_mapping=True)
    where = encoded["offset_mapping"][0]
    labels: dict[str, int] = {}
    found = token_labels(Document(text, spans, "here"), where, labels)
    names = {code: label for label, code in labels.items()} | {-1: None}
    expected = []
    for start, end in where:
        first = next((i for i in range(start, end) if not text[i].isspace()), None)
        inside = [label for low, high, label in spans if first is not None and low <= first < high]
        expected.append(inside[0] if inside else None)
    assert [names[code] for code in found.tolist()] == expected


def test_too_many_labels() -> None:
    document = Document("x", ((0, 1, "new"),), "a.jsonl:3")
    with pytest.raises(AnamorphError, match=r"a\.jsonl:3: the spans have more than 32768"):
        token_labels(document, [(0, 1)], {str(i): i for i in range(32768)})
