"""The simulation against closed forms, Graham's bounds, and a clock that ticks."""

import random
from itertools import pairwise
from math import ceil, log2

import pytest

from anamorph.auditing.simulation import Cluster, Costs, Simulated, simulate, spread
from anamorph.errors import AnamorphError


def test_one_worker_does_one_work_after_the_other() -> None:
    found = simulate(Costs(works=[3.0, 1.0, 2.0], start_up=5.0), Cluster(workers=1))
    assert found.seconds == 11.0 and found.serial == 6.0
    assert found.busy["workers"] == pytest.approx(6 / 11)
    assert found.efficiency == found.speed_up == pytest.approx(6 / 11)


def test_alike_works_go_in_rounds() -> None:
    for number, workers in ((64, 8), (65, 8), (7, 8), (1000, 33)):
        found = simulate(Costs(works=[2.0] * number), Cluster(workers=workers))
        assert found.seconds == 2.0 * ceil(number / workers)
        assert found.speed_up == number / ceil(number / workers)


def test_a_busy_driver_takes_its_share_of_every_work_one_after_the_other() -> None:
    costs = Costs(works=[1.0] * 5000, overhead=0.01)
    found = simulate(costs, Cluster(workers=1000))
    # 5,000 × 10 ms; the first works are done long before the last are handed out.
    assert found.seconds == pytest.approx(50.0, rel=0.03) and found.seconds >= 50.0
    assert found.bottleneck == "driver" and found.bounds["driver"] == pytest.approx(50.0)
    few = simulate(costs, Cluster(workers=50))
    assert few.bottleneck == "workers" and few.seconds == pytest.approx(100.0, rel=0.03)


def test_a_full_link_is_named_and_a_store_takes_its_load() -> None:
    costs = Costs(works=[1.0] * 1000, result_bytes=1e6)
    link = Cluster(workers=1000, driver_bandwidth=2e7)
    found = simulate(costs, link)
    assert found.seconds == pytest.approx(1 + 1000 * 1e6 / 2e7)
    assert found.bottleneck == "network" and found.busy["network"] == pytest.approx(50 / 51)
    store = simulate(costs, Cluster(workers=1000, driver_bandwidth=2e7, store_bandwidth=1e9))
    assert store.seconds == pytest.approx(1 + 1.0)
    assert store.busy["network"] == 0.0


def test_sources_double_while_nodes_fetch() -> None:
    for nodes in (1, 2, 3, 7, 8, 100):
        cluster = Cluster(workers=4 * nodes, node_workers=4, node_bandwidth=1e9)
        found = simulate(Costs(works=[1.0], node_bytes=5e9, start_up=2.0), cluster)
        assert found.ready == pytest.approx(2 + 5 * ceil(log2(nodes + 1)))
    assert Cluster(workers=10, node_workers=4).nodes == [4, 4, 2]


def test_any_order_is_within_grahams_bounds() -> None:
    draw = random.Random(1)
    for seed in range(50):
        workers = draw.randint(1, 12)
        works = spread(draw.randint(1, 80), 1.0, draw.uniform(0, 2), seed)
        found = simulate(Costs(works=works), Cluster(workers=workers))
        least = max(sum(works) / workers, max(works))
        assert least - 1e-9 <= found.seconds
        assert found.seconds <= sum(works) / workers + (1 - 1 / workers) * max(works) + 1e-9
        assert max(found.bounds.values()) == pytest.approx(least)


def test_failures_are_tried_again_the_same_way_for_the_same_seed() -> None:
    costs, cluster = Costs(works=[1.0] * 20_000, failure=0.2), Cluster(workers=100)
    found = simulate(costs, cluster, seed=3)
    assert found == simulate(costs, cluster, seed=3) != simulate(costs, cluster, seed=4)
    # A work is tried 1 / (1 - p) times; a try that fails is lost halfway, on average.
    assert found.failed == pytest.approx(20_000 * 0.25, rel=0.05)
    assert found.seconds == pytest.approx(200 * (1 + 0.25 / 2), rel=0.02)


