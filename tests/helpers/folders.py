"""Folders as digests of their files, to compare them."""

from hashlib import sha256
from pathlib import Path


def contents(out: Path) -> dict[str, str]:
    """By its name a digest of every file, but for the lock."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {
        path.relative_to(out).as_posix(): sha256(path.read_bytes()).hexdigest() for path in files
    }
