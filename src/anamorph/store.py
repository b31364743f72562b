"""Where a run folder lies: on this machine, or in a store such as S3 or Google Cloud Storage.

Nothing else knows of schemes. An address on this machine is a `pathlib.Path`, one in a store is a
`StorePath`, which has those of its methods that are needed here. Whatever is asked of a store is
asked again if the store is busy or the connection breaks, and what is written is looked for by its
name before it counts as written.
"""

import errno
import mimetypes
import os
import re
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

from anamorph.errors import AnamorphError, RunFolderError

_T = TypeVar("_T")

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
"""Of two letters at least: one is a drive of Windows. A `Path` has made one slash of two."""
S3 = ("s3", "s3a")
EXTRAS = dict.fromkeys(S3, ("s3fs", "s3")) | dict.fromkeys(("gs", "gcs"), ("gcsfs", "gcs"))
"""The package that reads a scheme, and the extra that brings it."""
OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {"config_kwargs": {"retries": {"total_max_attempts": 1}}} for name in S3},
    **{name: {"consistency": "md5"} for name in ("gs", "gcs")},
}
"""How a store is asked. A listing that is kept would hide what others have written since."""
TRIES = 5
WAIT = 0.5  # seconds before the second try; before each further one twice as long
AT_ONCE = 64 * 2**20  # bytes of a file that is sent in one request, and whose tag is compared
FINAL = (PermissionError, NotADirectoryError, IsADirectoryError)
"""What a store says that it would say again."""


class StorePath:
    """A file or a folder in a store, with the methods of a `pathlib.Path` that are needed here.

    Args:
        scheme: such as `s3`.
        key: the bucket and the names below it, joined by `/`.
        guard: called before anything is written or deleted; raises an error if it must not be.
    """

    def __init__(self, scheme: str, key: str, guard: Callable[[], None] | None = None) -> None:
        self.scheme, self.key, self.guard = scheme, key.strip("/"), guard

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    def __repr__(self) -> str:
        return f"StorePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StorePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    # Names

    def __truediv__(self, name: str) -> "StorePath":
        return self._at(PurePosixPath(self.key) / name)

    @property
    def name(self) -> str:
        """The last name."""
        return PurePosixPath(self.key).name

    @property
    def stem(self) -> str:
        """The last name without its ending."""
        return PurePosixPath(self.key).stem

    @property
    def suffix(self) -> str:
        """The ending of the last name, with its dot."""
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> "StorePath":
        """The folder that it lies in."""
        return self._at(PurePosixPath(self.key).parent)

    def with_name(self, name: str) -> "StorePath":
        """Its neighbour of that name."""
        return self._at(PurePosixPath(self.key).with_name(name))

    def absolute(self) -> "StorePath":
        """Itself."""
        return self

    resolve = absolute

    def guarded(self, guard: Callable[[], None]) -> "StorePath":
        """The same, and all that is made of it, with a guard."""
        return StorePath(self.scheme, self.key, guard)

    def _at(self, key: PurePosixPath) -> "StorePath":
        return StorePath(self.scheme, str(key), self.guard)

    # What is there

    def info(self) -> dict[str, Any] | None:
        """What the store says of it: `type`, `size` in bytes and more; None if it is not there."""
        try:
            found: dict[str, Any] = self.ask("look for", lambda fs: fs.info(self.key))
        except FileNotFoundError:
            return None
        return found

    def exists(self) -> bool:
        """Whether there is a file or a folder."""
        return self.info() is not None

    def is_file(self) -> bool:
        """Whether there is a file."""
        found = self.info()
        return found is not None and found["type"] == "file"

    def is_dir(self) -> bool:
        """Whether there is a folder."""
        found = self.info()
        return found is not None and found["type"] == "directory"

    def iterdir(self) -> Iterator["StorePath"]:
        """What lies in this folder, as the store lists it; nothing if it is not there."""
        try:
            found = self.ask("list", lambda fs: fs.ls(self.key, detail=False))
        except FileNotFoundError:
            return
        for name in {PurePosixPath(each.strip("/")).name for each in found if self._below(each)}:
            yield self / name

    def _below(self, name: str) -> bool:
        return name.strip("/") != self.key  # a folder may be listed in itself

    def glob(self, pattern: str) -> Iterator["StorePath"]:
        """What lies below, with names like those of a pattern such as `works/*.parquet`."""
        first, _, rest = pattern.partition("/")
        if set(first) & set("*?["):
            found = [each for each in self.iterdir() if fnmatchcase(each.name, first)]
        else:
            found = [self / first]
        for each in found:
            if rest:
                yield from each.glob(rest)
            elif first != each.name or each.exists():
                yield each

    # Reading

    def read_bytes(self) -> bytes:
        """All of a file."""
        return self.read_part(None, None)

    def read_part(self, start: int | None, stop: int | None) -> bytes:
        """The bytes from `start`, which counts from the end if it is negative, to `stop`."""
        found: bytes = self.ask("read", lambda fs: fs.cat_file(self.key, start=start, end=stop))
        return found

    def read_text(self, encoding: str = "utf-8") -> str:
        """All of a file, as text."""
        return self.read_bytes().decode(encoding)

    def fetch(self, file: Path) -> None:
        """Copy it to this machine."""
        self.ask("read", lambda fs: fs.get_file(self.key, str(file)))

    # Writing

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a folder is there as soon as something is in it."""

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete a file."""
        if self.guard:
            self.guard()
        try:
            self.ask("delete", lambda fs: fs.rm_file(self.key))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def send(self, file: Path) -> None:
        """Write a whole file here, and make sure that it has come to be there.

        Raises:
            RunFolderError: if it has not, five times.
        """
        if self.guard:
            self.guard()
        self.ask("write", lambda fs: self._send(fs, file))

    def _send(self, fs: Any, file: Path) -> None:
        size, kind = file.stat().st_size, mimetypes.guess_type(self.name)[0]
        how = {"ContentType": kind} if kind and self.scheme in S3 else {}
        if size > AT_ONCE:
            answer = fs.put_file(str(file), self.key, **how)
        else:
            answer = fs.pipe_file(self.key, file.read_bytes(), **how)
        try:
            found = fs.info(self.key)
        except FileNotFoundError as error:
            raise ConnectionError("it is not there after it was written") from error
        tag = answer.get("ETag") if isinstance(answer, dict) else None
        if found["size"] != size or (tag and found.get("ETag") != tag):
            raise ConnectionError("something else is there after it was written")

    # Asking

    @property
    def filesystem(self) -> Any:
        """The store, as fsspec has it."""
        from fsspec import filesystem  # type: ignore[import-untyped]

        return filesystem(self.scheme, use_listings_cache=False, **OPTIONS.get(self.scheme, {}))

    def ask(self, doing: str, call: Callable[[Any], _T], wait: float = WAIT) -> _T:
        """Ask the store, up to five times.

        Args:
            doing: what is done, for an error: a verb.
            call: asks the file system that it is given.
            wait: seconds before the second try.

        Raises:
            FileNotFoundError: if the file is not there.
            FileExistsError: if it was to be written only if it is not there, or is as it was.
            RunFolderError: if the store cannot be reached, or does not do it.
        """
        for left in reversed(range(TRIES)):
            try:
                return call(self.filesystem)
            except FileNotFoundError as error:
                said = os.strerror(errno.ENOENT)
                raise FileNotFoundError(errno.ENOENT, said, str(self)) from error
            except Exception as error:  # each store has its own
                if isinstance(error, FileExistsError) or "pre-condition" in str(error):
                    raise FileExistsError(str(self)) from error
                if left == 0 or isinstance(error, FINAL):
                    tried = "" if isinstance(error, FINAL) else f", tried {TRIES} times"
                    raise RunFolderError(
                        f"Cannot {doing} {self}: {_reason(error)}{tried}. Make sure of the network "
                        "and of what your credentials allow; then the same command goes on, and "
                        "nothing that is there is lost."
                    ) from error
            time.sleep(wait)
            wait *= 2
        raise AssertionError  # the last try has returned or raised


