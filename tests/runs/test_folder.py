"""What a run folder holds, as everybody reads it."""

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import anamorph as am
from anamorph.analysis.head_scores import SCORES
from anamorph.runs.folder import COLUMNS, PICTURES, Run, load_run, read_json, read_table

SPEC = {
    "study": "dyck",
    "task": {"name": "dyck"},
    "model": {},
    "training": {"steps": 3},
    "simplify": [],
    "audit": {"thresholds": {"tolerance": 0.1}},
    "seeds": [7, 2],
    "threads": 1,
}


def table(names: str, **values: Any) -> pl.DataFrame:
    """One row with these columns, each 1 unless it is given, of the identity."""
    values = {"simplification": "identity"} | values
    return pl.DataFrame({name: [values.get(name, 1)] for name in names.split()})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    return load_run(tmp_path)


def write(frame: pl.DataFrame, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(file)


def test_what_was_asked_for(run: Run) -> None:
    assert run.seeds == [7, 2] and run.trained
    assert run.thresholds == am.Thresholds(tolerance=0.1)
    assert not Run(run.path, SPEC | {"training": None}).trained


def test_a_run_that_has_only_begun(run: Run) -> None:
    assert not run.complete
    assert run.history is run.heads is run.matching is run.picture_seed is None
    assert (run.claims, run.checks, run.pictures) == ([], {}, {})
    for name in ("results", "gaps", "contrasts"):
        with pytest.raises(am.AnamorphError, match=rf"{name}\.parquet.*give its command again"):
            getattr(run, name)


def test_tables_of_several_seeds_are_one(run: Run) -> None:
    write(table(COLUMNS["history"], step=5), run.seed(7) / "history.parquet")
    write(table(COLUMNS["history"], step=6), run.seed(2) / "history.parquet")
    write(table(COLUMNS["heads"], layer=3, seed=2), run.seed(2) / "heads.parquet")
    assert run.history is not None and run.heads is not None
    assert run.history.select("seed", "step").rows() == [(7, 5), (2, 6)]
    assert run.heads.select("seed", "layer").rows() == [(2, 3)]
    assert set(SCORES) < set(run.heads.columns)


def test_views_are_those_of_the_first_seed_that_has_any(run: Run) -> None:
    write(pl.DataFrame(), run.seed(7) / "views" / "attended.parquet")
    for name in ("scatter", "sentences"):
        write(table(PICTURES[name]), run.seed(2) / "views" / f"{name}.parquet")
    assert (run.picture_seed, sorted(run.pictures)) == (2, ["scatter", "sentences"])


def test_a_table_is_read_once(run: Run) -> None:
    write(table(COLUMNS["gaps"]), run.path / "gaps.parquet")
    first = run.gaps
    (run.path / "gaps.parquet").unlink()
    assert run.gaps is first


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pl.DataFrame({"a": [1.0, float("inf")], "b": [1, 2]}), "a NaN or an infinity in a;"),
        (pl.DataFrame({"a": [1.0, float("nan")], "b": [1, 2]}), "a NaN or an infinity in a;"),
        (pl.DataFrame({"a": [1.0]}), "has no column b; it has a"),
    ],
)
def test_a_table_that_does_not_hold_what_it_must(
    frame: pl.DataFrame, message: str, tmp_path: Path
) -> None:
    frame.write_parquet(tmp_path / "x.parquet")
    with pytest.raises(am.AnamorphError, match=message):
        read_table(tmp_path / "x.parquet", ["a", "b"])


def test_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("PAR1")
    with pytest.raises(am.AnamorphError, match="not a whole Parquet file: delete it first"):
        read_table(tmp_path / "x.parquet")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(am.AnamorphError, match="Expected JSON"):
        read_json(tmp_path / "x.json", dict)
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(am.AnamorphError, match="holds a list; expected a dict"):
        read_json(tmp_path / "x.json", dict)


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(am.AnamorphError, match=r"holds no run: it has no spec\.json"):
        load_run(tmp_path)
    (tmp_path / "spec.json").write_text(json.dumps({"study": "x"}))
    with pytest.raises(am.AnamorphError, match=r"has no task, model, .*does not describe a run"):
        load_run(tmp_path)


def test_a_real_run_has_the_columns(smoke_run: Path) -> None:
    run = load_run(smoke_run)
    for name in ("results", "gaps", "contrasts", "history", "matching"):
        assert not getattr(run, name).is_empty()
    assert set(run.pictures) == set(PICTURES) - {"functions"} and run.complete


def test_a_run_without_its_models_or_its_spec(smoke_run: Path, tmp_path: Path) -> None:
    shutil.copytree(smoke_run, tmp_path / "run", ignore=shutil.ignore_patterns("figures"))
    copy = load_run(tmp_path / "run")
    assert copy.complete
    copy.model(0).unlink()
    assert not copy.complete
    (copy.path / "spec.json").write_text("{")
    with pytest.raises(
        am.AnamorphError, match=r"spec\.json: .* delete the folder, or give another"
    ):
        load_run(copy.path)
