"""Could this go out? Versions in step, the right files in wheel and sdist, the wheel at work.

    python .ci/release.py versions [--tag v0.1.0]   pyproject, CHANGELOG, CITATION, a tag agree
    python .ci/release.py news                      what CHANGELOG says of the version to come
    python .ci/release.py files dist                wheel and sdist hold what they should
    python .ci/release.py pythons                   the Pythons here that pyproject names
    python .ci/release.py smoke dist [python3.12]   the wheel alone, in a new environment, does
                                                    the main job; in all Pythons here if none given

Needs nothing but Python 3.11. `make release-check` does all of it.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEADING = re.compile(r"^## \[(?P<version>[^\]]+)\] - (?P<date>Unreleased|\d{4}-\d\d-\d\d)$", re.M)
CLASSIFIER = re.compile(r"^Programming Language :: Python :: (3\.\d+)$")
NEEDED = (
    "anamorph/py.typed",
    "anamorph/studies/presets/dyck-smoke.toml",
    "anamorph/corpora/recipes/demo.toml",
    "anamorph/report/templates/report.html.j2",
    "anamorph/report/templates/report.css",
    "anamorph/report/templates/report.js",
)
KINDS = (".py", ".toml", ".js", ".css", ".j2", ".typed")  # of files in the package
MOST = 4_000_000  # bytes of a wheel or sdist
MADE = ("report.html", "results.parquet", "gaps.parquet", "figures/verdicts.svg")


class Refused(Exception):
    """Why this cannot go out."""


def project() -> dict:
    """The table `project` of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def pythons() -> list[str]:
    """Versions such as "3.11" that pyproject.toml names."""
    found = (CLASSIFIER.match(line) for line in project()["classifiers"])
    return [match[1] for match in found if match]


def citation(name: str) -> str | None:
    """A field of CITATION.cff that stands at its top level; None if it is not there."""
    text = (ROOT / "CITATION.cff").read_text("utf-8")
    found = re.search(rf"^{name}: *['\"]?([^'\"\n]+)", text, re.M)
    return found[1] if found else None


def check_versions(tag: str | None) -> str:
    """That all places name one version; with a tag, that it is released on a day.

    Returns:
        the version.

    Raises:
        Refused: two places differ.
    """
    version = project()["version"]
    head = HEADING.search((ROOT / "CHANGELOG.md").read_text("utf-8"))
    if head is None:
        raise Refused("CHANGELOG.md has no heading such as: ## [0.1.0] - Unreleased")
    if head["version"] != version:
        raise Refused(f"pyproject.toml: {version}; CHANGELOG.md begins with {head['version']}")
    if citation("version") != version:
        raise Refused(f"pyproject.toml: {version}; CITATION.cff: {citation('version')}")
    released = None if head["date"] == "Unreleased" else head["date"]
    cited = citation("date-released")
    if cited != released:
        raise Refused(f"CHANGELOG.md: {head['date']}; CITATION.cff, date-released: {cited}")
    if tag is not None and tag != f"v{version}":
        raise Refused(f"the tag is {tag}; pyproject.toml asks for v{version}")
    if tag is not None and released is None:
        raise Refused(
            f"CHANGELOG.md says that {version} is unreleased; give it its day, and tag again"
        )
    return version


def news() -> str:
    """What CHANGELOG.md says of its first version, without the heading."""
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    starts = [match.start() for match in HEADING.finditer(text)] + [len(text)]
    return text[starts[0] : starts[1]].partition("\n")[2].strip() + "\n"


