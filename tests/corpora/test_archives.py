import subprocess
import zipfile
from pathlib import Path

import pytest

from anamorph.corpora.archives import Limits, Problems, source_files
from sources import tar

GOOD = b"int f() {\n  return 1;\n}\n"


def read(path: Path, limits: Limits | None = None) -> tuple[dict[str, str], Problems]:
    problems = Problems()
    return dict(source_files(path, (".c",), problems, limits)), problems


@pytest.mark.parametrize("mode", ["w:", "w:gz", "w:xz", "w:bz2"])
def test_every_compression_is_read(tmp_path: Path, mode: str) -> None:
    path = tar(tmp_path / "a", {"p/a.c": GOOD, "p/b.txt": b"no", "p/c.c": b"\xc3\xa9"}, mode)
    found, problems = read(path)
    assert found == {"p/a.c": GOOD.decode(), "p/c.c": "é"}
    assert str(problems) == ""


def test_zips_and_debian_packages_are_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("a.c", GOOD)
    assert list(read(tmp_path / "a.whl")[0]) == ["a.c"]
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x.org>\nDescription: x\n"
    )
    (root / "x.c").write_bytes(GOOD)
    made = subprocess.run(
        ["dpkg-deb", "--build", str(root), str(tmp_path / "x.deb")], capture_output=True
    )
    assert made.returncode == 0
    assert list(read(tmp_path / "x.deb")[0]) == ["./x.c"]


def test_poison_costs_a_warning_that_names_it_and_nothing_else(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "poison.tar.gz",
        {
            "/etc/absolute.c": GOOD,
            "a/../../escape.c": GOOD,
            "link.c": "/etc/passwd",
            "long.c": b"\n" * 30_000,
            "large.c": b" " * (2**20 + 1),
            "latin.c": b"\xff\xfe",
            "good.c": GOOD,
        },
    )
    before = sorted(tmp_path.rglob("*"))
    found, problems = read(path)
    assert found == {"good.c": GOOD.decode()}
    assert problems.examples == {
        "unsafe path": "/etc/absolute.c",
        "link": "link.c",
        "more than 20,000 lines": "long.c",
        "larger than 1,048,576 bytes": "large.c",
        "no UTF-8": "latin.c",
    }
    assert problems.counts["unsafe path"] == 2
    assert "'/etc/absolute.c'" in str(problems)
    assert sorted(tmp_path.rglob("*")) == before, "nothing was written anywhere"


@pytest.mark.parametrize("zipped", [True, False])
def test_a_bomb_is_left_unread_behind_the_limit(tmp_path: Path, zipped: bool) -> None:
    path, limits = tmp_path / "bomb", Limits(unpacked=2**20, file=2**19)
    bombs = {f"{i}.c": b"\0" * 2**18 for i in range(8)}
    if zipped:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in {"good.c": GOOD, **bombs}.items():
                archive.writestr(name, content)
    else:
        tar(path, {"good.c": GOOD, **bombs})
    assert path.stat().st_size < 20_000
    found, problems = read(path, limits)
    assert "good.c" in found and len(found) < 5
    assert "the rest was left unread: more than 1,048,576 bytes" in str(problems)
    assert "'bomb'" in str(problems)


def test_a_file_may_lie_about_its_size_in_a_zip(tmp_path: Path) -> None:
    path = tmp_path / "lie.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("lie.c", b"\0" * 2**20)
    content = path.read_bytes().replace((2**20).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    path.write_bytes(content)
    found, problems = read(path, Limits(file=2**10))
    assert len("".join(found.values())) <= 10
    assert len(problems.counts) <= 1


def test_too_many_members(tmp_path: Path) -> None:
    path = tar(tmp_path / "a", {f"{i}.c": GOOD for i in range(20)})
    found, problems = read(path, Limits(members=10))
    assert len(found) == 10
    assert "more than 10 members" in str(problems)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\3\4broken", b"\x1f\x8bbroken"])
def test_a_damaged_archive_is_a_problem_not_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    found, problems = read(tmp_path / "a")
    assert not found
    assert "cannot be read" in str(problems)


def test_a_truncated_archive_gives_what_was_read(tmp_path: Path) -> None:
    path = tar(tmp_path / "a", {f"{i}.c": bytes([65 + i]) * 20_000 for i in range(9)}, "w:")
    path.write_bytes(path.read_bytes()[:70_000])
    found, problems = read(path)
    assert 2 <= len(found) <= 4
    assert "cannot be read" in str(problems)
