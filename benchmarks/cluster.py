"""The Ray engine: the same bytes as one process, faults, overhead, efficiency.

    python benchmarks/cluster.py equal                  # Dyck, code, Hugging Face, hooked
    python benchmarks/cluster.py faults --times 10      # nodes and drivers killed, tries that fail
    python benchmarks/cluster.py overhead --jobs 10000  # milliseconds a job; the driver's memory
    python benchmarks/cluster.py efficiency             # two workers against one process

Each ends with code 1 if something is not as it should be.
"""

import argparse
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

import anamorph as am
from anamorph.auditing.local import Engine, Failed, Job
from anamorph.auditing.ray import RayEngine
from anamorph.progress import Event, Watch, ignore
from anamorph.studies.specification import load_preset
from anamorph.studies.study import audit_given, audit_study, run_study

SHORT = "training.steps=60"
CASES = ("dyck", "code", "huggingface", "hooked")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    verbs = arguments.add_subparsers(dest="verb", required=True)
    equal = verbs.add_parser("equal")
    equal.add_argument("--cases", nargs="+", default=CASES, choices=CASES)
    faults = verbs.add_parser("faults")
    faults.add_argument("--times", type=int, default=10)
    faults.add_argument("--seed", type=int, default=0)
    faults.add_argument("--only", choices=("nodes", "drivers", "tries"))
    overhead = verbs.add_parser("overhead")
    overhead.add_argument("--jobs", type=int, default=10_000)
    efficiency = verbs.add_parser("efficiency")
    efficiency.add_argument("--times", type=int, default=3)
    drive = verbs.add_parser("drive")  # the driver that `faults` kills
    drive.add_argument("out", type=Path)
    drive.add_argument("log", type=Path)
    drive.add_argument("address")
    drive.add_argument("--failing", type=float, default=0.0)
    audit = verbs.add_parser("audit")  # on an engine, for `equal`
    audit.add_argument("kind")
    audit.add_argument("out", type=Path)
    audit.add_argument("--address")
    audit.add_argument("--until", type=float)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        match options.verb:
            case "equal":
                all_equal(Path(folder), options.cases)
            case "faults":
                all_faults(Path(folder), options)
            case "overhead":
                print_overhead(options.jobs)
            case "efficiency":
                print_efficiency(Path(folder), options.times)
            case "drive":
                engine = Noted(options.address, options.out, options.log, options.failing)
                study_of(options.out, engine)
            case "audit":
                engine = RayEngine(options.address, workers=2)
                audited(options.kind, options.out, engine, options.until)


# The same bytes


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mixed = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = torch.cumsum(self.mixed(x), dim=1)
        x = x + before / torch.arange(1, x.shape[1] + 1)[:, None]
        return x + self.mlp(x)


class Plain(nn.Module):
    def __init__(self, vocabulary: int, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(3))
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def given(kind: str) -> tuple[Any, Any, list[str]]:
    """A model with random weights, a task, and proxies."""
    torch.manual_seed(0)
    task = am.load_task("dyck", k=8, train=2000, test=300, max_length=60)
    words = len(task.vocabulary)
    if kind == "hooked":
        model = am.HookedModel(Plain(words).eval(), {"*.residual": "blocks.*"})
        return model, task, ["pca(rank=[2,8,16])@{0,1}.residual", "kmeans(clusters=8)@1.residual"]
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=words,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    model = am.HuggingFace(LlamaForCausalLM(config).eval())
    proxies = ["svd(rank=[1,4,8])@*.*.{query,key}", "quantize(bits=[2,4])@*.mlp"]
    return model, task, [*proxies, "topk_sae(features=64, k=4)@1.residual"]


def audited(kind: str, out: Path, engine: Engine | None, until: float | None) -> None:
    if kind in ("dyck", "code"):
        changes = [SHORT, *([f"audit.until={until}"] if until else [])]
        run_study(load_preset(kind, "smoke", changes), out, figures=[], engine=engine)
    else:
        model, task, proxies = given(kind)
        how: dict[str, Any] = {"sequences": 200, "fit_sequences": 300, "until": until}
        audit_given(model, task, proxies, out, figures=[], engine=engine, **how)


