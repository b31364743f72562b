"""Text as a task, from files to splits."""

import copy
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anamorph.errors import AnamorphError
from anamorph.tasks import (
    Task,
    check_context,
    check_vocabulary,
    load_task,
)
from anamorph.tasks.batches import collate
from anamorph.tasks.export import export
from anamorph.tasks.text.data import TextData, parse_data
from anamorph.tasks.text.task import text_task
from tiny_tokenizers import byte_level, letters

LETTERS = "?.abcdefghijklmnopqrstuvwxyz"


def words(number: int, seed: int = 0, longest: int = 12) -> list[str]:
    """Different random texts."""
    rng = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < number:
        letter = rng.integers(2, len(LETTERS), rng.integers(5, longest + 1))
        found["".join(LETTERS[i] for i in letter)] = None
    return list(found)


def spell(task: Task, split: str) -> list[str]:
    return ["".join(task.vocabulary[t] for t in s) for s in task.splits[split]]


def make(data: Any, **arguments: Any) -> Task:
    return text_task(data, letters(), **{"length": 16, **arguments})


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    paths = {}
    for place, name in enumerate(("train", "iid", "python")):
        paths[name] = tmp_path / f"{name}.jsonl"
        lines = [json.dumps({"text": text}) for text in words(60, seed=place)]
        paths[name].write_text("\n".join(lines) + "\n")
    return paths


@pytest.fixture
def folder(tmp_path: Path) -> str:
    path = tmp_path / "tokenizer"
    letters().save_pretrained(path)
    return str(path)


def strings(files: dict[str, Path]) -> list[str]:
    return [f"train={files['train']}", f"iid={files['iid']}", f"ood:python={files['python']}"]


def test_data_in_words() -> None:
    assert parse_data("iid=a.jsonl") == TextData("iid", "iid", "a.jsonl")
    assert parse_data("ood:python=b.jsonl") == TextData("python", "ood", "b.jsonl")
    assert parse_data("train:big-1.2 = a=b.txt") == TextData("big-1.2", "train", "a=b.txt")
    for text in ("iid=a.jsonl", "ood:python=b.jsonl"):
        assert str(parse_data(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jsonl", "expected ROLE=PATH or ROLE:NAME=PATH"),
        ("iid=", "expected ROLE=PATH"),
        ("test=a.jsonl", "no role 'test'; a split's role is one of: train, iid, ood"),
        ("ood:=a.jsonl", "cannot be named ''"),
        ("ood:../x=a.jsonl", "cannot be named '../x'"),
        ("ood:train=a.jsonl", "of the role 'ood' cannot be named 'train'"),
    ],
)
def test_data_that_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(AnamorphError) as caught:
        parse_data(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["train=a", "ood=b"], r"0 splits with the role 'iid' \(none\); expected exactly one"),
        (["iid=a", "iid:b=b"], r"2 splits with the role 'iid' \(iid, b\); expected exactly one"),
        (["iid=a", "train=b", "train:c=c"], r"2 splits .* 'train' \(train, c\); .* at most one"),
        (["iid=a", "ood=b", "ood=c"], "Two splits are named 'ood'"),
        ("a.jsonl", "expected ROLE=PATH"),
        ([3], "Cannot read the data '3'"),
        (["iid=a"], r"fit_on='train', but no split has that role; .*: iid\. .* fit_on='iid'"),
    ],
)
def test_splits_that_do_not_fit_together(data: Any, message: str) -> None:
    with pytest.raises(AnamorphError, match=message):
        make(data)


def test_fit_on_must_name_where_the_data_come_from() -> None:
    with pytest.raises(AnamorphError, match=r"fit_on='x', but no split has that name"):
        make({"iid": words(5)}, fit_on="x")
    with pytest.raises(AnamorphError, match=r"fit_on='iid', but there is .* 'train', 'big'"):
        make({"iid": words(5), "train:big": words(5)}, fit_on="iid")
    assert make({"iid": words(5), "train:big": words(9, 1)}, fit_on="big").train.name == "big"