Address: TypeAlias = Path | StorePath


def in_store(given: object) -> bool:
    """Whether an address that somebody gives is in a store."""
    scheme = SCHEME.fullmatch(str(given))
    return scheme is not None and scheme[1].lower() not in ("file", "local")


def address_of(given: str | os.PathLike[str] | StorePath) -> Address:
    """An address that somebody gives, such as `runs/one` or `s3://bucket/runs/one`.

    Raises:
        AnamorphError: if it has credentials in it, or its scheme is not known, or the package is
            not there that reads it.
    """
    if isinstance(given, StorePath):
        return given
    text = os.fspath(given)
    found = SCHEME.fullmatch(text)
    if found is None:
        return Path(given)
    scheme, rest = found[1].lower(), found[2]
    if scheme in ("file", "local"):
        return Path(rest if re.match(r"[A-Za-z]:", rest) else f"/{rest}")
    _refuse_credentials(scheme, rest)
    _require_package(scheme)
    if not rest.strip("/"):
        raise AnamorphError(f"{text} names no bucket; give an address such as s3://bucket/run.")
    return StorePath(scheme, rest)


def beside(folder: Address, given: str) -> Address:
    """An address that a file in that folder gives: one on this machine is relative to the folder.

    Raises:
        AnamorphError: as `address_of`.
    """
    return address_of(given) if in_store(given) else folder / os.path.expanduser(given)


def _refuse_credentials(scheme: str, rest: str) -> None:
    """Refuse an address that may hold a secret, without saying it."""
    address = urlsplit(f"{scheme}://{rest}")
    if "@" in address.netloc or address.query or address.fragment:
        raise AnamorphError(
            f"An address of {scheme}:// has a user, a password, or a part after '?' or '#'. Such "
            "an address would be kept in reports and logs, and a secret with it. Give the bucket "
            f"and the names below it alone, as {scheme}://bucket/run; credentials are taken from "
            "the environment or from the usual files, see docs/store.md."
        )


def _require_package(scheme: str) -> None:
    from fsspec import available_protocols, get_filesystem_class

    if scheme not in available_protocols():
        raise AnamorphError(
            f"The scheme {scheme}:// is not known; give a folder, s3://bucket/run or "
            "gs://bucket/run."
        )
    package, extra = EXTRAS.get(scheme, (None, None))
    if package and find_spec(package) is None:
        raise AnamorphError(
            f"{scheme}:// needs the package {package}, which is not installed. Give: "
            f"pip install 'anamorph[{extra}]'."
        )
    try:
        get_filesystem_class(scheme)
    except ImportError as error:
        raise AnamorphError(f"{scheme}:// cannot be used here: {error}.") from error


def _reason(error: BaseException) -> str:
    """The first line of what a store says, without what an endpoint's URL may hold."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return re.sub(r"//[^/\s@]*@", "//", said)
