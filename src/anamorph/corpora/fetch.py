"""Packages from their registries, by their ordinary clients, into a cache.

Every package has a folder with its archives and `package.json`, which is written last: a download
that is killed begins again with the packages that have none.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from anamorph.corpora.recipe import Client
from anamorph.errors import AnamorphError
from anamorph.files import write_json
from anamorph.progress import Event, Watch, ignore

AT_A_TIME = 4
PATIENCE = 900  # seconds for one package
_VERSION = re.compile(r"[-_]v?(\d[\w.+~]*?)(?:[-_]|\.orig|\.tgz|\.tar|\.whl|\.deb|$)")


@dataclass(frozen=True)
class Archive:
    """A downloaded file: its name, version, size in bytes and checksum."""

    file: str
    version: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Package:
    """What a client brought for a package.

    Attributes:
        client: that was asked.
        name: of the package.
        archives: what came; empty if the package is missing.
        problem: why it is missing.
        folder: where the archives are.
    """

    client: Client
    name: str
    archives: tuple[Archive, ...]
    problem: str
    folder: Path

    @property
    def paths(self) -> list[Path]:
        """The archives' paths."""
        return [self.folder / archive.file for archive in self.archives]


def fetch(
    wanted: Sequence[tuple[Client, str]], cache: Path, watch: Watch = ignore
) -> list[Package]:
    """Bring packages that are not in the cache yet.

    Args:
        wanted: client and name of each.
        cache: a folder; packages come to `CLIENT/NAME` in it.
        watch: told of progress.

    Returns:
        the packages in the order in which they were asked for; one that its registry does not have
        comes without archives.

    Raises:
        AnamorphError: if a client is not installed, or brings none of several packages: then
            something other than the packages is amiss.
    """
    known = {key: found for key in wanted if (found := _known(*key, cache))}
    pending = [key for key in dict.fromkeys(wanted) if key not in known]
    clients = sorted({client for client, _ in pending})
    for client in clients:
        _require(client)
        if client.startswith("apt"):
            _apt_lists(cache)
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for package in pool.map(lambda key: _bring(key[0], key[1], cache), pending):
            known[package.client, package.name] = package
            watch(Event("download", len(known), len(set(wanted)), package.name))
            if package.archives:
                _record(package)
    for client in clients:
        asked = [known[key] for key in pending if key[0] == client]
        missing = [package for package in asked if not package.archives]
        if len(asked) == len(missing) > 1:
            raise AnamorphError(
                f"{client} brought none of {len(asked)} packages; the first, {missing[0].name}: "
                f"{missing[0].problem} Is there a connection to its registry?"
            )
        for package in missing:
            _record(package)
    return [known[key] for key in wanted]


def _known(client: Client, name: str, cache: Path) -> Package | None:
    folder = cache / client / _safe(name)
    try:
        said = json.loads((folder / "package.json").read_text("utf-8"))
        archives = tuple(Archive(**archive) for archive in said["archives"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    package = Package(client, name, archives, said["problem"], folder)
    for archive, path in zip(archives, package.paths, strict=True):
        if not path.is_file() or path.stat().st_size != archive.bytes:
            return None
    return package


def _record(package: Package) -> None:
    said = {"archives": [vars(a) for a in package.archives], "problem": package.problem}
    write_json(package.folder / "package.json", said)


def _safe(name: str) -> str:
    """A package's name as the name of a folder: npm's scopes have a slash."""
    return re.sub(r"[^\w.+-]", "_", name).lstrip(".") or "_"


def _bring(client: Client, name: str, cache: Path) -> Package:
    folder = cache / client / _safe(name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if client.startswith("apt"):
        environment["APT_CONFIG"] = str(cache / "apt" / "apt.conf")
    try:
        done = subprocess.run(
            [*_COMMANDS[client], name],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PATIENCE,
        )
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    except subprocess.TimeoutExpired:
        said = [f"no answer within {PATIENCE} seconds"]
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and re.search(_ARCHIVES[client], path.name):
            found.append(_describe(path))
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:  # signatures, descriptions, half a download
            path.unlink(missing_ok=True)
    problem = "" if found else (said[-1] if said else "nothing came")[:300]
    return Package(client, name, tuple(found), problem, folder)


_ARCHIVES: dict[Client, str] = {
    "pip": r"\.whl$",
    "npm": r"\.tgz$",
    "apt": r"\.deb$",
    "apt-source": r"\.orig(-[\w-]+)?\.tar\.\w+$",
}


_PIP_OPTIONS = ("--no-deps", "--only-binary", ":all:", "--quiet", "--dest", ".")
_COMMANDS: dict[Client, tuple[str, ...]] = {
    "pip": (sys.executable, "-m", "pip", "download", *_PIP_OPTIONS),
    "npm": ("npm", "pack", "--ignore-scripts", "--silent"),
    "apt": ("apt-get", "download"),
    "apt-source": ("apt-get", "source", "--download-only"),
}


def _require(client: Client) -> None:
    program = _COMMANDS[client][0]
    if not shutil.which(program):
        raise AnamorphError(
            f"The packages of {client} are fetched with {program}, which is not installed; "
            "install it, or leave the languages that need it out of the recipe."
        )


def _describe(path: Path) -> Archive:
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    version = _VERSION.search(path.name)
    return Archive(path.name, version[1] if version else "", path.stat().st_size, checksum)


@cache
def _apt_lists(folder: Path) -> None:
    """A configuration of apt of our own, which knows of sources too, and its lists.

    Raises:
        AnamorphError: if the lists cannot be fetched.
    """
    own = folder / "apt"
    parts, lists, archives = own / "sources.list.d", own / "lists", own / "archives"
    for part in (parts, lists / "partial", archives / "partial"):
        part.mkdir(parents=True, exist_ok=True)
    system = Path("/etc/apt")
    for path in [system / "sources.list", *sorted((system / "sources.list.d").glob("*.*"))]:
        if path.suffix in (".list", ".sources") and path.is_file():
            text = path.read_text("utf-8", errors="replace")
            binary = re.sub(r"(?m)^(deb)(\s.*)$", r"\1\2\ndeb-src\2", text)
            with_sources = re.sub(r"(?m)^Types:.*$", "Types: deb deb-src", binary)
            (parts / path.name).write_text(with_sources, "utf-8")
    settings = {
        "Dir::Etc::sourcelist": own / "none",
        "Dir::Etc::sourceparts": parts,
        "Dir::State::lists": lists,
        "Dir::Cache": own,
        "Dir::Cache::archives": archives,
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",  # as whoever calls: apt would give up its rights, and fail
    }
    text = "".join(f'{key} "{value}";\n' for key, value in settings.items())
    (own / "apt.conf").write_text(text, "utf-8")
    done = subprocess.run(
        ["apt-get", "update", "--error-on=any", "-q"],
        env={**os.environ, "APT_CONFIG": str(own / "apt.conf")},
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        raise AnamorphError(
            f"apt-get update failed, so no Debian packages can be fetched: "
            f"{done.stderr.strip()[-300:]}"
        )
