"""Where the jobs of a spread study are done, and how: what is called in other processes.

A job makes whole files of the run folder. It writes them itself where it sees the folder, and else
sends them back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from anamorph.auditing.fit_parts import FitPart, learn_on_task, see_on_task
from anamorph.auditing.local import Lasting, Shared
from anamorph.auditing.works import Auditor, Work
from anamorph.files import write_bytes
from anamorph.machine.devices import matmul_precision
from anamorph.models.base import Model
from anamorph.models.huggingface.load import load_pretrained
from anamorph.progress import ignore
from anamorph.registered import Plugin
from anamorph.runs.cells import Origin
from anamorph.runs.folder import Run
from anamorph.simplifications import FittedProxies, Simplified
from anamorph.simplifications.seen_part import SeenPart
from anamorph.store import Address
from anamorph.studies.plugins import load_again
from anamorph.studies.sources import GivenStudy, Study
from anamorph.studies.steps import SeedAudit

TOKEN = ".token"
"""A file by which a job knows that it sees the run folder, and not another of the same name."""

Weights = tuple[tuple[str, str], ...]
"""A model's fingerprint, as (part, digest)."""

Units = list[list[Simplified]]
"""Proxies in units that can be fitted apart; see `anamorph.simplifications.units`."""

Made = dict[str, bytes]
"""Files of the run folder, by their names in it, that are still to be written."""


@dataclass(frozen=True)
class Context:
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
class Bench:
    """Where jobs on one model are done.

    Attributes:
        context: of the study.
        plugins: which a process must have loaded before it unpacks anything.
        seed: of the model.
        model: itself; None as long as there is none.
        weights: its fingerprint.
    """

    context: Shared[Context]
    plugins: tuple[Plugin, ...]
    seed: int
    model: Shared[Model] | None = None
    weights: Weights = ()


@lru_cache(maxsize=2)
def _audit(bench: Bench) -> tuple[Context, SeedAudit]:
    """The context of a study, and the audit of one of its models, in this process.

    Raises:
        Lasting: if the model is another here.
    """
    context = _context(bench)
    assert bench.model is not None
    model = bench.model.get()
    require_same(model, bench.weights)
    if model.device.type != context.spec["device"]:
        raise Lasting(
            f"the model is on the device {model.device.type}, and the study is one of the device "
            f"{context.spec['device']}."
        )
    if isinstance(context.study, GivenStudy):
        context = replace(context, study=context.study.with_shape(model))
    run = Run(context.path, context.spec)
    return context, SeedAudit(run, context.study, model, bench.seed, ignore)


def load_model(source: dict[str, Any], weights: Weights) -> Model | None:
    """The model that an audit of files names; None if it is not there."""
    if not source["hub"] and not Path(source["model"]).exists():
        return None
    model, _ = load_pretrained(
        source["model"], hub=source["hub"], device="cpu", dtype=source["dtype"]
    )
    require_same(model, weights)
    return model


def require_same(model: Model, weights: Weights) -> None:
    """Refuse a model that is another here.

    Raises:
        Lasting: names both fingerprints.
    """
    here, there = model.fingerprint(), dict(weights)
    for part in {**here, **there}:
        if here.get(part) != there.get(part):
            raise Lasting(
                f"the model is another than where the command was given: the fingerprint of "
                f"{part} is {here.get(part)}, and there {there.get(part)}. Put the same files on "
                "all nodes."
            )


def _context(bench: Bench) -> Context:
    load_again(bench.plugins)
    return bench.context.get()


@contextmanager
def _as_studied(context: Context) -> Iterator[None]:
    """As the study asks for it, in a process that knows nothing of it."""
    with matmul_precision(context.spec["matmul_precision"]):
        yield


def _in(context: Context, audit: SeedAudit, run: Run) -> SeedAudit:
    return SeedAudit(run, context.study, audit.model, audit.seed, ignore)


def train_model(bench: Bench) -> Made:
    """The files of the bench's model, which is trained; `bench.model` is none yet."""
    context = _context(bench)
    folder, seed = f"seed-{bench.seed}", bench.seed
    # The model last, by which it is known that all are there.
    names = [f"{folder}/{n}" for n in ("history.parquet", "fingerprints.json", "model.safetensors")]
    with _as_studied(context):
        return context.make(names, lambda run: _ignored(context.study.model(run, seed, ignore)))


def _ignored(_: object) -> None:
    return None


def see_part(bench: Bench, units: Shared[Units], part: FitPart) -> list[SeenPart]:
    """What is seen of a part of what is fitted on, for each unit of proxies."""
    context, audit = _audit(bench)
    study = context.study
    with _as_studied(context):
        sequences = study.options.fit_sequences
        return see_on_task(audit.model, units.get(), study.task, sequences, part)


def learn_unit(
    bench: Bench, units: Shared[Units], number: int, seen: Mapping[str, Sequence[Shared[SeenPart]]]
) -> bytes:
    """A file with what is fitted of a unit of proxies to what was seen of all parts."""
    context, audit = _audit(bench)
    study, unit = context.study, units.get()[number]
    parts = {split: (deepcopy(some.get()) for some in parts) for split, parts in seen.items()}
    with _as_studied(context), TemporaryDirectory(prefix="anamorph-") as aside:
        sequences = study.options.fit_sequences
        fitted = learn_on_task(audit.model, unit, study.task, sequences, parts)
        fitted.save(file := Path(aside) / audit.fits.name)
        return file.read_bytes()


def execute(bench: Bench, fitted: Shared[FittedProxies], work: Work, origin: Origin) -> Made:
    """The file of a work."""
    context, audit = _audit(bench)
    run = Run(context.path, context.spec)
    path = run.work(bench.seed, work.split, work.number)
    seen = context.seen
    if seen and path.exists():  # by a try of which nothing more was heard
        return {}
    with _as_studied(context), audit.model.session():
        content = audit.execute(_auditor(bench, fitted), work, origin)
    if seen:
        if not path.exists():  # the same work may have been begun a second time
            write_bytes(path, content)
        return {}
    return {f"seed-{bench.seed}/works/{path.name}": content}


@lru_cache(maxsize=2)
def _auditor(bench: Bench, fitted: Shared[FittedProxies]) -> Auditor:
    _, audit = _audit(bench)
    return audit.auditor(fitted.get())


def look(bench: Bench, fitted: Shared[FittedProxies], name: str) -> Made:
    """One of the other files of a model, by its name; see `SeedAudit.look`."""
    context, audit = _audit(bench)
    with _as_studied(context), audit.model.session():
        return context.make(
            [f"seed-{bench.seed}/{name}"],
            lambda run: _in(context, audit, run).look(name, fitted.get()),
        )
