import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from anamorph.corpora import Corpus, from_codesearchnet, from_folders
from anamorph.corpora.from_datasets import write_files
from anamorph.errors import AnamorphError
from anamorph.progress import Event


def c_function(number: int, name: str = "f") -> str:
    return (
        f"int {name}{number}(int a) {{\n  int b{number} = a * {number};\n  return b{number};\n}}\n"
    )


def folders(tmp_path: Path) -> list[tuple[str, str, Path]]:
    for repo in ("one", "two"):
        (tmp_path / "c" / repo / "src").mkdir(parents=True)
        text = "".join(c_function(i, repo) for i in range(5))
        (tmp_path / "c" / repo / "src" / "a.c").write_text(text, "utf-8")
    (tmp_path / "py").mkdir()
    (tmp_path / "py" / "a.py").write_text("def f(a):\n    b = a\n    return b\n", "utf-8")
    return [("c", "train", tmp_path / "c"), ("python", "test", tmp_path / "py")]


def csn_row(number: int, repo: str, text: str) -> dict[str, object]:
    """A row with exactly the fields of CodeSearchNet's files."""
    return {
        "repo": repo,
        "path": f"src/{number}.java",
        "func_name": f"A.f{number}",
        "original_string": text,
        "language": "java",
        "code": text,
        "code_tokens": text.split(),
        "docstring": "Doc.",
        "docstring_tokens": ["Doc", "."],
        "sha": "0" * 40,
        "url": f"https://github.com/{repo}/blob/0/src/{number}.java#L1-L3",
        "partition": "train",
    }


