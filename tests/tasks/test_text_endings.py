"""The same documents in every kind of file, each written by other means, and read as one."""

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import pickle
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from anamorph.errors import AnamorphError
from anamorph.tasks.text import parsed
from anamorph.tasks.text.files import open_source
from anamorph.tasks.text.rows import Fields
from anamorph.tasks.text.task import text_task
from tiny_tokenizers import byte_level

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TEXTS = [
    "plain",
    'she said "no", twice',
    "two\nlines; a\ttab",
    "of Windows\r\nthe end",
    "naïve café € 日本語 😀",
    " blanks around ",
    "007",
    "1e5",
    "true",
    "null",
    "NA",
    '{"text": "not this"}',
    "[1, 2]",
    "back\\slash, \\n, and 'quotes'",
    "x" * 5000,
    *(f"document {i}, and no other" for i in range(60)),
]
ROWS: list[dict[str, Any]] = [{"id": i, "text": t, "more": None} for i, t in enumerate(TEXTS)]


def gzipped(content: bytes) -> bytes:
    """Without the time, which would be in the names of tests."""
    return gzip.compress(content, mtime=0)


def in_lines(ascii: bool = False) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=ascii) + "\n" for row in ROWS).encode()


def in_csv(delimiter: str = ",", **how: Any) -> bytes:
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, list(ROWS[0]), delimiter=delimiter, **how)
    table.writeheader()
    table.writerows(ROWS)
    return text.getvalue().encode()


def by_polars(method: str) -> bytes:
    file = io.BytesIO()
    getattr(pl.DataFrame(ROWS), method)(file)
    return file.getvalue()


def columns() -> dict[str, list[Any]]:
    return {name: [row[name] for row in ROWS] for name in ROWS[0]}


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstd.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".GZ": gzip.compress,
}
ARRAY = json.dumps(ROWS, indent=2).encode()
JSON: dict[str, bytes] = {
    ".jsonl": in_lines(),
    ".JSONL": in_lines(ascii=True),
    ".ndjson": in_lines(),
    ".json": in_lines(),
    ".Json": ARRAY,
    "-array.jsonl": ARRAY,
    "-compact.json": json.dumps(ROWS, ensure_ascii=False, separators=(",", ":")).encode(),
    "-pretty.json": "\n".join(json.dumps(row, indent=4) for row in ROWS).encode(),
    "-bom.json": codecs.BOM_UTF8 + ARRAY,
    "-bom.jsonl": codecs.BOM_UTF8 + in_lines().replace(b"\n", b"\r\n"),
    "-records.json": json.dumps({"data": ROWS}).encode(),
    "-version.json": json.dumps({"version": "2.0", "license": {}, "rows": ROWS}).encode(),
    "-columns.json": json.dumps(columns()).encode(),
    "-pandas.json": json.dumps(
        {name: {str(i): x for i, x in enumerate(column)} for name, column in columns().items()}
    ).encode(),
    "-strings.json": json.dumps(TEXTS).encode(),
    "": in_lines(),
    "-array": ARRAY,
    ".data": in_lines(),
    ".txt": in_lines(),
}
CSV: dict[str, bytes] = {
    ".csv": in_csv(),
    ".CSV": in_csv(quoting=csv.QUOTE_ALL),
    "-lf.csv": in_csv(lineterminator="\n"),
    "-bom.csv": codecs.BOM_UTF8 + in_csv(),
    "-excel.csv": in_csv(delimiter=";"),
    ".tsv": in_csv(delimiter="\t"),
    ".tab": in_csv(delimiter="\t"),
}
OTHER: dict[str, bytes] = {
    ".parquet": by_polars("write_parquet"),
    ".PARQUET": by_polars("write_parquet"),
    "-no-ending": by_polars("write_parquet"),
    "-odd.jsonl": by_polars("write_parquet"),  # it is what its first bytes say
    ".arrow": by_polars("write_ipc"),
    ".feather": by_polars("write_ipc"),
    "-stream.arrow": by_polars("write_ipc_stream"),
}
FILES = {
    **{f"a{end}{p}": pack(x) for end, x in {**JSON, **CSV}.items() for p, pack in PACKED.items()},
    **{f"a{end}": content for end, content in OTHER.items()},
    "unnamed.jsonl": gzipped(in_lines()),  # compressed, and does not say so
    "unpacked.jsonl.gz": in_lines(),  # says so, and is not: a browser unpacked it
    "several.jsonl.gz": gzipped(in_lines()[:1000]) + gzipped(in_lines()[1000:]),
    "several.jsonl.zst": zstd.compress(in_lines()[:1000]) + zstd.compress(in_lines()[1000:]),
    "skip.jsonl.zst": b"\x50\x2a\x4d\x18\x02\x00\x00\x00hi" + zstd.compress(in_lines()),
}


