"""A study spread over an engine makes the files of one that is not, whoever sees the run folder."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

import anamorph as am
from anamorph.auditing import fit_parts, samples
from anamorph.auditing.local import Engine, Failed, Job, Lasting, Local, Shared
from anamorph.progress import Event, Watch, ignore
from anamorph.simplifications import points, units
from anamorph.studies import bench, spread
from anamorph.studies.specification import StudySpec
from folders import contents

_T = TypeVar("_T")

SPEC = {
    "task": {"name": "dyck", "k": 3, "m": 3, "train": 300, "test": 30, "max_length": 50},
    "model": {"layers": 2, "heads": 2, "width": 16},
    "training": {"steps": 10, "batch_tokens": 512},
    "simplify": ["svd(rank=[1,2])@1.*.{query,key}", "quantize(bits=4)@0.mlp"],
    "each_head": ["kmeans(clusters=3)@*.*.key"],
    "seeds": [0, 3],
    "audit": {"sequences": 20, "fit_sequences": 30},
    "device": "cpu",
}


class Far(Local):
    """Its jobs do not see the run folder."""

    def share(self, value: _T) -> Shared[_T]:
        if isinstance(value, bench.Context):
            value = replace(value, path=value.path / "nowhere")
        return super().share(value)


class Counting(Local):
    """Notes its jobs; some fail."""

    def __init__(self, failing: str = "") -> None:
        self.failing, self.jobs = failing, list[str]()

    def carry(
        self, step: str, jobs: Sequence[Job], watch: Watch
    ) -> Iterator[tuple[Job, Any | Failed]]:
        self.jobs += [job.name for job in jobs]
        fails = [job for job in jobs if self.failing and self.failing in job.name]
        yield from super().carry(step, [job for job in jobs if job not in fails], watch)
        yield from ((job, Failed(job.name, ["first", "It broke."])) for job in fails)


def done(out: Path, engine: Engine | None, **changes: Any) -> dict[str, str]:
    spec = StudySpec.of({**SPEC, **changes}, "a test")
    am.run_study(spec, out, figures=[], engine=engine, watch=ignore)
    return contents(out)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return done(tmp_path_factory.mktemp("alone") / "run", None)


@pytest.mark.parametrize("engine", [Local(), Far()])
def test_all_files_are_the_same(engine: Engine, alone: dict[str, str], tmp_path: Path) -> None:
    assert done(tmp_path / "run", engine) == alone
    assert "seed-3/heads.parquet" in alone, "every kind of job is among them"


def test_fits_are_the_same_in_parts_and_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(points, "PART", 90)
    monkeypatch.setattr(units, "FITS", 2)
    for room in (samples, fit_parts):
        monkeypatch.setattr(room, "FIT_TOKENS", 60)
    out, engine = tmp_path / "run", Counting()
    one = done(tmp_path / "one", None, seeds=[3])
    assert done(out, engine, seeds=[3]) == one
    assert len([job for job in engine.jobs if job.startswith("reading")]) > 2
    assert len([job for job in engine.jobs if job.startswith("fitting")]) > 2


def test_only_what_is_missing_is_made(alone: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    done(out, None)
    gone = ["seed-0/works/iid-0000.parquet", "seed-3/noise.json", "results.parquet"]
    for name in gone:
        (out / name).unlink()
    engine = Counting()
    assert done(out, engine) == alone
    assert engine.jobs == gone[:2]


def test_failed_jobs_are_named_and_the_rest_is_kept(alone: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(am.AnamorphError) as error:
        done(out, Counting("unseen_depth-0000"))
    said = str(error.value)
    assert said.startswith("2 of 24 jobs of the step 'works' failed; the others are done and kept")
    assert "seed-3/works/unseen_depth-0000.parquet (cells on unseen_depth: " in said
    assert "svd(rank=2)@1.*.{query,key} and 2 more): It broke" in said
    assert said.endswith("It broke, after 2 tries.")
    assert not (out / ".token").exists()
    made = contents(out)
    assert len([name for name in made if "/works/" in name]) == 22
    engine = Counting()
    assert done(out, engine) == alone
    works = [job for job in engine.jobs if "/works/" in job]
    assert works == [f"seed-{seed}/works/unseen_depth-0000.parquet" for seed in (0, 3)]


def test_a_model_that_is_another_where_a_job_is_done_is_refused() -> None:
    module = am.Decoder(am.DecoderConfig(vocabulary=5, context=8)).eval()
    known = tuple(module.fingerprint().items())
    module.get_parameter(next(iter(dict(module.named_parameters())))).data.add_(1)
    changed = next(part for part, digest in known if module.fingerprint()[part] != digest)
    before, now = dict(known)[changed], module.fingerprint()[changed]
    with pytest.raises(Lasting, match=f"of {changed} is {now}, and there {before}"):
        bench.require_same(module, known)


def test_progress_counts_jobs(tmp_path: Path) -> None:
    events = list[Event]()
    spec = StudySpec.of(SPEC, "a test")
    am.run_study(spec, tmp_path / "run", figures=[], engine=Local(), watch=events.append)
    last = {event.step: (event.done, event.total) for event in events}
    assert last["training"] == (2, 2)
    assert last["fitting"] == (2, 2)
    assert last["works"] == (24, 24)
    assert last["noise, sites and heads"] == (6, 6)


@pytest.mark.parametrize(
    ("needed", "share"), [(90, 1.0), (60, 1.0), (40, 1 / 2), (25, 1 / 3), (20, 1 / 4), (1, 1 / 4)]
)
def test_small_jobs_share_a_gpu(needed: int, share: float) -> None:
    assert spread.share_of(100, needed) == pytest.approx(share)
