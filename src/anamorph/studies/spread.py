"""All models of a study, spread over an engine: trained, fitted, audited, each step of all at once.

A step is cut into jobs, each of which makes whole files of the run folder. Whoever carries a job
out writes them itself where it sees the folder, and else sends them back; so nothing depends on a
shared file system. What is there already is not made again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from anamorph.auditing.local import Engine, Failed, Job, Lasting, Needs, Shared
from anamorph.auditing.works import Auditor, Work
from anamorph.errors import AnamorphError
from anamorph.files import write_bytes
from anamorph.machine.devices import matmul_precision, memory_of
from anamorph.models.base import Model
from anamorph.models.huggingface.load import load_pretrained
from anamorph.progress import Watch, ignore
from anamorph.registered import Plugin, loaded_plugins
from anamorph.runs.cells import Origin, digest
from anamorph.runs.folder import Run
from anamorph.simplifications import FittedProxies
from anamorph.store import Address
from anamorph.studies.plugins import load_again
from anamorph.studies.sources import GivenStudy, Study, TrainedStudy, check_weights
from anamorph.studies.steps import SeedAudit

TOKEN = ".token"
"""A file by which a job knows that it sees the run folder, and not another of the same name."""

FEW = 5  # failed jobs, and cells of each, that an error names

OFTEN = 8
"""As many tensors of the widest kinds as may be held at a time."""

USED, MOST_SHARING = 0.8, 4
"""How much of a GPU's memory is counted on, and among how many jobs it is shared at most."""

Weights = tuple[tuple[str, str], ...]
"""A model's fingerprint, as (part, digest)."""

Made = dict[str, bytes]
"""Files of the run folder, by their names in it, that are still to be written."""


@dataclass(frozen=True)
class _Context:
    """What all jobs of a study need.

    Attributes:
        study: what is to be done.
        path: of the run folder, absolute.
        spec: what the run says of itself.
        token: what its token file holds.
    """

    study: Study
    path: Address
    spec: dict[str, Any]
    token: str

    def make(self, names: Sequence[str], how: Callable[[Run], None]) -> Made:
        """Have files of the run made: in its folder where that is seen, and else aside.

        Args:
            names: of the files that there may be then.
            how: makes them in a run folder, but for those that are there.

        Returns:
            what was made aside.
        """
        if self.seen:
            how(Run(self.path, self.spec))
            return {}
        with TemporaryDirectory(prefix="anamorph-") as aside:
            how(Run(Path(aside), self.spec))
            made = {name: Path(aside) / name for name in names}
            return {name: path.read_bytes() for name, path in made.items() if path.exists()}

    @property
    def seen(self) -> bool:
        """Whether this process sees the run folder."""
        try:
            return (self.path / TOKEN).read_text("utf-8") == self.token
        except OSError:
            return False


@dataclass(frozen=True)
class _Bench:
    """Where jobs on one model are done.

    Attributes:
        context: of the study.
        plugins: which a process must have loaded before it unpacks anything.
        seed: of the model.
        model: itself; None as long as there is none.
        weights: its fingerprint.
    """

    context: Shared[_Context]
    plugins: tuple[Plugin, ...]
    seed: int
    model: Shared[Model] | None = None
    weights: Weights = ()