def test_a_task_from_files(files: dict[str, Path]) -> None:
    task = make(strings(files)[::-1])
    assert [(s.name, s.role) for s in task.splits.values()] == [
        *(("train", "train"), ("iid", "iid"), ("python", "ood"))
    ]
    for place, (name, split) in enumerate(task.splits.items()):
        given = words(60, seed=place)
        assert sorted(spell(task, name)) == sorted(given) and spell(task, name) != given
        assert split.tokens.dtype == np.int32
        assert (~split.scored).nonzero()[0].tolist() == split.offsets[:-1].tolist()
        assert set(split.facets) == {"position", "frequency", "repeated", "induction"}
        for facet in split.facets.values():
            assert ((facet.codes == -1) == ~split.scored).all()
    assert task.vocabulary == tuple(LETTERS)
    assert task.candidates.tolist() == list(range(28))
    assert collate(task.reference, np.arange(3)).tokens.shape[0] == 3


def test_the_specification_says_what_was_done(files: dict[str, Path]) -> None:
    data = strings(files)
    task = make(data, sequences=20, fit_sequences=30, length=6, packing="window", seed=4)
    spec = json.loads(json.dumps(task.spec))
    assert {key: spec[key] for key in list(spec)[:15]} == {
        **{"name": "text", "data": data, "tokenizer": type(letters()).__name__, "length": 6},
        **{"packing": "window", "sequences": 20, "fit_on": "train", "fit_sequences": 30},
        "fit_also": [],
        **{"text_field": "text", "spans_field": None, "masked": None, "vocabulary": 28},
        "seed": 4,
        "fit": "Simplifications are fitted on sequences of 'train', which is not evaluated.",
    }
    assert list(spec)[15:] == ["made", "files", "read", "splits"]
    assert spec["made"] == "Each document is cut into consecutive windows of at most 6 tokens."
    for name, about in spec["splits"].items():
        split = task.splits[name]
        shared = {} if name == "train" else {"shared_with_fit": 0}
        tokens = {"sequences": len(split), "tokens": len(split.tokens)}
        assert about == {"role": split.role, **tokens, **shared}
        assert len(split) == (30 if name == "train" else 20)
        read = spec["read"][name]
        assert read["chosen"] == "at random"
        assert len(split) / 2 <= read["documents"] <= len(split)
        assert read["dropped"] == 0


def test_more_is_read_of_what_is_fitted_on_too(files: dict[str, Path]) -> None:
    data = strings(files)
    for given in ("python", ["python"]):
        task = make(data, sequences=5, fit_sequences=9, fit_also=given)
        sizes = {name: len(split) for name, split in task.splits.items()}
        assert sizes == {"train": 9, "iid": 5, "python": 18}
        assert task.spec["fit_also"] == ["python"]
    with pytest.raises(AnamorphError, match=r"no split 'near' to fit on; there are: .*python"):
        make(data, sequences=5, fit_also=["near"])


@pytest.mark.parametrize(
    ("packing", "made"),
    [
        (
            "truncate",
            "Each document is a sequence, cut to at most 8 tokens; special tokens are those that "
            "the tokenizer adds.",
        ),
        (
            "window",
            "Each document is cut into consecutive windows of at most 8 tokens, <s> in front of "
            "each. </s> stands behind each document.",
        ),
        (
            "pack",
            "Documents are joined with </s> and cut into sequences of exactly 8 tokens, <s> in "
            "front of each; a sequence may hold several documents.",
        ),
    ],
)
def test_how_sequences_are_made_in_words(packing: Any, made: str) -> None:
    data = {"iid": words(9), "train": words(9, 1)}
    task = text_task(data, byte_level(bos=True, behind=True), length=8, packing=packing)
    assert task.spec["made"] == made


