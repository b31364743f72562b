"""Fitting every rank at every head of a layer, against scikit-learn's IncrementalPCA, and memory.

    python benchmarks/fit.py [speed|memory]

speed: a layer of GPT-2's shape, 12 heads of 64 dimensions, keys and queries, 100,000 positions of
float32 in batches of 4,096, with variances that fall as 1/n². Ours is `fit` with 128 proxies: SVD
and PCA of all ranks; a stand-in for a model hands out the batches. Theirs is an IncrementalPCA of
64 components a head and kind (PCA alone), with arrays of a head laid out for it beforehand, in
float32 and in float64; the ratio is to the faster of the two. One thread, processor time, the
three by turns. The reference for the subspaces is an SVD of the whole data in float64 (of R, of
its QR decomposition); the difference of two subspaces is the Frobenius norm of the difference of
their projectors, and the worst of all ranks and heads is shown.

memory: `fit` of SVD, PCA and k-means to a stream that is made as it goes, in a process of its own
for each length. The bar is 5 % between 10^5 and 10^7 positions.
"""

import argparse
import gc
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans  # noqa: F401  for memory: imported before the first batch
from sklearn.decomposition import IncrementalPCA
from threadpoolctl import threadpool_limits
from torch import Tensor

from anamorph.models.base import Batch, Edits, LayerKind, Model, Ran, State
from anamorph.models.sites import Site
from anamorph.simplifications import FittedProxies, expand, fit

HEADS, DIM, KINDS = 12, 64, ("query", "key")
SEQUENCES, LENGTH = 4, 1024
BATCH = SEQUENCES * LENGTH
SHORT, LONG = 100_000, 10_000_000
MEMORY_SPECS = ["svd(rank=8)@0.0.key", "pca(rank=8)@0.0.key", "kmeans(clusters=64)@0.0.key"]

Maker = Callable[[int, str], Tensor]
"""From a batch's number and a kind to activations [batch, position, head, dim]."""


class Source(Model):
    """In place of a model: its activations come from a function of the batch's number."""

    layers, vocabulary, sites = 1, 1, ()

    def __init__(self, heads: int, make: Maker) -> None:
        self.sites = [Site(0, head, kind) for kind in KINDS for head in range(heads)]
        self.make = make

    def start(self, batch: Batch) -> State:
        return State(batch.tokens, batch.tokens, batch.mask)

    def layer(
        self,
        index: int,
        state: State,
        edits: Edits | None = None,
        record: Collection[LayerKind | Site] = (),
        at: Tensor | None = None,
    ) -> Ran:
        made = {key: self.make(int(state.residual[0, 0]), key.kind) for key in record}
        return Ran(state, {key: x.transpose(1, 2)[None] for key, x in made.items()})

    def logits(self, state: State, at: Tensor | None = None) -> Tensor:
        raise NotImplementedError("a fit needs no logits")


def batches(positions: int) -> Iterator[Batch]:
    """Tokens that are the batch's number; the last batch is padded to the shape of the others."""
    for number, start in enumerate(range(0, positions, BATCH)):
        place = torch.arange(BATCH).reshape(SEQUENCES, LENGTH)
        yield Batch(torch.full((SEQUENCES, LENGTH), number), place < positions - start)


def mixes(heads: int) -> Tensor:
    """[kind, head, dim, dim] what turns white noise into data with a decaying spectrum."""
    generator = torch.Generator().manual_seed(0)
    bases = torch.linalg.qr(torch.randn(len(KINDS), heads, DIM, DIM, generator=generator)).Q
    return bases / torch.arange(1, DIM + 1)[:, None]


def maker(heads: int) -> Maker:
    """Every batch from a seed of its own."""
    mix = mixes(heads)

    def make(number: int, kind: str) -> Tensor:
        which = KINDS.index(kind)
        generator = torch.Generator().manual_seed(2 * number + which)
        noise = torch.randn(BATCH, heads, DIM, generator=generator)
        x = torch.einsum("phi,hij->phj", noise, mix[which]) + 0.1
        return x.reshape(SEQUENCES, LENGTH, heads, DIM)

    return make


# Speed


