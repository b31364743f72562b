"""How far a run is, told from its folder: while it goes on, and when it was killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from filelock import FileLock

import anamorph as am
from anamorph.files import write_json
from anamorph.models.weights import write_weights
from anamorph.runs.folder import Run
from anamorph.runs.holder import HOLDER, LOCK, Holder
from anamorph.runs.underway import AT_LAST, underway, write_plan
from commands import COMMAND, environment

SPEC: dict[str, Any] = {"seeds": [0, 1, 2], "training": {"steps": 900}}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Of three models: one is trained, one is being trained; two of 3 · 4 works are done."""
    run = Run(tmp_path / "run", SPEC)
    run.seed(0).mkdir(parents=True)
    run.model(0).touch()
    progress = {"step": 1500, "tokens": 9, "loss": 0.5, "history": []}
    write_weights(
        run.seed(1) / "checkpoint.safetensors", {}, {"identity": {}, "progress": progress}
    )
    for number in (0, 3):
        run.work(0, "iid", number).parent.mkdir(exist_ok=True)
        run.work(0, "iid", number).touch()
    write_plan(run, 4)
    return run


def test_nobody_is_at_work(run: Run) -> None:
    found = underway(run)
    assert found is not None
    assert (found.models, found.trained, found.works, found.planned) == (3, 1, 2, 12)
    assert (found.steps, found.holder, found.missing) == ({1: 1500}, None, list(AT_LAST))
    assert found.sentences == [
        "Not finished: 1 of 3 models trained, seed 1 at step 1,500, 2 of 12 works done.",
        "Nobody works in it. The same command goes on from here.",
    ]
    said = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert said["complete"] is False and said["works"] == 2 and said["holder"] is None


def test_a_holder_counts_as_long_as_it_holds(run: Run) -> None:
    me = Holder.this()
    assert me.process == os.getpid()
    write_json(run.path / HOLDER, me._asdict())
    lock = FileLock(run.path / LOCK)
    with lock:
        found = underway(run)
        assert found is not None and found.held is True
        assert found.sentences[1:] == [f"At work in it: {me}."]
    found = underway(run)  # the file of one that was killed stays
    assert found is not None and found.held is False
    assert "ended before it was done" in found.sentences[1]
    with lock.acquire(timeout=0):  # looking has let go of it
        pass
    write_json(run.path / HOLDER, me._replace(host="elsewhere")._asdict())
    found = underway(run)
    assert found is not None and found.held is None
    assert "whether it still is cannot be told" in found.sentences[1]
    (run.path / HOLDER).write_text("[]")
    found = underway(run)
    assert found is not None and found.holder is None


def test_what_older_and_given_runs_do_not_have(run: Run) -> None:
    (run.path / "plan.json").unlink()
    given = Run(run.path, {"seeds": [0], "training": None})
    found = underway(given)
    assert found is not None and found.sentences[0] == "Not finished: 2 works done."


def test_all_works_are_done(run: Run) -> None:
    write_plan(run, 2)
    (run.path / "gaps.parquet").touch()
    one = Run(run.path, {"seeds": [0], "training": {"steps": 900}})
    found = underway(one)
    assert found is not None and found.sentences[0] == (
        "Not finished: 1 of 1 models trained, 2 of 2 works done, still without results.parquet, "
        "claims.json."
    )
    for name in AT_LAST:
        (run.path / name).touch()
    assert underway(one) is None


def test_a_process_that_works_and_is_killed(tmp_path: Path) -> None:
    """`show` and `load_run` beside a process of its own; then that is killed."""
    out = tmp_path / "run"
    (tmp_path / "hold.py").write_text(
        "import sys, time\n"
        "from anamorph.runs.opening import open_run\n"
        "spec = dict.fromkeys(('task', 'model', 'simplify', 'audit', 'threads'))\n"
        "spec |= {'study': 'x', 'seeds': [0], 'training': None, 'fingerprints': {}}\n"
        "with open_run(sys.argv[1], spec):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    held = subprocess.Popen(
        [sys.executable, tmp_path / "hold.py", out],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert held.stdout is not None and held.stdout.readline() == "held\n"
        shown = _show(out)
        assert f"At work in it: process {held.pid} on " in shown
        assert am.load_run(out).summary()["held"] is True
    finally:
        held.send_signal(signal.SIGKILL)
        held.wait()
    deadline = time.monotonic() + 10
    while am.load_run(out).summary()["held"] and time.monotonic() < deadline:
        time.sleep(0.05)
    shown = _show(out)
    assert f"Nobody works in it: process {held.pid} on" in shown and "goes on" in shown
    said = json.loads(_show(out, "--json"))
    assert said["complete"] is False and said["held"] is False
    done = subprocess.run([*COMMAND, "show", out, "--csv"], env=environment(), capture_output=True)
    assert (done.returncode, done.stdout) == (3, b"")
    assert b"has no tables yet. Not finished: 0 works done." in done.stderr


def _show(out: Path, *options: str) -> str:
    done = subprocess.run(
        [*COMMAND, "show", out, *options], env=environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_finished_study_has_as_many_works_as_planned(smoke_run: Path) -> None:
    run = am.load_run(smoke_run)
    planned = json.loads((smoke_run / "plan.json").read_text())["works"]
    assert len(run.works()) == planned * len(run.seeds)
    splits = {re.sub(r"-\d{4}$", "", file.stem) for file in run.works()}
    assert splits == set(pl.read_parquet(smoke_run / "results.parquet")["split"])