def test_the_same_seed_gives_the_same_task(files: dict[str, Path]) -> None:
    for packing in ("truncate", "window", "pack"):
        arguments = {"packing": packing, "sequences": 12, "fit_sequences": 12, "length": 7}
        task, again, other = (make(strings(files), seed=s, **arguments) for s in (5, 5, 6))
        assert task.spec == again.spec
        for name in task.splits:
            assert spell(task, name) == spell(again, name) != spell(other, name)
    alone = make([strings(files)[1]], fit_on="iid", fit_sequences=12, sequences=12)
    beside = make(strings(files)[1:], fit_on="iid", fit_sequences=12, sequences=12)
    assert spell(alone, "iid") == spell(beside, "iid"), "one split does not change another"


def test_fit_data_held_out_of_the_reference() -> None:
    texts = words(50)
    task = make({"iid": texts, "ood:other": words(20, 1)}, fit_on="iid", fit_sequences=30)
    held_out, left = spell(task, "train"), spell(task, "iid")
    assert (len(held_out), len(left)) == (30, 20)
    assert sorted(held_out + left) == sorted(texts)
    assert held_out != [t for t in texts if t in held_out] and set(held_out) != set(texts[:30])
    assert task.train.role == "train"
    assert [s.name for s in task.evaluated] == ["iid", "other"]
    assert task.spec["fit"] == (
        "Simplifications are fitted on 30 sequences held out of 'iid', as there are no data for "
        "the fit alone; what is left of 'iid' is evaluated."
    )
    some = make({"iid": texts}, fit_on="iid", fit_sequences=30, sequences=9)
    assert (len(some.train), len(some.reference)) == (30, 9)
    assert not set(spell(some, "train")) & set(spell(some, "iid"))
    assert some.spec["read"]["iid"]["documents"] == 39


