"""What is odd in text is told: each case made by hand, with the count that is right."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from anamorph.errors import AnamorphError
from anamorph.tasks import Task, load_task
from anamorph.tasks.text.task import text_task
from tiny_tokenizers import byte_level, letters, masking


def texts(number: int, start: int = 0) -> list[str]:
    """Different texts, of letters alone."""
    alphabet = "abcdefghij"
    return [
        "n" + "".join(alphabet[int(d)] for d in f"{i:04}") for i in range(start, start + number)
    ]


TRAIN = texts(30, 1000)


def told(data: dict[str, Any], tokenizer: Any = None, **arguments: Any) -> tuple[Task, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task = text_task(
            {"train": TRAIN, **data}, tokenizer or letters(), **{"length": 16, **arguments}
        )
    assert all(w.category is UserWarning and w.filename == __file__ for w in caught)
    return task, [str(w.message) for w in caught]


def only(sentences: Sequence[str]) -> str:
    (sentence,) = sentences
    return sentence


def test_nothing_is_told_of_what_is_fine() -> None:
    _, said = told({"iid": texts(50), "ood": texts(50, 100), "ood:more": texts(50, 200)})
    assert said == []
    _, said = told({"iid": [*texts(50), " "], "ood": [texts(1)[0], *texts(49, 100)]})
    assert said == [], "little may be chance"


@pytest.mark.parametrize("order", [1, -1])
def test_the_same_text_as_iid_and_ood(order: int) -> None:
    _, said = told({"iid": texts(50), "ood": texts(50)[::order]})
    assert "The splits 'iid' and 'ood' hold the same sequences" in only(said)
    _, said = told({"iid": texts(9), "ood:a": texts(9, 50), "ood:b": texts(9, 50)})
    assert "The splits 'a' and 'b' hold the same sequences" in only(said)


def test_the_same_file_twice_is_told_though_other_sequences_are_drawn(tmp_path: Path) -> None:
    for name in ("a", "b"):
        lines = (json.dumps({"text": text}) + "\n" for text in texts(900))
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "a.jsonl")
    for other in ("a.jsonl", "b.jsonl", "link.jsonl"):
        data = {"iid": tmp_path / "a.jsonl", "ood": tmp_path / other}
        task, said = told(data, sequences=12)
        assert "The splits 'iid' and 'ood' are drawn from the same text" in only(said)
        shared = set(map(bytes, task.splits["iid"])) & set(map(bytes, task.splits["ood"]))
        assert len(shared) < 12


def test_the_fit_data_drawn_from_the_same_file(tmp_path: Path) -> None:
    lines = (json.dumps({"text": text}) + "\n" for text in texts(9000))
    (tmp_path / "a.jsonl").write_text("".join(lines))
    data = {"train": tmp_path / "a.jsonl", "iid": tmp_path / "a.jsonl"}
    task, said = told(data, sequences=3, fit_sequences=3)
    assert task.spec["splits"]["iid"]["shared_with_fit"] == 0
    assert "'iid' is drawn from the same text as the fit data ('train')" in only(said)


def test_much_of_one_split_in_another() -> None:
    _, said = told({"iid": texts(50), "ood": [*texts(10), *texts(30, 100)]})
    assert "10 of the 40 sequences of the split 'ood' are in 'iid' too" in only(said)
    _, said = told({"iid": texts(10), "ood": texts(400)})
    assert "10 of the 400 sequences of the split 'ood'" in only(said), "all of the smaller one"


def test_the_beginnings_count_that_are_compared() -> None:
    front = "abcdefghijklmnop"  # as licences in front of source files
    _, said = told({"iid": [front + text for text in texts(20)], "ood": texts(20)})
    assert "Of the 20 sequences of the split 'iid' only 1 are different" in only(said)


def test_repeated_documents() -> None:
    _, said = told({"iid": [*texts(30), *texts(5)]})
    assert "Of the 35 sequences of the split 'iid' only 30 are different" in only(said)
    _, said = told({"iid": texts(50), "train": texts(20, 2000) * 2})
    assert "Of the 40 sequences of the split 'train' only 20 are different" in only(said)


def test_what_is_blank() -> None:
    task, said = told({"iid": [*texts(20), "", " \n", "\t", "\u3000"]})
    assert "4 of the 24 documents of the split 'iid' are empty" in only(said)
    assert task.spec["read"]["iid"]["blank"] == 4
    for nothing in ("", " \n"):
        with pytest.raises(AnamorphError, match=r"all of its 3 document\(s\) are empty"):
            told({"iid": [nothing] * 3})


@pytest.mark.parametrize("packing", ["truncate", "window", "pack"])
def test_special_tokens_in_the_text(packing: Any) -> None:
    tokenizer = byte_level(bos=True)
    given = [f"say {text} to them" for text in texts(20)]
    marked = [*given[:15], *(f"{text}</s>again</s>" for text in given[15:18]), *given[18:]]
    task, said = told({"iid": marked, "ood": texts(20, 100)}, tokenizer, packing=packing, length=40)
    assert task.spec["read"]["iid"]["special"] == {"</s>": 6}
    assert task.spec["read"]["ood"]["special"] == {}
    assert any("'iid' spells special tokens" in s and "</s> (6)" in s for s in said)
    joined = packing == "pack"  # with </s>, which then stands there twice
    assert task.spec["read"]["iid"]["doubled"] == (3 if joined else 0)
    assert len(said) == 1 + joined


def test_only_what_stands_in_a_sequence_counts() -> None:
    late = [f"say {text} and no more than so much to them</s>" for text in texts(20)]
    _, said = told({"iid": late}, byte_level(bos=True), packing="truncate")
    assert not any("special" in s for s in said)


@pytest.mark.parametrize("packing", ["truncate", "window", "pack"])
def test_bos_twice_after_a_chat_template(packing: Any) -> None:
    tokenizer = byte_level(bos=True)
    chat = [f"<s>{text} is what they said" for text in texts(20)]
    task, said = told({"iid": chat, "ood": texts(20, 100)}, tokenizer, packing=packing)
    assert task.spec["read"]["iid"]["doubled"] == 20
    assert task.spec["read"]["ood"]["doubled"] == 0
    twice = [s for s in said if "the model sees it twice" in s]
    assert "20 of the 20 documents of the split 'iid' begin or end" in only(twice)
    bos = tokenizer.bos_token_id
    if packing == "truncate":
        assert all(sequence[:2].tolist() == [bos, bos] for sequence in task.splits["iid"])


def test_eos_and_cls_twice() -> None:
    tokenizer = byte_level(bos=True, behind=True)
    task, _ = told({"iid": [f"{text}</s>" for text in texts(20)]}, tokenizer)
    assert task.spec["read"]["iid"]["doubled"] == 20
    for marked, doubled, special in (
        ("[CLS]x", 20, {"[CLS]": 20}),
        ("x[SEP]", 20, {"[SEP]": 20}),
        ("x[MASK]b[MASK]c", 0, {"[MASK]": 40}),
    ):
        given = [marked.replace("x", text) for text in texts(20)]
        task, _ = told({"iid": given}, masking(), masked=0.2)
        assert task.spec["read"]["iid"]["doubled"] == doubled
        assert task.spec["read"]["iid"]["special"] == special


def test_what_the_tokenizer_does_not_know_is_not_special() -> None:
    task, said = told({"iid": [f"{text} 12" for text in texts(20)]})
    assert "?" in {task.vocabulary[t] for t in task.splits["iid"].tokens} and said == []


def test_an_exchanged_file_of_equal_counts_is_another_task(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    letters().save_pretrained(tmp_path / "tokenizer")
    path = tmp_path / "iid.jsonl"

    def write(given: list[str]) -> None:
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in given))

    write(texts(20))
    (tmp_path / "train").mkdir()
    for number, text in enumerate(TRAIN):
        (tmp_path / "train" / f"{number}.txt").write_text(text)
    arguments = {"tokenizer": str(tmp_path / "tokenizer"), "length": 16}
    data = [f"train={tmp_path / 'train'}", f"iid={path}"]
    first = load_task("text", data=data, **arguments)
    assert set(first.spec["files"]) == {str(tmp_path / "train"), str(path)}
    assert load_task(**first.spec).spec == first.spec
    write(texts(20, 30))  # as many documents and tokens as before
    second = load_task("text", data=data, **arguments)
    assert {k: v for k, v in second.spec.items() if k != "files"} == {
        k: v for k, v in first.spec.items() if k != "files"
    }
    assert first.spec["files"][str(path)] != second.spec["files"][str(path)]
    assert (
        first.spec["files"][str(tmp_path / "train")]
        == second.spec["files"][str(tmp_path / "train")]
    )
    changed = {k for k, v in first.fingerprints().items() if second.fingerprints()[k] != v}
    assert changed == {"iid"}
    with pytest.raises(AnamorphError, match=r"data of the task 'text' are not what they were"):
        load_task(**first.spec)


def test_data_in_several_formats_are_read_and_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": x}) + "\n" for x in texts(9)))
    (tmp_path / "b.csv").write_text("id,text\n" + "".join(f"1,{x}\n" for x in texts(9, 20)))
    task, said = told({"iid": tmp_path})
    assert "'iid' is read from 2 files of several formats (.csv, .jsonl)" in only(said)
    assert len(task.splits["iid"]) == 18


def test_objects_in_memory_are_no_files() -> None:
    task, _ = told({"iid": texts(20)})
    assert task.spec["files"] == {}
