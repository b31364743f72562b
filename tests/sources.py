"""Source code to try things on: random functions that are no clones of each other."""

from pathlib import Path

import numpy as np


def c_function(rng: np.random.Generator, name: str) -> str:
    """A function of 3 to 9 statements."""
    lines = []
    for number in range(rng.integers(3, 10)):
        left, right = (rng.choice(["a", "b", "count", "total"]) for _ in range(2))
        operator = rng.choice(["+", "-", "*", "/", "%", "&", "|", "^", "<<"])
        lines.append(
            rng.choice(
                [
                    f"  {left} = {right} {operator} {number};",
                    f"  if ({left} > {number}) {{\n    {right} {operator}= {left};\n  }}",
                    f"  {left}({right}, x[{number} {operator} {right}]);",
                    f'  print("{left} {operator}", {right}); // {left}',
                ]
            )
        )
    body = "\n".join(lines)
    return f"int {name}(int a, int b) {{\n{body}\n  return a;\n}}\n"


def python_function(rng: np.random.Generator, name: str) -> str:
    """The same in Python."""
    lines = []
    for number in range(rng.integers(3, 10)):
        left, right = (rng.choice(["a", "b", "count", "total"]) for _ in range(2))
        operator = rng.choice(["+", "-", "*", "/", "%", "&", "|", "^", "<<"])
        lines.append(
            rng.choice(
                [
                    f"    {left} = {right} {operator} {number}",
                    f"    if {left} > {number}:\n        {right} {operator}= {left}",
                    f"    {left}({right}, x[{number} {operator} {right}])",
                    f'    print("é {left} {operator}", {right})  # {left}',
                ]
            )
        )
    body = "\n".join(lines)
    return f"def {name}(a, b):\n{body}\n    return a\n"


def write_sources(folder: Path, functions: int = 30, seed: int = 0) -> dict[str, str]:
    """Folders `c` with three repositories, `more` with one and `py`; gives them as a corpus."""
    rng = np.random.default_rng(seed)
    for repo in ("c/one", "c/two", "c/three", "more/four"):
        (folder / repo).mkdir(parents=True)
        texts = [c_function(rng, f"f{i}") for i in range(functions)]
        (folder / repo / "a.c").write_text("\n".join(texts), "utf-8")
    (folder / "py").mkdir()
    texts = [python_function(rng, f"f{i}") for i in range(functions)]
    (folder / "py" / "a.py").write_text("\n".join(texts), "utf-8")
    return {
        "train": str(folder / "c"),
        "unseen": str(folder / "more"),
        "python": str(folder / "py"),
    }
