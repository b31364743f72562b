"""What a study takes, told without doing it: its operations, and its time on many workers."""

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

import numpy as np

from anamorph.auditing.audit import simplified
from anamorph.auditing.flops import Load, ModelShape, placed
from anamorph.auditing.simulation import Cluster, Costs, Simulated, simulate
from anamorph.auditing.sizes import usual_batches
from anamorph.auditing.works import Work
from anamorph.simplifications import placements
from anamorph.studies.sources import Study, TrainedStudy
from anamorph.tasks import Split

OVERHEAD = 0.005  # seconds of the driver a work,
START_UP = 15.0  # until a node has begun,
NODE_WORKERS = 8  # of a node,
BANDWIDTH = 1.25e9  # bytes a second of the driver and of a node: 10 Gbit/s
"""What a cluster is taken to be; measured on one machine, or usual (docs/scale.md)."""


class Flops(NamedTuple):
    """Floating-point operations of a study, of all its models; see `anamorph.auditing.flops`."""

    training: float
    fitting: float
    works: float


class Workload(NamedTuple):
    """What the works of one model are, for whoever does them.

    Attributes:
        seconds: of every work, in the plan's order, with `threads` threads.
        threads: of a work.
        memory: bytes that a work adds to those of the process.
        result_bytes: that a work gives back.
        node_bytes: that a node needs once: weights, data and fits.
    """

    seconds: tuple[float, ...]
    threads: int
    memory: int
    result_bytes: int
    node_bytes: int


class OnWorkers(NamedTuple):
    """A study on many workers.

    Attributes:
        workers: how many.
        seconds: from beginning to end.
        one: seconds with one worker, and nothing but the work.
        limit: what takes most of the time: a part of the study, or a bottleneck of its works.
        works: how the works of all models go; see `anamorph.auditing.simulation`.
    """

    workers: int
    seconds: float
    one: float
    limit: str
    works: Simulated

    @property
    def speed_up(self) -> float:
        """Times faster than one worker."""
        return self.one / self.seconds

    @property
    def efficiency(self) -> float:
        """Speed-up a worker."""
        return self.speed_up / self.workers


def on_workers(
    of_model: Sequence[tuple[str, float]],
    page: tuple[str, float],
    load: Workload,
    seeds: int,
    n: int,
) -> OnWorkers:
    """A study on so many workers: models are trained and fitted side by side, then works are done.

    Args:
        of_model: what comes before the works of a model, and its seconds.
        page: what comes behind all works, at the driver.
        load: the works of a model.
        seeds: models.
        n: workers.
    """
    costs = Costs(
        works=load.seconds * seeds,
        overhead=OVERHEAD,
        result_bytes=load.result_bytes,
        node_bytes=load.node_bytes,
        start_up=START_UP,
    )
    cluster = Cluster(
        workers=n,
        node_workers=NODE_WORKERS,
        driver_bandwidth=BANDWIDTH,
        node_bandwidth=BANDWIDTH,
    )
    works = simulate(costs, cluster)
    rounds = ceil(seeds / n)
    parts = [(name, seconds * rounds) for name, seconds in of_model]
    parts += [(f"works: {works.bottleneck}", works.seconds), page]
    one = sum(seconds for _, seconds in of_model) * seeds + costs.seconds + page[1]
    limit = max(parts, key=lambda part: part[1])[0]
    return OnWorkers(n, sum(seconds for _, seconds in parts), one, limit, works)


def flops_of(study: Study, works: Sequence[Work], splits: Sequence[Split]) -> Flops | None:
    """Operations of training, fitting and works; None if the model's matrices are not known.

    Args:
        study: whose.
        works: of one model.
        splits: that are audited, as far as they are.
    """
    shape = ModelShape.of(study.shape)
    if shape is None:
        return None
    training = 0.0
    lengths = study.task.train.lengths
    if isinstance(study, TrainedStudy) and study.source is None:
        config, whole = study.spec.training, Load.whole(lengths)
        training = shape.training(whole.times(config.steps * config.batch_tokens / whole.tokens))
    read = Load.whole(lengths[: study.options.fit_sequences])
    ends: dict[str | None, int] = {}  # the layers that a pass runs, by what is fitted on
    for placement in placements(simplified(study.proxies), study.shape.sites):
        for attachment, sites in placement:
            last = max((site.layer for site in sites), default=-1)
            ends[attachment.on] = max(ends.get(attachment.on, 0), last + 1)
    fitting = sum(shape.forward(read, stop) for stop in ends.values())
    settings = study.options.settings(study.threads or usual_batches(study.shape))
    where = dict(zip(map(str, study.proxies), placed(study.proxies, study.shape), strict=True))
    loads = {split.name: Load.of(split, study.shape.causal) for split in splits}
    done = sum(
        shape.work(loads[work.split], [where[text] for text in work.proxies], settings)
        for work in works
    )
    return Flops(*(np.array([training, fitting, done]) * len(study.seeds)).tolist())
