"""The main job: whole, stopped anywhere, in several processes, and refused."""

import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from torch import Tensor

import anamorph as am
from anamorph import report
from anamorph.progress import Event
from anamorph.runs.folder import Run
from anamorph.simplifications.registry import SIMPLIFICATIONS
from anamorph.studies.specification import StudySpec
from anamorph.studies.study import audit_study, train_study
from anamorph.training.train import default_model
from commands import environment

pytestmark = pytest.mark.usefixtures("quick_report", "task_once")

SIMPLIFY = ("svd(rank=[1,4], joint=true)@1.*.{query,key}", "onehot@1.*.pattern")
TABLES = ("results.parquet", "gaps.parquet", "contrasts.parquet", "claims.json", "checks.json")


def spec(**changes: Any) -> StudySpec:
    values = {
        "task": {"name": "dyck", "k": 2, "m": 2, "train": 200, "test": 20, "max_length": 40},
        "model": {"width": 8, "mlp": 16},
        "training": {"steps": 6, "batch_tokens": 256, "evaluate_every": 3, "checkpoint_every": 2},
        "simplify": SIMPLIFY,
        "audit": {"sequences": 10, "fit_sequences": 20},
        "seeds": (0, 1),
    }
    return StudySpec.of(values | changes, "a test")


def digests(run: Run | Path, names: tuple[str, ...] = TABLES) -> dict[str, str]:
    folder = run if isinstance(run, Path) else run.path
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that nobody stopped, in one process."""
    with pytest.MonkeyPatch.context() as patch:
        page = "report.html"  # figures take long to draw, and have their own tests
        patch.setattr(report, "render", lambda run, _: (run / page).write_text("a report"))
        return am.run_study(spec(), tmp_path_factory.mktemp("whole") / "run", workers=1).path


class Stopped(Exception):
    pass


def stop_at(step: str, done: int) -> Any:
    def watch(event: Event) -> None:
        if step in event.step and event.done == done:
            raise Stopped

    return watch


def test_what_a_run_holds(whole: Path) -> None:
    run = am.load_run(whole)
    assert run.complete
    splits = run.results["split"].unique(maintain_order=True).to_list()
    assert splits[0] == "iid"
    assert {"unseen_depth", "unseen_depth_matched", "seen_structure"} < set(splits)
    for seed in (0, 1, None):
        for split in splits:
            rows = run.results.filter(
                pl.col("seed").eq_missing(seed), simplification="identity", split=split
            ).filter(pl.col("facet").is_null())
            values = dict(rows.select("metric", "value").iter_rows())
            assert values["same_prediction"] == 1
            assert values["output_kl"] == 0
    proxies = {"svd(rank=1, joint=true)", "svd(rank=4, joint=true)"}
    names = {n.split("@")[0] for n in run.results["simplification"].unique()}
    assert names == proxies | {"onehot", "identity"}
    assert [claim["id"] for claim in run.claims][:10] == [f"C{i}" for i in range(1, 11)]
    assert run.checks["identity"]["same_prediction"] == 1
    assert run.checks["identity"]["output_jsd"] == 0
    assert run.history["step"].unique().sort().to_list() == [3, 6]
    assert run.spec["environment"]["torch"]
    assert run.spec["task"]["scored"] == "far_closers"  # what was not asked for is there too
    for seed in (0, 1):
        folder = run.seed(seed)
        names = {file.name for file in folder.iterdir()}
        assert names == {"model.safetensors", "simplifications.safetensors"} | {
            "history.parquet",
            "fingerprints.json",
            "works",
            "noise.json",
            "sites.parquet",
            "matching.parquet",
            "views",
        }
        assert len(list(folder.glob("works/*.parquet"))) == len(splits)
    assert not list(whole.rglob("*.tmp"))


def test_the_mean_over_seeds_is_that_of_the_seeds(whole: Path) -> None:
    results = am.load_run(whole).results.filter(metric="model_accuracy", simplification="identity")
    results = results.filter(pl.col("facet").is_null())
    for split in results["split"].unique():
        rows = results.filter(split=split)
        each = [rows.filter(seed=s)["value"].item() for s in (0, 1)]
        assert rows.filter(pl.col("seed").is_null())["value"].item() == pytest.approx(sum(each) / 2)
    assert results["value"].n_unique() > 3  # the seeds differ


def test_a_complete_run_is_left_alone(whole: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in whole.rglob("*")}

    def watch(event: Event) -> None:
        raise AssertionError(event)

    assert am.run_study(spec(), whole, watch=watch).complete
    assert {file: file.stat().st_mtime_ns for file in whole.rglob("*")} == before


def test_two_workers_give_the_same_files(whole: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    run = am.run_study(spec(), tmp_path / "run", workers=2, watch=events.append)
    assert digests(run) == digests(whole)
    assert {"seed 0: training", "seed 1: training"} <= {event.step for event in events}


def test_stopped_anywhere_and_begun_again(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for step, done in (
        ("seed 0: training", 1),
        ("seed 0: training", 5),  # behind a checkpoint
        ("seed 0: fitting", 0),
        ("seed 0: audit on iid", 4),  # all cells of it, which are not written yet
        ("seed 0: audit on unseen_long", 4),
        ("seed 1: training", 3),
        ("seed 1: fitting", 1),
        ("report", 0),
    ):
        with pytest.raises(Stopped):
            am.run_study(spec(), out, workers=1, watch=stop_at(step, done))
        assert not am.load_run(out).complete
    run = am.run_study(spec(), out, workers=1)
    assert digests(run) == digests(whole)


def test_what_was_done_is_not_done_again(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        am.run_study(spec(), out, workers=1, watch=stop_at("seed 1: training", 1))
    before = {file: file.stat().st_mtime_ns for file in out.rglob("seed-0/**/*.*")}
    assert len(before) > 10
    events: list[Event] = []
    am.run_study(spec(), out, workers=1, watch=events.append)
    after = {file: file.stat().st_mtime_ns for file in out.rglob("seed-0/**/*.*")}
    assert {file: after[file] for file in before} == before
    assert not [event for event in events if event.step.startswith("seed 0")]


@pytest.mark.parametrize("name", [*TABLES, "report.html"])
def test_what_was_deleted_is_made_again(name: str, whole: Path) -> None:
    expected = digests(whole)
    (whole / name).unlink()
    assert am.run_study(spec(), whole, workers=1).complete
    assert digests(whole) == expected


def test_leftovers_of_a_killed_write_are_no_hindrance(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / ".spec.json.123.tmp").write_text("{")
    train_study(spec(), out)
    leftover = out / "seed-0" / ".model.safetensors.123.tmp"
    leftover.write_bytes(b"half")
    (out / "seed-0" / "notes.tmp").write_text("mine")
    train_study(spec(), out)
    assert not leftover.exists()
    assert (out / "seed-0" / "notes.tmp").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": (0,)}, r"seeds: there \[0, 1\], asked \[0\]"),
        ({"simplify": ["svd(rank=1)@0.*.key"]}, "simplify: there"),
        ({"threads": 2}, "threads: there 1, asked 2"),
        (
            {"audit": {"sequences": 11, "fit_sequences": 20}},
            r"audit\.sequences: there \d+, asked 11",
        ),
    ],
)
def test_another_specification_is_refused(
    whole: Path, change: dict[str, Any], message: str
) -> None:
    before = {file: file.stat().st_mtime_ns for file in whole.rglob("*")}
    with pytest.raises(am.AnamorphError, match="another specification.*" + message):
        am.run_study(spec(**change), whole)
    assert {file: file.stat().st_mtime_ns for file in whole.rglob("*")} == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(am.AnamorphError, match="holds no run"):
        am.run_study(spec(), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_train_then_run_is_as_run(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train_study(spec(), out)
    names = ("seed-0/model.safetensors", "seed-1/model.safetensors")
    assert digests(out, names) == digests(whole, names)
    events: list[Event] = []
    assert digests(am.run_study(spec(), out, workers=1, watch=events.append)) == digests(whole)
    assert not [event for event in events if "training" in event.step]


def test_audit_of_a_run_with_the_same_proxies_gives_the_same_numbers(
    whole: Path, tmp_path: Path
) -> None:
    run = audit_study(whole, SIMPLIFY, tmp_path / "run", workers=1)
    assert digests(run) == digests(whole)
    one = ["svd(rank=1, joint=true)@1.*.{query,key}"]
    other = audit_study(whole, one, tmp_path / "other", workers=1)
    kept = other.results["simplification"].unique()
    # Up to rounding, and the intervals too, whatever a proxy's company.
    same = am.load_run(whole).results.filter(pl.col("simplification").is_in(kept.implode()))
    assert_frame_equal(other.results, same, abs_tol=1e-5)


def test_audit_of_a_run_that_was_resampled(whole: Path, tmp_path: Path) -> None:
    """As runs were before intervals had no need of it: nothing else asks for their training."""
    old = shutil.copytree(whole, tmp_path / "old")
    known = json.loads((old / "spec.json").read_text())
    known["audit"] |= {"resamples": 1000, "seed": 0}
    del known["audit"]["learnt"]
    (old / "spec.json").write_text(json.dumps(known))
    run = audit_study(old, SIMPLIFY, tmp_path / "run", workers=1)
    assert digests(run) == digests(whole)


def test_audit_of_an_unfinished_training(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        train_study(spec(), out, watch=stop_at("seed 1: training", 3))
    with pytest.raises(am.AnamorphError, match=r"for seed 1.*did not come to its end"):
        audit_study(out, SIMPLIFY, tmp_path / "audit")
    assert not (tmp_path / "audit").exists()


def test_an_error_names_the_seed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train_study(spec(), out)
    model = am.Decoder.load(out / "seed-1" / "model.safetensors")
    model.blocks[0].query.weight.data[0, 0] = float("nan")
    model.save(out / "seed-1" / "model.safetensors")
    (out / "seed-1" / "fingerprints.json").unlink()  # as if it had been trained to that
    with pytest.raises(am.AnamorphError, match=r"Seed 1: Split 'train'.*sequence 0 .*NaN"):
        am.run_study(spec(), out, workers=1)
    assert not (out / "results.parquet").exists()


LONG = {"steps": 10**7, "batch_tokens": 256}  # a training of days


def children() -> list[int]:
    found = [file.read_text().split() for file in Path("/proc/self/task").glob("*/children")]
    return [int(pid) for some in found for pid in some]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_seed_that_fails_ends_the_study_at_once(tmp_path: Path, workers: int) -> None:
    long = spec(training=LONG, seeds=(0, 1, 2))
    with pytest.raises(Stopped):
        am.run_study(long, tmp_path, watch=stop_at("seed 0: training", 1))
    model = am.Decoder(default_model(am.load_task(**long.task), **long.model))
    model.blocks[0].query.weight.data[0, 0] = float("nan")
    model.save(tmp_path / "seed-0" / "model.safetensors")
    start = time.monotonic()
    with pytest.raises(am.AnamorphError, match=r"Seed 0: Split 'train'.*sequence 0 .*NaN"):
        am.run_study(long, tmp_path, workers=workers)
    assert time.monotonic() - start < 60
    assert not children()


def test_a_seed_that_is_killed_ends_the_study_at_once(tmp_path: Path) -> None:
    """As the system does with one that needs too much memory."""

    def watch(event: Event) -> None:
        if "training" in event.step:
            os.kill(children()[0], signal.SIGKILL)

    with pytest.raises(am.AnamorphError, match=r"killed .*SIGKILL.*memory.*fewer workers\.$"):
        am.run_study(spec(training=LONG), tmp_path, workers=2, watch=watch)
    assert not children()


def test_the_study_ends_at_once_when_its_user_does(tmp_path: Path) -> None:
    def watch(event: Event) -> None:
        if event.step == "seed 1: training":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        am.run_study(spec(training=LONG), tmp_path, workers=2, watch=watch)
    assert not children()


class Halved(am.Simplification):
    """Half of everything."""

    name = "halved"

    def statistic(self, dim: int) -> None:
        return None

    def learn(self, statistic: None) -> Self:
        return self

    def __call__(self, x: Tensor) -> Tensor:
        return x / 2


def test_what_a_script_registers_counts_here_and_not_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIMPLIFICATIONS, "halved", Halved)
    own = spec(simplify=["halved@1.*.query"], seeds=(0, 1))
    assert am.run_study(own, tmp_path / "one").complete  # one worker unless more are asked for
    with pytest.raises(am.AnamorphError, match=r"no simplification 'halved'.*entry point"):
        am.run_study(own, tmp_path / "two", workers=2)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["file", "input"])
def test_a_script_without_a_main_guard(whole: Path, tmp_path: Path, how: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import anamorph as am\n"
        "from anamorph.studies.specification import StudySpec\n"
        f"spec = StudySpec.of({spec().model_dump(mode='json')!r}, 'a script')\n"
        f"print(am.run_study(spec, {str(tmp_path / 'run')!r}, workers=2).complete)\n"
    )
    done = subprocess.run(
        [sys.executable, *([script] if how == "file" else ["-"])],
        input=script.read_text(),
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("True\n", "")
    assert digests(tmp_path / "run") == digests(whole)


def test_an_error_can_come_home_from_a_worker() -> None:
    error = pickle.loads(pickle.dumps(am.AnamorphError("Seed 1: no room")))
    assert (type(error), str(error)) == (am.AnamorphError, "Seed 1: no room")


def test_the_smoke_preset(smoke_run: Path) -> None:
    run = am.load_run(smoke_run)
    assert run.complete
    assert run.report.stat().st_size > 100_000
    assert list((smoke_run / "figures").glob("*.svg"))
    full = run.checks["noise_floor"]
    assert full["simplification"] == "svd(rank=16)@0.*.{query,key}"
    assert full["same_prediction"] > 0.995
    assert full["output_jsd"] < 1e-5
    assert json.loads((smoke_run / "spec.json").read_text())["preset"] == "smoke"
    verdicts = run.gaps.filter(metric="same_prediction")["verdict"]
    assert verdicts.null_count() == 0
    assert not list(smoke_run.rglob("*.tmp"))
