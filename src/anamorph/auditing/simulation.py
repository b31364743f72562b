"""How long works take on many workers: a simulation of events, without torch and without a cluster.

One driver hands works to workers and takes in what they give back. Every server here does one thing
at a time, in the order in which it is asked: the driver, its link to the nodes, the shared store.

1. After `start_up` seconds the nodes fetch what every work needs (weights, data, fits), once each:
   from the driver, and from nodes that have it already, so that the number of sources doubles.
2. The driver hands works out in their order while fewer than `window` for every worker are in
   flight. Handing one out takes half of `overhead`, taking it in the other half.
3. A free worker takes the work that was handed out first.
4. What it gives back goes over the driver's link; or the worker writes it to a shared store itself,
   and the driver is told a name alone.
5. A try that fails is lost somewhere on its way, the driver is told, and hands the work out again.
"""

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import exp, inf, log, sqrt

from anamorph.errors import AnamorphError, require

START, WORKERS, LONGEST = "start-up", "workers", "longest work"
DRIVER, NETWORK, STORE = "driver", "network", "store"


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What works cost, however many workers there are.

    Attributes:
        works: seconds of each on one worker, in the order in which they are handed out.
        overhead: seconds of the driver a work.
        result_bytes: that a work gives back.
        node_bytes: that a node fetches once, before its first work.
        start_up: seconds until a node asks for them.
        failure: chance that a try of a work fails.

    Raises:
        AnamorphError: if a number lies out of its range, or there are no works.
    """

    works: Sequence[float]
    overhead: float = 0.0
    result_bytes: float = 0.0
    node_bytes: float = 0.0
    start_up: float = 0.0
    failure: float = 0.0

    def __post_init__(self) -> None:
        if not self.works:
            raise AnamorphError("There are no works to simulate; give the seconds of at least one.")
        require("The seconds of a work", min(self.works), least=0)
        for name in ("overhead", "result_bytes", "node_bytes", "start_up"):
            require(f"Costs: {name}", vars(self)[name], least=0)
        require("Costs: failure", self.failure, least=0, below=1)

    @property
    def seconds(self) -> float:
        """Of all works, one after the other."""
        return sum(self.works)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where works are done. Bandwidths are in bytes a second.

    Attributes:
        workers: that do one work at a time each.
        node_workers: of one node.
        window: works in flight for every worker, at most; a whole number.
        driver_bandwidth: between the driver and all nodes together.
        node_bandwidth: between a node and any other machine.
        store_bandwidth: of a store that all nodes write to, together; None if what works give back
            goes to the driver.

    Raises:
        AnamorphError: if a number lies out of its range.
    """

    workers: int
    node_workers: int = 8
    window: int = 2
    driver_bandwidth: float = inf
    node_bandwidth: float = inf
    store_bandwidth: float | None = None

    def __post_init__(self) -> None:
        for name in ("workers", "node_workers", "window"):
            require(f"Cluster: {name}", vars(self)[name], whole=True, least=1)
        for name in ("driver_bandwidth", "node_bandwidth", "store_bandwidth"):
            if vars(self)[name] is not None:
                require(f"Cluster: {name}", vars(self)[name], above=0)

    @property
    def nodes(self) -> list[int]:
        """The workers of every node."""
        full, rest = divmod(self.workers, self.node_workers)
        return [self.node_workers] * full + [rest] * bool(rest)


@dataclass(frozen=True)
class Simulated:
    """How it went.

    Attributes:
        seconds: from the beginning to the last result that is taken in.
        serial: seconds of all works on one worker, with nothing else.
        workers: how many there were.
        ready: seconds until the last node had what works need.
        busy: the share of the time in which each was busy: driver, network (the driver's link),
            store, and the workers on average. A try that failed counts.
        bounds: the seconds that each would take if nothing else did, so that the whole takes no
            less: those of `busy`, the longest work, and the start.
        failed: tries that failed.
    """

    seconds: float
    serial: float
    workers: int
    ready: float
    busy: dict[str, float]
    bounds: dict[str, float]
    failed: int

    @property
    def speed_up(self) -> float:
        """Times faster than one worker that has nothing else to do."""
        return self.serial / self.seconds if self.seconds else float(self.workers)

    @property
    def efficiency(self) -> float:
        """Speed-up a worker."""
        return self.speed_up / self.workers

    @property
    def bottleneck(self) -> str:
        """What limits it: the largest of the bounds."""
        return max(self.bounds, key=self.bounds.__getitem__)


def simulate(costs: Costs, cluster: Cluster, seed: int = 0) -> Simulated:
    """How works go on a cluster; the same arguments give the same.

    Args:
        costs: of the works.
        cluster: where they are done.
        seed: of the tries that fail.
    """
    return _Simulation(costs, cluster, seed).run()


def spread(number: int, mean: float, deviation: float = 0.0, seed: int = 0) -> list[float]:
    """Seconds of works that differ, log-normal.

    Args:
        number: of works.
        mean: of the distribution.
        deviation: its standard deviation, as a share of the mean.
        seed: of the draws.
    """
    sigma = sqrt(log(1 + deviation**2))
    draw = random.Random(seed).gauss
    return [mean * exp(sigma * draw(0.0, 1.0) - sigma**2 / 2) for _ in range(number)]