def spread(study: Study, run: Run, engine: Engine, watch: Watch) -> None:
    """Do whatever is left to do for the models of a study.

    Args:
        study: what is to be done.
        run: its folder, which this process holds.
        engine: which carries out the jobs.
        watch: told of the steps, and how many of their jobs are done.

    Raises:
        AnamorphError: if jobs fail, or what is there comes from another model or other data. Then
            all that others have made is kept.
    """
    path = run.path.absolute()
    with _token(path) as token:
        travels = study.with_shape(None) if isinstance(study, GivenStudy) else study
        context = engine.share(_Context(travels, path, dict(run.spec), token))
        bench = _Bench(context, tuple(loaded_plugins()), 0)
        threads = study.threads or run.spec["threads"]
        whole = Needs(threads, _share(study))
        left = [s for s in study.seeds if _to_train(study, run, s)]
        jobs = [Job(f"seed {s}: model", partial(_train, bench, s), whole) for s in left]
        _carry(run, engine, "training", jobs, watch)

        benches = [_begun(study, run, engine, bench, seed, watch) for seed in study.seeds]
        audits = {b: SeedAudit(run, study, study.shape, b.seed, watch) for b in benches}
        jobs = [
            Job(f"seed {b.seed}: fits", partial(_fit, b), whole)
            for b, audit in audits.items()
            if not audit.fits.exists()
        ]
        _carry(run, engine, "fitting", jobs, watch)

        one = whole if not study.shape.parallel else Needs(1, whole.accelerator)
        works, others = list[Job](), list[Job]()
        cells: dict[str, Work] = {}
        for b, audit in audits.items():
            fitted = audit.fitted(digest(dict(b.weights)))
            shared = engine.share(fitted)
            for work, origin in audit.left(audit.auditor(fitted)):
                name = _name(run, b.seed, work)
                cells[name] = work
                works.append(Job(name, partial(_work, b, shared, work, origin), one))
            for file in audit.looks():
                name = f"seed-{b.seed}/{file.name}"
                others.append(Job(name, partial(_look, b, shared, file.name), whole))
        _carry(run, engine, "works", works, watch, cells)
        _carry(run, engine, "noise, sites and heads", others, watch)


@contextmanager
def _token(path: Address) -> Iterator[str]:
    """What the token file of the run folder holds meanwhile."""
    token = uuid4().hex
    write_bytes(path / TOKEN, token.encode())
    try:
        yield token
    finally:
        (path / TOKEN).unlink(missing_ok=True)


def _name(run: Run, seed: int, work: Work) -> str:
    """Of a work's file, in the run folder."""
    return f"seed-{seed}/works/{run.work(seed, work.split, work.number).name}"


def _share(study: Study) -> float:
    """Of a GPU, that a job takes."""
    total, options = memory_of(study.shape.device), study.options
    if total is None:
        return 0.0
    assert options.stack_memory is not None and options.batch_tokens is not None
    weights = 4 * int(study.shape.describe().get("parameters") or 0)  # small ones do not say
    logits = 4 * options.batch_tokens * study.shape.vocabulary
    return share_of(total, weights + OFTEN * (options.stack_memory + logits))


def share_of(total: int, needed: int) -> float:
    """The share of a GPU of so many bytes for jobs that take so many: all, or one part of a few."""
    return 1 / max(1, min(MOST_SHARING, int(total * USED / needed)))


def _to_train(study: Study, run: Run, seed: int) -> bool:
    trains = isinstance(study, TrainedStudy) and study.source is None
    return trains and not run.model(seed).exists()


def _begun(
    study: Study, run: Run, engine: Engine, bench: _Bench, seed: int, watch: Watch
) -> _Bench:
    """The bench of a model that is there now."""
    model = study.model(run, seed, watch)
    weights = model.fingerprint()
    check_weights(run, weights, seed, keep=True)
    parts = tuple(weights.items())
    on_cpu = model.device.type == "cpu"
    if isinstance(study, GivenStudy) and study.source is not None and on_cpu:
        shared = engine.share_made(partial(_load, dict(study.source), parts), model)
    else:
        shared = engine.share(model)
    return _Bench(bench.context, bench.plugins, seed, shared, parts)


def _carry(
    run: Run,
    engine: Engine,
    step: str,
    jobs: Sequence[Job],
    watch: Watch,
    cells: dict[str, Work] | None = None,
) -> None:
    """Carry out the jobs of a step, and write what they made.

    Raises:
        AnamorphError: if some fail, at the end.
    """
    failed: list[Failed] = []
    for _, result in engine.carry(step, jobs, watch) if jobs else ():
        if isinstance(result, Failed):
            failed.append(result)
            continue
        for name, content in result.items():
            write_bytes(run.path / name, content)
    if failed:
        raise AnamorphError(_told(step, len(jobs), failed, cells or {}))


