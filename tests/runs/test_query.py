"""Questions across runs: what they answer, against polars; and what is refused."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import anamorph as am
from anamorph.errors import RunFolderError
from anamorph.faithfulness.gaps import FAITHFUL, OVER, UNDER
from anamorph.runs.query import query, query_columns
from anamorph.runs.query_process import answer
from commands import environment
from judged_run import write

SPLITS = ["near", "far"]
CELLS = {
    "svd(rank=2)@0.*.key": {"near": FAITHFUL, "far": UNDER},
    "svd(rank=4)@0.*.key": {"near": OVER, "far": FAITHFUL},
    "onehot@0.*.pattern": {"near": FAITHFUL, "far": FAITHFUL},
}
SPEC: dict[str, Any] = {
    "study": "dyck", "preset": "demo", "task": {"name": "dyck"}, "training": {"steps": 300},
    "model": {"layers": 2, "heads": 1}, "simplify": [], "audit": {}, "threads": 1,
    "environment": {"torch": "2.9"},
}  # fmt: skip
COUNTS = dict.fromkeys(["iid", *SPLITS], 400)


def make(folder: Path, **changed: Any) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    run = write(folder, CELLS, SPEC | {"seeds": [0]} | changed, COUNTS)
    (run / "claims.json").write_text("[]")
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs: of different training, and of the same name in two folders."""
    place = tmp_path_factory.mktemp("asked")
    return [make(place / "a/run"), make(place / "b/run", training={"steps": 900})]


