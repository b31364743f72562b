"""What a study would take: counted from its plan, and timed on a little of it. Nothing is written.

Time is that of a few training steps, of a fit to a few sequences and of a few works on a few
sequences, all done as the study does them, and put in proportion.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from io import BytesIO
from math import ceil
from time import monotonic
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from torch import nn

from anamorph.auditing.audit import fit_on_task, simplified
from anamorph.auditing.samples import scored_sequences, scored_task
from anamorph.auditing.sizes import usual_batches
from anamorph.auditing.works import Auditor, Work, plan
from anamorph.errors import AnamorphError
from anamorph.machine.devices import matmul_precision
from anamorph.machine.threads import torch_threads
from anamorph.models.base import Model
from anamorph.models.decoder import Decoder
from anamorph.models.wrapped import Wrapped
from anamorph.simplifications import FittedProxies, ProxySpec
from anamorph.studies.planned import Flops, OnWorkers, Workload, flops_of, on_workers
from anamorph.studies.sources import GivenStudy, Study, TrainedStudy
from anamorph.studies.study import workers_of
from anamorph.tasks import Split, Task
from anamorph.training.train import EVALUATED, accuracy, train

STEPS = 100  # of training, that are timed at most,
FEW_STEPS = 8  # and at least, but for steps that take long
WORKS = 3  # that are timed
BUDGET = 2.0  # seconds for each of training, fitting and works, before the last try
FIRST, MORE = 16, 3  # sequences of the first try, and by how much the next has more
PAGE_SECONDS, PAGE_BYTES = 15.0, 10 * 2**20
"""Of claims, pictures, figures and page: usual on a CPU, and not measured."""


class SplitSize(NamedTuple):
    """What is used of a split: its sequences, scored positions (0 of `train`) and tokens."""

    name: str
    role: str
    sequences: int
    scored: int
    tokens: int


class Took(NamedTuple):
    """What a part of a study takes, and of what that is known.

    Attributes:
        part: in words.
        seconds: of all of it.
        measured: on what.
    """

    part: str
    seconds: float
    measured: str


@dataclass(frozen=True)
class Estimate:
    """What a study would do and take.

    Attributes:
        splits: the training data as far as they are used, then the evaluated splits.
        methods: proxies by method, the identity among them.
        seeds: models.
        works: of all models.
        cells: of all models.
        parameters: of a model; None if it does not say.
        took: the parts, with their time one after the other.
        workers: models worked on at a time.
        memory: bytes of this process at most, while it was measured, and what sums add.
        device_memory: bytes of the device at most, likewise; None on the CPU.
        disk: bytes of the run folder.
        early: whether cells may stop early, so that it takes less.
        load: the works of one model.
        flops: floating-point operations; None if the model does not say which matrices it has.
    """

    splits: tuple[SplitSize, ...]
    methods: dict[str, int]
    seeds: int
    works: int
    cells: int
    parameters: int | None
    took: tuple[Took, ...]
    workers: int
    memory: int | None
    device_memory: int | None
    disk: int
    early: bool
    load: Workload
    flops: Flops | None

    def on(self, workers: int) -> OnWorkers:
        """The same on so many workers of a cluster, by simulation.

        Raises:
            AnamorphError: if there are none.
        """
        *before, _, page = ((part.part, part.seconds) for part in self.took)
        each = [(name, seconds / self.seeds) for name, seconds in before]
        return on_workers(each, page, self.load, self.seeds, workers)

    @property
    def seconds(self) -> float:
        """From beginning to end, without the start of Python."""
        *of_models, page = (part.seconds for part in self.took)
        rounds = ceil(self.seeds / self.workers)
        return sum(of_models) / self.seeds * rounds + page


def estimate(study: Study, workers: int | None = None) -> Estimate:
    """What a study would do and take, in the time of a few seconds and a few batches.

    Args:
        study: what would be done.
        workers: as for `run_study`.

    Raises:
        AnamorphError: as whatever is tried would in the study itself.
    """
    task = scored_task(study.task, study.proxies)
    splits = [scored_sequences(split, study.options.sequences) for split in task.evaluated]
    works = plan(study.proxies, study.shape, [split.name for split in splits])
    if study.shape.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(study.shape.device)
    threads = torch_threads(study.threads) if study.threads else nullcontext()
    with matmul_precision(study.matmul), threads:
        training = _training(study) if isinstance(study, TrainedStudy) else []
        with study.shape.session():
            fit, audit, sizes = _fit_and_audit(study, works, splits)
    seeds, cells = len(study.seeds), sum(len(work.proxies) for work in works)
    of_models = [p._replace(seconds=p.seconds * seeds) for p in (*training, fit, audit)]
    page = Took("tables, claims, report", PAGE_SECONDS, "not measured: usual")
    running = workers_of(study, workers)
    models = _weights(study.shape) if isinstance(study, TrainedStudy) else 0
    peak = _peak()
    on_gpu = study.shape.device.type == "cuda"
    return Estimate(
        splits=(_fitted_on(study), *map(_size, splits)),
        methods=dict(Counter(proxy.method for proxy in study.proxies)),
        seeds=seeds,
        works=len(works) * seeds,
        cells=cells * seeds,
        parameters=_parameters(study),
        took=(*of_models, page),
        workers=running,
        memory=None if peak is None else (peak + sizes.sums) * running,
        device_memory=torch.cuda.max_memory_allocated(study.shape.device) if on_gpu else None,
        disk=seeds * (models + sizes.fits + sizes.works) + PAGE_BYTES,
        early=study.options.until is not None,
        load=_load(study, works, splits, audit.seconds, sizes),
        flops=flops_of(study, works, splits),
    )


class _Sizes(NamedTuple):
    """Bytes of one model's audit: sums of a work in memory; fits and works on disk."""

    sums: int
    fits: int
    works: int


