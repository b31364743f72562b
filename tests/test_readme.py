"""What the README shows can be done: its Python runs, and so do its commands."""

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from anamorph.cli import main
from anamorph.simplifications import parse

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def commands() -> Iterator[list[str]]:
    for block in blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def test_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "readme"}
    assert blocks("python")
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)


def test_make_targets() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    asked = [words[1] for words in commands() if words[0] == "make"]
    assert asked
    assert set(asked) <= set(targets)


@pytest.mark.usefixtures("quick_report")
def test_commands(
    smoke_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All in order, in one folder; where `anamorph run` would work for long, its end is there."""
    monkeypatch.chdir(tmp_path)
    verbs = set()
    for words in commands():
        if words[0] != "anamorph":
            assert words[0] in ("make", "pip", "git", "cd"), words
            continue
        verbs.add(words[1])
        if words[1] == "run":
            assert words[words.index("--preset") + 1] == "smoke"
            out = tmp_path / words[words.index("--out") + 1]
            shutil.copytree(smoke_run, out)
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, (words, capsys.readouterr().err)
    assert {"run", "show", "audit", "report", "data", "list"} <= verbs


def test_specs_in_the_table_can_be_read() -> None:
    specs = re.findall(r"^\| `([^`]*@[^`]*)` \|", README, flags=re.MULTILINE)
    assert len(specs) > 2
    for spec in specs:
        assert parse(spec)
