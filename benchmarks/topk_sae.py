"""Training a TopK autoencoder: anamorph, SAELens and sparsify on the same activations.

    python benchmarks/topk_sae.py [--lens PYTHON] [--sparsify PYTHON] [--activations FILE]

Width 576, 4,608 features of which 48 are active, steps of 1,024 points. `--lens` and `--sparsify`
are interpreters of environments with `sae-lens` and `eai-sparsify`; each peer trains in a process
of its own with as many threads, on the same points in the same order, for the same number of
steps. Each has the learning rate and schedule it comes with, and with `--rates` others, of which
its best is shown too: an error at equal steps is as much one of the rate.

All take turns, in an order that moves on from round to round, and medians of the rounds are shown:
points a second of training alone, milliseconds of processor time a step (which other work on the
machine changes less), and the variance of held-out points that is explained (about
their mean, ratio of sums), computed here from what each peer writes. The points are sums of a few
of many directions, some much more frequent than others, and noise; or, with `--activations`, those
of a safetensors file with `points` [points, width], of which the last twentieth is held out.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

HERE = Path(__file__).parent / "coders"
WIDTH, DIRECTIONS, ACTIVE, NOISE = 576, 12_000, 40, 0.1


def synthetic(points: int) -> Tensor:
    """Sums of directions [points, width]: frequencies fall as in Zipf's law, sizes vary."""
    draw = torch.Generator().manual_seed(0)
    directions = normalize(torch.randn(DIRECTIONS, WIDTH, generator=draw), dim=1)
    frequency = torch.arange(1, DIRECTIONS + 1).float() ** -1.0
    frequency = (frequency * ACTIVE / frequency.sum()).clamp(max=0.5)
    centre = 3 * torch.randn(WIDTH, generator=draw) / WIDTH**0.5
    made = []
    for size in [4096] * (points // 4096) + [points % 4096]:
        on = torch.rand(size, DIRECTIONS, generator=draw) < frequency
        height = torch.randn(int(on.sum()), generator=draw).mul_(0.5).exp_()
        sums = torch.zeros(on.shape).masked_scatter_(on, height) @ directions
        made.append(sums + centre + NOISE / WIDTH**0.5 * torch.randn(size, WIDTH, generator=draw))
    return torch.cat(made)


def explained(made: Tensor, points: Tensor) -> float:
    """The share of the variance about the mean, in float64."""
    made, points = made.double(), points.double()
    left = (made - points).square().sum()
    return float(1 - left / (points - points.mean(dim=0)).square().sum())


def run(folder: Path, python: str, peer: str, steps: int, rate: str, threads: int) -> dict:
    command = [python, str(HERE / "worker.py"), str(folder), peer, str(steps), rate, str(threads)]
    source = Path(__file__).parents[1] / "src"
    given = {**os.environ, "PYTHONPATH": str(source) if peer == "anamorph_" else ""}
    with (folder / f"{peer}.log").open("w") as log:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, text=True, env=given)
    if done.returncode:
        raise SystemExit(f"{peer} failed:\n{(folder / f'{peer}.log').read_text()[-2000:]}")
    held_out = load_file(folder / "points.safetensors")["held_out"]
    made = load_file(folder / f"{peer}.safetensors")["made"]
    return json.loads(done.stdout) | {"explained": explained(made, held_out)}


def told(got: dict) -> str:
    return (
        f"{got['speed']:,.0f} points/s, {got['cost']:,.0f} ms of processor a step, "
        f"{got['explained']:.4f} explained"
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--lens", help="an interpreter that has sae-lens")
    arguments.add_argument("--sparsify", help="an interpreter that has eai-sparsify")
    arguments.add_argument("--activations", type=Path, help="in place of synthetic points")
    arguments.add_argument("--steps", type=int, default=200)
    arguments.add_argument("--batch", type=int, default=1024)
    arguments.add_argument("--features", type=int, default=4608)
    arguments.add_argument("--k", type=int, default=48)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument(
        "--rates", nargs="*", default=[], help="learning rates to try, once each"
    )
    arguments.add_argument("--threads", type=int, default=os.cpu_count())
    options = arguments.parse_args()
    pythons = {
        "anamorph_": sys.executable,
        "sae_lens_": options.lens,
        "sparsify_": options.sparsify,
    }
    peers = [peer for peer, python in pythons.items() if python]
    shape = {name: getattr(options, name) for name in ("features", "k", "batch")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wanted = options.steps * options.batch
        if options.activations:
            points = load_file(options.activations)["points"].float()
        else:
            points = synthetic(wanted + 4096)
        held_out = points[-min(len(points) // 20, 4096) :].clone()
        points = points[: len(points) - len(held_out)][:wanted].clone()
        steps = len(points) // options.batch
        save_file({"train": points, "held_out": held_out}, folder / "points.safetensors")
        (folder / "shape.json").write_text(json.dumps(shape))
        found = defaultdict(list)
        for turn in range(options.rounds):
            for peer in peers[turn % len(peers) :] + peers[: turn % len(peers)]:
                got = run(folder, pythons[peer], peer, steps, "usual", options.threads)
                got["speed"] = steps * options.batch / got["seconds"]
                got["cost"] = 1000 * got["processor"] / steps
                found[peer].append(got)
                load = os.getloadavg()[0]
                print(f"{peer} {got['version']}: {told(got)}; load {load:.1f}", flush=True)
        print(f"{steps} steps of {options.batch}, {options.threads} threads, medians:")
        for peer in peers:
            figures = ("speed", "cost", "explained")
            medians = {
                what: statistics.median(one[what] for one in found[peer]) for what in figures
            }
            print(f"{peer}: {told(medians)}")
            ratios = [
                a["speed"] / b["speed"] for a, b in zip(found[peers[0]], found[peer], strict=True)
            ]
            print(f"    anamorph is {statistics.median(ratios):.2f} times as fast")
        for peer in peers:
            tried = {
                rate: run(folder, pythons[peer], peer, steps, rate, options.threads)["explained"]
                for rate in options.rates
            }
            for rate, share in sorted(tried.items(), key=lambda item: -item[1]):
                print(f"{peer} at a rate of {rate}: {share:.4f} explained")


if __name__ == "__main__":
    main()
