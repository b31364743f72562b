"""Fetching, with a client that is a script of ours; and one real download."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from anamorph.corpora import from_recipe
from anamorph.corpora.fetch import fetch
from anamorph.corpora.recipe import read_recipe, recipe_names
from anamorph.errors import AnamorphError
from anamorph.progress import Event
from sources import tar

NPM = """#!/bin/sh
# npm pack [options] NAME: packs a file of that name; knows all packages but missing-...
for name; do :; done
echo "$name" >> "$NPM_LOG"
case "$name" in missing-*) echo "404 Not Found - $name" >&2; exit 1;; esac
if [ "$name" = poison ]; then cp "$NPM_POISON" poison-1.0.0.tgz; exit; fi
sleep "${NPM_PAUSE:-0}"
mkdir -p package
printf 'function %s(a) {\\n  return a +\\n    "%s";\\n}\\n' "$name" "$name" > package/a.js
tar --sort=name --mtime=@0 --owner=0 --group=0 -cf - package | gzip -n > "$name-1.2.3.tgz"
rm -r package
echo half > "$name.part"
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts a false npm in front of the path; gives the file that lists what it was asked."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "npm"
    script.write_text(NPM)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("NPM_LOG", str(tmp_path / "log"))
    (tmp_path / "log").touch()
    return tmp_path / "log"


def recipe(tmp_path: Path, packages: str) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(f'[javascript]\nclient = "npm"\npackages = {packages}\nunseen = ["delta"]\n')
    return str(path)


def test_packages_come_once_with_version_and_checksum(tmp_path: Path, log: Path) -> None:
    told: list[Event] = []
    found = fetch([("npm", "alpha"), ("npm", "beta")], tmp_path / "cache", told.append)
    assert [(p.name, p.archives[0].version) for p in found] == [
        ("alpha", "1.2.3"),
        ("beta", "1.2.3"),
    ]
    (path,) = found[0].paths
    sums = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout
    assert sums.split()[0] == found[0].archives[0].sha256
    assert sorted(p.name for p in path.parent.iterdir()) == ["alpha-1.2.3.tgz", "package.json"]
    assert [(event.done, event.total) for event in told] == [(1, 2), (2, 2)]
    assert fetch([("npm", "alpha"), ("npm", "beta")], tmp_path / "cache") == found
    assert sorted(log.read_text().split()) == ["alpha", "beta"], "asked once"


def test_what_is_missing_is_tolerated_and_said(tmp_path: Path, log: Path) -> None:
    wanted = recipe(tmp_path, '["alpha", "missing-one", "beta"]')
    with pytest.warns(UserWarning, match="missing are 1 of 4: missing-one"):
        corpus = from_recipe(wanted, None, tmp_path / "cache")
    (written,) = (tmp_path / "cache" / "manifests").iterdir()
    assert json.loads(written.read_text()) == corpus.manifest
    entries = {entry["repo"]: entry for entry in corpus.manifest}
    assert entries["missing-one"]["missing"] == "404 Not Found - missing-one"
    assert entries["missing-one"]["functions"] == 0
    assert entries["delta"]["partition"] == "test"
    assert corpus.functions["javascript"]["func_name"].to_list() == ["alpha", "beta", "delta"]


def test_a_killed_download_goes_on_and_ends_with_the_same_manifest(
    tmp_path: Path, log: Path
) -> None:
    wanted = recipe(tmp_path, '["alpha", "beta", "gamma"]')
    whole = from_recipe(wanted, None, tmp_path / "cache")
    folder = tmp_path / "cache" / "packages" / "npm"
    (folder / "beta" / "package.json").unlink()  # written last: as if killed before
    (folder / "gamma" / "gamma-1.2.3.tgz").write_bytes(b"half")
    log.write_text("")
    again = from_recipe(wanted, None, tmp_path / "cache")
    assert sorted(log.read_text().split()) == ["beta", "gamma"]
    assert again.checksum == whole.checksum
    assert json.dumps(again.manifest) == json.dumps(whole.manifest)


POISON = {
    "/etc/absolute.js": b"function f() {\n  return 1;\n}\n",
    "a/../../escape.js": b"function f() {\n  return 1;\n}\n",
    "link.js": "/etc/passwd",
    "lines.js": b"\n" * 10_000_000,
    "latin.js": b"\xff\xfe",
    "good.js": b"function good(a) {\n  return a;\n}\n",
}