def codesearchnet(folder: Path) -> Path:
    for partition, repo in (("train", "a/b"), ("test", "c/d")):
        place = folder / "java" / "final" / "jsonl" / partition
        place.mkdir(parents=True)
        lines = [
            json.dumps(csn_row(i, repo, f"public int f{i}() {{\n  return {i};\n}}"))
            for i in range(4)
        ]
        lines += ["not JSON", json.dumps({"repo": "x"}), json.dumps(csn_row(9, repo, "int {{"))]
        with gzip.open(place / f"java_{partition}_0.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(lines))
    return folder


def test_folders_are_read_and_repositories_are_their_folders(tmp_path: Path) -> None:
    corpus = from_folders(folders(tmp_path), tmp_path / "cache")
    table = corpus.functions["c"]
    assert sorted(set(table["repo"])) == ["c/one", "c/two"]
    assert table["func_name"].to_list() == [f"{r}{i}" for r in ("one", "two") for i in range(5)]
    assert corpus.functions["python"]["original_string"].to_list() == [
        "def f(a):\n    b = a\n    return b"
    ]
    lengths = table["span_lengths"].list.sum()
    assert lengths.to_list() == table["original_string"].str.len_chars().to_list()


@pytest.mark.parametrize(
    "place",
    [
        *("tests/a.py", "one/tests/deep/a.py", "one/test/a.py", "one/spec/a.py"),
        *("one/__tests__/a.py", "testdata/a.py", "one/fixtures/a.py", "one/testing/a.py"),
        *("one/test_a.py", "one/a_test.py", "one/conftest.py", "one/my-tests/a.py"),
        *(".venv/lib/a.py", "one/.tox/a.py", "one/node_modules/b/a.py"),
        *("venv/lib/python3.11/site-packages/b/a.py", "one/__pycache__/a.py"),
    ],
)
def test_tests_and_installed_packages_in_own_folders_are_left_out(
    place: str, tmp_path: Path
) -> None:
    own = tmp_path / "tests" / ".hidden" / "mine"  # what lies above is not asked
    for name, path in (("f", "one/src/a.py"), ("g", "one/contest/latest.py"), ("h", place)):
        (own / path).parent.mkdir(parents=True, exist_ok=True)
        (own / path).write_text(f"def {name}(a):\n    {name} = a\n    return {name}\n", "utf-8")
    corpus = from_folders([("python", "train", own)], tmp_path / "cache")
    assert sorted(corpus.functions["python"]["func_name"]) == ["f", "g"]
    (own / "one/src/a.py").unlink()
    (own / "one/contest/latest.py").unlink()
    with pytest.raises(AnamorphError, match=r"no file of python \(\.py\) but 1 of tests or of"):
        from_folders([("python", "train", own)], tmp_path / "cache")


def test_the_manifest_is_the_same_again_and_another_for_other_contents(tmp_path: Path) -> None:
    given = folders(tmp_path)
    first = from_folders(given, tmp_path / "cache")
    assert from_folders(given, tmp_path / "cache").checksum == first.checksum
    assert from_folders(given, tmp_path / "another").checksum == first.checksum
    (tmp_path / "py" / "a.py").write_text("def f(a):\n    c = a\n    return c\n", "utf-8")
    changed = from_folders(given, tmp_path / "cache")
    assert changed.checksum != first.checksum
    assert "c = a" in changed.functions["python"]["original_string"][0]


def test_an_extraction_that_was_killed_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    given, cache = folders(tmp_path), tmp_path / "cache"
    first = from_folders(given, cache)
    places = sorted((cache / "functions").glob("*.json"))
    assert len(places) == 3
    places[0].unlink()  # written last: as if killed before
    stays = places[1].with_suffix(".parquet").stat().st_mtime_ns
    told: list[Event] = []
    again = from_folders(given, cache, told.append)
    assert again.checksum == first.checksum
    assert [(event.done, event.total) for event in told] == [(3, 3)]
    assert places[1].with_suffix(".parquet").stat().st_mtime_ns == stays


def test_codesearchnet_files_are_read_and_broken_lines_are_named(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"in 2, first java/.*syntax error"):
        corpus = from_codesearchnet(codesearchnet(tmp_path / "csn"), None, tmp_path / "cache")
    table = corpus.functions["java"]
    assert table.group_by("partition", "repo").len().sort("repo").rows() == [
        ("train", "a/b", 4),
        ("test", "c/d", 4),
    ]
    problems = corpus.manifest[0]["passed_over"]
    assert "line 5" in problems and "syntax error (1 time(s), first 'line 7')" in problems


@pytest.mark.parametrize("languages", [None, ["java", "ruby"]])
def test_a_folder_that_is_not_codesearchnet_says_what_was_expected(
    tmp_path: Path, languages: list[str] | None
) -> None:
    if languages:
        codesearchnet(tmp_path)
    with pytest.raises(AnamorphError, match="LANGUAGE/final/jsonl/PARTITION"):
        from_codesearchnet(tmp_path, languages, tmp_path / "cache")


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(AnamorphError, match="no folder"):
        from_folders([("c", "train", tmp_path / "no")], tmp_path)
    with pytest.raises(AnamorphError, match=r"no file of c \(\.c\)"):
        from_folders([("c", "train", tmp_path)], tmp_path)
    with pytest.raises(AnamorphError, match=r"'cobol'; there are: java"):
        from_folders([("cobol", "train", tmp_path)], tmp_path)


def test_what_cannot_be_read_is_passed_over_and_named(tmp_path: Path) -> None:
    given = folders(tmp_path)
    (tmp_path / "py" / "latin.py").write_bytes(b"x = '\xff'\n")
    with pytest.warns(UserWarning, match=r"passed over in 1, first py: no UTF-8.*latin\.py"):
        corpus: Corpus = from_folders(given, tmp_path / "cache")
    assert "no UTF-8" in corpus.manifest[-1]["passed_over"]
    assert "latin.py" in corpus.manifest[-1]["passed_over"]
    assert corpus.manifest[-1]["functions"] == 1


def test_a_data_set_of_the_hub_is_written_in_the_same_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, str]] = []

    def load_dataset(name: str, language: str, split: str) -> list[dict[str, str]]:
        asked.append((name, language, split))
        number = len(asked)
        return [
            {
                "repository_name": f"{split}/repo",
                "func_path_in_repository": "A.java",
                "func_name": "A.f",
                "whole_func_string": f"int f() {{\n  return {number};\n}}",
                "language": language,
            }
        ]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    for _ in range(2):
        folder = write_files("some/name", ["java"], tmp_path)
    assert asked == [("some/name", "java", split) for split in ("train", "validation", "test")]
    table = from_codesearchnet(folder, None, tmp_path).functions["java"]
    assert table.select("partition", "repo").rows() == [
        ("train", "train/repo"),
        ("valid", "validation/repo"),
        ("test", "test/repo"),
    ]


def test_without_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(AnamorphError, match="pip install datasets"):
        write_files("some/name", ["java"], tmp_path)