@pytest.mark.parametrize("name", FILES)
def test_every_ending_gives_the_documents_of_plain_jsonl(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name])
    source = open_source(path, Fields())
    assert [document.text for document in source] == TEXTS
    assert source.count() == len(TEXTS)
    picked = np.array([0, 2, 3, 11, 14, 40, len(TEXTS) - 1])
    assert [d.text for d in source.pick(picked)] == [TEXTS[i] for i in picked]


@pytest.mark.parametrize(
    "name", ["a.json.gz", "a.Json", "a-columns.json", "a.csv.zst", "a.tsv", "a.parquet", "a.arrow"]
)
def test_and_the_same_task_to_the_byte(name: str, tmp_path: Path) -> None:
    (tmp_path / "plain.jsonl").write_bytes(in_lines())
    (tmp_path / name).write_bytes(FILES[name])
    train = [f"{i}, something else" for i in range(9)]
    plain, other = (
        text_task({"train": train, "iid": tmp_path / x}, byte_level(), length=12, sequences=20)
        for x in ("plain.jsonl", name)
    )
    assert plain.fingerprints() == other.fingerprints()
    assert plain.spec["read"]["iid"] == other.spec["read"]["iid"]
    assert other.spec["read"]["iid"]["chosen"] == "at random"


SIGNS = ("PAR1S, the play", "ARROW1 and 2", "BZh, he said", "Rar! Rara!", "FEA1", "%PDFs", "PK")


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.TXT.zst", "a.md", "README", "a.py.xz"])
def test_what_is_prose_is_one_document(name: str, tmp_path: Path) -> None:
    for text in (
        "A text,\r\nof two lines.\n",
        "[1] Smith et al.",
        "{ or so } it is",
        "[[File:x]]",
        *SIGNS,
    ):
        content = codecs.BOM_UTF8 + text.encode()
        ends = (end for end in PACKED if end and name.endswith(end))
        (tmp_path / name).write_bytes(PACKED[next(ends, "")](content))
        if name == "README" and text[0] == "{":  # without an ending it is taken for JSON
            continue
        assert [d.text for d in open_source(tmp_path / name, Fields())] == [text]


def error(path: Path, content: bytes, fields: Fields = Fields()) -> str:
    path.write_bytes(content)
    with pytest.raises(AnamorphError) as caught:
        list(open_source(path, fields))
    message = str(caught.value)
    assert str(path) in message
    return message


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("a.jsonl", in_lines())
    return file.getvalue()