def _load(
    study: Study, works: Sequence[Work], splits: Sequence[Split], seconds: float, sizes: _Sizes
) -> Workload:
    """Works of one model, that take so many seconds; those of longer splits take more of them."""
    tokens = {split.name: len(split.tokens) for split in splits}
    share = seconds / sum(tokens[work.split] for work in works)
    data = sum(split.tokens.nbytes + split.scored.nbytes for split in splits)
    data += sum(facet.codes.nbytes for split in splits for facet in split.facets.values())
    return Workload(
        seconds=tuple(tokens[work.split] * share for work in works),
        threads=torch.get_num_threads() if study.threads is None else study.threads,
        memory=sizes.sums,
        result_bytes=sizes.works // len(works),
        node_bytes=_weights(study.shape) + data + sizes.fits,
    )


class _Enough(Exception):
    """Ends a training that was begun to be timed."""


def _training(study: TrainedStudy) -> list[Took]:
    """Of one model; nothing if it is trained already, in the run whose models are taken."""
    if study.source is not None:
        return []
    config, times = study.spec.training, [monotonic()]

    def watch(_: object) -> None:
        times.append(monotonic())
        steps, seconds = len(times) - 1, times[-1] - times[1]  # the first warms up
        if steps == STEPS or seconds > (BUDGET if steps >= FEW_STEPS else 3 * BUDGET):
            raise _Enough

    no_looks = replace(config, evaluate_every=config.steps)
    with suppress(_Enough):
        train(
            study.task,
            config=no_looks,
            model=study.config,
            seed=study.seeds[0],
            device=study.shape.device,
            watch=watch,
        )
    steps = np.diff(times)
    step = float(np.mean(steps[1:] if len(steps) > 1 else steps))
    split = study.task.reference.take(np.arange(min(EVALUATED, len(study.task.reference))))
    candidates = torch.from_numpy(study.task.candidates).to(study.shape.device)
    shape = study.shape
    assert isinstance(shape, Decoder)
    started = monotonic()
    accuracy(shape, split, candidates)
    look = monotonic() - started
    looks = ceil(config.steps / config.evaluate_every) * len(study.task.evaluated)
    told = f"{len(steps)} of {config.steps:,} steps"
    return [Took("training", step * config.steps + look * looks, told)]


def _fit_and_audit(
    study: Study, works: Sequence[Work], splits: Sequence[Split]
) -> tuple[Took, Took, _Sizes]:
    """Of one model: its fits and its works, by some of them."""
    chosen = _some(works, splits[0].name)
    names = {name for work in chosen for name in work.proxies}
    proxies = [proxy for proxy in study.proxies if str(proxy) in names]
    fitted, seconds, sequences = _fit(study, proxies)
    most = min(study.options.fit_sequences, len(study.task.train))
    share = len(simplified(study.proxies)) / max(1, len(simplified(proxies)))
    told = f"{len(simplified(proxies))} proxies, {sequences:,} of {most:,} sequences"
    fit = Took("fitting", seconds * share, told)

    by_name = {split.name: split for split in splits}
    task = replace(study.task, splits={**study.task.splits, **by_name})
    at_most = study.options.sequences
    whole = sum(len(split.tokens) for split in splits)
    total, tried, in_memory, on_disk = 0.0, 0, 0.0, 0.0
    for work in chosen:
        timed = _Timed.of(study, task, proxies, fitted, work, splits[0])
        total += timed.seconds
        tried = max(tried, timed.sequences)
        scale = len(splits[0]) / timed.sequences
        in_memory, on_disk = max(in_memory, timed.memory * scale), on_disk + timed.disk * scale
    of_all = len(works) / len(splits) / len(chosen)  # works of a split, to those that were timed
    tokens = whole / len(splits[0].tokens)
    told = f"{len(chosen)} of {len(works)} works, {tried:,} of {min(at_most, len(splits[0])):,} "
    audit = Took("works", total * of_all * tokens, told + "sequences")
    fits = sum(
        value.nbytes
        for one in {id(s): s for f in fitted.values() for s in f.by_site.values()}.values()
        for value in one.state_dict().values()
    )
    return fit, audit, _Sizes(int(in_memory), int(fits * share), int(on_disk * of_all * tokens))