@pytest.fixture
def run(runs: list[Path], tmp_path: Path) -> Path:
    """A run to be spoilt."""
    return Path(shutil.copytree(runs[0], tmp_path / "spoilt"))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions are answered in this process, which is quicker."""
    monkeypatch.setattr(
        "anamorph.runs.query.apart", lambda calls, *_, **__: [answer(*calls[0].args, None)]
    )


def test_rows_are_those_of_the_files(runs: list[Path]) -> None:
    for table in ("results", "gaps"):
        found = query(f"select * from {table}", runs)
        for name, folder in zip(("a/run", "b/run"), runs, strict=True):
            there = pl.read_parquet(folder / f"{table}.parquet")
            here = found.filter(run=name)
            assert here.select(there.columns).equals(
                there.cast(dict(here.select(there.columns).schema))
            )  # type: ignore[arg-type]


def test_runs_of_earlier_versions_have_families(runs: list[Path]) -> None:
    assert "family" not in pl.read_parquet_schema(runs[0] / "gaps.parquet")
    sql = "select distinct family, size_name, size from gaps order by all"
    assert query(sql, runs).rows() == [
        ("onehot@0.*.pattern", None, None),
        ("svd@0.*.key", "rank", 2.0),
        ("svd@0.*.key", "rank", 4.0),
    ]


def test_a_mean_is_that_of_polars(runs: list[Path]) -> None:
    sql = """select method, split, avg(value) as value, sum(tokens) as tokens from results
        where metric = 'same_prediction' and facet is null and seed is null
        group by all order by all"""
    rows = pl.concat(pl.read_parquet(run / "results.parquet") for run in runs)
    rows = rows.filter(pl.col("facet").is_null(), pl.col("seed").is_null())
    groups = rows.filter(metric="same_prediction").group_by("method", "split")
    wanted = groups.agg(pl.col("value").mean(), pl.col("tokens").sum()).sort("method", "split")
    found = query(sql, runs)
    assert found.select("method", "split", "tokens").equals(
        wanted.select("method", "split", "tokens")
    )
    assert found["value"].to_list() == pytest.approx(wanted["value"].to_list(), abs=1e-12)


def test_a_cell_has_its_metrics_and_its_verdict(runs: list[Path]) -> None:
    sql = "select * from cells where seed is null and run = 'b/run' order by split, simplification"
    found = query(sql, runs)
    assert len(found) == 3 * (len(CELLS) + 1)
    of_far = {row["simplification"]: row for row in found.filter(split="far").to_dicts()}
    for name, verdicts in CELLS.items():
        assert of_far[name]["verdict"] == verdicts["far"]
        assert of_far[name]["gap_low"] < of_far[name]["gap"] < of_far[name]["gap_high"]
    assert of_far["identity"]["verdict"] is None and of_far["identity"]["same_prediction"] == 1
    assert of_far["identity"]["model_accuracy"] > 0.5
    assert found.filter(split="iid")["verdict"].is_null().all()


def test_a_gap_by_a_setting_of_the_runs(runs: list[Path]) -> None:
    sql = """select s.value::int as steps, count(*) as illusions
        from gaps join settings s using (run)
        where s.key = 'training.steps' and seed is null and verdict like 'illusion%'
        group by all order by steps"""
    assert query(sql, runs).rows() == [(300, 2), (900, 2)]
    sql = "select run, study, steps, layers, seeds, finished, torch, device from specs order by run"
    assert query(sql, runs).rows() == [
        ("a/run", "dyck", 300, 2, 1, True, "2.9", None),
        ("b/run", "dyck", 900, 2, 1, True, "2.9", None),
    ]


@pytest.mark.usefixtures("here")
def test_the_columns_are_as_they_are_told(runs: list[Path]) -> None:
    told = query_columns()
    for (table,), columns in told.group_by("table"):
        found = query(f"select column_name, column_type from (describe {table})", runs)
        assert found.rows() == columns.select("column", "type").rows()


def test_types_are_kept(runs: list[Path]) -> None:
    sql = """select date '2026-01-02' as day, 1.5::double as x, 'nan'::double as nan,
        sum(sequences) as many, null as nothing, interval 2 day as time, [1, 2] as list,
        true as yes, 1.25::decimal(4, 2) as exact, 'a'::enum('a') as one from results"""
    (row,) = query(sql, runs[0]).to_dicts()
    assert row["nan"] != row.pop("nan")
    assert row["many"] == pl.read_parquet(runs[0] / "results.parquet")["sequences"].sum()
    assert str(row["day"]) == "2026-01-02" and str(row["exact"]) == "1.25"
    kept = [row[name] for name in ("x", "nothing", "time", "list", "yes", "one")]
    assert kept == [1.5, None, "2 days", [1, 2], True, "a"]


def test_a_folder_of_runs_and_a_run_named_twice(runs: list[Path]) -> None:
    folder = runs[0].parents[1]
    sql = "select run from specs order by run"
    assert query(sql, [folder / "a", folder / "b"])["run"].to_list() == ["a/run", "b/run"]
    assert query(sql, folder / "a")["run"].to_list() == ["run"]
    assert query(sql, [runs[0], folder / "a" / ".." / "a/run"])["run"].to_list() == ["run"]


NAMES = ["it's; drop table gaps; --", "a\nb", "*?[x]{a,b}", "x" * 255, "%41 =é", "anamorph_run=3"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_folder(runs: list[Path], tmp_path: Path, name: str) -> None:
    run = Path(shutil.copytree(runs[0], tmp_path / name))
    found = query("select run, count(*) from gaps where seed is null group by all", [run, runs[1]])
    assert dict(found.iter_rows()) == {name: 6, "run": 6}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere file names are text")
def test_a_name_that_is_no_text(runs: list[Path], tmp_path: Path) -> None:
    bad = os.fsencode(tmp_path) + b"/r\xff"
    shutil.copytree(os.fsencode(runs[0]), bad)
    found = query("select distinct run from gaps union select run from specs", os.fsdecode(bad))
    assert found["run"].to_list() == [r"r\udcff"]


REFUSED = [
    "create table x as select 1",
    "insert into gaps values (1)",
    "update gaps set gap = 0",
    "delete from results",
    "drop view gaps",
    "copy gaps to 'PLACE/out.csv'",
    "copy (select 1) to 'PLACE/out.parquet'",
    "export database 'PLACE/out'",
    "attach 'PLACE/out.db'",
    "install httpfs",
    "load httpfs",
    "pragma version",
    "set threads = 1",
    "set enable_external_access = true",
    "call pragma_version()",
    "explain analyze copy gaps to 'PLACE/out.csv'",
    "prepare x as select 1",
    "begin",
    "select 1; select 2",
    "select 1; drop view gaps",
    "",
    "-- nothing",
    "selec 1",
]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("sql", REFUSED)
def test_what_is_not_one_select_is_refused(runs: list[Path], tmp_path: Path, sql: str) -> None:
    before = [(run / "gaps.parquet").read_bytes() for run in runs]
    with pytest.raises(am.AnamorphError, match=r"A question is one SELECT|This is no SQL"):
        query(sql.replace("PLACE", str(tmp_path)), runs)
    assert [(run / "gaps.parquet").read_bytes() for run in runs] == before
    assert not list(tmp_path.iterdir())


OUTSIDE = [
    "select * from read_csv('SECRET')",
    "select * from read_text('SECRET')",
    "select * from read_blob('SECRET')",
    "select * from read_json('SECRET')",
    "select * from read_parquet('PLACE/own.parquet')",
    "select * from 'PLACE/own.parquet'",
    "select * from glob('PLACE/*')",
    "select * from sniff_csv('SECRET')",
    "select * from parquet_metadata('PLACE/own.parquet')",
    "select * from read_text('/proc/self/environ')",
    "select * from read_csv('http://127.0.0.1:9/x.csv')",
    "select * from read_parquet('s3://bucket/x.parquet')",
    "select * from sqlite_scan('PLACE/own.db', 't')",
    "select * from duckdb_secrets()",
    "select * from query('copy gaps to ''PLACE/out.csv''')",
    "with x as (copy gaps to 'PLACE/out.csv') select * from x",
    "select getenv('HOME')",
    "select * from question",
    "select * from enable_logging(storage_path = 'PLACE/log')",
]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("sql", OUTSIDE)
def test_what_is_no_table_of_a_run_is_not_read(runs: list[Path], tmp_path: Path, sql: str) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("hidden\n1\n")
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "own.parquet")
    before = sorted(tmp_path.iterdir())
    asked = sql.replace("SECRET", str(secret)).replace("PLACE", str(tmp_path))
    with pytest.raises(am.AnamorphError) as raised:
        query(asked, runs)
    assert "hidden" not in str(raised.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_select_that_inserts_changes_nothing(runs: list[Path]) -> None:
    with pytest.raises(am.AnamorphError):
        query("with x as (insert into gaps values (1) returning 1) select * from x", runs)


def test_a_question_that_takes_too_long_is_ended(runs: list[Path]) -> None:
    sql = "select count(*) from range(10000000) a, range(10000000) b where hash(a, b) = 0"
    with pytest.raises(am.AnamorphError, match="ended after 1 seconds"):
        query(sql, runs, timeout=1)
    with pytest.raises(am.AnamorphError, match="timeout must be a number above 0; got 0"):
        query(sql, runs, timeout=0)


def test_an_answer_that_is_too_large(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anamorph.runs.query.MOST_VALUES", 20)
    assert len(query("select range, 1 as x from range(10)", runs)) == 10
    with pytest.raises(am.AnamorphError, match="more than 10 rows of 2 columns"):
        query("select range, 1 as x from range(11)", runs)


def test_a_process_that_crashes_is_an_error(runs: list[Path], monkeypatch: Any) -> None:
    monkeypatch.setattr("anamorph.runs.query.answer_apart", _crash)
    with pytest.raises(am.AnamorphError, match="crashed, or was killed"):
        query("select 1", runs)


def _crash(question: object, watch: object) -> None:
    os.abort()


@pytest.mark.usefixtures("here")
def test_errors_of_sql_say_what_there_is(runs: list[Path]) -> None:
    with pytest.raises(
        am.AnamorphError, match=r"simplificaton\" not found(?s:.*)\"simplification\""
    ):
        query("select simplificaton from gaps", runs)
    with pytest.raises(am.AnamorphError, match=r"no spec\.json"):
        query("select 1", runs[0].parent / "nowhere")
    with pytest.raises(am.AnamorphError, match="There is no run to ask"):
        query("select 1", [])


def spoil(run: Path, how: str) -> str:
    """Damage a run; gives what an error must say."""
    file = run / "gaps.parquet"
    content = file.read_bytes()
    table = pl.read_parquet(file)
    match how:
        case "cut":
            file.write_bytes(content[:-20])
        case "noise":
            file.write_bytes(b"PAR1" + bytes(range(256)) * 9 + b"PAR1")
        case "pages":
            middle = len(content) // 3
            file.write_bytes(content[:50] + b"\xff" * middle + content[50 + middle :])
        case "empty":
            file.write_bytes(b"")
        case "text for a number":
            table.with_columns(pl.col("gap").cast(pl.String)).write_parquet(file)
            return "its column gap is of type VARCHAR; expected DOUBLE"
        case "another table":
            pl.DataFrame({"x": [1]}).write_parquet(file)
            return "it has no column simplification and no column split"
        case "missing":
            file.unlink()
            return "has no tables yet"
        case "spec":
            (run / "spec.json").write_text("[" * 100_000)
            return ""
        case "seeds":
            (run / "spec.json").write_text(json.dumps(SPEC | {"seeds": 7}))
            return "damaged"
    return str(file)


HOW = ["cut", "noise", "pages", "empty", "text for a number", "another table", "missing"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("how", [*HOW, "spec", "seeds"])
def test_a_damaged_run_is_named_or_left_out(runs: list[Path], run: Path, how: str) -> None:
    said = spoil(run, how)
    sql = "select distinct run from (select run from gaps order by gap, low, p_value, verdict)"
    with pytest.raises(RunFolderError) as raised:
        query(sql, [run, runs[1]])
    assert said in str(raised.value) and str(run) in str(raised.value)
    if how == "pages":  # which are seen only when they are read
        return
    with pytest.warns(UserWarning, match="Left out: ") as warned:
        assert query(sql, [run, runs[1]], skip=True)["run"].to_list() == ["run"]
    assert str(run) in str(warned[0].message)


def test_any_bytes_in_a_footer(runs: list[Path], run: Path) -> None:
    """Where counts, sizes and types stand: an answer or an error, and nothing else."""
    file = run / "gaps.parquet"
    content = file.read_bytes()
    footer = int.from_bytes(content[-8:-4], "little")
    rng = random.Random(0)
    refused = 0
    for _ in range(8):
        spoilt = bytearray(content)
        for place in rng.sample(range(len(content) - 8 - footer, len(content) - 8), 6):
            spoilt[place] = rng.choice([0, 0x7F, 0x80, 0xFF])
        file.write_bytes(spoilt)
        try:
            query("select * from gaps", run)
        except RunFolderError as error:
            assert str(file) in str(error)
            refused += 1
    assert refused > 3


def test_specs_of_an_unfinished_run_can_be_asked_for(runs: list[Path], run: Path) -> None:
    (run / "gaps.parquet").unlink()
    (run / "results.parquet").unlink()
    sql = "select run, finished from specs order by run"
    assert query(sql, [run, runs[0]]).rows() == [("run", True), ("spoilt", False)]


def test_columns_of_any_name_and_type_beside(runs: list[Path], run: Path) -> None:
    """Of another version, or of somebody's ill will: they are not in the tables."""
    file = run / "gaps.parquet"
    table = pl.read_parquet(file)
    odd = table.with_columns(
        pl.lit(1).alias('x"; drop view gaps; --'),
        pl.lit("mine").alias("run"),
        pl.lit(9).alias("anamorph_run"),
        pl.lit(None).alias("control"),
        pl.col("seed").cast(pl.Int32),
        pl.col("gap").cast(pl.Float32),
    ).drop("needed", "p_value")
    odd.write_parquet(file)
    found = query("select * from gaps", [run, runs[0]])
    assert found.columns == query_columns().filter(table="gaps")["column"].to_list()
    assert found["run"].unique().sort().to_list() == ["run", "spoilt"]
    here = found.filter(run="spoilt")
    assert here["needed"].is_null().all() and here["gap"].dtype == pl.Float64
    assert here["gap"].to_list() == pytest.approx(table["gap"].to_list(), abs=1e-7)


