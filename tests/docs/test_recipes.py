"""The recipes of docs/recipes.md run as they stand there, with both trackers offline."""

import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from anamorph.analysis.words import SIGNS
from commands import environment

PAGE = (Path(__file__).parents[2] / "docs/recipes.md").read_text("utf-8")


def block(word: str) -> str:
    """The Python of the page that has a word in it."""
    (found,) = (b for b in re.findall(r"```python\n(.*?)```", PAGE, re.S) if word in b)
    return found


@pytest.fixture
def unfinished(
    smoke_run: Path, quick_report: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The folder that the recipes name, all but done, in the folder where they run."""
    run = tmp_path / "runs/tracked"
    shutil.copytree(smoke_run, run)
    (run / "gaps.parquet").unlink()
    (run / "results.parquet").unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return run


def run(code: str) -> dict[str, Any]:
    """What a recipe leaves."""
    names: dict[str, Any] = {"__name__": "recipe"}
    with warnings.catch_warnings(action="ignore"):  # what the trackers say of themselves
        exec(compile(code, "recipes.md", "exec"), names)
    return names


def test_mlflow(unfinished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    names = run(block("mlflow"))
    (logged,) = mlflow.search_runs(experiment_names=["anamorph"], output_format="list")
    gaps = pl.read_parquet(unfinished / "gaps.parquet").filter(metric="same_prediction", seed=0)
    metrics = logged.data.metrics
    assert metrics["largest gap"] == pytest.approx(gaps["gap"].max())
    assert metrics["verdicts/not testable here"] == len(gaps) == 7 * 5
    assert metrics["report"] == metrics["tables"] == 1  # of the events of both, the last
    kept = mlflow.artifacts.list_artifacts(run_id=logged.info.run_id)
    assert {file.path for file in kept} == {"gaps.parquet", "report.html"}
    with mlflow.start_run():  # a name that MLflow does not take is an error
        for verdict in SIGNS:
            mlflow.log_metric(names["plain"](f"verdicts/{verdict}"), 1)


def test_weights_and_biases(unfinished: Path, tmp_path: Path) -> None:
    """In a process of its own: the package leaves another one behind."""
    pytest.importorskip("wandb")
    folders = ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")
    own = {"WANDB_SILENT": "true", **dict.fromkeys(folders, str(tmp_path))}
    code = block("wandb").replace(
        "tracker.finish()", "kept = dict(tracker.summary); tracker.finish()"
    )
    code += "\nimport json\nprint(json.dumps({'kept': kept, 'columns': columns}, default=str))\n"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment() | own,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    names = json.loads(done.stdout.splitlines()[-1])
    gaps = pl.read_parquet(unfinished / "gaps.parquet").filter(metric="same_prediction", seed=0)
    assert names["kept"]["verdicts/not testable here"] == len(gaps)
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/verdicts_*.table.json")
    written = json.loads(table.read_text("utf-8"))
    assert written["columns"] == names["columns"]
    assert [row[2] for row in written["data"]] == pytest.approx(gaps["iid"].to_list())


def test_a_file_of_lines(unfinished: Path) -> None:
    names = run(block("progress.tsv"))
    from anamorph.progress import Event

    names["watch"](Event("tables", 1, 2, "now"))
    assert Path("progress.tsv").read_text("utf-8") == "tables\t1\t2\tnow\n"
    names["log"].close()
