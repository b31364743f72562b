"""A study in a store: the bytes of a local one, whatever fails and whoever is killed."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

import anamorph as am
from anamorph.auditing.local import Engine, Local
from anamorph.auditing.works import Work
from anamorph.errors import RunFolderError
from anamorph.files import write_bytes, write_json
from anamorph.report.opened import OpenedRun
from anamorph.runs.cells import require_works
from anamorph.runs.folder import Run
from anamorph.runs.holder import HOLDER, STALE
from anamorph.runs.underway import underway
from anamorph.store import address_of
from commands import SMOKE, Done, environment
from store_server import BUCKET, KEY, SECRET, Faults, Server

RUN = f"s3://{BUCKET}/run"
SETTINGS = [
    *("task.train=300", "task.test=40", "training.steps=40", "training.checkpoint_every=10"),
    *("training.evaluate_every=20", "audit.sequences=30", "audit.fit_sequences=50"),
]
SIMPLIFY = ["svd(rank=[1,2])@1.*.key", "onehot@1.*.pattern"]
FAULTS = Faults(busy=0.02, dropped=0.03, cut=0.02, lost=0.04, lag=1000)
AXIS, STUDIES = {"task.k": [1, 2]}, {"run": {"task.k": 1}, "other": {"task.k": 2}}
DATED = "report.html"  # says when it was made


def study(out: Path | str, engine: Engine | None = None) -> OpenedRun:
    spec = am.load_preset("dyck", "smoke", SETTINGS, simplify=SIMPLIFY)
    return am.run_study(spec, out, preset="smoke", figures=[], engine=engine)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study(tmp_path_factory.mktemp("local") / "run").path  # type: ignore[return-value]


def require_same(store: Server, local: Path) -> None:
    """All files of a local run are in the store to the byte, and nothing else is."""
    files = {p.relative_to(local).as_posix(): p for p in local.rglob("*") if p.is_file()}
    del files[".lock"]
    there = {name.removeprefix("run/"): x for name, x in store.contents().items()}
    assert sorted(files) == sorted(there)
    different = [name for name, file in files.items() if file.read_bytes() != there[name]]
    assert different in ([], [DATED])


@pytest.mark.parametrize("engine", [None, Local()])
def test_a_study_in_a_failing_store_is_that_of_a_folder(
    engine: Engine | None, store: Server, local: Path
) -> None:
    store.fail(FAULTS)
    run = study(RUN, engine)
    assert sum(count for fault, count in store.failed.items() if fault) >= 5
    require_same(store, local)
    ours, theirs = run.summary(), am.load_run(local).summary()
    assert ours == theirs | {"run": RUN, "report": f"{RUN}/report.html"}
    assert am.compare(RUN, f"{local}/seed-0").headline.startswith("Nothing differs")
    assert run.worst().equals(am.load_run(local).worst())
    written = sum(store.requests[method] for method in ("PUT", "DELETE"))
    assert study(RUN).complete
    assert sum(store.requests[method] for method in ("PUT", "DELETE")) == written


def test_every_verb_reads_a_run_in_a_store(
    store: Server, local: Path, anamorph: Callable[..., Done]
) -> None:
    for file in local.rglob("*"):
        if file.is_file() and file.name != ".lock":
            write_bytes(address_of(RUN) / file.relative_to(local).as_posix(), file.read_bytes())
    before = store.contents()
    for words in (["show", "--csv"], ["show", "--json"], ["worst"], ["sites"]):
        here, there = anamorph(words[0], local, *words[1:]), anamorph(words[0], RUN, *words[1:])
        assert (here.code, there.code) == (0, 0), there.error
        assert there.out == here.out.replace(str(local), RUN)
    assert anamorph("compare", RUN, local).out.startswith("Nothing differs")
    assert anamorph("report", RUN, "--no-figures").out == f"Report: {RUN}/report.html\n"
    again = anamorph("run", f"{RUN}/spec.json", "--out", RUN, "--no-figures")
    assert again.code == 0 and "nothing was done again" in again.out
    assert store.contents().keys() == before.keys()
    other = f"s3://{BUCKET}/other"
    done = anamorph("audit", RUN, "--simplify", SIMPLIFY[1], "--out", other, "--no-figures")
    assert done.code == 0, done.error
    ours, theirs = (am.load_run(address).table(long=True) for address in (other, local))
    theirs = theirs.filter(pl.col("simplification") == SIMPLIFY[1])
    assert ours.select("split", "value").equals(theirs.select("split", "value"))
    asked = "select run, simplification, same_prediction from cells order by all"
    for folder in ([f"s3://{BUCKET}"], [RUN, other]):
        found = am.query(asked, folder)
        assert found["run"].unique(maintain_order=True).to_list() == ["other", "run"]
        assert found.filter(run="run").equals(am.query(asked, local))
    write_json(address_of(f"s3://{BUCKET}/axis.json"), {"vary": AXIS, "studies": STUDIES})
    done = anamorph("along", f"s3://{BUCKET}", "--csv", "--out", f"s3://{BUCKET}/along.html")
    assert done.code == 0, done.error
    assert b'href="run/report.html"' in store.contents()["along.html"]


@pytest.mark.slow
def test_a_study_that_is_killed_again_and_again(store: Server, local: Path) -> None:
    store.fail(FAULTS)
    said = []

    def begin() -> "subprocess.Popen[str]":
        given = [word for setting in SETTINGS for word in ("--set", setting)]
        given += [word for spec in SIMPLIFY for word in ("--simplify", spec)]
        return subprocess.Popen(
            [*SMOKE, *given, "--no-figures", "--out", RUN],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    for moment in ("seed-0/checkpoint", "seed-0/works/", "gaps.parquet"):
        process = begin()
        until(lambda: any(k.startswith(f"run/{moment}") for k in store.puts), process)  # noqa: B023
        process.kill()
        said.append(process.communicate()[0])
        store.epoch += 1
        if moment == "seed-0/works/":
            going = underway(am.load_run(RUN))
            assert going is not None and going.held and going.planned == 6
            assert going.sentences[1].startswith(f"At work in it: process {process.pid} on ")
            with pytest.raises(RunFolderError, match=f"worked on by process {process.pid} on "):
                study(RUN)
        store.age(f"run/{HOLDER}", STALE + 1)
    last = begin()
    said.append(last.communicate(timeout=120)[0])
    assert last.returncode == 0, said[-1]
    require_same(store, local)
    for name, epochs in store.puts.items():
        if "/works/" in name or name.endswith(("model.safetensors", "simplifications.safetensors")):
            assert len(set(epochs)) == 1, name
    everything = b"".join([*store.contents().values(), *(text.encode() for text in said)])
    for secret in (KEY, SECRET):
        assert secret.encode() not in everything and secret[5:17].encode() not in everything


def test_a_work_that_was_lost_is_named(store: Server) -> None:
    run = Run(address_of(RUN), {"seeds": [0, 1]})
    works = [Work("iid", number, ("identity",)) for number in range(3)]
    for seed in run.seeds:
        for work in works:
            write_bytes(run.work(seed, work.split, work.number), b"sums")
    require_works(run, works)
    for number in (1, 2):
        run.work(1, "iid", number).unlink()
    with pytest.raises(RunFolderError, match=r"run/seed-1/works/iid-0001\.parquet and 1 more"):
        require_works(run, works)


def until(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