def _some(works: Sequence[Work], split: str) -> list[Work]:
    """A few works of a split, from the first to the last."""
    own = [work for work in works if work.split == split]
    places = np.unique(np.linspace(0, len(own) - 1, min(WORKS, len(own))).round().astype(int))
    return [own[place] for place in places]


def _fit(study: Study, proxies: Sequence[ProxySpec]) -> tuple[FittedProxies, float, int]:
    """Fits to some sequences, the seconds that all would take, and how many were tried."""
    most = min(study.options.fit_sequences, len(study.task.train))
    tries: list[tuple[int, float]] = []
    count = min(FIRST, most)
    while True:
        started = monotonic()
        try:
            fitted = fit_on_task(study.shape, proxies, study.task, count)
            tries.append((count, monotonic() - started))
        except AnamorphError:  # too few points for so many clusters, say
            if count == most:
                raise
            fitted = None
        if fitted is not None and (count == most or _enough(tries, BUDGET)):
            return fitted, _extended(tries, most), count
        count = min(count * MORE, most)


class _Timed(NamedTuple):
    """How long a work takes on a split.

    Attributes:
        seconds: with all sequences.
        sequences: that were tried.
        memory: bytes of the sums of these.
        disk: likewise, as they would be written.
    """

    seconds: float
    sequences: int
    memory: int
    disk: int

    @classmethod
    def of(
        cls,
        study: Study,
        task: Task,
        proxies: Sequence[ProxySpec],
        fitted: FittedProxies,
        work: Work,
        split: Split,
    ) -> "_Timed":
        """Execute it on more and more sequences, until that takes long enough to tell."""
        batches = study.threads if study.threads and study.shape.device.type == "cpu" else None
        settings = study.options.settings(batches or usual_batches(study.shape))
        tries: list[tuple[int, float]] = []
        count = min(FIRST, len(split))
        while True:
            auditor = Auditor(study.shape, task, proxies, fitted, count, settings)
            started = monotonic()
            sums = auditor.execute(work)
            tries.append((count, monotonic() - started))
            if count == len(split) or _enough(tries, BUDGET / WORKS):
                break
            count = min(count * MORE, len(split))
        tables = [cell.table() for cell in sums.values()]
        buffer = BytesIO()
        pl.concat(tables).write_parquet(buffer, compression="zstd", row_group_size=len(tables[0]))
        memory = sum(int(table.estimated_size()) for table in tables)
        return cls(_extended(tries, len(split)), count, memory, len(buffer.getvalue()))


def _enough(tries: Sequence[tuple[int, float]], budget: float) -> bool:
    """Whether tries may end; the first also warms up, and counts only if it takes long."""
    (_, first), *others = tries
    return first > 3 * budget or sum(seconds for _, seconds in others) > budget


def _extended(tries: Sequence[tuple[int, float]], most: int) -> float:
    """Seconds for `most`, on the line through the last two of some tries (number, seconds)."""
    (number, seconds) = tries[-1]
    if number == most:
        return seconds
    before = tries[-2] if len(tries) > 1 else (0, 0.0)
    each = max(0.0, seconds - before[1]) / (number - before[0])
    return seconds + (most - number) * each


def _size(split: Split) -> SplitSize:
    return SplitSize(split.name, split.role, len(split), int(split.scored.sum()), len(split.tokens))


def _fitted_on(study: Study) -> SplitSize:
    """What is trained on, or else what is fitted on."""
    train_ = study.task.train
    if isinstance(study, GivenStudy):
        train_ = train_.take(np.arange(min(len(train_), study.options.fit_sequences)))
    return _size(train_)._replace(scored=0)


def _parameters(study: Study) -> int | None:
    if isinstance(study.shape, nn.Module):
        return sum(x.numel() for x in study.shape.parameters())
    return study.shape.describe().get("parameters")


def _weights(model: Model) -> int:
    """Bytes of a model's weights; 0 if they are not known."""
    module = model.module if isinstance(model, Wrapped) else model
    return sum(x.nbytes for x in module.parameters()) if isinstance(module, nn.Module) else 0


def _peak() -> int | None:
    """Bytes that this process has held at most; None where the system does not tell."""
    if sys.platform == "win32":
        return None
    import resource

    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024
