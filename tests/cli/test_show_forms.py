"""`anamorph show` for programs and papers, and at many widths of the terminal."""

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import anamorph as am
from anamorph.cli import pairs
from anamorph.faithfulness.gaps import FAITHFUL, OVER, UNDECIDED, UNDER
from anamorph.studies.pairs import PairsSpec
from judged_run import write

SPLITS = ["near", "far", "an_unseen_split_with_a_long_name", "50%_of_a&b", "x#1", "naïve"]
LONG = "svd(rank=8, joint=true)@1.*.{query,key};kmeans(clusters=64, seed=3)@0.*.{query,key}"
CELLS = {
    "svd(rank=2)@0.*.key": dict.fromkeys(SPLITS, FAITHFUL) | {"far": UNDER},
    LONG: dict.fromkeys(SPLITS, OVER) | {"near": UNDECIDED},
    "onehot@0.*.pattern": dict.fromkeys(SPLITS, FAITHFUL),
}
SPEC: dict[str, Any] = {
    "study": "dyck", "preset": "demo", "task": {"name": "dyck"}, "training": None,
    "model": {"layers": 2, "heads": 1}, "simplify": [], "audit": {}, "seeds": [0], "threads": 1,
}  # fmt: skip
FINDING = f"{LONG} is an {OVER} on near and on far, by 16.0 points"


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    counts = dict.fromkeys(["iid", *SPLITS], 400)
    run = write(tmp_path / "run", CELLS, SPEC, counts)
    claim = {"id": "C1", "claim": "It generalizes.", "status": "holds", "numbers": {}}
    (run / "claims.json").write_text(json.dumps([claim | {"finding": FINDING}]))
    (run / "checks.json").write_text("{}")
    return run


def test_csv_is_the_results_file(anamorph: Any, judged: Path) -> None:
    found = pl.read_csv(io.StringIO(anamorph("show", judged, "--csv").out))
    results = pl.read_parquet(judged / "results.parquet").filter(pl.col("seed").is_null())
    for column in ("simplification", "split", "metric", "value", "low", "high", "tokens"):
        assert found[column].to_list() == results[column].to_list()
    told = found.filter(simplification=LONG, split="near").to_dicts()
    assert [row["verdict"] for row in told] == [UNDECIDED]


def test_latex(anamorph: Any, judged: Path) -> None:
    lines = anamorph("show", judged, "--latex").out.splitlines()
    comments = [line for line in lines if line.startswith("%")]
    assert lines[: len(comments)] == comments
    assert "booktabs" in comments[0] and "% Legend: $\\blacktriangledown$ illusion" in comments[-1]
    assert lines[len(comments)] == r"\begin{tabular}{llllllll}"
    assert r"50\% of a\&b" in lines[len(comments) + 2]
    rows = [line for line in lines if line.endswith(r" \\")]
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {7}
    (long,) = (row for row in rows if "kmeans" in row)
    braced = LONG.replace("{", r"\{").replace("}", r"\}")
    assert long.startswith(rf"\texttt{{{braced}}} & 0.960 & 0.938 ? & 0.820 $\blacktriangle$ & ")
    assert lines.count(r"\midrule") == 2 and lines[-1] == r"\end{tabular}"


def test_json_is_the_summary(anamorph: Any, judged: Path) -> None:
    text = anamorph("show", judged, "--json").out
    assert json.loads(text) == json.loads(json.dumps(am.load_run(judged).summary()))
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--json", "--csv"), "one of --json, --csv, --latex and --markdown"),
        (("--full",), "--full is for --json"),
    ],
)
def test_forms_that_do_not_go_together(
    anamorph: Any, judged: Path, options: tuple[str, ...], words: str
) -> None:
    done = anamorph("show", judged, *options)
    assert (done.code, done.out) == (2, "")
    assert words in done.error


@pytest.mark.parametrize("width", [60, 80, 100, 150])
def test_what_one_searches_for_is_whole(
    anamorph: Any, judged: Path, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = anamorph("show", judged).out.splitlines()
    for name in (*CELLS, *(split.replace("_", " ") for split in SPLITS), UNDER, OVER, "16.0"):
        assert any(name in line for line in lines), name
    places = [next(n for n, line in enumerate(lines) if name in line) for name in CELLS]
    ends = [*places[1:], next(n for n, line in enumerate(lines) if "▼ illusion" in line)]
    for (name, verdicts), first, last in zip(CELLS.items(), places, ends, strict=True):
        numbers = re.findall(r"0\.\d{3}(?: [▼▲?])?", "\n".join(lines[first:last]))
        signs = {FAITHFUL: "0.959", UNDER: "0.800 ▼", OVER: "0.820 ▲", UNDECIDED: "0.938 ?"}
        assert numbers == ["0.960", *(signs[verdicts[split]] for split in SPLITS)], name


def test_a_path_in_an_error_is_whole(
    anamorph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    place = tmp_path / ("a-folder-" * 12) / "run"
    assert str(place) in anamorph("show", place).error


@pytest.mark.usefixtures("quick_report", "task_once")
def test_run_and_audit_end_with_a_summary(anamorph: Any, smoke_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(smoke_run, tmp_path / "run"))
    done = anamorph("run", "dyck", "--preset", "smoke", "--out", run, "--json")
    assert done.code == 0, done.error
    assert json.loads(done.out) == json.loads(json.dumps(am.load_run(run).summary()))
    out = tmp_path / "audit"
    done = anamorph("audit", run, "--simplify", "onehot@1.*.pattern", "--out", out, "--json")
    assert done.code == 0, done.error
    said = json.loads(done.out)
    assert [view["simplification"] for view in said["views"]] == ["onehot@1.*.pattern"]
    assert "seed 0: audit on iid: done" in done.error


def test_pairs_end_with_a_summary_each(
    judged: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pairs, "run_pairs", lambda *given: {"near": am.load_run(judged)})
    spec = PairsSpec.model_construct()
    pairs.pairs_into(judged, spec, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert said == {"near": json.loads(json.dumps(am.load_run(judged).summary()))}