def speed(rounds: int) -> None:
    torch.set_num_threads(1)
    with threadpool_limits(limits=1):
        made = maker(HEADS)
        numbers = range(len(list(batches(SHORT))))
        stored = {(number, kind): made(number, kind) for number in numbers for kind in KINDS}
        source = Source(HEADS, lambda number, kind: stored[number, kind])
        specs = [f"{name}(rank=[{ranks()}])@0.*.{{query,key}}" for name in ("svd", "pca")]
        proxies = expand(specs)
        data = {site: stream(stored, site) for site in source.sites}
        times: dict[str, list[float]] = {"anamorph": [], "float32": [], "float64": []}
        for _ in range(rounds):
            start = time.process_time()
            fitted = fit(source, proxies, {"train": batches(SHORT)})
            times["anamorph"].append(time.process_time() - start)
            theirs = {}
            for dtype in ("float32", "float64"):
                taken = 0.0
                for site, x in data.items():
                    parts = np.split(x.astype(dtype), range(BATCH, len(x), BATCH))
                    start = time.process_time()
                    model = IncrementalPCA(DIM)
                    for part in parts:
                        model.partial_fit(part)
                    taken += time.process_time() - start
                    theirs[dtype, site] = model.components_
                times[dtype].append(taken)
        errors = differences(fitted, theirs, data)
    rows = [
        ("anamorph: SVD and PCA", "anamorph", f"{errors['svd']:.0e} (SVD), {errors['pca']:.0e}"),
        ("IncrementalPCA, float32", "float32", f"{errors['float32']:.0e}"),
        ("IncrementalPCA, float64", "float64", f"{errors['float64']:.0e}"),
    ]
    print(f"{'':<25}{'median':>9}{'best':>9}   projectors off an SVD of the whole data by")
    for name, key, error in rows:
        print(
            f"{name:<25}{statistics.median(times[key]):>7.2f} s{min(times[key]):>7.2f} s   {error}"
        )
    fastest = min(statistics.median(times[dtype]) for dtype in ("float32", "float64"))
    ratio = fastest / statistics.median(times["anamorph"])
    print(f"ratio of medians, to the faster of the two: {ratio:.1f} ({rounds} rounds; bar: 5)")
    if ratio < 5 or max(errors["svd"], errors["pca"]) > 1e-6:
        raise SystemExit("the bar is not met")


def ranks() -> str:
    return ",".join(map(str, range(1, DIM + 1)))


def stream(stored: dict[tuple[int, str], Tensor], site: Site) -> NDArray[np.float32]:
    """[position, dim] all activations at a site."""
    parts = [x[:, :, site.head] for (_, kind), x in stored.items() if kind == site.kind]
    return torch.cat(parts).reshape(-1, DIM)[:SHORT].numpy()


def differences(
    fitted: FittedProxies,
    theirs: dict[tuple[str, Site], NDArray[np.floating]],
    data: dict[Site, NDArray[np.float32]],
) -> dict[str, float]:
    """The worst difference from the reference, of all ranks and sites."""
    worst = dict.fromkeys(("svd", "pca", "float32", "float64"), 0.0)
    for site, x in data.items():
        double = x.astype(np.float64)
        reference = {"svd": axes(double), "pca": axes(double - double.mean(axis=0))}
        for proxy, model in fitted.items():
            simplification = model.by_site[site]
            rows = reference[proxy.method][: int(simplification.size)]
            matrix = simplification.affine()[0].numpy()
            error = float(np.linalg.norm(matrix - rows.T @ rows))
            worst[proxy.method] = max(worst[proxy.method], error)
        for dtype in ("float32", "float64"):
            found = theirs[dtype, site].astype(np.float64)
            for rank in range(1, DIM + 1):
                one, other = found[:rank], reference["pca"][:rank]
                error = float(np.linalg.norm(one.T @ one - other.T @ other))
                worst[dtype] = max(worst[dtype], error)
    return worst


def axes(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.linalg.svd(np.linalg.qr(x, mode="r"))[2]


# Memory


def memory() -> None:
    peaks = {}
    for positions in (SHORT, LONG):
        command = [sys.executable, __file__, "stream", str(positions)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        before, peaks[positions], seconds = map(float, output.split())
        print(
            f"{positions:>10,} positions: peak {peaks[positions]:.1f} MiB, of which "
            f"{before:.1f} MiB before the first batch; {seconds:.0f} s"
        )
    growth = peaks[LONG] / peaks[SHORT] - 1
    print(f"growth: {growth:+.1%} (bar: 5 %)")
    if growth > 0.05:
        raise SystemExit("the bar is not met")


def stream_once(positions: int) -> None:
    """In a process of its own: prints the peak before and after, in MiB, and the seconds."""
    source = Source(1, maker(1))
    proxies = expand(MEMORY_SPECS)
    gc.collect()
    before = peak()
    start = time.perf_counter()
    fit(source, proxies, {"train": batches(positions)})
    print(before, peak(), time.perf_counter() - start)


def peak() -> float:
    """MiB; on Linux of this program alone, where `ru_maxrss` begins with its parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts in bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["speed", "memory", "stream"])
    parser.add_argument("positions", nargs="?", type=int, help="of stream, which memory calls")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.what == "stream":
        stream_once(options.positions)
        return
    if options.what != "memory":
        speed(options.rounds)
    if options.what != "speed":
        memory()


if __name__ == "__main__":
    main()