def test_what_specs_hold_is_only_shown(runs: list[Path], run: Path) -> None:
    nasty = {"name": "<script>\x1b[31m='; drop table x; --\ud800", "layers": 10**30, "heads": "2"}
    (run / "spec.json").write_text(json.dumps(SPEC | {"seeds": [0], "model": nasty}))
    sql = """select s.model, s.layers, s.heads, t.value
        from specs s, settings t where key = 'model.name'"""
    ((name, layers, heads, value),) = query(sql, run).rows()
    assert name == value == nasty["name"].replace("\ud800", r"\ud800")
    assert (layers, heads) == (None, None)


def test_nothing_is_left_behind(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    query("select * from gaps", runs)
    with pytest.raises(am.AnamorphError):
        query("select * from nowhere", runs)
    assert not list(tmp_path.iterdir())


def test_a_question_needs_neither_torch_nor_much_else(runs: list[Path]) -> None:
    code = """
import sys
from anamorph.cli import main
sys.argv = ["anamorph", "query", "select count(*) as n from gaps", *sys.argv[1:], "--csv"]
try:
    main()
except SystemExit as ended:
    assert not ended.code
assert not {"torch", "scipy", "sklearn", "altair", "transformers"} & {*sys.modules}
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, runs)],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "n\n24\n"
