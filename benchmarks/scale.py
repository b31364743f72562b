"""A million cells on a thousand workers: what works cost here, how they go there by simulation.

    python benchmarks/scale.py                                    # measure, then simulate
    python benchmarks/scale.py --work-s 60 --result-mb 1 --node-gb 2 --overhead-ms 5    # simulate

Measured on this machine: a work of 64 proxies on 1,000 sequences of 64 tokens, of a small decoder
and of a Llama of 135 million parameters with random weights (seconds of one thread, by some of the
sequences), the bytes that it gives back, bytes a second over loopback, and what a Ray task that
returns so many bytes costs its driver. A cost that is given is not measured. Everything else is an
assumption that is printed.
"""

import argparse
import socket
import threading
from dataclasses import replace
from statistics import median
from time import perf_counter, process_time

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import anamorph as am
from anamorph.auditing.audit import fit_on_task, proxies_of
from anamorph.auditing.simulation import Cluster, Costs, Simulated, simulate, spread
from anamorph.auditing.works import PROXIES, Auditor, plan
from anamorph.models.base import Model
from anamorph.runs.cells import Origin, work_file
from anamorph.tasks import Split, Task
from anamorph.tasks.base import Facet

CELLS, NODE_WORKERS, DEVIATION = 1_000_000, 8, 0.2
START_UP = 15.0
TEN_GIGABIT = 1.25e9
SEQUENCES = 1000  # of a work


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--workers", type=int, default=1000)
    arguments.add_argument("--work-s", type=float, help="seconds of a work of 64 proxies")
    arguments.add_argument("--result-mb", type=float, help="that a work gives back")
    arguments.add_argument("--node-gb", type=float, default=0.6, help="that a node needs once")
    arguments.add_argument("--overhead-ms", type=float, help="of the driver a work")
    arguments.add_argument("--failure", type=float, default=0.01, help="chance a try")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    size = options.result_mb and options.result_mb * 1e6
    works = {"given": options.work_s} if options.work_s else {}
    if not works or size is None:
        works["small decoder"], gives = timed(decoder(), (20, 60))
        works["Llama of 135 million parameters"], _ = timed(llama(), (1, 2))
        size = size or gives
        for name, seconds in works.items():
            print(f"a work of a {name}: {seconds:,.1f} s", flush=True)
        print(f"given back by a work: {gives / 1e6:.2f} MB; loopback: {loopback() / 1e9:.2f} GB/s")
    overhead = options.overhead_ms and options.overhead_ms / 1e3
    if overhead is None:
        overhead = ray_task(int(size))
        print(f"a Ray task that returns as many bytes: {1000 * overhead:.1f} ms of its driver")
    cluster = Cluster(
        workers=options.workers,
        node_workers=NODE_WORKERS,
        driver_bandwidth=TEN_GIGABIT,
        node_bandwidth=TEN_GIGABIT,
    )
    for name, seconds in works.items():
        costs = Costs(
            works=spread(-(-CELLS // PROXIES), seconds, DEVIATION),
            overhead=overhead,
            result_bytes=size,
            node_bytes=options.node_gb * 1e9,
            start_up=START_UP,
            failure=options.failure,
        )
        print(f"\nWorks of a {name}:" if len(works) > 1 else "")
        table(costs, cluster)


def table(costs: Costs, cluster: Cluster) -> None:
    """How a million cells go, as they are and with one thing changed."""
    mean = costs.seconds / len(costs.works)
    print(
        f"\nSimulated: {CELLS:,} cells, works of {PROXIES}, {mean:.3g} s "
        f"each (deviation {DEVIATION:.0%}), {costs.overhead * 1000:.2g} ms of the driver and "
        f"{costs.result_bytes / 1e6:.2g} MB a work, {costs.node_bytes / 1e9:.2g} GB to a node of "
        f"{NODE_WORKERS} workers, 10 Gbit/s, {costs.start_up:.0f} s of start-up, "
        f"{costs.failure:.0%} of tries fail\n"
    )
    print("| what | hours | speed-up | a worker | driver busy | link busy | limited by |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for workers in sorted({1, 10, 100, cluster.workers, 4 * cluster.workers, 16 * cluster.workers}):
        row(f"{workers:,} workers", simulate(costs, replace(cluster, workers=workers)))
    name = f"{cluster.workers:,} workers, "
    for cells in (16, 4, 1):
        row(f"{name}works of {cells}", simulate(finer(costs, cells), cluster))
    fine, one = finer(costs, 1), f"{name}works of 1, "
    store = replace(cluster, store_bandwidth=10 * TEN_GIGABIT)
    row(f"{one}workers write to a store", simulate(fine, store))
    short = replace(fine, overhead=costs.overhead / 4)
    row(f"{one}a quarter of the overhead, and a store", simulate(short, store))
    shares = 10
    part = replace(fine, works=fine.works[: len(fine.works) // shares])
    few = replace(cluster, workers=cluster.workers // shares)
    row(f"{one}{shares} drivers of {few.workers} workers each", simulate(part, few), shares)
    heavy = replace(costs, node_bytes=20e9)
    row(f"{name}20 GB to a node once", simulate(heavy, cluster))
    row(f"{name}one try in five fails", simulate(replace(costs, failure=0.2), cluster))
    row(f"{name}works that differ by 100 %", simulate(uneven(costs), cluster))


def finer(costs: Costs, cells: int) -> Costs:
    """The same cells in smaller works. What the model itself takes is then done more often."""
    of_model = 1 / (PROXIES / 2 + 1)  # of a work: proxies start halfway through, on average
    mean = costs.seconds / len(costs.works)
    seconds = mean * (of_model + (1 - of_model) * cells / PROXIES)
    works = spread(-(-CELLS // cells), seconds, DEVIATION)
    return replace(costs, works=works, result_bytes=costs.result_bytes * cells / PROXIES)


def uneven(costs: Costs) -> Costs:
    number = len(costs.works)
    return replace(costs, works=spread(number, costs.seconds / number, 1.0))


def row(what: str, found: Simulated, shares: int = 1) -> None:
    """Of several drivers with equal shares, one is simulated; the others go likewise."""
    busy = found.busy
    print(
        f"| {what} | {found.seconds / 3600:,.2f} | {found.speed_up * shares:,.0f} | "
        f"{found.efficiency:.0%} | {busy['driver']:.0%} | {busy['network']:.0%} | "
        f"{found.bottleneck} |",
        flush=True,
    )


def decoder() -> Model:
    return am.Decoder(am.DecoderConfig(500, 256, width=128, heads=4, layers=4, mlp=512)).eval()


def llama() -> Model:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=256,
    )
    return am.HuggingFace(LlamaForCausalLM(config).eval())


def timed(model: Model, tried: tuple[int, int]) -> tuple[float, float]:
    """Seconds of a work and bytes of its file, on the line through two numbers of sequences."""
    layers = model.layers
    heads = len({site.head for site in model.sites if site.kind == "query"})
    places = [(n * layers // PROXIES, n % heads, n // heads + 1) for n in range(PROXIES - 1)]
    specs = [f"svd(rank={rank})@{layer}.{head}.query" for layer, head, rank in places]
    task = made(model.vocabulary)
    proxies = proxies_of(model, specs)
    fitted = fit_on_task(model, proxies, task, 4)
    (work,) = plan(proxies, model, ["iid"])
    found = []
    for number in (1, *tried):  # the first warms up
        auditor = Auditor(model, task, proxies, fitted, number)
        begun = process_time()
        sums = auditor.execute(work)
        took = process_time() - begun
        found.append((took, len(work_file(sums, Origin("", "", "", "")))))
    (few, small), (many, large) = found[1:]
    times = (SEQUENCES - tried[0]) / (tried[1] - tried[0])
    return few + (many - few) * times, small + (large - small) * times


def made(vocabulary: int, sequences: int = SEQUENCES, length: int = 64) -> Task:
    """Random tokens, of which every fourth is scored, with two facets."""
    rng = np.random.default_rng(0)

    def split(name: str, role: str) -> Split:
        size = sequences * length
        scored = np.arange(size) % length % 4 == 1
        facets = {
            facet: Facet(rng.integers(3, size=size).astype(np.int8), ("low", "middle", "high"))
            for facet in ("depth", "distance")
        }
        tokens = rng.integers(3, vocabulary, size=size).astype(np.int32)
        return Split(name, role, tokens, np.arange(sequences + 1) * length, scored, facets)  # type: ignore[arg-type]

    splits = {"train": split("train", "train"), "iid": split("iid", "iid")}
    words = tuple(map(str, range(vocabulary)))
    return Task(
        name="made",
        vocabulary=words,
        candidates=np.arange(vocabulary),
        splits=splits,
        spec={"name": "made"},
    )


def loopback(size: int = 2**28) -> float:
    """Bytes a second from one thread to another over 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = threading.Thread(target=send, args=(server.getsockname(), size))
        begun = perf_counter()
        sender.start()
        connection, _ = server.accept()
        with connection:
            while connection.recv(2**20):
                pass
        sender.join()
    return size / (perf_counter() - begun)


def send(address: tuple[str, int], size: int) -> None:
    with socket.create_connection(address) as connection:
        block = bytes(2**20)
        for _ in range(size // len(block)):
            connection.sendall(block)


def ray_task(size: int, tasks: int = 300) -> float:
    """Seconds of the driver for a task that returns so many bytes, two in flight a worker."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=2**28)
    try:
        gives = ray.remote(num_cpus=1)(lambda: bytes(size))
        ray.get([gives.remote() for _ in range(8)])
        return median(_tasks(ray, gives, tasks) for _ in range(3))
    finally:
        ray.shutdown()


def _tasks(ray: object, gives: object, tasks: int) -> float:
    begun = perf_counter()
    flying = [gives.remote() for _ in range(4)]  # type: ignore[attr-defined]
    for left in range(tasks - 1, -1, -1):
        done, flying = ray.wait(flying)  # type: ignore[attr-defined]
        ray.get(done[0])  # type: ignore[attr-defined]
        if left >= 4:
            flying.append(gives.remote())  # type: ignore[attr-defined]
    return (perf_counter() - begun) / tasks


if __name__ == "__main__":
    main()
