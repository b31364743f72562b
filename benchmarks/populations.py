"""Populations of sequences with a known truth, on which intervals are tried.

A population draws, for a number of runs at once, the sums of a metric and the scored positions of
every sequence: [runs, sequences] each.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], tuple[Floats, Floats]]

RARE = "rare bad sequences"


class Population(NamedTuple):
    """Where sequences come from.

    Attributes:
        kind: what it stands for.
        name: in a table.
        truth: Σ sums / Σ positions of the whole population.
        effect: its design effect at the truth; NaN for what is not a share.
        draw: generator and (runs, sequences) → sums, positions.
    """

    kind: str
    name: str
    truth: float
    effect: float
    draw: Draw


def positions(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Scored positions a sequence like those of Dyck's far closers: 9 on average, up to 60."""
    return np.minimum(1 + rng.gamma(0.75, 11.2, size=shape).astype(np.int64), 60).astype(float)


def beta_binomial(p: float, correlation: float) -> Population:
    """Agreement `p`, correlated so within a sequence."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Floats, Floats]:
        c, chance = positions(rng, shape), np.full(shape, p)
        if correlation:
            more = 1 / correlation - 1
            chance = rng.beta(p * more, (1 - p) * more, size=shape)
        return rng.binomial(c.astype(np.int64), chance).astype(float), c

    return _made("beta-binomial", f"p {p}, correlation {correlation}", p, draw)


def mixed(share: float, rare: float, usual: float) -> Population:
    """A share of the sequences agrees at `rare`, the others at `usual`."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Floats, Floats]:
        c = positions(rng, shape)
        chance = np.where(rng.random(shape) < share, rare, usual)
        return rng.binomial(c.astype(np.int64), chance).astype(float), c

    truth = share * rare + (1 - share) * usual
    return _made(RARE, f"{share:.0%} at {rare}, else {usual}", truth, draw)


def divergence(mean: float, shape_of_own: float) -> Population:
    """A divergence of that mean: each sequence has its own, gamma distributed."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Floats, Floats]:
        c = positions(rng, shape)
        own = rng.gamma(shape_of_own, mean / shape_of_own, size=shape)
        return c * rng.gamma(c, np.maximum(own, 1e-12) / c), c

    name = f"mean {mean}, shape {shape_of_own}"
    return Population("divergences", name, mean, float("nan"), draw)


def sampled(kind: str, name: str, sums: Floats, counts: Floats, share: bool) -> Population:
    """A finite population, drawn from with replacement."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Floats, Floats]:
        drawn = rng.integers(len(counts), size=shape)
        return sums[drawn], counts[drawn]

    truth = float(sums.sum() / counts.sum())
    if share:
        return _made(kind, name, truth, draw)
    return Population(kind, name, truth, float("nan"), draw)


def _made(kind: str, name: str, truth: float, draw: Draw) -> Population:
    a, c = draw(np.random.default_rng(1), (400_000,))
    effect = ((a - truth * c) ** 2).mean() / (truth * (1 - truth) * c.mean())
    return Population(kind, name, truth, float(effect), draw)


BETA_BINOMIAL = [beta_binomial(p, r) for p in (0.9, 0.95, 0.99, 0.999) for r in (0, 0.1, 0.3)]
RARE_BAD = [
    *(mixed(share, 0.0, 1.0) for share in (0.01, 0.02, 0.03)),
    mixed(0.02, 0.3, 0.999),
    mixed(0.03, 0.3, 0.99),
]
DIVERGENCES = [divergence(m, k) for m in (0.3, 0.001) for k in (0.5, 2.0)]

PROXIES = (
    "svd(rank=[1,4,8,16], joint=true)@1.*.{query,key}",
    "svd(rank=[1,4], joint=true)@0.*.{query,key}",
    "kmeans(clusters=64, joint=true)@0.*.{query,key}",
    "onehot@1.*.pattern",
)


def of_dyck(run: Path, sequences: int) -> tuple[list[Population], list[Population]]:
    """Agreement, and divergences, of real proxies on fresh iid sentences of a run's Dyck task.

    Args:
        run: as `make demo` leaves it; the model of its first seed is taken.
        sequences: how many sentences stand for the population.
    """
    import anamorph as am
    from anamorph.auditing.audit import fit_on_task, with_identity
    from anamorph.auditing.engine import audit_split
    from anamorph.auditing.proxies import SimplifiedProxy
    from anamorph.auditing.samples import scored_sequences
    from anamorph.models.decoder import Decoder
    from anamorph.runs.folder import load_run

    spec = load_run(run).spec
    task = am.load_task(**{**spec["task"], "test": sequences})
    model = Decoder.load(run / f"seed-{spec['seeds'][0]}" / "model.safetensors").eval()
    proxies = with_identity(PROXIES)[1:]
    fitted = fit_on_task(model, proxies, task, 1000)
    part = scored_sequences(task.reference, sequences)
    ready = [SimplifiedProxy(fitted[p], model) for p in proxies]
    cells = audit_split(model, part, task.candidates, ready)
    shares, others = [], []
    for proxy, cell in cells.items():
        rows = cell.index.whole
        counts = cell.index.tokens[rows].astype(float)
        of = dict(zip(cell.metrics, cell.sums[:, rows].numpy(), strict=True))
        name = str(proxy).replace(", joint=true", "").replace(".*.{query,key}", "")
        shares.append(sampled("Dyck", name, of["same_prediction"], counts, share=True))
        for metric in ("attention_jsd", "output_jsd", "output_kl", "proxy_cross_entropy"):
            label = f"{metric}, {name}"
            others.append(sampled("Dyck, divergences", label, of[metric], counts, share=False))
    return shares, others