def tar(mode: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as packed:  # type: ignore[call-overload]
        info = tarfile.TarInfo("a.jsonl")
        info.size = len(in_lines())
        packed.addfile(info, io.BytesIO(in_lines()))
    return file.getvalue()


def array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(3))
    return file.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pkl", pickle.dumps(ROWS), "is a pickle, which could run code"),
        ("a.jsonl", pickle.dumps(ROWS, protocol=2), "is a pickle"),
        ("a.pt", archive(), "is a zip archive"),
        ("a.zip", archive(), "is a zip archive"),
        ("a.xlsx", archive(), "is a zip archive"),
        ("a.tar", tar("w"), "is a tar archive"),
        ("a.tar.gz", tar("w:gz"), "is a tar archive"),
        ("a.jsonl.gz", gzipped(gzipped(in_lines())), "is compressed twice"),
        ("a.parquet.gz", gzipped(OTHER[".parquet"]), "is compressed Parquet"),
        ("a.parquet", in_lines(), "as Parquet, as it does not begin as such a file"),
        ("a.arrow", in_lines(), "as Arrow, as it does not begin as such a file"),
        ("a.npy", array(), "is a NumPy array"),
        ("a.pdf", b"%PDF-1.7\n", "is a PDF"),
        ("a.bin", bytes(range(256)), "is not text: it is binary"),
        ("a.txt", "ab".encode("utf-16"), "is UTF-16 or UTF-32; convert it to UTF-8"),
        ("a.jsonl", in_lines().decode().encode("utf-16-be"), "binary, or UTF-16"),
        ("a.csv", codecs.BOM_UTF16_BE + in_csv().decode().encode("utf-16-be"), "is UTF-16;"),
        ("a.txt.gz", gzipped("ab".encode("utf-32")), "is UTF-16 or UTF-32"),
        ("a.parquet", LFS, "is a pointer of git-lfs, without the data"),
        ("a.jsonl", LFS, "is a pointer of git-lfs"),
        ("a.txt", LFS, "is a pointer of git-lfs"),
        ("a.csv", b"id,text\n1,caf\xe9\n", "not UTF-8"),
        ("a.csv", b"", "has no column 'text'; its columns are: none."),
        ("a.csv", b'id,text\n1,"open\n2,x\n', ":2 is not a record (a quote is not closed)"),
        ("a.csv", b"id,text\n1,a\n2,b,c\n", ":3 is not a record (3 field(s) for 2 columns)"),
        ("a.csv", b"id,text\n1,of two\nlines\n", ":3 is not a record (1 field(s) for 2 columns)"),
        ("a.csv", b'id,text\n1,"a"b\n', ":2 is not a record ('b\\n' follows a closing quote)"),
        ("a.csv", b"text,text\n1,2\n", "has more than one column 'text'"),
        ("a.csv", b"id,code\n1,a\n", "has no column 'text'; its columns are: id, code"),
        ("a.csv", b"1;first\n2;second\n", "its columns are: 1, first"),
        ("a.jsonl.zst", zstd.compress(in_lines())[:-9], "Cannot read"),
        ("a.jsonl.xz", lzma.compress(in_lines())[:-9], "Cannot read"),
        ("a.jsonl.bz2", bz2.compress(in_lines())[:-9], "Cannot read"),
        ("a.csv.gz", gzipped(in_csv())[:-9], "Cannot read"),
        ("a.json", ARRAY[:-1], ":377 is not JSON (the array does not end)"),
        ("a.json", ARRAY[:-9], "is not JSON ("),
        ("a.json", ARRAY + b"\n{}", "'{}' follows the array"),
        ("a.json", ARRAY.replace(b'"id": 3,', b"'id': 3,"), "is not JSON (Expecting property"),
        ("a.json", b'[{"text": "\xe9"}]', "not UTF-8"),
        ("a.json", b"[[1, 2]]", "row 0 is a list; expected an object"),
        ("a.json", b'{"a": 1, "b": [1]}', "is one JSON object (with a, b)"),
        (
            "a.json",
            b'{"a": [{"text": "x"}], "b": [{"text": "y"}]}',
            "which rows it holds",
        ),
        ("a.json", b'{"text": ["x", "y"], "id": [1]}', "which rows it holds"),
        ("a", b"{'text': 'x'}\n", "is not JSON"),
    ],
)
def test_what_is_not_read(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    assert message in error(tmp_path / name, content)


def test_errors_in_json_name_the_line(tmp_path: Path) -> None:
    lines = ARRAY.split(b"\n")
    lines[41] = b"oops" + lines[41]
    assert f"{tmp_path / 'a.json'}:42 is not JSON" in error(tmp_path / "a.json", b"\n".join(lines))


@pytest.mark.parametrize("name", ["a", "a.txt", "a.data", "a.log.gz"])
def test_long_lines_of_json_are_no_prose(name: str, tmp_path: Path) -> None:
    long = ["é" * 9000, "y" * 20_000]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in long]
    for whole in ("\n".join(lines), f"[{','.join(lines)}]"):
        content = gzipped(whole.encode()) if name.endswith(".gz") else whole.encode()
        (tmp_path / name).write_bytes(content)
        assert [d.text for d in open_source(tmp_path / name, Fields())] == long


