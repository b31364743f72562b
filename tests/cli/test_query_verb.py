"""`anamorph query`: what it prints, for people and for programs."""

import io
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from anamorph.faithfulness.gaps import FAITHFUL, UNDER
from anamorph.runs.query import query_columns
from anamorph.runs.query_process import answer
from anamorph.runs.query_tables import TABLES
from judged_run import write

PROXY = "svd(rank=2)@0.*.key"
SPEC: dict[str, Any] = {
    "study": "dyck", "preset": "demo", "task": {"name": "dyck"}, "training": None, "seeds": [0],
    "model": {"layers": 2, "heads": 1}, "simplify": [], "audit": {}, "threads": 1,
}  # fmt: skip
ODD = (
    "select 1.5 as x, 8.0::double as size, '=1+1' as f, '-5' as n, '+' as plus, "
    "chr(27) || '[31mred' as e, 'a|b<i>`[x](y)' as \"q|\", 'nan'::double as bad, [1, 2] as l, "
    "null as nothing, 1e-7::double as small, chr(155) || chr(8238) as hidden"
)
CSV = r"""x,size,f,n,plus,e,q|,bad,l,nothing,small,hidden
1.5,8.0,'=1+1,-5,+,\x1b[31mred,a|b<i>`[x](y),NaN,"[1, 2]",,1e-7,\x9b\u202e
"""
MARKDOWN = (
    r"| 1.5 | 8 | =1+1 | -5 | + | \\x1b\[31mred | a\|b&lt;i&gt;\`\[x\](y) | nan | \[1, 2\] | – "
    r"| 1.000e-07 | \\x9b\\u202e |"
)


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions are answered in this process, which is quicker."""
    monkeypatch.setattr(
        "anamorph.runs.query.apart", lambda calls, *_, **__: [answer(*calls[0].args, None)]
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    counts = {"iid": 400, "near": 400, "far": 400}
    folder = tmp_path_factory.mktemp("runs") / "one"
    made = write(folder, {PROXY: {"near": FAITHFUL, "far": UNDER}}, SPEC, counts)
    (made / "claims.json").write_text("[]")
    return made


def test_a_table_in_the_terminal(anamorph: Any, run: Path) -> None:
    sql = (
        "select run, simplification, split, gap, verdict from cells where seed is null and gap > 0"
    )
    lines = anamorph("query", f"{sql} order by split", run).out.splitlines()
    assert lines[0] == "2 rows"
    (far,) = (line for line in lines if "far" in line)
    assert [x.strip() for x in far.strip("│").split("│")] == ["one", PROXY, "far", "0.1600", UNDER]


def test_many_rows_are_folded(anamorph: Any, run: Path) -> None:
    sql = "select range as n from range(5000)"
    lines = anamorph("query", sql, run).out.splitlines()
    assert lines[0] == "5,000 rows, of which the first 40 are shown; all with --csv or --json"
    assert "│ 39 │" in lines and "│ 40 │" not in lines
    assert "│ 99 │" in anamorph("query", sql, run, "--rows", 100).out.splitlines()
    assert anamorph("query", sql, run, "--csv").out.split() == ["n", *map(str, range(5000))]
    assert anamorph("query", f"{sql} where n < 0", run).out == "No rows (n).\n"


def test_nothing_that_a_cell_holds_does_anything(anamorph: Any, run: Path) -> None:
    assert anamorph("query", ODD, run, "--csv").out == CSV
    assert anamorph("query", ODD, run, "--markdown").out.splitlines()[-1] == MARKDOWN
    shown = anamorph("query", ODD, run).out
    assert r"\x1b[31mred" in shown and r"\x9b\u202e" in shown
    text = anamorph("query", ODD, run, "--json").out
    assert not any(sign in text for sign in "\x1b\x9b\u202e")
    (row,) = json.loads(text)
    assert row == {
        "x": 1.5, "size": 8.0, "f": "=1+1", "n": "-5", "plus": "+", "e": "\x1b[31mred",
        "q|": "a|b<i>`[x](y)", "bad": None, "l": [1, 2], "nothing": None, "small": 1e-7,
        "hidden": "\x9b\u202e",
    }  # fmt: skip


@pytest.mark.parametrize("width", [60, 80])
def test_wide_rows_are_whole(
    anamorph: Any, run: Path, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = anamorph("query", "select * from gaps where seed is null", run).out.splitlines()
    assert sum(PROXY in line for line in lines) == 2
    assert sum(UNDER in line for line in lines) == 1
    long = "x" * 200
    assert long in anamorph("query", f"select '{long}' as only", run).out


def test_a_question_from_a_file_and_from_stdin(
    anamorph: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "question.sql"
    file.write_text("-- how many?\nselect count(*) as n from gaps;\n")
    assert anamorph("query", f"@{file}", run, "--csv").out == "n\n4\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(file.read_text()))
    assert anamorph("query", "-", run, "--csv").out == "n\n4\n"
    done = anamorph("query", f"@{tmp_path / 'none.sql'}", run)
    assert done.code == 2 and "Cannot read the question in" in done.error


def test_columns_are_listed(anamorph: Any) -> None:
    assert json.loads(anamorph("query", "--columns", "--json").out) == query_columns().to_dicts()
    shown = anamorph("query", "--columns").out
    assert all(name in shown for columns in TABLES.values() for name in columns)
    assert all(table in anamorph("query", "--help").out for table in TABLES)


def test_exit_codes(anamorph: Any, run: Path, tmp_path: Path) -> None:
    codes = {
        ("query", "select 1", run): 0,
        ("query", "select 1"): 2,
        ("query", "drop view gaps", run): 2,
        ("query", "select * from '/etc/passwd'", run): 2,
        ("query", "select 1", run, "--csv", "--json"): 2,
        ("query", "select 1", tmp_path): 2,
    }
    assert {words: anamorph(*words).code for words in codes} == codes
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "spec.json").write_text("{")
    assert anamorph("query", "select 1", run, damaged).code == 3
    done = anamorph("query", "select run from specs", run, damaged, "--skip", "--csv")
    assert (done.code, done.out) == (0, "run\none\n")
    assert "Left out" in done.error and str(damaged) in done.error


def test_the_page_has_all_columns() -> None:
    page = (Path(__file__).parents[2] / "docs/questions.md").read_text("utf-8")
    for table, columns in TABLES.items():
        assert f"| `{table}` |" in page
        for column in columns:
            assert f"`{column}`" in page, f"{table}.{column}"


def test_the_questions_of_the_page_can_be_asked(anamorph: Any, run: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/questions.md").read_text("utf-8")
    questions = [block.split("\n```")[0] for block in page.split("```sql\n")[1:]]
    assert len(questions) >= 5
    for sql in questions:
        done = anamorph("query", sql, run, "--csv")
        assert done.code == 0, f"{sql}\n{done.error}"
        assert pl.read_csv(io.StringIO(done.out)).width > 1
