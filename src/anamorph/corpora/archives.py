"""Source files out of downloaded archives, which are hostile until shown otherwise.

Nothing is ever extracted to disk: members are read one after the other, into memory, up to the
limits. A path can therefore not escape, and a link leads nowhere.
"""

import bz2
import gzip
import lzma
import stat
import subprocess
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import IO, Any, cast

from anamorph.errors import AnamorphError

MEGABYTE = 2**20
_OPENERS: dict[bytes, Callable[[Path, Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}


@dataclass(frozen=True)
class Limits:
    """How much of an archive is looked at.

    Attributes:
        members: at most so many.
        unpacked: bytes in all, of members that are passed over too.
        file: bytes of a source file; larger ones are passed over.
        lines: of a source file; longer ones are passed over.
    """

    members: int = 200_000
    unpacked: int = 512 * MEGABYTE
    file: int = MEGABYTE
    lines: int = 20_000


@dataclass
class Problems:
    """What was passed over in an archive, and the first example of each reason."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, example: str) -> None:
        """One more case of a reason."""
        self.counts[reason] += 1
        self.examples.setdefault(reason, example[:200])

    def __str__(self) -> str:
        """All reasons in a line; empty if there are none."""
        return "; ".join(
            f"{reason} ({count} time(s), first {self.examples[reason]!r})"
            for reason, count in self.counts.items()
        )


class TooMuchError(Exception):
    """An archive reaches a limit."""


def source_files(
    path: Path, suffixes: tuple[str, ...], problems: Problems, limits: Limits | None = None
) -> Iterator[tuple[str, str]]:
    """The source files in an archive: a tar (also compressed), a zip or wheel, or a Debian package.

    Args:
        path: the archive; its format is recognized by its first bytes.
        suffixes: of the files that are wanted.
        problems: takes what is passed over: unsafe paths, links, what is too large or no UTF-8.
            A damaged archive is a problem too; what was read before counts.
        limits: how much is looked at.

    Yields:
        path in the archive and text.
    """
    limits = limits or Limits()
    try:
        with path.open("rb") as file:
            magic = file.read(8)
        budget = _Budget(limits.unpacked)
        members = _zip(path, budget) if magic.startswith(b"PK") else _tar(path, magic, budget)
        for number, member in enumerate(members, start=1):
            if number > limits.members:
                raise TooMuchError(f"more than {limits.members:,} members")
            if text := _text(member, suffixes, problems, limits):
                yield member.name, text
    except TooMuchError as error:
        problems.add(f"the rest was left unread: {error}", path.name)
    except _DAMAGED as error:
        problems.add(f"the rest cannot be read: {error}", path.name)


_DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,  # an encrypted zip
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


@dataclass(frozen=True)
class _Member:
    """An entry of an archive; `read` gives so many bytes, None if it is not a regular file."""

    name: str
    size: int
    read: Callable[[int], bytes] | None
    link: bool


def _text(
    member: _Member, suffixes: tuple[str, ...], problems: Problems, limits: Limits
) -> str | None:
    """The text of a member, if it is wanted and harmless."""
    name = member.name
    if not name.endswith(suffixes):
        return None
    if name.startswith(("/", "\\")) or ".." in PurePosixPath(name.replace("\\", "/")).parts:
        reason = "unsafe path"
    elif member.link:
        reason = "link"
    elif member.read is None:
        return None
    elif (
        member.size > limits.file  # which may be a lie
        or len(content := member.read(limits.file + 1)) > limits.file
    ):
        reason = f"larger than {limits.file:,} bytes"
    elif content.count(b"\n") > limits.lines:
        reason = f"more than {limits.lines:,} lines"
    else:
        try:
            return content.decode()
        except UnicodeDecodeError:
            reason = "no UTF-8"
    problems.add(reason, name)
    return None


def _tar(path: Path, magic: bytes, budget: "_Budget") -> Iterator[_Member]:
    with _plain(path, magic) as stream:
        bounded = cast(IO[bytes], SimpleNamespace(read=partial(budget.read, stream)))
        with tarfile.open(fileobj=bounded, mode="r|") as archive:
            for info in archive:
                file = archive.extractfile(info) if info.isreg() else None
                link = info.issym() or info.islnk()
                yield _Member(info.name, info.size, file.read if file else None, link)
                archive.members = []  # type: ignore[attr-defined]  # or a million of them stay in memory


@contextmanager
def _plain(path: Path, magic: bytes) -> Iterator[IO[bytes]]:
    """The tar inside whatever it is packed in."""
    if magic.startswith(b"!<arch>"):
        command = ["dpkg-deb", "--fsys-tarfile", str(path)]
        try:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        except FileNotFoundError as error:
            raise AnamorphError(
                f"{path.name} is a Debian package, and dpkg-deb, which reads it, is not installed."
            ) from error
        assert process.stdout is not None
        with process:
            try:
                yield process.stdout
            finally:
                process.kill()
        return
    opener = next((o for start, o in _OPENERS.items() if magic.startswith(start)), Path.open)
    with opener(path, "rb") as stream:
        yield stream


def _zip(path: Path, budget: "_Budget") -> Iterator[_Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():

            def read(most: int, info: zipfile.ZipInfo = info) -> bytes:
                with archive.open(info) as file:
                    return budget.read(file, most)

            link = stat.S_ISLNK(info.external_attr >> 16)
            yield _Member(info.filename, info.file_size, None if info.is_dir() else read, link)


class _Budget:
    """So many bytes of an archive, and not one more."""

    def __init__(self, most: int) -> None:
        self.left = self.most = most

    def read(self, file: IO[bytes], size: int) -> bytes:
        content = file.read(size)
        self.left -= len(content)
        if self.left < 0:
            raise TooMuchError(f"more than {self.most:,} bytes unpacked")
        return content
