"""Folders as people have them: cloned from a hub, saved by datasets, of source code, of texts."""

import gzip
import json
import os
from collections.abc import Mapping
from pathlib import Path

import polars as pl
import pytest

from anamorph.errors import AnamorphError
from anamorph.tasks.text.files import checksum, open_source
from anamorph.tasks.text.rows import Fields

CARD = "---\nlicense: mit\ntask_categories:\n- text-generation\n---\n# A data set\nOf texts.\n"
ATTRIBUTES = "*.parquet filter=lfs diff=lfs merge=lfs -text\n"


def lines(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def table(folder: Path, method: str, *texts: str) -> bytes:
    path = folder / "made"
    getattr(pl.DataFrame({"text": texts}), method)(path)
    content = path.read_bytes()
    path.unlink()
    return content


def fill(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def texts(source: object) -> list[str]:
    opened = open_source(source, Fields())
    found = [document.text for document in opened]
    assert opened.count() == len(found)
    return found


def error(source: object) -> str:
    with pytest.raises(AnamorphError) as caught:
        texts(source)
    return str(caught.value)


def test_a_data_set_cloned_from_a_hub(tmp_path: Path) -> None:
    fill(
        tmp_path,
        {
            "README.md": CARD,
            ".gitattributes": ATTRIBUTES,
            ".git/config": "[core]",
            "LICENSE": "MIT",
            "dataset_infos.json": '{"default": {"features": {}}}',
            "my_set.py": "import datasets\n",
            "assets/figure.png": b"\x89PNG\r\n\x1a\n\x00\x00",
            "data/train-00000-of-00003.jsonl": lines("a", "b"),
            "data/train-00001-of-00003.parquet": table(tmp_path, "write_parquet", "c"),
            "data/train-00002-of-00003.json.gz": gzip.compress(lines("d")),
        },
    )
    assert texts(tmp_path) == ["a", "b", "c", "d"]
    assert texts(tmp_path / "data") == ["a", "b", "c", "d"]


@pytest.mark.parametrize("files", [{"README.md": CARD}, {".gitattributes": ATTRIBUTES}])
def test_what_tells_a_clone(files: dict[str, str], tmp_path: Path) -> None:
    fill(tmp_path, {**files, "data.csv": "id,text\n1,a\n2,b\n", "load.py": "x", "notes.md": "y"})
    assert texts(tmp_path) == ["a", "b"]


def test_a_card_beside_plain_texts_is_not_one_of_them(tmp_path: Path) -> None:
    fill(tmp_path, {"README.md": CARD, "LICENSE.txt": "MIT", "b.txt": "second", "a.txt": "first"})
    assert texts(tmp_path) == ["first", "second"]
    (tmp_path / "README.md").write_text("# A program")  # in source code it is a text as any other
    assert texts(tmp_path) == ["MIT", "# A program", "first", "second"]


def test_a_data_set_of_markdown(tmp_path: Path) -> None:
    fill(tmp_path, {"README.md": CARD, "docs/a.md": "one", "docs/b.md": "two"})
    assert texts(tmp_path) == ["one", "two"]


def test_a_card_alone_is_no_data(tmp_path: Path) -> None:
    fill(tmp_path, {"README.md": CARD, "dataset_infos.json": "{}"})
    assert "has no file in it but what speaks of the data" in error(tmp_path)


def test_readme_and_license_beside_tables_without_a_card(tmp_path: Path) -> None:
    fill(tmp_path, {"README": "Data.", "LICENSE": "MIT", "a.jsonl": lines("x", "y")})
    assert texts(tmp_path) == ["x", "y"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"], "test, train"),
        (["train.jsonl", "validation.jsonl"], "train, validation"),
        (["train.jsonl.gz", "valid.jsonl.gz", "test.jsonl.gz"], "test, train, validation"),
        (["my_train.csv", "my_dev.csv"], "train, validation"),
        (["default/train/0000.parquet", "default/eval/0000.parquet"], "test, train"),
        (["train.jsonl", "unsupervised.jsonl"], "no split, train"),
        (["unsupervised-00000-of-00001.parquet", "other-00000-of-00001.parquet"], "unsupervised"),
        (["c4-train.00000-of-01024.json", "c4-validation.00000-of-00008.json"], "train"),
    ],
)
@pytest.mark.parametrize("cloned", [True, False])
def test_splits_are_not_mixed(names: list[str], message: str, cloned: bool, tmp_path: Path) -> None:
    content = {"parquet": table(tmp_path, "write_parquet", "x"), "csv": b"text,n\nx,1\n"}
    files = {name: content.get(name.rsplit(".")[-1], lines("x")) for name in names}
    fill(tmp_path, files | ({"README.md": CARD} if cloned else {}))
    said = error(tmp_path)
    assert "holds several splits, which would be mixed" in said
    named = said.split(": ")[1]
    assert all(word in named for word in message.split(", ")), said
    for name in names:
        assert texts(tmp_path / name) == ["x"]
    assert texts(f"{tmp_path}/**/{Path(names[0]).name}"), "a pattern is one way out"


def test_numbered_parts_and_parts_in_folders_are_one_set(tmp_path: Path) -> None:
    fill(tmp_path, {f"year={y}/part-{i}.jsonl": lines(f"{y} {i}") for y in (1, 2) for i in (0, 1)})
    assert texts(tmp_path) == ["1 0", "1 1", "2 0", "2 1"]


def test_several_sets_in_a_clone_are_not_mixed(tmp_path: Path) -> None:
    fill(tmp_path, {"README.md": CARD, "en/a.jsonl": lines("x"), "de/a.jsonl": lines("y")})
    said = error(tmp_path)
    assert "tables in several folders" in said and "de (de/a.jsonl), en (en/a.jsonl)" in said
    assert texts(tmp_path / "de") == ["y"]
    assert texts(f"{tmp_path}/**/*.jsonl") == ["y", "x"]
    configured = CARD.replace(
        "license: mit", "configs:\n- config_name: en\n  data_files: a\n- config_name: de"
    )
    flat = fill(tmp_path / "flat", {"README.md": configured, "en.jsonl": lines("x")})
    assert "card of" in error(flat) and "en, de" in error(flat)


def test_the_same_data_in_two_formats_are_not_read_twice(tmp_path: Path) -> None:
    fill(tmp_path, {"a.jsonl": lines("x"), "a.parquet": table(tmp_path, "write_parquet", "x")})
    assert "a.jsonl and a.parquet, which seem to be the same data" in error(tmp_path)
    fill(tmp_path / "packed", {"a.jsonl": lines("x"), "a.jsonl.gz": gzip.compress(lines("x"))})
    assert "a.jsonl and a.jsonl.gz, which seem to be the same data" in error(tmp_path / "packed")
    fill(tmp_path / "parts", {"a.0.jsonl": lines("x"), "a.1.json": lines("y")})
    assert texts(tmp_path / "parts") == ["x", "y"]


def test_data_beside_other_files_are_not_read_as_text(tmp_path: Path) -> None:
    fill(tmp_path, {"a.jsonl": lines("x"), "b.py": "y = 1\n"})
    said = error(tmp_path)
    assert "mixes data (a.jsonl, 1 in all) with other files (b.py, 1 in all)" in said
    assert texts(f"{tmp_path}/*.py") == ["y = 1\n"]
    assert texts(f"{tmp_path}/*.jsonl") == ["x"]
    assert "mixes data" in error(f"{tmp_path}/*")
    assert "no file that fits the pattern" in error(f"{tmp_path}/*.csv")


def test_source_code_with_its_settings_is_text(tmp_path: Path) -> None:
    files = {
        "package.json": '{\n  "name": "x",\n  "files": ["a"]\n}\n',
        "src/tsconfig.json": '{\n  // strict\n  "strict": true\n}\n',
        "src/a.ts": "let x = 1\n",
        "node_modules/b/index.js": "let y = 2\n",
        "__pycache__/c.pyc": b"\x00\xff",
        ".venv/d.py": "z = 3\n",
    }
    expected = [files["package.json"], files["src/a.ts"], files["src/tsconfig.json"]]
    assert texts(fill(tmp_path, files)) == expected


@pytest.mark.parametrize(
    "names",
    [
        ["README", "train/neg/0.txt", "train/pos/0.txt", "test/neg/0.txt", "test/pos/0.txt"],
        ["train.txt", "valid.txt", "test.txt"],
        ["wiki.train.tokens", "wiki.test.tokens"],
        ["en_train.txt.gz", "en_dev.txt.gz"],
    ],
)
def test_train_and_test_texts_are_not_mixed(names: list[str], tmp_path: Path) -> None:
    fill(tmp_path, {name: name for name in names})
    assert "several splits, which would be mixed: " in error(tmp_path)
    assert texts(tmp_path / names[1]) == [names[1]]


@pytest.mark.parametrize(
    "names",
    [
        ["test_drive.txt", "train_journey.txt"],
        ["test/a.py", "train/b.py", "notes.txt"],
        ["latest.txt", "constrain.txt"],
    ],
)
def test_texts_whose_names_only_sound_like_splits(names: list[str], tmp_path: Path) -> None:
    fill(tmp_path, {name: name for name in names})
    assert texts(tmp_path) == sorted(names, key=lambda name: Path(name).parts)


def test_a_pointer_of_git_lfs_and_a_link_to_nothing_are_named(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n"
    fill(tmp_path, {"README.md": CARD, "data/a.parquet": pointer})
    assert "a.parquet is a pointer of git-lfs" in error(tmp_path)
    (tmp_path / "data" / "a.parquet").unlink()
    (tmp_path / "data" / "a.parquet").symlink_to(tmp_path / "annex" / "gone")
    assert "a.parquet is a link to a file that is not there" in error(tmp_path)
    fill(tmp_path, {"annex/gone": table(tmp_path, "write_parquet", "x")})
    assert texts(tmp_path / "data") == ["x"], "as in the cache of the hub"


def saved(folder: Path, *shards: str) -> dict[str, str | bytes]:
    """What `datasets.Dataset.save_to_disk` writes: Arrow streams, and two descriptions."""
    names = [f"data-{i:05}-of-{len(shards):05}.arrow" for i in range(len(shards))]
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    return {
        "state.json": json.dumps(state),
        "dataset_info.json": '{"features": {}}',
        **{n: table(folder, "write_ipc_stream", t) for n, t in zip(names, shards, strict=True)},
    }


def test_what_datasets_saved_to_disk(tmp_path: Path) -> None:
    files = saved(tmp_path, "x", "y", "z")
    fill(tmp_path / "one", {**files, "cache-1.arrow": b"\xff\xff\xff\xff"})
    assert texts(tmp_path / "one") == ["x", "y", "z"]
    fill(tmp_path / "both" / "train", files)
    fill(tmp_path / "both" / "test", saved(tmp_path, "w"))
    fill(tmp_path / "both", {"dataset_dict.json": '{"splits": ["train", "test"]}'})
    said = error(tmp_path / "both")
    assert "several splits that datasets saved (train, test)" in said
    assert str(tmp_path / "both" / "train") in said
    assert texts(tmp_path / "both" / "test") == ["w"]
    fill(tmp_path / "both", {"dataset_dict.json": '{"splits": ["train"]}'})
    assert texts(tmp_path / "both") == ["x", "y", "z"]
    (tmp_path / "one" / "data-00001-of-00003.arrow").unlink()
    assert "lacks data-00001-of-00003.arrow" in error(tmp_path / "one")
    fill(tmp_path / "one", {"state.json": "{"})
    assert "Cannot read" in error(tmp_path / "one")


@pytest.mark.parametrize("name", ["with blanks", "a=b", "[x]", "naïve 😀", "~"])
def test_odd_names(name: str, tmp_path: Path) -> None:
    fill(tmp_path / name, {"a.jsonl": lines("x")})
    assert texts(tmp_path / name) == ["x"]
    assert texts(str(tmp_path / name / "a.jsonl")) == ["x"]


def test_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    fill(tmp_path, {"here/a.jsonl": lines("x")})
    assert texts("~/here/a.jsonl") == texts(Path("~/here")) == texts("~/here/*") == ["x"]
    assert "no file or folder" in error("~nobody-of-this-name/a.jsonl")
    assert "no file or folder" in error("a\0b")
    assert "no file or folder" in error("x" * 5000)


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    assert "is a pipe or a device" in error(tmp_path / "a.jsonl")


def test_a_checksum_is_of_what_is_read(tmp_path: Path) -> None:
    def found(source: str | Path) -> str:
        return checksum(source, open_source(source, Fields()).paths)

    for place in ("one", "two"):
        fill(tmp_path / place, {"README.md": CARD, "a.jsonl": lines("x"), "b.jsonl": lines("y")})
    one, two = tmp_path / "one", tmp_path / "two"
    assert found(one) == found(two) == found(str(one)) and len(found(one)) == 32
    assert found(one / "a.jsonl") == found(two / "a.jsonl") != found(one / "b.jsonl")
    (two / "README.md").write_text(CARD + "more")
    assert found(one) == found(two), "the card is not read"
    (two / "b.jsonl").write_bytes(lines("z"))  # as long as before
    assert found(one) != found(two)
    (two / "b.jsonl").write_bytes(lines("y"))
    assert found(one) == found(two)
    (two / "b.jsonl").rename(two / "c.jsonl")
    assert found(one) != found(two)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_folder_that_spark_wrote(tmp_path: Path, rows: int) -> None:
    """A row a file, as small data come out, is no prose."""
    parts = {f"part-0000{i}-ab.json": lines(*[f"{i} {j}" for j in range(rows)]) for i in range(2)}
    fill(tmp_path, {**parts, "_SUCCESS": "", "_committed_17": "{}"})
    assert texts(tmp_path) == [f"{i} {j}" for i in range(2) for j in range(rows)]
