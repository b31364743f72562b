"""Versions, workflows and citation agree, so that a release could go out."""

import importlib.util
import re
import shutil
import tarfile
import zipfile
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
PLACES = ("pyproject.toml", "CHANGELOG.md", "CITATION.cff")
CITATION_FIELDS = {  # of the Citation File Format 1.2.0 that we use
    *("cff-version", "message", "title", "abstract", "type", "license", "version"),
    *("date-released", "authors", "preferred-citation"),
}


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`.ci/release.py`, on a copy of the files that name the version."""
    found = importlib.util.spec_from_file_location("release", ROOT / ".ci/release.py")
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    for name in PLACES:
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def change(folder: Path, name: str, pattern: str, new: str) -> None:
    before = (folder / name).read_text("utf-8")
    after = re.sub(pattern, new, before, count=1, flags=re.M)
    assert after != before
    (folder / name).write_text(after, "utf-8")


def put_out(folder: Path, day: str = "2026-12-01") -> None:
    change(folder, "CHANGELOG.md", r"^(## \[.*?\] - ).*$", rf"\g<1>{day}")
    with (folder / "CITATION.cff").open("a") as file:
        file.write("date-released: 2026-12-01\n")


def test_versions_agree(release: ModuleType, tmp_path: Path) -> None:
    version = release.check_versions(None)
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    put_out(tmp_path)
    assert release.check_versions(f"v{version}") == version


@pytest.mark.parametrize(
    ("name", "pattern", "new", "told"),
    [
        ("pyproject.toml", r'^version = ".*"', 'version = "9.0.0"', "CHANGELOG.md begins with"),
        ("CITATION.cff", "^version: .*", "version: 9.0.0", "CITATION.cff: 9.0.0"),
        ("CHANGELOG.md", r"^## \[.*", "## [9.0.0] - Unreleased", "CHANGELOG.md begins with 9.0.0"),
        ("CHANGELOG.md", r"^## \[.*", "## 0.1.0", "no heading such as"),
        ("CHANGELOG.md", "Unreleased$", "2026-12-01", "date-released: None"),
    ],
)
def test_versions_that_differ_are_told(
    release: ModuleType, tmp_path: Path, name: str, pattern: str, new: str, told: str
) -> None:
    change(tmp_path, name, pattern, new)
    with pytest.raises(release.Refused, match=re.escape(told)):
        release.check_versions(None)


def test_a_tag_is_of_a_dated_version(
    release: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = release.check_versions(None)
    with pytest.raises(SystemExit, match="is unreleased"):
        release.main(["versions", "--tag", f"v{version}"])
    put_out(tmp_path)
    with pytest.raises(SystemExit, match=f"the tag is v9.0.0; pyproject.toml asks for v{version}"):
        release.main(["versions", "--tag", "v9.0.0"])
    release.main(["versions", "--tag", f"v{version}"])
    assert capsys.readouterr().out == f"{version}\n"


def test_news_are_those_of_the_first_version(release: ModuleType, tmp_path: Path) -> None:
    text = "# Changelog\n\n## [2.0.0] - Unreleased\n\n- two\n\n## [1.0.0] - 2025-01-01\n\n- one\n"
    (tmp_path / "CHANGELOG.md").write_text(text)
    assert release.news() == "- two\n"


def packed(release: ModuleType, folder: Path, skip: str = "", more: str = "") -> Path:
    """Wheel and sdist of a package of the files that a wheel needs, less one, and with one more."""
    source = folder / "src"
    for name in release.NEEDED:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("x")
    dist = folder / "dist"
    dist.mkdir()
    with zipfile.ZipFile(dist / "anamorph-1.whl", "w") as wheel:
        for name in (*release.NEEDED, "anamorph-1.dist-info/licenses/LICENSE", more):
            if name not in ("", skip):
                wheel.writestr(name, "x")
    for name in ("README.md", "LICENSE", "tests/conftest.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    with tarfile.open(dist / "anamorph-1.tar.gz", "w:gz") as sdist:
        for name in ("README.md", "LICENSE", "tests/conftest.py", "pyproject.toml", "CHANGELOG.md"):
            if name != skip:
                sdist.add(folder / name, f"anamorph-1/{name}")
    return dist


def test_files_are_whole(release: ModuleType, tmp_path: Path) -> None:
    said = release.check_files(packed(release, tmp_path))
    assert said.endswith(f"{len(release.NEEDED) + 1} and 5 files")


@pytest.mark.parametrize(
    ("skip", "more", "told"),
    [
        ("anamorph/report/templates/report.css", "", "lacks anamorph/report/templates/report.css"),
        ("anamorph-1.dist-info/licenses/LICENSE", "", "lacks the licence"),
        ("", "tests/test_x.py", "differ in tests/test_x.py"),
        ("CHANGELOG.md", "", "anamorph-1.tar.gz lacks CHANGELOG.md"),
    ],
)
def test_files_that_are_wrong_are_told(
    release: ModuleType, tmp_path: Path, skip: str, more: str, told: str
) -> None:
    with pytest.raises(release.Refused, match=re.escape(told)):
        release.check_files(packed(release, tmp_path, skip, more))


def test_what_a_wheel_needs_is_there(release: ModuleType) -> None:
    assert all((ROOT / "src" / name).is_file() for name in release.NEEDED)
    kinds = {path.suffix for path in (ROOT / "src/anamorph").rglob("*") if path.is_file()}
    assert kinds - {".pyc"} <= set(release.KINDS)


def test_citation() -> None:
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert set(found) <= CITATION_FIELDS
    assert found["cff-version"] == "1.2.0" and found["type"] == "software"
    assert isinstance(found.get("date-released", date.today()), date)
    assert all(author.keys() <= {"name"} for author in found["authors"])
    paper = found["preferred-citation"]
    assert [a["family-names"] for a in paper["authors"]][::4] == ["Friedman", "Ghandeharioun"]
    assert paper["year"] == 2024 and "2312.03656" in paper["identifiers"][0]["value"]


def jobs(path: Path) -> dict[str, Any]:
    found = yaml.safe_load(path.read_text("utf-8"))
    assert True in found, "`on`, which YAML 1.1 reads as true"
    return dict(found["jobs"])


def test_workflows_call_what_there_is(release: ModuleType) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    verbs = {"versions", "news", "files", "pythons", "smoke"}
    called = []
    for path in WORKFLOWS:
        for name, job in jobs(path).items():
            assert job["timeout-minutes"] > 0, name
            for step in job["steps"]:
                assert ("run" in step) != ("uses" in step)
                line = step.get("run", "")
                assert "${{" not in line, "what comes from outside is no part of a command"
                assert "uses" not in step or re.search(r"@(v\d+|release/v1)$", step["uses"])
                called += re.findall(r"release\.py (\w+)", line)
                for script in re.findall(r"(?<![\w/])\.ci/[\w.]+", line):
                    assert (ROOT / script).is_file(), script
    assert set(called) <= verbs and {"versions", "files", "smoke"} <= set(called)
    made = re.search(r"^make (.*)$", (ROOT / ".ci/run").read_text(), flags=re.M)
    assert made and set(made[1].split()) <= targets
    assert any(step.get("run") == ".ci/run" for step in jobs(WORKFLOWS[0])["tests"]["steps"])


def test_workflows_try_the_pythons_that_are_promised(release: ModuleType) -> None:
    promised = release.pythons()
    assert release.project()["requires-python"] == f">={promised[0]}"
    ci, put_out = (jobs(ROOT / ".github/workflows" / name) for name in ("ci.yml", "release.yml"))
    assert ci["wheel"]["strategy"]["matrix"]["python"] == promised
    assert put_out["smoke"]["strategy"]["matrix"]["python"] == promised
    assert all(job.get("needs") for name, job in put_out.items() if name != "build")
    signs_in = [name for name, job in put_out.items() if "id-token" in job.get("permissions", {})]
    assert signs_in == ["pypi"] and put_out["pypi"]["environment"] == "pypi"