def test_a_poisoned_package_costs_a_warning_that_names_it_and_nothing_else(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NPM_POISON", str(tar(tmp_path / "poison.tgz", POISON)))
    outside = set(tmp_path.rglob("*"))
    wanted = recipe(tmp_path, '["alpha", "poison", "beta"]')
    with pytest.warns(UserWarning, match="passed over in 1, first poison: .*'/etc/absolute.js'"):
        corpus = from_recipe(wanted, None, tmp_path / "cache")
    names = corpus.functions["javascript"]["func_name"].to_list()
    assert names == ["alpha", "good", "beta", "delta"]
    (entry,) = [entry for entry in corpus.manifest if entry["repo"] == "poison"]
    for named in ("absolute.js", "link.js", "lines.js", "latin.js"):
        assert named in entry["passed_over"]
    made = set(tmp_path.rglob("*")) - outside - {tmp_path / "mine.toml", tmp_path / "cache"}
    assert all(path.is_relative_to(tmp_path / "cache") for path in made)
    assert not [path for path in made if path.suffix == ".js"], "nothing is extracted to disk"


def test_killed_again_and_again_it_ends_with_the_same_manifest(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = recipe(tmp_path, json.dumps([f"package{i}" for i in range(40)]))
    whole = from_recipe(wanted, None, tmp_path / "whole")
    monkeypatch.setenv("NPM_PAUSE", "0.05")
    log.write_text("")
    cache = tmp_path / "cache"
    work = (
        "import pathlib, sys; from anamorph.corpora import from_recipe;"
        "from_recipe(sys.argv[1], None, pathlib.Path(sys.argv[2]))"
    )

    def killed_when(there: Callable[[], bool]) -> None:
        command = [sys.executable, "-c", work, wanted, str(cache)]
        process = subprocess.Popen(command, start_new_session=True)
        deadline = time.monotonic() + 60
        while process.poll() is None and not there() and time.monotonic() < deadline:
            time.sleep(0.002)
        assert process.poll() is None, "it was to be killed while it ran"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    killed_when(lambda: len(log.read_text().split()) >= 2)
    assert len(list(cache.rglob("package.json"))) < 41, "killed in the middle of the downloads"
    killed_when(lambda: len(list(cache.glob("functions/*.parquet"))) >= 1)
    assert not list(cache.glob("manifests/*")), "killed in the middle of the extraction"
    again = from_recipe(wanted, None, cache)
    assert again.checksum == whole.checksum
    assert again.manifest == whole.manifest


def test_a_client_that_brings_nothing_is_an_error_and_nothing_is_recorded(
    tmp_path: Path, log: Path
) -> None:
    wanted = [("npm", "missing-a"), ("npm", "missing-b")]
    with pytest.raises(AnamorphError, match=r"npm brought none of 2 packages.*404.*connection"):
        fetch(wanted, tmp_path / "cache")  # type: ignore[arg-type]
    assert not list((tmp_path / "cache").rglob("package.json"))


def test_a_client_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AnamorphError, match="fetched with npm, which is not installed"):
        fetch([("npm", "alpha")], tmp_path / "cache")


@pytest.mark.parametrize("name", recipe_names())
def test_our_recipes_name_every_package_once(name: str) -> None:
    for language, packages in read_recipe(name).items():
        every = [*packages.packages, *packages.unseen]
        assert len(set(every)) == len(every), language
        assert packages.unseen


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[cobol]\nclient = 'npm'\npackages = []", "no such language"),
        ("[java]\nclient = 'cargo'\npackages = []", "client must be one of pip, npm"),
        ("[java]\nclient = 'apt'", "a table with client and packages"),
        ("[java]\nclient = 'apt'\npackages = ['-o x']", "is not the name of a package"),
        ("[java]\nclient = 'apt'\npackages = 'x'", "must be a list of names"),
        ("[java]\nclient = 'apt'\npackages = []\nextra = 1", "unknown extra"),
        ("java", "is not TOML"),
    ],
)
def test_recipes_that_do_not_fit(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(AnamorphError, match=message):
        read_recipe(str(path))


@pytest.mark.network
def test_a_real_package_from_its_registry(tmp_path: Path) -> None:
    (found,) = fetch([("pip", "click")], tmp_path)
    assert found.archives and found.archives[0].file.endswith(".whl")
    assert sys.executable
