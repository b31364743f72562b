"""All models of a study, spread over an engine: trained, fitted, audited, each step of all at once.

A step is cut into jobs (`anamorph.studies.bench`), which follow from the study alone. What is there
already is not made again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, TypeVar
from uuid import uuid4

from anamorph.auditing.audit import simplified
from anamorph.auditing.fit_parts import FitPart, fit_parts
from anamorph.auditing.local import Engine, Failed, Job, Needs, Shared
from anamorph.auditing.samples import scored_sequences, scored_task
from anamorph.auditing.works import Work, matrices_of
from anamorph.errors import AnamorphError
from anamorph.faithfulness.metrics import metric_names
from anamorph.faithfulness.sums import SumIndex
from anamorph.files import write_bytes
from anamorph.machine.devices import memory_of
from anamorph.progress import Watch
from anamorph.registered import loaded_plugins
from anamorph.runs.cells import digest
from anamorph.runs.folder import Run
from anamorph.simplifications import AnotherModel, FittedProxies, ProxySpec
from anamorph.simplifications.seen_part import SeenPart
from anamorph.simplifications.units import fit_units, joined
from anamorph.store import Address
from anamorph.studies import bench as far
from anamorph.studies.bench import TOKEN, Bench, Context
from anamorph.studies.sources import GivenStudy, Study, TrainedStudy, check_weights
from anamorph.studies.steps import SeedAudit

_Key = TypeVar("_Key")

NONE: Mapping[str, Work] = MappingProxyType({})
FEW = 5  # failed jobs, and cells of each, that an error names

OFTEN = 8
"""As many tensors of the widest kinds as may be held at a time."""

USED, MOST_SHARING = 0.8, 4
"""How much of a GPU's memory is counted on, and among how many jobs it is shared at most."""


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
        context = engine.share(Context(travels, path, dict(run.spec), token))
        _Spread(study, run, engine, watch, Bench(context, tuple(loaded_plugins()), 0)).do()


@contextmanager
def _token(path: Address) -> Iterator[str]:
    """What the token file of the run folder holds meanwhile."""
    token = uuid4().hex
    write_bytes(path / TOKEN, token.encode())
    try:
        yield token
    finally:
        (path / TOKEN).unlink(missing_ok=True)


