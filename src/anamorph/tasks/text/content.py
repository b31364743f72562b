"""What a file holds: told by its ending, and by its first bytes where the ending does not say."""

import bz2
import gzip
import json
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

from anamorph.errors import AnamorphError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Kind = Literal["lines", "json", "csv", "tsv", "parquet", "arrow", "arrow stream", "text"]

HEAD = 4096  # bytes in which a file shows what it is
LARGE = 2**28  # bytes; of a compressed file that has more, documents are not counted

_PACKED: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"\x28\xb5\x2f\xfd": zstd.open,
    b"\x50\x2a\x4d\x18": zstd.open,  # a frame to be skipped comes first, as pzstd writes it
    **{b"BZh%d1AY&SY" % level: bz2.open for level in range(1, 10)},
    b"\xfd7zXZ\x00": lzma.open,
}
_PACKED_ENDINGS = (".gz", ".gzip", ".zst", ".zstd", ".bz2", ".xz")
_ENDINGS: dict[str, Kind] = {
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines"), "lines"),
    ".json": "json",
    ".csv": "csv",
    **dict.fromkeys((".tsv", ".tab"), "tsv"),
    ".parquet": "parquet",
    **dict.fromkeys((".arrow", ".feather", ".ipc"), "arrow"),
}
_MAGIC: dict[bytes, Kind] = {
    b"PAR1": "parquet",
    b"ARROW1\0": "arrow",
    b"\xff\xff\xff\xff": "arrow stream",
}
_UNPACK = "unpack it, and give the file or folder that comes out"
_ICONV = "convert it to UTF-8, as with iconv -f UTF-16 -t UTF-8"
_NOT_READ: dict[bytes, str] = {  # first bytes of what is neither text nor a table that can be read
    b"version https://git-lfs": "a pointer of git-lfs, without the data; get them: git lfs pull",
    b"PK\x03\x04": f"a zip archive (as .npz, .xlsx and many .pt files are, too); {_UNPACK}",
    b"7z\xbc\xaf": f"a 7z archive; {_UNPACK}",
    b"Rar!\x1a\x07": f"a rar archive; {_UNPACK}",
    b"\x04\x22\x4d\x18": f"compressed with lz4; {_UNPACK}",
    **dict.fromkeys(_PACKED, f"compressed twice; {_UNPACK}"),
    b"\xff\xfe": f"UTF-16 or UTF-32; {_ICONV}",
    b"\xfe\xff": f"UTF-16; {_ICONV}",
    b"FEA1\0": "Feather of the first version; write it again as Parquet",
    b"\x93NUMPY": "a NumPy array; write its texts as JSONL",
    b"%PDF-": "a PDF; extract its text",
    **dict.fromkeys(
        (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
        "a pickle, which could run code; write its texts as JSONL",
    ),
}
_JSON_BEGINS = re.compile(r'\{|\[\s*[{"\]]')


@contextmanager
def reading(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked if it is compressed.

    Raises:
        AnamorphError: if it cannot be read.
    """
    try:
        opener = _opener(path)
        with path.open("rb") if opener is None else opener(path) as file:
            yield file
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zstd.ZstdError) as error:
        reason = getattr(error, "strerror", None) or error
        said = f"Cannot read {path}: {reason}. Give a whole, readable file."
        raise AnamorphError(said) from error


def _opener(path: Path) -> Callable[[Path], Any] | None:
    with path.open("rb") as file:
        first = file.read(10)
    return next((opener for magic, opener in _PACKED.items() if first.startswith(magic)), None)


def is_packed(path: Path) -> bool:
    """Whether a file is compressed, which its first bytes say."""
    return _opener(path) is not None


def countable(path: Path) -> bool:
    """Whether going through the whole file to count costs little."""
    return path.stat().st_size <= LARGE or not is_packed(path)


def ending(path: Path) -> str:
    """The ending of a name in small letters, without that of a compression; empty for none."""
    return _bare(path).suffix.lower()


def without_ending(path: Path) -> Path:
    """A path without its ending, and without that of a compression."""
    return _bare(path).with_suffix("")


def _bare(path: Path) -> Path:
    return path.with_suffix("") if path.suffix.lower() in _PACKED_ENDINGS else path


def named_kind(path: Path) -> Kind | None:
    """The kind that the ending speaks of; None if it speaks of none."""
    return _ENDINGS.get(ending(path))


def kind_of(path: Path) -> Kind:
    """What a file is.

    Raises:
        AnamorphError: if it is neither text nor a table that is read, or not what its ending says.
    """
    if not path.is_file():
        raise AnamorphError(
            f"{path} is a pipe or a device, which can be read only once; write it to a file, and "
            "give that."
        )
    with reading(path) as file:
        head = file.read(HEAD)
    named = named_kind(path)
    for magic, kind in _MAGIC.items():
        if head.startswith(magic) and (kind != "parquet" or kind == named or b"\0" in head):
            if is_packed(path):
                raise AnamorphError(f"{path} is compressed {kind.title()}; {_UNPACK}.")
            return kind
    check_text(path, head)
    if named in ("parquet", "arrow"):
        raise AnamorphError(
            f"Cannot read {path} as {named.title()}, as it does not begin as such a file; give a "
            "whole file, or one whose ending says what it is."
        )
    begins = head.decode("utf-8", "ignore").lstrip("\ufeff \t\r\n")
    if named is None:
        return "json" if _is_json(begins, ending(path)) else "text"
    return "json" if named == "lines" and begins.startswith("[") else named


def check_text(path: Path, head: bytes) -> None:
    """Check that a file that begins with these bytes is text.

    Raises:
        AnamorphError: if it is something else; says what, where that can be seen.
    """
    for magic, what in _NOT_READ.items():
        if head.startswith(magic):
            raise AnamorphError(f"{path} is {what}.")
    if head[257:262] == b"ustar":
        raise AnamorphError(f"{path} is a tar archive; {_UNPACK}.")
    if b"\x00" in head:
        raise AnamorphError(
            f"{path} is not text: it is binary, or UTF-16. Leave it out (a pattern such as "
            f"'FOLDER/**/*.py' names the files of a folder to read), or {_ICONV}."
        )


def _is_json(begins: str, suffix: str) -> bool:
    """Whether text in a file whose ending does not speak of JSON is JSON all the same."""
    if not _JSON_BEGINS.match(begins):
        return False
    if not suffix:
        return True
    try:  # a text may begin with a bracket: it is JSON if an object follows
        value, end = json.JSONDecoder().raw_decode(begins)
    except json.JSONDecodeError as error:
        objects = re.match(r"\{|\[\s*\{", begins) is not None
        return objects and cut_off(error, begins) and len(begins) > HEAD / 8
    if begins[end:].partition("\n")[0].strip():  # a sentence continues after it
        return False
    return isinstance(value[0] if isinstance(value, list) and value else value, dict)


def cut_off(error: json.JSONDecodeError, text: str) -> bool:
    """Whether JSON is wrong only because it is not all there."""
    return error.msg.startswith("Unterminated string") or error.pos > len(text) - 16