def all_equal(folder: Path, cases: Sequence[str]) -> None:
    with cluster(2) as nodes:
        for kind in cases:
            for until in (None, 0.1):
                name = f"{kind}{'-until' if until else ''}"
                audited(kind, folder / f"{name}-one", None, until)
                for way, address in {
                    "two local workers": [],
                    "a cluster of two nodes": ["--address", nodes.address],
                }.items():
                    out = folder / f"{name}-{way}".replace(" ", "-")
                    more = [*address, *(["--until", str(until)] if until else [])]
                    command = [sys.executable, __file__, "audit", kind, out, *more]
                    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
                    if done.returncode:
                        raise SystemExit(done.stderr[-3000:])
                    require_same(folder / f"{name}-one", out)
                    count = len(contents(out))
                    print(f"{name}, {way}: {count} files, the same to the byte", flush=True)


def contents(out: Path) -> dict[str, str]:
    """Digests of all files of a run folder, but for the lock."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {
        path.relative_to(out).as_posix(): sha256(path.read_bytes()).hexdigest() for path in files
    }


def require_same(one: Path, other: Path) -> None:
    a, b = contents(one), contents(other)
    if a != b:
        names = [name for name in {**a, **b} if a.get(name) != b.get(name)]
        raise SystemExit(f"{other.name} is another in {', '.join(names)}")


class Nodes:
    """A cluster on this machine whose nodes are processes of their own."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self.address = self.cluster.address
        self.nodes: list[Any] = []

    def add(self) -> None:
        self.nodes.append(self.cluster.add_node(num_cpus=1))

    def kill(self, number: int) -> None:
        self.cluster.remove_node(self.nodes.pop(number), allow_graceful=False)


@contextmanager
def cluster(size: int) -> Iterator[Nodes]:
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    nodes = Nodes()
    try:
        for _ in range(size):
            nodes.add()
        nodes.cluster.wait_for_nodes()
        yield nodes
    finally:
        nodes.cluster.shutdown()


# Faults


def noted(log: Path, out: Path, name: str, call: Callable[[], Any], failing: float) -> Any:
    """A call, its beginning written down; some fail, by an error or by the end of the process.

    Written down are the job, and the epoch at which its file was written, if it was before.
    """
    written = (out / name).stat().st_mtime_ns if (out / name).is_file() else 0
    with log.open("a") as file:
        file.write(f"{written}\t{name}\n")
    chance = random.Random(f"{name}{time.time_ns()}").random()
    if chance < failing / 2:
        os._exit(1)
    if chance < failing:
        raise RuntimeError("a fault, on purpose")
    return call()


class Noted(RayEngine):
    """Writes down every try of a job, and has some of them fail."""

    def __init__(self, address: str, out: Path, log: Path, failing: float = 0.0) -> None:
        super().__init__(address)
        self.out, self.log, self.failing = out, log, failing

    def carry(
        self, step: str, jobs: Sequence[Job], watch: Watch
    ) -> Iterator[tuple[Job, Any | Failed]]:
        where = self.log, self.out
        noted_jobs = [
            replace(job, call=partial(noted, *where, job.name, job.call, self.failing))
            for job in jobs
        ]
        return super().carry(step, noted_jobs, watch)


def study_of(out: Path, engine: Engine | None) -> None:
    by_head = "svd(rank=[1,2,3,4,5,6,8,12])@*.*.{query,key}"
    sizes = "pca(rank=[1,2,3,4,5,6,7,8,9,10,11,12])@{0,1}.residual"
    changes = [SHORT, "audit.sequences=1000"]
    spec = load_preset("dyck", "smoke", changes, simplify=[by_head, sizes, *MORE])
    run_study(spec, out, figures=[], engine=engine)


MORE = [f"kmeans(clusters={k})@{{0,1}}.*.{{query,key,value}}" for k in range(2, 60)]


def all_faults(folder: Path, options: argparse.Namespace) -> None:
    rng = random.Random(options.seed)
    study_of(folder / "one", None)
    with cluster(2) as nodes:
        start = time.monotonic()
        one_of_faults(folder, "undisturbed", nodes.address, lambda: None)
        took = time.monotonic() - start
        print(f"undisturbed: {took:.1f} s", flush=True)
        for kind, disturb in {"nodes": kill_node, "drivers": None}.items():
            if options.only not in (None, kind):
                continue
            for number in range(options.times):
                moment = took * rng.uniform(0.05, 0.95)
                name = f"{kind}-{number}"
                if disturb:
                    one_of_faults(folder, name, nodes.address, partial(disturb, nodes, moment, rng))
                else:
                    kill_driver(folder, name, nodes.address, moment)
                print(f"{name}: killed after {moment:.1f} s, {told(folder, name)}", flush=True)
        if options.only in (None, "tries"):
            if driver(folder, "tries", nodes.address, "--failing", "0.2").wait():
                raise SystemExit("it failed where a fifth of all tries fail")
            print(f"a fifth of all tries failing: {told(folder, 'tries')}", flush=True)
    time.sleep(2)
    left = subprocess.run(["pgrep", "-c", "raylet"], capture_output=True, text=True).stdout.strip()
    print(f"processes left behind: {left}")


