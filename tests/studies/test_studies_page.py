"""What docs/studies.md shows: its file is a study, and its commands do what they say."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import anamorph as am

PAGE = (Path(__file__).parents[2] / "docs/studies.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


@pytest.mark.usefixtures("quick_report")
def test_the_page(anamorph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (study,) = blocks("toml")
    (tmp_path / "rank.toml").write_text(study, "utf-8")
    told = ""
    for line in "".join(blocks("sh")).splitlines():
        _, *words = shlex.split(line)
        many = {} if "--dry-run" in words else {"--workers": 1}
        done = anamorph(*words, *(x for pair in many.items() for x in pair))
        assert done.code == 0, (line, done.error)
        told += done.out
    for line in re.findall(r"^\d+ .*(?:proxies|cells).*$", PAGE, re.M):
        assert line in told
    (shown,) = blocks("text")
    part = re.findall(r"^ (?:fitting|works|training) .*  (\d.*)$", shown, re.M)
    assert len(part) == 3 and all(words in told for words in part)
    rank, hard, more = (am.load_run(f"runs/{name}") for name in ("rank", "hard", "more"))
    assert rank.seeds == [0, 1] and rank.spec["task"]["k"] == 4
    assert am.load_run("runs/again").results.equals(rank.results)
    assert hard.spec["training"]["steps"] == 40
    assert hard.results["method"].unique().sort().to_list() == ["identity", "onehot"]
    assert more.spec["audit"]["sequences"] == 40
