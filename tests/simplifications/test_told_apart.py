"""Simplifications that are written alike, hold large arrays, or use other files of their author."""

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

import anamorph
from anamorph.errors import AnamorphError
from anamorph.models.base import Context
from anamorph.models.sites import Site
from anamorph.simplifications import SVD, Simplification, expand, sweep
from anamorph.simplifications.base import parse_simplification
from anamorph.simplifications.fingerprint import fingerprint_of


class Other(SVD):
    """Another class that goes by the same name."""

    def __call__(self, x: Tensor) -> Tensor:
        return 0 * x


class First(SVD):
    """As docs/extending.md has it: `apply` sees the positions."""

    def apply(self, x: Tensor, *, context: Context) -> Tensor:
        return 0 * x


class Twice(Simplification):
    name = "twice"

    def __call__(self, x: Tensor) -> Tensor:
        return 2 * x


class Masked(Simplification):
    name = "masked"

    def __init__(self, *, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.mask.to(x)


def test_one_text_for_two_things_is_refused() -> None:
    specs = [kind(rank=2) @ "0.residual" for kind in (SVD, Other)]
    sites = [Site(0, None, "residual")]
    for make in (expand, lambda specs: sweep(specs, sites, "layer")):
        with pytest.raises(AnamorphError, match="names two things"):
            make(specs)
        assert len(make([specs[0], specs[0]])) == 1


@pytest.mark.parametrize("kind", [Other, First])
def test_a_map_that_is_changed_below_is_not_multiplied_out_as_it_was(kind: type[SVD]) -> None:
    x = torch.randn(50, 4)
    fitted = kind(rank=4).fit(x)
    assert fitted.product() is None
    assert SVD(rank=4).fit(x).product() is not None
    chain = (kind(rank=4) + SVD(rank=4)).fit(x)
    assert chain.product() is None


def test_large_arrays_are_told_apart() -> None:
    masks = [torch.ones(2048) for _ in range(3)]
    for number, mask in enumerate(masks):
        mask[1000 + number] = 0
    specs = [Masked(mask=mask) @ "0.residual" for mask in masks]
    assert len(expand(specs)) == 3
    alike = Masked(mask=masks[0].clone())
    assert alike == specs[0].simplification and str(alike) == str(specs[0].simplification)


def test_a_chain_that_learns_nothing_comes_back() -> None:
    chain = Twice() + Twice()
    fitted = chain.clone().fit(torch.ones(3, 2))
    assert fitted.state_dict() == {}
    again = chain.clone().load_state({})
    assert torch.equal(again(torch.ones(1, 2)), torch.full((1, 2), 4.0))


@pytest.fixture
def author(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a simplification in one file and what it uses in another."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "theirs.py").write_text(
        "import their_helpers\n"
        "from anamorph.simplifications import Simplification\n"
        "from their_helpers import scale\n"
        "class A(Simplification):\n"
        "    name = 'a'\n"
        "    def __call__(self, x):\n"
        "        return scale(x)\n"
        "class B(A):\n"
        "    name = 'b'\n"
        "    def __call__(self, x):\n"
        "        return their_helpers.scale(x)\n"
    )
    yield tmp_path
    for name in ("theirs", "their_helpers"):
        sys.modules.pop(name, None)


def test_what_is_imported_from_a_file_of_the_author_counts(author: Path) -> None:
    found = []
    for factor in (2, 0, 2):
        (author / "their_helpers.py").write_text(f"def scale(x):\n    return {factor} * x\n")
        for name in ("theirs", "their_helpers"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        theirs = importlib.import_module("theirs")
        found.append((theirs.A().fingerprint(), theirs.B().fingerprint()))
    assert found[0] == found[2]
    assert found[0][0] != found[1][0] and found[0][1] != found[1][1]


def test_a_folder_that_is_called_as_a_simplification_is_not_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = fingerprint_of(Twice)
    (tmp_path / "twice").mkdir()
    (tmp_path / "twice" / "spec.json").write_text("{}")
    assert fingerprint_of(Twice) == before


OTHER_PROCESS = """
import enum
from anamorph.simplifications.fingerprint import fingerprint_of

class Mode(enum.Enum):
    ONE = 1

class Named:
    @property
    def name(self):
        return "x"

print(fingerprint_of(Mode.ONE), fingerprint_of(Named()), fingerprint_of(Named))
"""


def test_digests_are_the_same_in_every_process() -> None:
    """Of what has a `name` that is no text, too: no place in memory gets in."""
    run = [sys.executable, "-c", OTHER_PROCESS]
    here = os.environ | {"PYTHONPATH": str(Path(anamorph.__file__).parents[1])}
    said = [
        subprocess.run(run, check=True, capture_output=True, text=True, env=here).stdout
        for _ in range(2)
    ]
    assert said[0] == said[1] and len(set(said[0].split())) == 3


def test_code_of_a_module_without_a_file_counts() -> None:
    """As of a notebook, whose module is called `__main__` and is from no file."""
    digests = []
    for number in (2, 3):
        notebook = ModuleType("notebook_of_a_user")
        exec(f"def helper(x):\n    return x * {number}", vars(notebook))
        author = ModuleType("author_of_a_map")
        sys.modules |= {"notebook_of_a_user": notebook, "author_of_a_map": author}
        author.helper = notebook.helper  # type: ignore[attr-defined]
        exec("def scaled(x):\n    return helper(x)", vars(author))
        digests.append(fingerprint_of(author.scaled))
    del sys.modules["notebook_of_a_user"], sys.modules["author_of_a_map"]
    assert digests[0] != digests[1]


def test_true_is_not_one() -> None:
    with pytest.raises(AnamorphError, match="says both joint=true and joint=1"):
        expand("svd(rank=2,joint=true)+kmeans(clusters=4,joint=1)@0.*.key")


@pytest.mark.parametrize("key", ["x", "9.components_", "components_"])
def test_the_state_of_another_chain_is_refused(key: str) -> None:
    with pytest.raises(AnamorphError, match=r"has stages 0 to 1, and no place for"):
        (SVD(rank=2) + SVD(rank=1)).load_state({key: torch.ones(2)})


def test_a_list_is_no_single_simplification() -> None:
    with pytest.raises(AnamorphError, match="must name one simplification, without lists"):
        parse_simplification("svd(rank=[1,2])")
