"""The DuckDB lines of docs/tables.md, which need nothing of anamorph, answer as `query` does."""

import re
from pathlib import Path

import duckdb
import pytest

import anamorph as am
from synthetic_run import make_run

PAGE = Path(__file__).parents[2] / "docs/tables.md"


def test_the_sql_finds_the_illusions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "runs/one", seeds=(0,))
    make_run(tmp_path / "runs/two", seeds=(0, 1))
    for run in (tmp_path / "runs").iterdir():  # unlike the invented ones, real ones have both
        (run / "spec.json").write_text((run / "spec.json").read_text()[:-1] + ', "threads": 1}')
    monkeypatch.chdir(tmp_path)
    (sql,) = re.findall(r"```sql\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    found = duckdb.sql(sql).fetchall()
    cells = am.query(
        "select simplification, split, gap, verdict from cells "
        "where seed is null and verdict like 'illusion%' order by gap desc",
        "runs",
    )
    assert len(found) > 5 and [row[3] for row in found] == cells["gap"].to_list()