class _Server:
    """Does one thing at a time, in the order in which it is asked."""

    def __init__(self) -> None:
        self.free = self.busy = 0.0

    def done(self, now: float, seconds: float) -> float:
        """When something is done that is asked for now."""
        self.free = max(now, self.free) + seconds
        self.busy += seconds
        return self.free


class _Simulation:
    """The state of a simulation, and what may happen."""

    def __init__(self, costs: Costs, cluster: Cluster, seed: int) -> None:
        self.costs, self.cluster = costs, cluster
        self.random = random.Random(seed).random
        self.now, self.count = 0.0, 0
        self.events: list[tuple[float, int, Callable[[int], None], int]] = []
        self.link, self.store = _Server(), _Server()
        self.driver_busy = self.worker_busy = 0.0
        self.driving = False
        self.left = deque(range(len(costs.works)))  # to be handed out
        self.waiting: deque[int] = deque()  # for a worker
        self.arrived: deque[tuple[int, bool]] = deque()  # at the driver, and whether they failed
        self.in_flight = self.taken = self.failed = 0
        self.most = cluster.window * cluster.workers
        self.free = 0

    def run(self) -> Simulated:
        ready = self.fetch()
        self.drive()
        while self.taken < len(self.costs.works):
            self.now, _, happens, what = heappop(self.events)
            happens(what)
        busy = {
            DRIVER: self.driver_busy,
            NETWORK: self.link.busy,
            STORE: self.store.busy,
            WORKERS: self.worker_busy / self.cluster.workers,
        }
        shares = {name: seconds / self.now if self.now else 0.0 for name, seconds in busy.items()}
        works = self.costs.works
        bounds = {START: ready, LONGEST: max(works), **busy}
        return Simulated(
            self.now,
            self.costs.seconds,
            self.cluster.workers,
            ready,
            shares,
            bounds,
            self.failed,
        )

    def at(self, time: float, happens: Callable[[int], None], what: int) -> None:
        self.count += 1  # of two at one time, the first that was planned comes first
        heappush(self.events, (time, self.count, happens, what))

    def fetch(self) -> float:
        """Let every node have what works need; gives when the last one has it."""
        seconds = self.costs.node_bytes / self.cluster.node_bandwidth
        from_driver = self.costs.node_bytes / self.cluster.driver_bandwidth
        begin, ready = self.costs.start_up, self.costs.start_up
        sources = [(begin, 0)]  # when each is free, the driver first
        for node, workers in enumerate(self.cluster.nodes, start=1):
            free, source = heappop(sources)
            takes = seconds if source else max(seconds, from_driver)
            ready = max(ready, free + takes)
            self.at(free + takes, self.joined, workers)
            if not source:
                self.link.done(free, from_driver)
            heappush(sources, (free + takes, source))
            heappush(sources, (free + takes, node))
        return ready

    def joined(self, workers: int) -> None:
        self.free += workers
        while self.free and self.waiting:
            self.begin()

    def drive(self) -> None:
        """The driver's next step, if there is one."""
        half = self.costs.overhead / 2
        if self.left and self.in_flight < self.most:
            self.in_flight += 1
            self.at(self.now + half, self.handed, self.left.popleft())
        elif self.arrived:
            work, failed = self.arrived.popleft()
            self.at(self.now + half, self.again if failed else self.took, work)
        else:
            self.driving = False
            return
        self.driving = True
        self.driver_busy += half

    def handed(self, work: int) -> None:
        self.waiting.append(work)
        if self.free:
            self.begin()
        self.drive()

    def begin(self) -> None:
        """A free worker takes a work."""
        work = self.waiting.popleft()
        self.free -= 1
        seconds, ends = self.costs.works[work], self.computed
        if self.costs.failure and self.random() < self.costs.failure:
            seconds, ends = seconds * self.random(), self.lost
        self.worker_busy += seconds
        self.at(self.now + seconds, ends, work)

    def computed(self, work: int) -> None:
        """Send what a work gives; the worker waits for a store, but not for the driver."""
        size, cluster = self.costs.result_bytes, self.cluster
        own = self.now + size / cluster.node_bandwidth
        if cluster.store_bandwidth is None:
            sent = self.link.done(self.now, size / cluster.driver_bandwidth)
            self.at(max(own, sent), self.arrives, work)
            self.release()
        else:
            kept = self.store.done(self.now, size / cluster.store_bandwidth)
            self.at(max(own, kept), self.stored, work)

    def stored(self, work: int) -> None:
        self.arrives(work)
        self.release()

    def lost(self, work: int) -> None:
        self.failed += 1
        self.tell(work, failed=True)
        self.release()

    def release(self) -> None:
        self.free += 1
        if self.waiting:
            self.begin()

    def arrives(self, work: int) -> None:
        self.tell(work, failed=False)

    def tell(self, work: int, failed: bool) -> None:
        self.arrived.append((work, failed))
        if not self.driving:
            self.drive()

    def took(self, work: int) -> None:
        self.taken += 1
        self.in_flight -= 1
        self.drive()

    def again(self, work: int) -> None:
        self.left.append(work)
        self.in_flight -= 1
        self.drive()
