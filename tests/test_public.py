"""The public names: imported when first used, and the same to a type checker."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import anamorph
from commands import environment


def test_type_checkers_are_told_where_each_name_is_from() -> None:
    tree = ast.parse(Path(anamorph.__file__).read_text())
    (block,) = [
        node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name)
    ]
    told = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    where = anamorph._WHERE.items()
    assert told == {name: f"anamorph.{module}.{name}" for name, module in where}
    assert sorted(anamorph.__all__) == sorted(told)


@pytest.mark.parametrize("name", anamorph.__all__)
def test_a_public_name_is_there(name: str) -> None:
    assert getattr(anamorph, name).__name__ == name
    assert name in dir(anamorph)


def test_dir_shows_the_public_names_and_nothing_else() -> None:
    assert anamorph.SVD  # what was used is kept among the globals
    hidden = {name for name in dir(anamorph) if name.startswith("__")}
    assert sorted({*dir(anamorph)} - hidden) == sorted(anamorph.__all__)
    assert hidden == {"__doc__", "__version__"}


def test_what_is_not_public_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'anamorph' has no attribute 'audits'"):
        anamorph.audits  # noqa: B018
    assert not hasattr(anamorph, "__wrapped__")


def test_importing_needs_no_torch() -> None:
    code = "import sys, anamorph; print({'torch', 'numpy', 'polars'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("set()\n", "")