def test_fit_data_held_out_of_one_long_document(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("".join(words(40)))
    task = make(f"iid={path}", fit_on="iid", fit_sequences=10, packing="window", length=8)
    text = path.read_text()
    windows = [text[i : i + 8] for i in range(0, len(text), 8)]
    assert sorted(spell(task, "train")) == sorted(windows[:10])
    assert set(spell(task, "iid")) <= set(windows[10:])
    assert task.spec["fit"].endswith("At most one document reaches into both.")


def test_an_ood_split_may_be_held_out_too() -> None:
    data = {"iid": words(5), "ood:far": words(20, 1)}
    task = make(data, fit_on="far", fit_sequences=8)
    assert {n: len(s) for n, s in task.splits.items()} == {"train": 8, "iid": 5, "far": 12}


def test_frequencies_are_those_in_train() -> None:
    task = make({"iid": ["abz", "ac"], "train": ["ab" * 4, "b" * 9]})
    facet = task.reference.facets["frequency"]
    found = {
        task.vocabulary[token]: facet.names[code]
        for token, code in zip(task.reference.tokens, facet.codes, strict=True)
        if code >= 0
    }
    assert found == {"b": "10–99", "z": "unseen", "c": "unseen"}


def test_sequences_shared_with_the_fit_data_are_said() -> None:
    train = words(20)
    data = {"train": train, "iid": words(10, 1), "ood:leaky": [*train[:3], *words(4, 2)]}
    with pytest.warns(UserWarning, match=r"'leaky' shares 3 of its 7 .*\('train'\)") as caught:
        task = make(data)
    assert len(caught) == 1 and caught[0].filename.endswith("test_text.py")
    shared = {n: about.get("shared_with_fit") for n, about in task.spec["splits"].items()}
    assert shared == {"train": None, "iid": 0, "leaky": 3}
    with pytest.warns(UserWarning, match="'iid' shares"):  # doubles in the split itself
        make({"iid": ["abc", *words(30)] * 2}, fit_on="iid", fit_sequences=30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make({"train": train, "iid": words(10, 1)})


@pytest.mark.filterwarnings("ignore:The split 'iid' shares")
def test_spans_become_a_facet() -> None:
    rows = [
        {"text": "abcd", "kind": [[1, 3, "y"], [3, 4, "x"]]},
        {"text": "efg", "kind": []},
        {"text": "  ab", "kind": [[0, 3, "w"]]},
    ]
    task = make({"iid": rows, "train": rows[:2]}, spans_field="kind", length=8)
    for name, split in task.splits.items():
        facet = split.facets["kind"]
        assert facet.names == ("w", "x", "y"), "the same in every split"
        levels = ["-" if c == -1 else facet.names[c] for c in facet.codes]
        by_text = dict(
            zip(
                spell(task, name),
                ("".join(x) for x in np.split(levels, split.offsets[1:-1])),
                strict=True,
            )
        )
        expected = {"abcd": "-yyx", "efg": "---", "??ab": "--w-"}  # a space is `?`
        assert by_text == {text: expected[text] for text in by_text}


@pytest.mark.filterwarnings("ignore:The split 'iid' shares")
def test_spans_stay_at_their_tokens_in_windows_and_packs() -> None:
    rows = [{"text": text, "vowels": _vowels(text)} for text in words(40)]
    for packing in ("window", "pack"):
        task = make({"iid": rows, "train": rows}, spans_field="vowels", packing=packing, length=7)
        for split in task.splits.values():
            facet = split.facets["vowels"]
            for token, code, scored in zip(split.tokens, facet.codes, split.scored, strict=True):
                letter = task.vocabulary[token]
                assert facet.names[code] == letter if letter in "aeiou" and scored else code == -1


def _vowels(text: str) -> list[list[Any]]:
    return [[i, i + 1, letter] for i, letter in enumerate(text) if letter in "aeiou"]


def test_spans_need_a_fast_tokenizer() -> None:
    class Slow:
        is_fast = False
        name_or_path = "old/one"

        def convert_ids_to_tokens(self, ids: Any) -> Any: ...

        def __call__(self, *_: Any, **__: Any) -> Any: ...

    with pytest.raises(AnamorphError, match=r"needs a fast tokenizer.* old/one is a slow one"):
        text_task({"iid": ["x"]}, Slow(), fit_on="iid", spans_field="x")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["position", "induction", "text"])
def test_a_spans_field_whose_name_is_taken(name: str) -> None:
    with pytest.raises(AnamorphError, match=f"spans_field='{name}' is taken"):
        make({"iid": words(3)}, spans_field=name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 1}, "length must be a whole number from 2; got 1"),
        ({"length": True}, "length must be a whole number from 2; got True"),
        ({"sequences": 1}, "sequences must be a whole number from 2"),
        ({"fit_sequences": "all"}, "fit_sequences must be a whole number from 2; got 'all'"),
        ({"vocabulary": 0}, "vocabulary must be a whole number from 1"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"packing": "cut"}, "packing must be one of truncate, window, pack; got 'cut'"),
    ],
)
def test_arguments_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(AnamorphError, match=message):
        make({"iid": words(3)}, **arguments)


