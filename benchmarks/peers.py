"""A race on equal work: anamorph, plain hooks, TransformerLens, nnsight and pyvene.

    python benchmarks/peers.py --install         # once: the peers' environments, some 3 GB
    python benchmarks/peers.py [--peers hooks nnsight_08 ...] [--metrics usual lean] [--rounds N]

The work is that of `peers/work.py`: a GPT-2-shaped model with random weights, 144 proxies (each one
head with its keys and queries projected), three metrics at every position. Every peer runs in a
process of its own. It may race once its logits are those of Hugging Face and of plain hooks to 1e-5
of the largest logit, and its results those of plain hooks to 1e-5. A prediction that rounding
decides (two highest logits within 1e-4) may differ; the table counts these. Then all peers do one
sweep a round, in an order that moves on from round to round. Ratios are taken within a round, and
the table shows their median: machines differ from minute to minute.

`--metrics usual` is what one writes in a notebook; `lean` gives the peers metrics with fewer passes
over the vocabulary. anamorph always has its own metrics.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "peers"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "anamorph-peers"
TORCH = "torch==2.13.0"
ENVIRONMENTS = {
    "transformers-5": (
        "transformers==5.23.0",
        "transformer-lens==4.3.0",
        "nnsight==0.8.1",
        "pyvene==0.1.8",
    ),
    "transformer-lens-3": ("transformers==5.23.0", "transformer-lens==3.9.0"),
}


@dataclass(frozen=True)
class Peer:
    environment: str | None  # None: the one that runs this file
    variants: tuple[str, ...]


PEERS = {
    "anamorph_": Peer(None, ("engine",)),
    "hooks": Peer("transformers-5", ("every forward", "prefix")),
    "transformer_lens_3": Peer("transformer-lens-3", ("every forward", "prefix")),
    "transformer_lens_4": Peer("transformers-5", ("every forward", "start_at_layer")),
    "nnsight_08": Peer("transformers-5", ("every forward", "skip")),
    "pyvene_018": Peer("transformers-5", ("every forward",)),
}


@dataclass(frozen=True)
class Contestant:
    peer: str
    variant: str
    metrics: str

    def __str__(self) -> str:
        return f"{self.peer}, {self.variant}, {self.metrics}"


class WorkerError(Exception):
    """A worker ended, or does other work than plain hooks."""


class Worker:
    """A contestant in a process of its own, past the equality gate."""

    def __init__(
        self, contestant: Contestant, python: Path, folder: Path, threads: int, log: Path
    ) -> None:
        self.contestant = contestant
        self.log = log
        arguments = (contestant.peer, contestant.variant, contestant.metrics, str(threads))
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [python, HERE / "worker.py", folder, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)},
            )
        self.seconds: list[float] = []
        try:
            self.gate = self.answer()
            if self.gate["failed"]:
                raise WorkerError(f"differs from plain hooks: {self.gate['failed']}")
        except WorkerError:
            self.close()
            raise

    def run(self) -> float:
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return self.answer()["seconds"]

    def answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            said = self.log.read_text().strip().splitlines() or ["and said nothing"]
            raise WorkerError(f"ended: {said[-1]}")
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()  # which ends it
        self.process.wait()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--install", action="store_true", help="make the environments and end")
    arguments.add_argument("--environments", type=Path, default=CACHE, metavar="DIR")
    arguments.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    arguments.add_argument("--metrics", nargs="+", choices=("usual", "lean"), default=["usual"])
    arguments.add_argument("--batches", type=int, default=1, help="of 16 × 64 tokens")
    arguments.add_argument("--vocabulary", type=int, default=5_000)
    arguments.add_argument("--rounds", type=int, default=10)
    arguments.add_argument("--warm-ups", type=int, default=3, help="the gate's sweep is the first")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--small", action="store_true", help="a toy model: does it all work?")
    options = arguments.parse_args()
    if options.install:
        install(options.environments)
        return

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        make_work(options, Path(folder))
        workers, dropped = [], False
        for number, contestant in enumerate(contestants(options.peers, options.metrics)):
            python = interpreter(PEERS[contestant.peer].environment, options.environments)
            log = Path(folder) / f"worker-{number}.log"
            try:
                worker = Worker(contestant, python, Path(folder), options.threads, log)
            except WorkerError as error:
                print(f"{contestant}: does not race; {error}", flush=True)
                dropped = True
                continue
            stack.callback(worker.close)
            workers.append(worker)
            print(f"{contestant}: as plain hooks", flush=True)
            for _ in range(options.warm_ups - 1):
                worker.run()
        for shift in range(options.rounds):
            for index in range(len(workers)):
                worker = workers[(index + shift) % len(workers)]
                worker.seconds.append(worker.run())
        if workers:
            print(table(workers))
    sys.exit(dropped)


def contestants(peers: list[str], metrics: list[str]) -> list[Contestant]:
    """Those of this environment, which have metrics of their own, and then the others."""
    own = [name for name in peers if PEERS[name].environment is None]
    others = [name for name in peers if PEERS[name].environment is not None]
    return [
        Contestant(name, variant, kind)
        for names, kinds in ((own, ["own"]), (others, metrics))
        for name in names
        for variant in PEERS[name].variants
        for kind in kinds
    ]


def make_work(options: argparse.Namespace, folder: Path) -> None:
    """Weights, tokens, projectors and the reference of the gate, by plain hooks."""
    command = [interpreter("transformers-5", options.environments), HERE / "work.py", folder]
    for name in ("batches", "vocabulary", "threads"):
        command += [f"--{name}", str(getattr(options, name))]
    if options.small:
        command.append("--small")
    subprocess.run(command, check=True)


def interpreter(environment: str | None, folder: Path) -> Path:
    if environment is None:
        return Path(sys.executable)
    python = folder / environment / "bin" / "python"
    if not python.exists():
        raise SystemExit(
            f"{python} is missing; make the environments with\n"
            f"    python benchmarks/peers.py --install --environments {folder}"
        )
    return python


def install(folder: Path) -> None:
    """One virtual environment for each entry of ENVIRONMENTS; pip resolves the rest."""
    for name, packages in ENVIRONMENTS.items():
        venv.EnvBuilder(with_pip=True, symlinks=True).create(folder / name)
        pip = [folder / name / "bin" / "python", "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, TORCH], check=True)  # by itself: it may come from an index of its own
        subprocess.run([*pip, TORCH, *packages], check=True)
        print(f"{folder / name}: {TORCH}, {', '.join(packages)}", flush=True)


def table(workers: list[Worker]) -> str:
    """One line a contestant; ratios are to the first."""
    base = workers[0]
    words = ("peer", "version", "attention", "variant", "metrics")
    numbers = ("min s", "median s", "ratio", "results", "logits", "ties")
    rows = [words + numbers]
    for worker in workers:
        ratios = [a / b for a, b in zip(worker.seconds, base.seconds, strict=True)]
        rows.append(
            (
                worker.contestant.peer,
                worker.gate["version"],
                worker.gate["attention"],
                worker.contestant.variant,
                worker.contestant.metrics,
                f"{min(worker.seconds):.2f}",
                f"{statistics.median(worker.seconds):.2f}",
                f"{statistics.median(ratios):.2f}",
                f"{worker.gate['results']:.1e}",
                f"{worker.gate['logits']:.1e}",
                str(worker.gate["ties"]),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        pairs = list(zip(row, widths, strict=True))
        left = [word.ljust(width) for word, width in pairs[: len(words)]]
        right = [number.rjust(width) for number, width in pairs[len(words) :]]
        lines.append("  ".join(left + right))
    lines.append(
        f"{len(base.seconds)} rounds; ratio: to {base.contestant}, within a round, median; "
        "results, logits: largest difference to plain hooks; ties: predictions rounding decided"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
