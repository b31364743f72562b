"""What the source of a sequence calls it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import anamorph as am
from anamorph.auditing.samples import described_sequences, scored_sequences
from anamorph.tasks import Split
from sources import write_sources
from tiny_tokenizers import letters


def documents(folder: Path) -> dict[str, Any]:
    """Two files, with a letter of its own at the beginning of each line."""
    for name in "ab":
        lines = [f"{chr(97 + i)}{name * (3 + 2 * i)}" for i in range(9)]
        text = "".join(json.dumps({"text": line}) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text)
    return {"iid": folder / "a.jsonl", "ood:b": folder / "b.jsonl"}


@pytest.mark.parametrize("packing", ["truncate", "window", "pack"])
@pytest.mark.parametrize("sequences", [None, 4])
def test_a_text_is_where_it_says(tmp_path: Path, packing: Any, sequences: int | None) -> None:
    tokenizer = letters()
    data = documents(tmp_path)
    task = am.text_task(
        data,
        tokenizer,
        length=5,
        packing=packing,
        sequences=sequences,
        fit_on="iid",
        fit_sequences=2,
    )
    lines = [json.loads(x)["text"] for x in (tmp_path / "b.jsonl").read_text().splitlines()]
    split = task.splits["b"]
    assert split.ids is not None and split.ids.n_unique() == len(split)
    for tokens, name in zip(split, split.ids, strict=True):
        place, _, later = name.partition(", from token ")
        file, line = place.split(":")
        start = int(later or 0)
        text = lines[int(line) - 1] + ("." if packing == "pack" else "")
        shown = "".join(tokenizer.convert_ids_to_tokens(tokens.tolist()))
        assert file == "b.jsonl"
        assert shown.startswith(text[start : start + 5])
    assert (packing == "truncate") is not split.ids.str.contains("from token").any()


def test_files_of_a_folder_and_rows_in_memory(tmp_path: Path) -> None:
    for name in ("one/a.txt", "two/b.txt", "two/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{name[4]}abc")
    data = {"train": tmp_path, "iid": ["xabc", "yabc"], "ood:far": ["xbcd", "ybcd"]}
    task = am.text_task(data, letters(), length=8)
    assert task.train.ids is not None and task.reference.ids is not None
    assert task.train.ids.sort().to_list() == ["one/a.txt", "two/b.txt", "two/c.txt"]
    names = {
        f"row {'xy'.index(letters().convert_ids_to_tokens([t[0]])[0])}" for t in task.reference
    }
    assert set(task.reference.ids) == names


def test_code_is_named_by_repository_path_and_function(tmp_path: Path) -> None:
    corpus = write_sources(tmp_path / "s", functions=60)
    task = am.load_task(
        "code", corpus=corpus, language="c", test=12, context=40, cache=str(tmp_path)
    )
    ids = task.splits["unseen_repository"].ids
    assert ids is not None and ids.str.contains(r"^more/four/a\.c/f\d+$").all()


def test_what_is_described_follows_the_sequences() -> None:
    offsets = np.array([0, 3, 5, 9, 12])
    scored = np.zeros(12, bool)
    scored[[4, 6, 7, 11]] = True  # the first sequence has none
    ids = pl.Series(["w", "x", "y", "z"])
    split = Split("s", "iid", np.arange(12), offsets, scored, ids=ids)
    again = split.take(np.array([3, 0, 1]))
    assert again.ids is not None and again.ids.to_list() == ["z", "w", "x"]
    found = described_sequences(scored_sequences(again))
    assert found.select("sequence", "number", "id", "length", "scored").rows() == [
        (0, 3, "z", 3, 1),
        (1, 1, "x", 2, 1),
    ]
    without = Split("s", "iid", np.arange(12), offsets, scored)
    assert without.fingerprint == split.fingerprint, "no number depends on ids"
    described = described_sequences(without)
    assert described["id"].to_list() == [None] * 4
    assert described["number"].to_list() == [0, 1, 2, 3]
    with pytest.raises(am.AnamorphError, match="ids has 3 entries for 4 sequences"):
        Split("s", "iid", np.arange(12), offsets, scored, ids=ids[:3])