@dataclass(frozen=True)
class _Spread:
    """A study on its way over an engine.

    Attributes:
        study: what is to be done.
        run: its folder.
        engine: which carries out the jobs.
        watch: told of the steps.
        bench: of no model.
    """

    study: Study
    run: Run
    engine: Engine
    watch: Watch
    bench: Bench

    @cached_property
    def needs(self) -> Needs:
        """What a job needs whose numbers depend, by rounding, on the number of threads."""
        return Needs(self.study.threads or self.run.spec["threads"], _share(self.study))

    def do(self) -> None:
        """Whatever is left to do."""
        self._train()
        audits = {self._begun(seed): self._audit(seed) for seed in self.study.seeds}
        left = {b: audit for b, audit in audits.items() if not audit.fits.exists()}
        if left:
            self._fit(left)
        self._audit_all(audits)

    def _audit(self, seed: int) -> SeedAudit:
        return SeedAudit(self.run, self.study, self.study.shape, seed, self.watch)

    def _train(self) -> None:
        if not isinstance(self.study, TrainedStudy) or self.study.source is not None:
            return
        left = [seed for seed in self.study.seeds if not self.run.model(seed).exists()]
        benches = [replace(self.bench, seed=seed) for seed in left]
        call = far.train_model
        jobs = [
            Job(f"seed {b.seed}: model", partial(call, b), self.needs, twice=False) for b in benches
        ]
        self._write("training", jobs)

    def _begun(self, seed: int) -> Bench:
        """The bench of a model, which is there now."""
        study = self.study
        model = study.model(self.run, seed, self.watch)
        weights = model.fingerprint()
        check_weights(self.run, weights, seed, keep=True)
        parts = tuple(weights.items())
        on_cpu = model.device.type == "cpu"
        if isinstance(study, GivenStudy) and study.source is not None and on_cpu:
            load = partial(far.load_model, dict(study.source), parts)
            shared = self.engine.share_made(load, model)
        else:
            shared = self.engine.share(model)
        return replace(self.bench, seed=seed, model=shared, weights=parts)

    def _fit(self, audits: Mapping[Bench, SeedAudit]) -> None:
        """Write what is fitted to models: first parts of the data are seen, then units learnt."""
        study, most = self.study, self.study.options.fit_sequences
        proxies = simplified(study.proxies)
        units = fit_units(proxies, study.shape.sites)
        parts = fit_parts(study.task, most, proxies)
        shared = self.engine.share(units)
        seen: dict[tuple[Bench, FitPart], list[Shared[SeenPart]]] = {}  # a share a unit
        calls = {
            (b, part): partial(far.see_part, b, shared, part) for b in audits for part in parts
        }
        for key, found in self._called("reading what is fitted on", calls):
            seen[key] = [self.engine.share(share) for share in found]
        learning = {}
        for b, unit in product(audits, range(len(units))):
            ordered = dict[str, list[Shared[SeenPart]]]()
            for part in parts:
                ordered.setdefault(part.split, []).append(seen[b, part][unit])
            learning[b, unit] = partial(far.learn_unit, b, shared, unit, ordered)
        files = dict(self._called("fitting", learning))
        for b, audit in audits.items():
            made = [_fitted(files[b, unit]) for unit in range(len(units))]
            origin = audit.fitted_to(digest(dict(b.weights)))
            joined(proxies, made).from_origin(origin).save(audit.fits)

    def _audit_all(self, audits: Mapping[Bench, SeedAudit]) -> None:
        one = Needs(1, self.needs.accelerator) if self.study.shape.parallel else self.needs
        evaluated = scored_task(self.study.task, self.study.proxies).evaluated
        most = self.study.options.sequences
        rows = {s.name: len(SumIndex.of(scored_sequences(s, most))) for s in evaluated}
        works, others = list[Job](), list[Job]()
        cells: dict[str, Work] = {}
        for b, audit in audits.items():
            fitted = audit.fitted(digest(dict(b.weights)))
            shared, auditor = self.engine.share(fitted), audit.auditor(fitted)
            for work, origin in audit.left(auditor):
                file = self.run.work(b.seed, work.split, work.number).name
                name = f"seed-{b.seed}/works/{file}"
                cells[name] = work
                proxies = [auditor.specs[text] for text in work.proxies]
                needs = replace(one, memory=_memory(self.study, rows[work.split], proxies))
                works.append(Job(name, partial(far.execute, b, shared, work, origin), needs))
            for path in audit.looks():
                call = partial(far.look, b, shared, path.name)
                others.append(Job(f"seed-{b.seed}/{path.name}", call, self.needs))
        self._write("works", works, cells)
        self._write("noise, sites and heads", others)

    def _write(self, step: str, jobs: Sequence[Job], cells: Mapping[str, Work] = NONE) -> None:
        """Carry out jobs, and write the files that they made and did not write themselves."""
        for _, made in self._results(step, jobs, cells):
            for name, content in made.items():
                write_bytes(self.run.path / name, content)

    def _called(
        self, step: str, calls: Mapping[_Key, Callable[[], Any]]
    ) -> Iterator[tuple[_Key, Any]]:
        """Have calls made as jobs; gives what each returned, with its key."""
        keys = {f"{step}, {number}": key for number, key in enumerate(calls)}
        jobs = [Job(name, calls[key], self.needs) for name, key in keys.items()]
        for job, result in self._results(step, jobs):
            yield keys[job.name], result

    def _results(
        self, step: str, jobs: Sequence[Job], cells: Mapping[str, Work] = NONE
    ) -> Iterator[tuple[Job, Any]]:
        """Carry out jobs.

        Yields:
            each that did not fail, with its result.

        Raises:
            AnamorphError: at the end, if some failed.
        """
        failed: list[Failed] = []
        for job, result in self.engine.carry(step, jobs, self.watch) if jobs else ():
            if isinstance(result, Failed):
                failed.append(result)
            else:
                yield job, result
        if failed:
            raise AnamorphError(_told(step, len(jobs), failed, cells))


def _fitted(content: bytes) -> FittedProxies:
    with TemporaryDirectory(prefix="anamorph-") as aside:
        (file := Path(aside) / "unit.safetensors").write_bytes(content)
        return FittedProxies.load(file)


def _memory(study: Study, rows: int, proxies: Sequence[ProxySpec]) -> int:
    """Bytes that a work of these proxies takes, about.

    Its sums, and once more as a file; tensors of its stacks; and the weights that it holds.
    """
    assert study.options.stack_memory is not None
    sums = len(proxies) * rows * len(metric_names()) * 8
    held = sum(matrices_of(proxy, study.shape) for proxy in proxies)
    others = sum(isinstance(proxy, AnotherModel) for proxy in proxies)
    return 2 * sums + OFTEN * study.options.stack_memory + held + others * _weights(study)


def _weights(study: Study) -> int:
    """Bytes of a model's weights; 0 of a small one, which does not say."""
    return 4 * int(study.shape.describe().get("parameters") or 0)


def _share(study: Study) -> float:
    """Of a GPU, that a job takes."""
    total, options = memory_of(study.shape.device), study.options
    if total is None:
        return 0.0
    assert options.stack_memory is not None and options.batch_tokens is not None
    logits = 4 * options.batch_tokens * study.shape.vocabulary
    return share_of(total, 2 * _weights(study) + OFTEN * (options.stack_memory + logits))


def share_of(total: int, needed: int) -> float:
    """The share of a GPU of so many bytes for jobs that take so many: all, or one part of a few."""
    return 1 / max(1, min(MOST_SHARING, int(total * USED / needed)))


def _told(step: str, jobs: int, failed: Sequence[Failed], cells: Mapping[str, Work]) -> str:
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