def test_json_that_is_nested_too_deeply(tmp_path: Path) -> None:
    assert "nested too deeply" in error(tmp_path / "a.json", b"[" + b'{"a":' * 100_000)


ALL_CSV = [name for name in FILES if name.endswith((".csv", ".CSV", ".tsv", ".tab"))]


@pytest.mark.parametrize("block", [1, 7, 16, 64, 1000])
def test_documents_are_the_same_whatever_is_read_at_a_time(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parsed, "BLOCK", block)
    for name in ("a.Json", "a-compact.json", "a-pretty.json", "a-bom.json", "a.json", *ALL_CSV):
        test_every_ending_gives_the_documents_of_plain_jsonl(name, tmp_path)


def test_a_large_array_is_not_held_in_memory(tmp_path: Path) -> None:
    import tracemalloc

    many = [
        {"text": f"{i} " + "lorem ipsum " * 90, "other": list(range(50))} for i in range(20_000)
    ]
    (tmp_path / "a.json").write_text(json.dumps(many))  # 25 MB
    size = (tmp_path / "a.json").stat().st_size
    expected = [many[i]["text"] for i in (5, 19_999)]
    del many
    tracemalloc.start()
    source = open_source(tmp_path / "a.json", Fields())
    assert sum(1 for _ in source) == source.count() == 20_000
    assert [d.text for d in source.pick(np.array([5, 19_999]))] == expected
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < size / 2


def test_quotes_within_a_plain_field_are_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,text\n1,5" pipe\n\n2,6" or "7"\n3,""\n4,\n')
    texts = [d.text for d in open_source(tmp_path / "a.csv", Fields())]
    assert texts == ['5" pipe', '6" or "7"', "", ""]


def test_random_tables_are_what_the_standard_library_wrote(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pieces = ["a", '"', ",", "\n", "\r\n", "é", "x y", ";", "\t", "'", "\r"]
    texts = ["".join(rng.choice(pieces, rng.integers(0, 20))) for _ in range(3000)]
    for delimiter in ",;\t|":
        with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows(
                [("text", "n"), *((t, 1) for t in texts)]
            )
        assert [d.text for d in open_source(tmp_path / "a.csv", Fields())] == texts


def test_another_field_in_every_kind_of_table(tmp_path: Path) -> None:
    for name in ("a.json", "a.Json", "a.csv", "a-excel.csv", "a.tsv", "a.parquet", "a.arrow"):
        (tmp_path / name).write_bytes(FILES[name].replace(b'"text"', b'"code"', 0))
        message = error(tmp_path / name, FILES[name], Fields("words"))
        assert "'words'" in message and "text_field" in message and "id, text" in message


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": "user", "content": "hi"}]}, "'messages' holds a conversation"),
        ({"conversations": [{"from": "human", "value": "hi"}]}, "apply_chat_template"),
        ({"text": [{"role": "user", "content": "hi"}]}, "got list. Write each conversation"),
        ({"text": ["one", "two"]}, "got list. Join each list"),
        ({"text": None}, "got NoneType. Leave such rows out"),
    ],
)
def test_columns_that_hold_no_text(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert message in error(tmp_path / "a.jsonl", json.dumps(row).encode())
    assert message in error(tmp_path / "a.json", json.dumps([row]).encode())
    if "text" in row:
        pl.DataFrame([row]).write_parquet(tmp_path / "b.parquet")
        assert message in error(tmp_path / "b.parquet", (tmp_path / "b.parquet").read_bytes())