def test_splits_that_are_too_small(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    fine = words(3)
    with pytest.raises(AnamorphError, match=r"'iid' \(iid=.*a.txt\) has a single sequence.* plain"):
        make({"iid": tmp_path / "a.txt", "train": fine})
    with pytest.raises(AnamorphError, match=r"'ood' \(ood=<list>\) has no sequence of two tokens"):
        make({"iid": fine, "train": fine, "ood": ["a", "", "b"]})
    with pytest.raises(AnamorphError, match="has no sequence"):
        make({"iid": fine, "train": []})
    with pytest.raises(
        AnamorphError, match=r"1 sequence\(s\) are left .* fit_sequences=2 are held"
    ):
        make({"iid": fine}, fit_on="iid", fit_sequences=2)
    with pytest.raises(AnamorphError, match=r"0 sequence\(s\) are left .* fit_sequences=200"):
        make({"iid": fine}, fit_on="iid")


def test_a_vocabulary_of_another_size() -> None:
    data = {"iid": ["abc", "abd"], "train": ["aaa", "bbb"]}
    task = make(data, vocabulary=32)
    assert len(task.vocabulary) == len(task.candidates) == 32 and task.vocabulary[28] == "<28>"
    assert make(data, vocabulary=6).spec["vocabulary"] == 6  # d is 5
    with pytest.raises(AnamorphError, match=r"id 5 \(in split 'iid'\).* has 5 ids.*vocabulary=6"):
        make(data, vocabulary=5)


def test_a_tokenizer_that_does_not_fit_the_model() -> None:
    task = make({"iid": ["abc", "abd"], "train": ["aaa", "bbb"]})
    check_vocabulary(task, 28)
    check_vocabulary(task, 99)
    with pytest.raises(AnamorphError, match=r"'iid' has the token id 5 \('d'\).* has 5 rows"):
        check_vocabulary(task, 5)
    with pytest.raises(AnamorphError, match=r"candidates go up .* 27, .* vocabulary=6\."):
        check_vocabulary(task, 6)


def test_sequences_longer_than_the_context() -> None:
    task = make({"iid": ["abc", "abcdef"], "train": ["aaa", "bbb"]})
    check_context(task, 6)
    with pytest.raises(AnamorphError, match=r"'iid' has a sequence of 6 tokens, .* is 5;"):
        check_context(task, 5)


def test_long_documents_bring_no_warning_of_the_tokenizer(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer = copy.copy(letters())
    tokenizer.model_max_length = 8
    text_task({"iid": words(4), "train": words(4, 1)}, tokenizer, packing="pack", length=5)
    assert not caplog.records and capfd.readouterr() == ("", "")


def test_by_name_and_again_from_the_specification(files: dict[str, Path], folder: str) -> None:
    arguments = {"sequences": 10, "fit_sequences": 10, "length": 8}
    task = load_task("text", data=strings(files), tokenizer=folder, **arguments)
    assert task.spec["tokenizer"] == folder
    assert spell(task, "iid") == spell(make(strings(files), **arguments), "iid")
    spec = json.loads(json.dumps(task.spec))
    again = load_task(**spec)
    assert again.spec == task.spec
    assert spell(again, "python") == spell(task, "python")
    files["python"].write_text('{"text": "abc"}\n{"text": "abd"}\n')
    with pytest.raises(AnamorphError, match=r"data of the task 'text' are not what they were"):
        load_task(**spec)


def test_findings_are_no_arguments_of_other_tasks() -> None:
    with pytest.raises(AnamorphError, match="'fit' was said to be 'x' and is None"):
        load_task("dyck", k=2, m=2, train=50, test=5, max_length=30, fit="x")


def test_tokenizers_that_cannot_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, Path]
) -> None:
    (tmp_path / "empty").mkdir()
    name = str(tmp_path / "empty")
    with pytest.raises(AnamorphError, match=f"Cannot load the tokenizer '{name}'"):
        text_task(strings(files), name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(AnamorphError, match=r"needs transformers: pip install 'anamorph\[hf\]'"):
        text_task(strings(files), name)


def test_code_beside_a_tokenizer_is_never_run(tmp_path: Path, files: dict[str, Path]) -> None:
    config = {
        "tokenizer_class": "Mine",
        "auto_map": {"AutoTokenizer": ["evil.Mine", None]},
        "model_type": "mine",
    }
    for name in ("tokenizer_config.json", "config.json"):
        (tmp_path / name).write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: ...\n")
    with pytest.raises(AnamorphError, match="Cannot load the tokenizer"):
        text_task(strings(files), tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_task_of_text_can_be_exported(files: dict[str, Path], tmp_path: Path) -> None:
    export(make(strings(files)), tmp_path / "out")
    about = json.loads((tmp_path / "out" / "task.json").read_text("utf-8"))
    assert about["facets"]["induction"][0] == "predictable"
    assert about["splits"]["python"]["sequences"] == 60
