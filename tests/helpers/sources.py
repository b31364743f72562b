"""Source code to try things on: random functions that are no clones of each other."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

NAMES = ["a", "b", "count", "total"]
OPERATORS = ["+", "-", "*", "/", "%", "&", "|", "^", "<<"]
C = (
    "  {left} = {right} {operator} {number};",
    "  if ({left} > {number}) {{\n    {right} {operator}= {left};\n  }}",
    "  {left}({right}, x[{number} {operator} {right}]);",
    '  print("{left} {operator}", {right}); // {left}',
)
PYTHON = (
    "    {left} = {right} {operator} {number}",
    "    if {left} > {number}:\n        {right} {operator}= {left}",
    "    {left}({right}, x[{number} {operator} {right}])",
    '    print("é {left} {operator}", {right})  # {left}',
)


def statements(rng: np.random.Generator, kinds: Sequence[str]) -> str:
    """3 to 9 statements, each of one of some kinds."""
    return "\n".join(
        str(rng.choice(kinds)).format(
            left=rng.choice(NAMES),
            right=rng.choice(NAMES),
            operator=rng.choice(OPERATORS),
            number=number,
        )
        for number in range(rng.integers(3, 10))
    )


def c_function(rng: np.random.Generator, name: str) -> str:
    return f"int {name}(int a, int b) {{\n{statements(rng, C)}\n  return a;\n}}\n"


def python_function(rng: np.random.Generator, name: str) -> str:
    return f"def {name}(a, b):\n{statements(rng, PYTHON)}\n    return a\n"


def write_sources(folder: Path, functions: int = 30, seed: int = 0) -> dict[str, str]:
    """Folders `c` with three repositories, `more` with one and `py`; gives them as a corpus."""
    rng = np.random.default_rng(seed)
    for path, make in (
        *((f"c/{repo}/a.c", c_function) for repo in ("one", "two", "three")),
        ("more/four/a.c", c_function),
        ("py/a.py", python_function),
    ):
        (folder / path).parent.mkdir(parents=True)
        text = "\n".join(make(rng, f"f{i}") for i in range(functions))
        (folder / path).write_text(text, "utf-8")
    return {
        "train": str(folder / "c"),
        "unseen": str(folder / "more"),
        "python": str(folder / "py"),
    }


def tar(path: Path, entries: Mapping[str, bytes | str], mode: str = "w:gz") -> Path:
    """A tar of files (bytes) and symbolic links (the target as a string)."""
    with tarfile.open(path, mode) as archive:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path
