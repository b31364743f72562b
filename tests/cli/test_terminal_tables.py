"""What `anamorph show` prints of verdicts, on runs whose verdicts are given."""

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from anamorph.cli.markdown import markdown
from anamorph.cli.rows import LEGEND
from anamorph.cli.tables import STYLE, print_run
from anamorph.faithfulness.gaps import (
    DEGRADES,
    FAITHFUL,
    NOT_TESTABLE,
    OVER,
    UNDECIDED,
    UNDER,
    UNFAITHFUL,
    VERDICTS,
)
from anamorph.runs.folder import Run, load_run
from judged_run import write

SPEC: dict[str, Any] = {
    "study": "dyck", "preset": "demo", "task": {"name": "dyck"}, "training": {"steps": 3500},
    "model": {"layers": 2, "heads": 1}, "simplify": [], "audit": {}, "seeds": [0], "threads": 1,
    "paper_steps": 15_000,
}  # fmt: skip
CELLS = {
    "svd(rank=1)@0.*.key": {"near": UNFAITHFUL, "far": DEGRADES},
    "svd(rank=8)@0.*.key": {"near": UNDECIDED, "far": UNDER},
    "svd(rank=32)@0.*.key": {"near": FAITHFUL, "far": FAITHFUL},
    "onehot@0.*.pattern": {"near": FAITHFUL, "far": OVER},
}
CLAIMS = [
    {"id": "C1", "claim": "It generalizes.", "rule": "It is right at .98.", "status": "holds"}
    | {"finding": "It is.", "numbers": {}},
    {"id": "C2", "claim": "It grows.", "status": "not testable here", "finding": "Not learnt."}
    | {"numbers": {}},
    {"id": "C9", "claim": "Code.", "status": "not tested here", "finding": "-", "numbers": {}},
]


def run_of(path: Path, cells: dict[str, dict[str, str]], **changed: Any) -> Run:
    folder = write(path / "run", cells, SPEC, **changed)
    (folder / "claims.json").write_text(json.dumps(CLAIMS))
    (folder / "checks.json").write_text("{}")
    return load_run(folder)


def printed(run: Run, width: int = 200) -> str:
    console = Console(file=StringIO(), width=width, force_terminal=False)
    print_run(run, console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_every_verdict_has_a_style_and_all_but_faithful_a_sign() -> None:
    assert set(STYLE) == set(VERDICTS)
    assert [verdict for verdict, style in STYLE.items() if style == "green"] == [FAITHFUL]
    assert STYLE[UNDECIDED] not in (STYLE[FAITHFUL], STYLE[UNDER])
    assert all(verdict in LEGEND for verdict in VERDICTS if verdict != FAITHFUL)


def test_the_terminal(tmp_path: Path) -> None:
    text = printed(run_of(tmp_path, CELLS))
    lines = {name: next(x for x in text.splitlines() if name in x) for name in CELLS}
    cells = {name: re.findall(r"0\.\d{3} *[^ │]?", line) for name, line in lines.items()}
    assert [x.strip() for x in cells["svd(rank=1)@0.*.key"]] == ["0.796 ×", "0.998 ×", "0.634 ↓"]
    assert [x.strip() for x in cells["svd(rank=8)@0.*.key"]] == ["0.960", "0.938 ?", "0.800 ▼"]
    assert [x.strip() for x in cells["svd(rank=32)@0.*.key"]] == ["0.960", "0.959", "0.959"]
    flat = " ".join(text.split())
    for words in (
        "▼ rank 8: far",
        "× rank 1: anywhere (not right even on iid)",
        "rank 8: near (about 1,200 sequences of each split)",
        "rank 32: every split",
        "Trained for less than the paper’s preset. The preset demo trains for 3,500 steps",
        "Behind every verdict stand 400 sequences of each split, with 4,000 scored positions",
        "Of 4 simplified views, 1 holds on every split, 2 are illusions and 1 does not look right",
    ):
        assert words in flat, words


def test_the_terminal_of_a_model_that_has_not_learnt(tmp_path: Path) -> None:
    cells = {"onehot@0.*.pattern": {"near": NOT_TESTABLE, "far": NOT_TESTABLE}}
    text = " ".join(printed(run_of(tmp_path, cells, accuracy=0.44)).split())
    assert "The model has not learnt the task. It is right at 44.0 %" in text
    assert "Nothing can be said of 1 simplified view here" in text
    assert "Which simplified views hold" not in text
    assert "Not testable here: C2. Not learnt. Not tested here: C9." in text


@pytest.mark.parametrize("width", [80, 200])
def test_brackets_of_a_proxy_are_text(tmp_path: Path, width: int) -> None:
    text = printed(run_of(tmp_path, {"one[red]hot@0.*.pattern": {"near": FAITHFUL}}), width)
    assert "[red]" in text.replace("\n", "")


def test_documents(tmp_path: Path) -> None:
    text = markdown(run_of(tmp_path, CELLS))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert "| `svd(rank=1)@0.*.key` | 0.796 × | 0.998 × | 0.634 ↓ |" in rows
    assert "| `svd(rank=8)@0.*.key` | 0.960 | 0.938 ? | 0.800 ▼ |" in rows
    assert "| `svd(rank=32)@0.*.key` | 0.960 | 0.959 | 0.959 |" in rows
    (svd,) = [row for row in rows if row.startswith("| SVD · layer 0 key")]
    assert svd.split(" | ")[1:] == [
        "rank 32: every split",
        "▼ rank 8: far<br>× rank 1: anywhere (not right even on iid)",
        "rank 8: near (about 1,200 sequences of each split) |",
    ]
    assert "| C1 | It generalizes. | It is right at .98. | **holds** | It is. |" in rows
    assert "| C2 | It grows. | – | **not testable here** | Not learnt. |" in rows
    assert "**Trained for less than the paper’s preset.**" in text
    assert "1 holds on every split, 2 are illusions" in text and "400 sequences" in text