def _told(step: str, jobs: int, failed: Sequence[Failed], cells: dict[str, Work]) -> str:
    """Which jobs, and which of their cells, failed, and why."""
    said = []
    for one in failed[:FEW]:
        work = cells.get(one.job)
        what = ""
        if work is not None:
            more = f" and {len(work.proxies) - FEW} more" if len(work.proxies) > FEW else ""
            what = f" (cells on {work.split}: {', '.join(work.proxies[:FEW])}{more})"
        tries = f"{len(one.reasons)} tries" if len(one.reasons) > 1 else "one try"
        said.append(f"{one.job}{what}: {one.reasons[-1].rstrip('.')}, after {tries}")
    more = f" And {len(failed) - FEW} more." if len(failed) > FEW else ""
    return (
        f"{len(failed)} of {jobs} jobs of the step {step!r} failed; the others are done and kept, "
        f"and the same command tries these again. {'. '.join(said)}.{more}"
    )


# What follows is done by whoever carries out a job.


@lru_cache(maxsize=2)
def _audit(bench: _Bench) -> tuple[_Context, SeedAudit]:
    """The context of a study, and the audit of one of its models, in this process.

    Raises:
        Lasting: if the model is another here.
    """
    context = _context(bench)
    assert bench.model is not None
    model = bench.model.get()
    _require_same(model, bench.weights)
    if isinstance(context.study, GivenStudy):
        context = replace(context, study=context.study.with_shape(model))
    run = Run(context.path, context.spec)
    return context, SeedAudit(run, context.study, model, bench.seed, ignore)


def _load(source: dict[str, Any], weights: Weights) -> Model | None:
    """The model that an audit of files names; None if it is not there."""
    if not source["hub"] and not Path(source["model"]).exists():
        return None
    model, _ = load_pretrained(source["model"], hub=source["hub"], dtype=source["dtype"])
    _require_same(model, weights)
    return model


def _require_same(model: Model, weights: Weights) -> None:
    here, there = model.fingerprint(), dict(weights)
    for part in {**here, **there}:
        if here.get(part) != there.get(part):
            raise Lasting(
                f"the model is another than where the command was given: the fingerprint of "
                f"{part} is {here.get(part)}, and there {there.get(part)}. Put the same files on "
                "all nodes."
            )


def _context(bench: _Bench) -> _Context:
    load_again(bench.plugins)
    return bench.context.get()


@contextmanager
def _as_studied(context: _Context) -> Iterator[None]:
    """As the study asks for it, in a process that knows nothing of it."""
    with matmul_precision(context.spec["matmul_precision"]):
        yield


def _in(context: _Context, audit: SeedAudit, run: Run) -> SeedAudit:
    return SeedAudit(run, context.study, audit.model, audit.seed, ignore)


def _train(bench: _Bench, seed: int) -> Made:
    context = _context(bench)
    folder = f"seed-{seed}"
    names = [f"{folder}/{n}" for n in ("model.safetensors", "history.parquet", "fingerprints.json")]
    with _as_studied(context):
        return context.make(names, lambda run: _ignored(context.study.model(run, seed, ignore)))


def _ignored(_: object) -> None:
    return None


def _fit(bench: _Bench) -> Made:
    context, audit = _audit(bench)
    weights = digest(dict(bench.weights))
    with _as_studied(context), audit.model.session():
        return context.make(
            [f"seed-{bench.seed}/{audit.fits.name}"],
            lambda run: _ignored(_in(context, audit, run).fit(weights, lambda: None)),
        )


def _work(bench: _Bench, fitted: Shared[FittedProxies], work: Work, origin: Origin) -> Made:
    context, audit = _audit(bench)
    run = Run(context.path, context.spec)
    path = run.work(bench.seed, work.split, work.number)
    seen = context.seen
    if seen and path.exists():  # by a try of which nothing more was heard
        return {}
    with _as_studied(context), audit.model.session():
        content = audit.execute(_auditor(bench, fitted), work, origin)
    if seen:
        write_bytes(path, content)
        return {}
    return {_name(run, bench.seed, work): content}


@lru_cache(maxsize=2)
def _auditor(bench: _Bench, fitted: Shared[FittedProxies]) -> Auditor:
    _, audit = _audit(bench)
    return audit.auditor(fitted.get())


def _look(bench: _Bench, fitted: Shared[FittedProxies], name: str) -> Made:
    context, audit = _audit(bench)
    with _as_studied(context), audit.model.session():
        return context.make(
            [f"seed-{bench.seed}/{name}"],
            lambda run: _in(context, audit, run).look(name, fitted.get()),
        )
