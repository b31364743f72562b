"""Sources of text, written by other means and read back."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from anamorph.errors import AnamorphError
from anamorph.tasks.text import content as text_content
from anamorph.tasks.text.files import open_source
from anamorph.tasks.text.rows import Fields, to_document

TEXTS = ["one", "two\nlines", "drei €", "vier 😀", "fünf"]


def jsonl(path: Path, rows: list[Any], end: str = "\n") -> Path:
    path.write_text(end.join(json.dumps(row, ensure_ascii=False) for row in rows) + end, "utf-8")
    return path


def rows(texts: list[str] = TEXTS) -> list[dict[str, Any]]:
    return [{"id": i, "text": text} for i, text in enumerate(texts)]


def texts(source: object, fields: Fields = Fields()) -> list[str]:
    return [document.text for document in open_source(source, fields)]


class Dataset:
    """Like `datasets.Dataset`: mappings by number, with a length, and no Sequence."""

    def __len__(self) -> int:
        return len(TEXTS)

    def __getitem__(self, number: int) -> dict[str, Any]:
        assert type(number) is int, "datasets take no numpy integers everywhere"
        return {"text": TEXTS[number]}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))


@pytest.fixture
def everything(tmp_path: Path) -> dict[str, object]:
    """The same documents in every form that can be counted."""
    plain = tmp_path / "plain"
    for number, text in enumerate(TEXTS):
        file = plain / "ab"[number % 2] / f"{number}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    (plain / ".git").mkdir()
    (plain / ".git" / "index").write_bytes(b"\xff")
    (plain / "a" / ".hidden").write_bytes(b"\xff")
    shards = tmp_path / "shards"
    shards.mkdir()
    jsonl(shards / "0.jsonl", rows(TEXTS[:2]))
    pl.DataFrame(rows(TEXTS[2:])).write_parquet(shards / "1.parquet")
    jsonl(tmp_path / "plain.jsonl", rows())
    (tmp_path / "no-end.jsonl").write_text("\n".join(map(json.dumps, rows())))
    (tmp_path / "bom.jsonl").write_bytes(
        b"\xef\xbb\xbf" + (tmp_path / "plain.jsonl").read_bytes().replace(b"\n", b"\r\n")
    )
    pl.DataFrame(rows()).write_parquet(tmp_path / "x[1].parquet", row_group_size=2)
    return {
        "jsonl": tmp_path / "plain.jsonl",
        "jsonl without a last line end": tmp_path / "no-end.jsonl",
        "jsonl of Windows": str(tmp_path / "bom.jsonl"),
        "parquet": tmp_path / "x[1].parquet",
        "folder": plain,
        "shards": shards,
        "strings": TEXTS,
        "mappings": rows(),
        "dataset": Dataset(),
    }


def test_every_form_gives_the_same_documents(everything: dict[str, object]) -> None:
    folder = [TEXTS[i] for i in (0, 2, 4, 1, 3)]  # a/0, a/2, a/4, b/1, b/3
    for name, source in everything.items():
        expected = folder if name == "folder" else TEXTS
        assert texts(source) == expected, name
        opened = open_source(source, Fields())
        assert opened.count() == 5, name
        picked = [d.text for d in opened.pick(np.array([0, 2, 3]))]
        assert picked == [expected[i] for i in (0, 2, 3)], name


def test_compressed_files_are_counted_unless_they_are_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, data in (
        ("a.jsonl.gz", "\n".join(map(json.dumps, rows()))),
        ("b.txt.gz", "a whole\ndocument"),
    ):
        with gzip.open(tmp_path / name, "wt", encoding="utf-8") as file:
            file.write(data)
    assert texts(tmp_path / "b.txt.gz") == ["a whole\ndocument"]
    (tmp_path / "shards").mkdir()
    (tmp_path / "a.jsonl.gz").rename(tmp_path / "shards" / "a.jsonl.gz")
    jsonl(tmp_path / "shards" / "b.jsonl", rows(["x"]))
    shards = open_source(tmp_path / "shards", Fields())
    assert [d.text for d in shards] == [*TEXTS, "x"] and shards.count() == 6
    assert [d.text for d in shards.pick(np.array([1, 4, 5]))] == [TEXTS[1], TEXTS[4], "x"]
    monkeypatch.setattr(text_content, "LARGE", 10)
    assert open_source(tmp_path / "shards", Fields()).count() is None
    assert open_source(tmp_path / "shards" / "b.jsonl", Fields()).count() == 1


def test_a_stream_is_read_no_further_than_asked() -> None:
    taken: list[int] = []

    def stream() -> Iterator[str]:
        for number in range(100):
            taken.append(number)
            yield str(number)

    source = open_source(stream(), Fields())
    assert source.count() is None
    assert [next(iter(source)).text] == ["0"] and taken == [0]


def test_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"text": "x"}\n  \n{"text": "y"}\n\n')
    source = open_source(path, Fields())
    documents = list(source)
    assert [d.text for d in documents] == ["x", "y"]
    assert [d.where for d in documents] == [f"{path}:2", f"{path}:4"]
    count = source.count()
    assert count == 5
    assert list(source.pick(np.arange(count))) == documents


def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"")
    jsonl(tmp_path / "b.jsonl", rows(["x", "y"]))
    assert open_source(tmp_path / "a.jsonl", Fields()).count() == 0
    both = open_source(tmp_path, Fields())
    count = both.count()
    assert count == 2 and [d.text for d in both.pick(np.arange(count))] == ["x", "y"]


def test_line_starts_of_a_file_of_many_blocks(tmp_path: Path) -> None:
    long = ["x" * 3_000_000, "y" * 2_000_000, "z"]  # a block is 4 MiB
    source = open_source(jsonl(tmp_path / "a.jsonl", rows(long)), Fields())
    assert source.count() == 3
    assert [len(d.text) for d in source.pick(np.array([1, 2]))] == [2_000_000, 1]


def test_other_fields(tmp_path: Path) -> None:
    given = [{"code": "ab cd", "kinds": [[3, 5, "word"], [0, 2, "word"]]}]
    fields = Fields("code", "kinds")
    structs = [{"code": "ab cd", "kinds": [{"start": 0, "end": 2, "label": "word"}]}]
    pl.DataFrame(structs).write_parquet(tmp_path / "a.parquet")
    (document,) = open_source(jsonl(tmp_path / "a.jsonl", given), fields)
    assert document.text == "ab cd"
    assert document.spans == ((0, 2, "word"), (3, 5, "word"))
    (document,) = open_source(tmp_path / "a.parquet", fields)
    assert document.spans == ((0, 2, "word"),)


def error(source: object, fields: Fields = Fields()) -> str:
    with pytest.raises(AnamorphError) as caught:
        list(open_source(source, fields))
    return str(caught.value)


def test_paths_that_hold_nothing(tmp_path: Path) -> None:
    assert f"no file or folder '{tmp_path / 'gone.jsonl'}'" in error(tmp_path / "gone.jsonl")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x").write_text("x")
    assert f"folder '{tmp_path}' has no file in it" in error(tmp_path)


def test_what_is_no_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("naïve".encode() + b"\xff")
    assert f"{tmp_path / 'a.txt'} is not UTF-8 at byte 6" in error(tmp_path / "a.txt")
    lines = b'{"text": "x"}\n{"text": "\xe9t\xe9"}\n'
    (tmp_path / "a.jsonl").write_bytes(lines)
    assert "a.jsonl is not UTF-8 at byte 24" in error(tmp_path / "a.jsonl")
    assert lines[24] == 0xE9
    with gzip.open(tmp_path / "b.jsonl.gz", "wb") as file:
        file.write(lines)
    assert "is not UTF-8 at byte 24 of what it unpacks to" in error(tmp_path / "b.jsonl.gz")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'text': 1}", r":2 is not JSON (Expecting property name"),
        ("[" * 100_000, ":2 is not JSON"),
        ("3", ":2 is a int; expected an object with the field 'text'"),
        (
            '{"code": "x", "id": 1}',
            ":2 has no field 'text'; its fields are: code, id. Name the right one with text_field.",
        ),
        ("{}", ":2 has no field 'text'; its fields are: none."),
        ('{"text": null}', ":2: the field 'text' must be a string; got NoneType"),
        ('{"text": "ab\\ud83d"}', ":2: the text holds half of a surrogate pair at character 2"),
    ],
)
def test_lines_that_are_no_documents(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' + line)
    assert f"{path}{message}" in error(path)


def test_damaged_files(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "whole.gz", "wb") as file:
        file.write(bytes(range(100)) * 50)
    cut = (tmp_path / "whole.gz").read_bytes()[:-20]
    (tmp_path / "a.jsonl.gz").write_bytes(b"no gzip")
    assert f"{tmp_path / 'a.jsonl.gz'}:1 is not JSON" in error(tmp_path / "a.jsonl.gz")
    for name, data in (("a.jsonl.gz", cut), ("b.txt.gz", cut)):
        (tmp_path / name).write_bytes(data)
        assert f"Cannot read {tmp_path / name}: " in error(tmp_path / name)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no more")
    assert f"Cannot read {tmp_path / 'a.parquet'} as Parquet" in error(tmp_path / "a.parquet")


def test_parquet_of_another_kind(tmp_path: Path) -> None:
    pl.DataFrame({"code": ["x"], "text": [3]}).write_parquet(tmp_path / "a.parquet")
    assert "row 0: the field 'text' must be a string; got int" in error(tmp_path / "a.parquet")
    message = error(tmp_path / "a.parquet", Fields("words"))
    assert "has no column 'words'; its columns are: code, text" in message
    assert "text_field" in message
    assert "spans_field" in error(tmp_path / "a.parquet", Fields("text", "spans"))


@pytest.mark.parametrize("source", [3, None, {"train": ["x"]}, {"x", "y"}])
def test_objects_that_are_no_source(source: object) -> None:
    message = error(source)
    assert "A source of text must be a path" in message
    assert f"got a {type(source).__name__}" in message
    assert ("with the keys train" in message) == isinstance(source, dict)


class Labelled(Dataset):
    """Like a pandas series with an index of its own."""

    def __getitem__(self, number: int) -> dict[str, Any]:
        raise KeyError(number)


class DataFrame(Dataset):
    """Called so in pandas and polars."""


def test_tables_in_memory_are_given_as_rows() -> None:
    assert "frame.to_dict('records')" in error(DataFrame())
    assert "frame.to_dicts()" in error(pl.DataFrame(rows()))
    assert "row 0 cannot be read from a Labelled: KeyError(0); give a list" in error(Labelled())
    assert texts(pl.DataFrame(rows()).to_dicts()) == texts(pl.Series(TEXTS)) == TEXTS
    assert texts(np.array(TEXTS)) == TEXTS


def test_rows_of_another_kind() -> None:
    assert "row 1 is a int; expected an object" in error(["x", 3])
    assert "row 0 has no field 'text'; its fields are: code" in error([{"code": "x"}])
    assert "row 0 is a str" in error(["x"], Fields("text", "spans"))


def test_plain_text_has_no_spans(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    assert "a.txt is plain text and has no field 'kinds'" in error(
        tmp_path, Fields("text", "kinds")
    )


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ("words", "spans must be a list"),
        (None, "spans must be a list"),
        ([[0, 1]], "a span must be [start, end, label]"),
        ([[0, 1.0, "x"]], "a span must be"),
        ([[0, True, "x"]], "a span must be"),
        ([[0, 1, 2]], "a span must be"),
        ([{"start": 0, "label": "x"}], "a span must be"),
        ([[0, 6, "x"]], "is out of range; expected 0 <= start < end <= 5"),
        ([[-1, 2, "x"]], "is out of range"),
        ([[2, 2, "x"]], "is out of range"),
        ([[3, 5, "y"], [0, 4, "x"]], "the spans 'x' and 'y' overlap at character 3"),
    ],
)
def test_spans_that_cannot_be(spans: object, message: str) -> None:
    with pytest.raises(AnamorphError) as caught:
        to_document({"text": "ab cd", "kinds": spans}, Fields("text", "kinds"), "a.jsonl:7")
    assert "a.jsonl:7: " in str(caught.value) and message in str(caught.value)