def test_more_of_anything_good_is_never_slower() -> None:
    costs = Costs(works=[1.0] * 600, overhead=0.02, result_bytes=1e6)
    seconds = [
        simulate(costs, Cluster(workers=workers, driver_bandwidth=1e8)).seconds
        for workers in (1, 2, 5, 10, 20, 100, 600)
    ]
    assert all(more <= fewer + 1e-9 for fewer, more in pairwise(seconds))
    assert seconds[0] / seconds[3] > 9.5 and seconds[4] / seconds[6] < 3


class Ticking:
    """The same by a clock of whole ticks, which asks everybody at every tick what they can do."""

    def __init__(self, costs: Costs, cluster: Cluster) -> None:
        self.costs, self.cluster = costs, cluster
        self.half = int(costs.overhead / 2)
        self.sending = int(costs.result_bytes / cluster.driver_bandwidth)

    def run(self) -> int:
        to_hand, waiting, queued = [*range(len(self.costs.works))], list[int](), 0
        workers: list[tuple[int, int]] = []  # of every work that runs: its end, and itself
        link: list[int] = []  # ends of what is sent
        arrived = in_flight = taken = 0
        driver: tuple[int, str, int] | None = None  # until when, what, which
        now = 0
        while True:
            for _ in range(4):  # what follows from one another at one tick
                if driver and driver[0] == now:
                    if driver[1] == "hand":
                        waiting.append(driver[2])
                    else:
                        taken, in_flight = taken + 1, in_flight - 1
                    driver = None
                for end, work in [x for x in workers if x[0] == now]:
                    workers.remove((end, work))
                    queued = max(queued, now) + self.sending
                    link.append(queued)
                arrived += sum(end == now for end in link)
                link = [end for end in link if end != now]
                while waiting and len(workers) < self.cluster.workers:
                    work = waiting.pop(0)
                    workers.append((now + int(self.costs.works[work]), work))
                if (
                    driver is None
                    and to_hand
                    and in_flight < self.cluster.window * (self.cluster.workers)
                ):
                    driver, in_flight = (now + self.half, "hand", to_hand.pop(0)), in_flight + 1
                elif driver is None and arrived:
                    driver, arrived = (now + self.half, "take", 0), arrived - 1
            if taken == len(self.costs.works):
                return now
            now += 1


def test_it_equals_a_clock_that_ticks() -> None:
    draw = random.Random(0)
    for _ in range(150):
        costs = Costs(
            works=[float(draw.randint(1, 20)) for _ in range(draw.randint(1, 25))],
            overhead=2.0 * draw.randint(1, 3),
            result_bytes=float(draw.randint(1, 5)),
        )
        cluster = Cluster(
            workers=draw.randint(1, 5), window=draw.randint(1, 3), driver_bandwidth=1.0
        )
        assert simulate(costs, cluster).seconds == Ticking(costs, cluster).run()


def test_a_spread_has_the_mean_and_deviation_that_are_asked_for() -> None:
    works = spread(100_000, 3.0, 0.5)
    mean = sum(works) / len(works)
    deviation = (sum((x - mean) ** 2 for x in works) / len(works)) ** 0.5
    assert mean == pytest.approx(3.0, rel=0.01) and deviation == pytest.approx(1.5, rel=0.02)
    assert spread(3, 2.0) == [2.0] * 3


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(AnamorphError, match="no works"):
        Costs(works=[])
    with pytest.raises(AnamorphError, match="failure must be a number from 0 and below 1; got 1"):
        Costs(works=[1.0], failure=1)
    with pytest.raises(AnamorphError, match="workers must be a whole number from 1; got 0"):
        Cluster(workers=0)
    with pytest.raises(AnamorphError, match="store_bandwidth must be a number above 0"):
        Cluster(workers=1, store_bandwidth=0.0)


def test_nothing_is_told_of_no_time() -> None:
    found: Simulated = simulate(Costs(works=[0.0, 0.0]), Cluster(workers=2))
    assert found.seconds == 0.0 and found.speed_up == 2.0 and found.busy["workers"] == 0.0