def check_files(dist: Path) -> str:
    """That wheel and sdist hold the package and its data, and nothing that is not theirs.

    Returns:
        a line on both.

    Raises:
        Refused: something is missing, or should not be there.
    """
    wheel, sdist = the_file(dist, "*.whl"), the_file(dist, "*.tar.gz")
    with zipfile.ZipFile(wheel) as opened:
        inside = [name for name in opened.namelist() if not name.endswith("/")]
    info = [name for name in inside if ".dist-info/" in name]
    if missing := [name for name in NEEDED if name not in inside]:
        raise Refused(f"{wheel.name} lacks {', '.join(missing)}")
    if not any(name.endswith("/licenses/LICENSE") for name in info):
        raise Refused(f"{wheel.name} lacks the licence")
    source = ROOT / "src"
    here = {
        str(path.relative_to(source))
        for path in (source / "anamorph").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    differ = here.symmetric_difference(name for name in inside if name not in info)
    if differ:
        raise Refused(f"{wheel.name} and src/anamorph differ in {', '.join(sorted(differ)[:5])}")
    if odd := [name for name in here if Path(name).suffix not in KINDS]:
        raise Refused(
            f"{wheel.name} has files of kinds unknown to it: {', '.join(sorted(odd)[:5])}"
        )
    with tarfile.open(sdist) as opened:
        packed = {name.partition("/")[2] for name in opened.getnames()}
    wanted = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "tests/conftest.py"}
    if missing := sorted(wanted - packed):
        raise Refused(f"{sdist.name} lacks {', '.join(missing)}")
    for file in (wheel, sdist):
        if file.stat().st_size > MOST:
            raise Refused(f"{file.name} has {file.stat().st_size:,} bytes, more than {MOST:,}")
    sizes = ", ".join(f"{file.name} {file.stat().st_size / 1e6:.1f} MB" for file in (wheel, sdist))
    return f"{sizes}: {len(inside)} and {len(packed)} files"


def the_file(folder: Path, pattern: str) -> Path:
    """The one file of a kind in a folder."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise Refused(f"{folder} has {len(found)} files {pattern}, not one")
    return found[0]


def found_pythons() -> list[str]:
    """Commands of the Pythons here that pyproject.toml names, those of pyenv among them."""
    found = []
    for version in pythons():
        kept = sorted((Path.home() / ".pyenv/versions").glob(f"{version}.*/bin/python"))
        command = shutil.which(f"python{version}")
        if kept:
            found.append(str(kept[-1]))
        elif command and subprocess.run([command, "-c", ""], capture_output=True).returncode == 0:
            found.append(command)
    return found


def smoke(dist: Path, python: str) -> str:
    """Install the wheel into a new environment, and do the main job with it; then throw it away.

    Args:
        dist: the folder of the wheel.
        python: the command of a Python.

    Returns:
        a line: the Python, what it installed, and how long the run took.

    Raises:
        Refused: something failed; with its last words.
    """
    wheel = the_file(dist, "*.whl").resolve()
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    with tempfile.TemporaryDirectory(prefix="anamorph-release-") as folder:
        inside, bin_ = Path(folder), Path(folder, "venv", "bin")

        def do(*command: object) -> str:
            words = [str(word) for word in command]
            done = subprocess.run(words, cwd=inside, env=clean, capture_output=True, text=True)
            if done.returncode:
                last = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
                raise Refused(f"{python}: {' '.join(words)} ended with {done.returncode}:\n{last}")
            return done.stdout

        do(python, "-m", "venv", "venv")
        do(bin_ / "python", "-m", "pip", "install", "--quiet", wheel)
        do(bin_ / "python", "-m", "pip", "check")
        where = do(bin_ / "python", "-c", "import anamorph; print(anamorph.__file__)").strip()
        if "site-packages" not in where:
            raise Refused(f"{python} imports {where}, which is not the wheel")
        started = time.monotonic()
        do(bin_ / "anamorph", "run", "dyck", "--preset", "smoke", "--out", "run")
        took = time.monotonic() - started
        if missing := [name for name in MADE if not (inside / "run" / name).is_file()]:
            raise Refused(f"{python}: the run has no {', '.join(missing)}")
        do(bin_ / "anamorph", "show", "run")
        said = do(bin_ / "anamorph", "--version").strip()
        torch = do(bin_ / "python", "-c", "import torch; print(torch.__version__)").strip()
        on = do(bin_ / "python", "--version").strip()
        return f"{on}, torch {torch}: anamorph {said}, smoke in {took:.0f} s"


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line asks; ends with 1 and the reason where something is not right."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("versions").add_argument("--tag")
    verbs.add_parser("news")
    verbs.add_parser("pythons")
    verbs.add_parser("files").add_argument("dist", type=Path)
    trying = verbs.add_parser("smoke")
    trying.add_argument("dist", type=Path)
    trying.add_argument("python", nargs="*")
    given = parser.parse_args(arguments)
    try:
        if given.verb == "versions":
            print(check_versions(given.tag))
        elif given.verb == "news":
            print(news(), end="")
        elif given.verb == "pythons":
            print("\n".join(found_pythons()))
        elif given.verb == "files":
            print(check_files(given.dist))
        else:
            for python in given.python or found_pythons():
                print(smoke(given.dist, python), flush=True)
    except Refused as refused:
        sys.exit(f"not to go out: {refused}")


if __name__ == "__main__":
    main()