def kill_node(nodes: Nodes, moment: float, rng: random.Random) -> None:
    time.sleep(moment)
    nodes.kill(rng.randrange(len(nodes.nodes)))
    nodes.add()


def one_of_faults(folder: Path, name: str, address: str, disturb: Callable[[], None]) -> None:
    process = driver(folder, name, address)
    disturb()
    if process.wait():
        raise SystemExit(f"{name} failed with code {process.returncode}")


def kill_driver(folder: Path, name: str, address: str, moment: float) -> None:
    process = driver(folder, name, address)
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    if driver(folder, name, address).wait():
        raise SystemExit(f"{name} failed as it went on")


def driver(folder: Path, name: str, address: str, *more: str) -> "subprocess.Popen[bytes]":
    files = folder / name, folder / f"{name}.log"
    command = [sys.executable, __file__, "drive", *files, address, *more]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def told(folder: Path, name: str) -> str:
    """How often jobs were tried, once it is sure that all is as it should be."""
    out = folder / name
    require_same(folder / "one", out)
    tries = [line.split("\t") for line in (folder / f"{name}.log").read_text().splitlines()]
    for written, job in tries:
        if int(written) and int(written) != (out / job).stat().st_mtime_ns:
            raise SystemExit(f"{job} was stored twice")
    left = [path for path in out.rglob(".*") if path.name != ".lock"]
    if left:
        raise SystemExit(f"left behind: {left}")
    counts = Counter(job for _, job in tries)
    again = sum(count - 1 for count in counts.values())
    return f"{len(counts)} jobs, {again} tried again, none stored twice; the same bytes"


# Costs


def print_overhead(jobs: int) -> None:
    with RayEngine(workers=2) as engine:
        warm = [Job(f"warm {number}", partial(int, number)) for number in range(20)]
        list(engine.carry("warm", warm, ignore))
        before, cpu = time.monotonic(), time.process_time()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        made = [Job(f"{number}", partial(int, number)) for number in range(jobs)]
        done = {job.name: result for job, result in engine.carry("empty", made, ignore)}
        took, cpu = time.monotonic() - before, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if len(done) != jobs or any(int(name) != result for name, result in done.items()):
        raise SystemExit("some jobs gave something else")
    print(
        f"{jobs:,} empty jobs: {took:.1f} s, {took / jobs * 1e3:.2f} ms a job; of the driver "
        f"{cpu:.1f} s of processor time, and {peak / 1024:.0f} MB at most "
        f"({(peak - memory) / 1024:.0f} MB more than before)"
    )


def print_efficiency(folder: Path, times: int) -> None:
    """Seconds of the works alone, and of everything, on a model that is trained once."""
    larger = [SHORT, "task.test=1000", "audit.sequences=1000"]
    run_study(load_preset("dyck", "smoke", larger), folder / "models", figures=[])
    proxies = ["svd(rank=[1,2,3,4,6,8])@*.*.{query,key}", *MORE]
    ways: dict[str, Callable[[], Engine | None]] = {
        "one process, two threads": lambda: None,
        "two workers of a thread": lambda: RayEngine(workers=2),
    }
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for number in range(times):
        for way, engine in ways.items():
            clock = Clock()
            out = folder / f"{way}-{number}".replace(" ", "-")
            work = partial(audit_study, folder / "models", proxies, out, figures=[])
            begun = time.monotonic()
            work(engine=engine(), watch=clock)
            seconds[way].append((clock.works, time.monotonic() - begun))
    for way, taken in seconds.items():
        works, whole = (median(some) for some in zip(*taken, strict=True))
        print(f"{way}: works {works:.1f} s, all {whole:.1f} s")
    one, two = (median(works for works, _ in taken) for taken in seconds.values())
    print(f"efficiency of the works: {one / two:.2f}")


class Clock:
    """Seconds from the first event of works to the last."""

    def __init__(self) -> None:
        self.begun: float | None = None
        self.works = 0.0

    def __call__(self, event: Event) -> None:
        if "audit on" in event.step or event.step == "works":
            self.begun = self.begun or time.monotonic()
            self.works = time.monotonic() - self.begun


if __name__ == "__main__":
    main()
