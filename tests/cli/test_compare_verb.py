"""`anamorph compare`, gates and exit codes, as a command line has them."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from compared_runs import OTHER, SPLITS, VIEW, agreeing, data, write

GIVEN = data(60)
GOOD = agreeing(GIVEN, dict.fromkeys(SPLITS, 0.97), 1)
BAD = agreeing(GIVEN, {"iid": 0.97, "near": 0.97, "far": 0.5}, 1)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return (
        write(folder / "a", GIVEN, {0: {VIEW: GOOD, OTHER: GOOD}}),
        write(folder / "b", GIVEN, {0: {VIEW: BAD, OTHER: GOOD}}, weights="x"),
    )


def test_what_differs_is_shown_in_lines_that_can_be_searched(
    anamorph: Any, two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    done = anamorph("compare", *two)
    assert (done.code, done.error) == (0, "")
    lines = done.out.splitlines()
    (value, gap) = (line for line in lines if line.startswith("    far  "))
    assert value.startswith("    far  0.9") and "  -0." in value and "p < 0.0001" in value
    assert "  +0." in gap
    assert lines.count(f"  {VIEW}") == 2 and f"  {OTHER}" not in lines
    assert f"  {VIEW} on far: undecided → illusion (under-generalizes)" in lines
    flat = " ".join(done.out.split())
    assert "1 of 4 gaps of same prediction differs, by " in flat
    assert flat.endswith("verdict changed.")
    everything = anamorph("compare", *two, "--all").out
    assert f"  {OTHER}" in everything.splitlines() and "output divergence" in everything.lower()


def test_tables_for_programs_and_documents(anamorph: Any, two: tuple[Path, Path]) -> None:
    found = json.loads(anamorph("compare", *two, "--json").out)
    assert {"first", "second", "headline", "notes", "values", "gaps", "verdicts"} == set(found)
    table = pl.read_csv(io.StringIO(anamorph("compare", *two, "--csv").out))
    assert len(table) == len(found["values"]) + len(found["gaps"])
    of_far = table.filter(of="gap", split="far", metric="same_prediction", simplification=VIEW)
    (gap,) = [
        row["difference"]
        for row in found["gaps"]
        if (row["split"], row["metric"], row["simplification"]) == ("far", "same_prediction", VIEW)
    ]
    assert of_far["difference"].item() == pytest.approx(gap)
    latex = anamorph("compare", *two, "--latex").out
    assert latex.startswith("% 1 of 4 gaps") and latex.splitlines()[1].startswith(
        "\\begin{tabular}"
    )
    assert r"same\_prediction" in latex
    text = anamorph("compare", *two, "--markdown").out
    assert text.startswith("**1 of 4 gaps") and f"| `{VIEW}` | `far` |" in text
    one = anamorph("compare", *two, "--csv", "--metric", "output_kl").out
    assert set(pl.read_csv(io.StringIO(one))["metric"]) == {"output_kl"}


def test_names_from_outside_mean_nothing_in_a_document(anamorph: Any, tmp_path: Path) -> None:
    nasty = "<img src=x>*`|"
    given = {**GIVEN, nasty: GIVEN["far"]}
    good, bad = (agreeing(given, dict.fromkeys(given, share), 1) for share in (0.97, 0.5))
    runs = [
        write(tmp_path / name, given, {0: {VIEW: agree}}, weights=name)
        for name, agree in (("a", good), ("b", bad))
    ]
    text = anamorph("compare", *runs, "--markdown").out
    rows = [line for line in text.splitlines() if "img" in line and line.startswith("| value")]
    assert rows and all(r"`<img src=x>*'\|`" in line for line in rows)


def test_a_gate_ends_with_1_and_names_the_cell(anamorph: Any, two: tuple[Path, Path]) -> None:
    done = anamorph("compare", *two, "--csv", "--fail-below", 0.02)
    assert done.code == 1 and done.out.startswith("of,simplification,")
    said = done.error.splitlines()
    assert said[0] == "Gates: 1 cell fails."
    assert said[1].startswith(f"  {VIEW} on far: same prediction 0.9")
    passed = anamorph("compare", *two, "--csv", "--fail-below", 0.9, "--fail-on", "mixed")
    assert (passed.code, passed.error) == (0, "Gates: no cell fails.\n")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--json", "--csv"], 2, "Give one of --json, --csv"),
        (["--metric", "kl"], 2, "--metric must be one of"),
        (["--fail-on", "nothing"], 2, "--fail-on must be one of difference, verdict, illusion"),
        (["--proxy", "x"], 2, "--proxy must be SPEC=SPEC"),
    ],
)
def test_bad_input_ends_with_2(
    anamorph: Any, two: tuple[Path, Path], arguments: list[str], code: int, message: str
) -> None:
    done = anamorph("compare", *two, *arguments)
    assert (done.code, done.out) == (code, "") and message in " ".join(done.error.split())


def test_a_run_folder_that_cannot_be_used_ends_with_3(anamorph: Any, tmp_path: Path) -> None:
    run = write(tmp_path / "run", GIVEN, {0: {VIEW: GOOD}})
    (run / "results.parquet").write_bytes(b"no table")
    for words in (("compare", run, run), ("show", run)):
        assert anamorph(*words).code == 3
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").touch()
    made = ("--set", "training.steps=1", "--set", "task.train=60")
    done = anamorph("run", "dyck", "--preset", "smoke", *made, "--out", other)
    assert done.code == 3 and "holds no run" in done.error
    assert anamorph("show", other).code == 2  # that is no run folder: the wrong one was given


@pytest.mark.usefixtures("quick_report")
def test_gates_of_run_and_audit(anamorph: Any, smoke_run: Path, tmp_path: Path) -> None:
    """All is written first; a word that does not exist is told before."""
    spec = ("--simplify", "svd(rank=1)@1.*.key", "--out", tmp_path / "out")
    wrong = anamorph("audit", smoke_run, *spec, "--fail-on", "ilusion")
    assert wrong.code == 2 and not (tmp_path / "out").exists()
    done = anamorph("audit", smoke_run, *spec, "--fail-on", "any", "--fail-under", 1)
    assert done.code == 1 and "svd(rank=1)@1.*.key on unseen_depth: same prediction" in done.error
    assert "Report: " in done.out and (tmp_path / "out" / "report.html").exists()
    again = anamorph("run", "dyck", "--preset", "smoke", "--out", smoke_run, "--fail-below", 1)
    assert (again.code, again.error) == (0, "Gates: no cell fails.\n")


@pytest.mark.usefixtures("quick_report")
def test_what_is_damaged_in_a_run_ends_with_3(
    anamorph: Any, smoke_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(smoke_run, tmp_path / "run"))
    words = ("run", "dyck", "--preset", "smoke", "--out", run)
    for name in ("model.safetensors", "simplifications.safetensors", "works/iid-0000.parquet"):
        (run / "report.html").unlink(missing_ok=True)
        kept = (run / "seed-0" / name).read_bytes()
        (run / "seed-0" / name).write_bytes(b"junk")
        done = anamorph(*words)
        assert done.code == 3 and Path(name).name in "".join(done.error.split()), done.error
        (run / "seed-0" / name).write_bytes(kept)
    assert anamorph(*words, "--set", "training.steps=7").code == 3
    assert anamorph(*words).code == 0
