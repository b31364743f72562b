"""What is written to disk, read back by other means: plain JSON and polars."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from anamorph.errors import AnamorphError
from anamorph.tasks import Task
from anamorph.tasks.base import Facet, Split
from anamorph.tasks.dyck.task import dyck
from anamorph.tasks.export import export


@pytest.fixture(scope="module")
def task() -> Task:
    return dyck(k=3, m=2, train=300, test=25, max_length=40, seed=6)


@pytest.fixture(scope="module")
def folder(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "below" / "dyck"  # folders are made
    export(task, path)
    return path


def test_there_is_a_file_a_split_and_nothing_else(task: Task, folder: Path) -> None:
    expected = {f"{name}.parquet" for name in task.splits} | {"task.json"}
    assert {file.name for file in folder.iterdir()} == expected


def test_tables_hold_every_sequence_and_label(task: Task, folder: Path) -> None:
    for name, split in task.splits.items():
        table = pl.read_parquet(folder / f"{name}.parquet")
        facets = ["depth", "trained depth", "distance", "position", "length"]
        assert table.columns == ["tokens", "scored", *facets]
        assert table["tokens"].to_list() == [s.tolist() for s in split]
        flat = {
            column: [x for row in table[column].to_list() for x in row] for column in table.columns
        }
        assert flat["scored"] == split.scored.tolist()
        for facet, labels in split.facets.items():
            assert flat[facet] == labels.codes.tolist()
            assert table[facet].list.len().to_list() == split.lengths.tolist()


def test_the_description_speaks_of_the_tables(task: Task, folder: Path) -> None:
    text = (folder / "task.json").read_text("utf-8")
    description = json.loads(text)
    assert description["task"] == {
        **{"name": "dyck", "k": 3, "m": 2, "train": 300, "test": 25, "max_length": 40},
        **{"scored": "far_closers", "structure": "sentence", "seed": 6},
    }
    assert description["vocabulary"] == ["START", "END", "(1", "(2", "(3", "1)", "2)", "3)"]
    assert [description["vocabulary"][c] for c in description["candidates"]] == ["1)", "2)", "3)"]
    assert description["learnt"] == 0.9
    assert description["facets"]["depth"] == ["1", "2", "3", "4"]
    assert description["facets"]["distance"][:5] == ["1", "2–3", "4–7", "8–9", "10–15"]
    for name, about in description["splits"].items():
        table = pl.read_parquet(folder / f"{name}.parquet")
        assert about == {
            "file": f"{name}.parquet",
            "role": "train" if name == "train" else "iid" if name == "iid" else "ood",
            "sequences": table.height,
            "tokens": int(table["tokens"].list.len().sum()),
            "scored": sum(map(sum, table["scored"].to_list())),
        }
    assert set(description["splits"]) == set(task.splits)


def test_a_folder_that_cannot_be_made_is_an_error(task: Task, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(AnamorphError, match=r"Cannot write .*train\.parquet"):
        export(task, tmp_path / "file" / "dyck")
    assert (tmp_path / "file").read_text() == "in the way"


ODD = [
    *(
        "",
        ".",
        "..",
        "../up",
        "a/b",
        "a\\b",
        "a\0b",
        "Java",
        "java",
        "JAVA",
        "long" * 80,
        "a b",
        "é:",
    ),
    *("con", "NUL.txt", "ends.", "\ud800", "straße", "STRASSE", "é", "e\u0301", "x" * 100),
    *("-a", "über", "1.2", "a%2Fb", ".hidden", "tasks\n", "/etc/passwd", "😀"),
]


def test_any_name_of_a_split_is_a_file_within_the_folder(tmp_path: Path) -> None:
    def split(name: str, place: int) -> Split:
        tokens = np.array([0, place])
        scored = np.array([False, True])
        return Split(name, "ood" if place else "iid", tokens, np.array([0, 2]), scored)

    splits = {name: split(name, place) for place, name in enumerate(ODD)}
    task = Task("odd", {}, tuple(map(str, range(len(ODD)))), np.arange(2), splits)
    export(replace(task, splits={k: v for k, v in splits.items() if k != "\ud800"}), tmp_path / "x")
    assert [p.name for p in tmp_path.iterdir()] == ["x"], "nothing leaves the folder"
    about = json.loads((tmp_path / "x" / "task.json").read_text("utf-8"))["splits"]
    files = [about[name]["file"] for name in ODD if name != "\ud800"]
    assert sorted(files) == sorted(p.name for p in (tmp_path / "x").glob("*.parquet"))
    assert len({file.casefold() for file in files}) == len(ODD) - 1, "nor is one file two"
    for place, name in enumerate(ODD):
        if name in about:
            table = pl.read_parquet(tmp_path / "x" / about[name]["file"])
            assert table["tokens"].to_list() == [[0, place]]
    stems = [file.removesuffix(".parquet") for file in files]
    assert all(len(stem) <= 100 and set(stem) & set("/\\\0:") == set() for stem in stems)
    assert [name for name in ODD if f"{name}.parquet" in files] == ["java"]


def test_a_facet_cannot_take_the_place_of_tokens(task: Task, tmp_path: Path) -> None:
    reference = task.reference
    facet = Facet(np.zeros(len(reference.tokens), np.int16), ("a",))
    for name in ("tokens", "scored"):
        odd = replace(reference, facets={name: facet})
        with pytest.raises(AnamorphError, match=f"'iid' has a facet named '{name}'"):
            export(replace(task, splits={"iid": odd}), tmp_path / "x")
