"""What the pages show: commands, options, specs and files that there are."""

import json
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import typer

import anamorph
from anamorph.cli import app
from anamorph.simplifications import parse

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every `anamorph` command in a page's blocks of shell."""
    for block in re.findall(r"^```(?:bash|sh)\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "anamorph":
                yield words[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_commands_are_those_that_there_are(page: Path) -> None:
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for verb, *words in commands(page):
        known = {option for p in verbs[verb].params for option in (*p.opts, *p.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= known, (verb, words)
        for option, value in pairwise(words):
            if option == "--simplify" and "--plugin" not in words:
                assert parse(value), value
        for word in words:
            if word.startswith("examples/"):
                assert (ROOT / word).is_file(), word


def test_there_are_commands_to_check() -> None:
    assert sum(1 for page in PAGES for _ in commands(page)) > 30


def test_a_public_name_is_described_once() -> None:
    described = [
        name
        for source in sorted((ROOT / "docs/api").glob("*.md"))
        for name in re.findall(r"^::: anamorph\.(\w+)$", source.read_text("utf-8"), re.M)
    ]
    assert sorted(described) == sorted(anamorph.__all__)


def test_notebooks_are_kept_without_outputs() -> None:
    assert len(NOTEBOOKS) == 5
    for notebook in NOTEBOOKS:
        cells = json.loads(notebook.read_text("utf-8"))["cells"]
        ran = [
            c for c in cells if c["cell_type"] == "code" and (c["outputs"] or c["execution_count"])
        ]
        assert not ran, notebook.name


def test_pictures_are_small_and_shown() -> None:
    text = (ROOT / "docs/read_a_report.md").read_text("utf-8")
    pictures = sorted((ROOT / "docs/pictures").glob("*.png"))
    sizes = [path.stat().st_size for path in pictures]
    assert max(sizes) <= 100_000 and sum(sizes) <= 1_500_000
    assert sorted(re.findall(r"\(pictures/([\w.]+)\)", text)) == [path.name for path in pictures]
