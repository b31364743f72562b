"""What is written to disk, read back by other means: plain JSON and polars."""

import json
from pathlib import Path

import polars as pl
import pytest

from anamorph.errors import AnamorphError
from anamorph.tasks import Task
from anamorph.tasks.dyck import dyck
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
        assert table.columns == ["tokens", "scored", "depth", "distance", "position", "length"]
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
    assert description["facets"]["depth"] == ["1", "2", "3", "4"]
    assert description["facets"]["distance"][:5] == ["1", "2–3", "4–7", "8–9", "10–15"]
    for name, about in description["splits"].items():
        table = pl.read_parquet(folder / f"{name}.parquet")
        assert about == {
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
