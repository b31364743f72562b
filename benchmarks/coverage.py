"""Do the intervals cover what they say, how wide are they, and what do verdicts get wrong?

    python benchmarks/coverage.py [--runs N] [--run runs/demo] [--only PART ...]

Prints the tables of docs/intervals.md; `--run`, a folder that `make demo` left, adds real
populations: 6,000 fresh Dyck sentences and the proxies of its model. "times" is the mean width over
that of the best interval that knows the shape of the truth:

- of a share: Jeffreys' binomial interval on effective positions by the *true* design effect;
- of any other mean, and over models: the normal interval of the true standard error;
- of the largest of many gaps: the normal interval with the true quantile of the largest error.

Confidence sequences at every look: `benchmarks/sequences.py`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import betaincinv

from anamorph.faithfulness.confidence import PRIOR_CORRELATION, RatioSums, sequence_interval
from anamorph.faithfulness.estimates import Estimates, Gaps, Stopping
from anamorph.faithfulness.gaps import (
    FAITHFUL,
    ILLUSIONS,
    Thresholds,
    benjamini_hochberg,
    change_of,
    level_of,
    verdict,
)
from anamorph.faithfulness.intervals import Differences, Ends, Means
from populations import (
    BETA_BINOMIAL,
    DIVERGENCES,
    RARE_BAD,
    Floats,
    Population,
    beta_binomial,
    of_dyck,
    positions,
)

SIZES = (20, 50, 100, 400)
PAIRS = ((20, 20), (50, 50), (100, 100), (400, 400), (40, 400), (400, 40), (100, 1000))
RESAMPLES = 200  # of the percentile bootstrap that is compared with
BOOTSTRAPPED = 500  # runs of it
LOOK = 16
RANKS = 20_000  # of how hard a sequence is
SHARE = np.array(True)
METRICS = ("same_prediction",)


def table(title: str, columns: Sequence[str]) -> None:
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")


def row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def covered(ends: Ends, truth: float) -> float:
    return float(((ends.low <= truth + 1e-12) & (truth - 1e-12 <= ends.high)).mean())


def width(ends: Ends) -> float:
    return float(np.nanmean(ends.high - ends.low))


def jeffreys(means: Means, effect: float, z: float = 1.96) -> Ends:
    number = means.positions / effect
    right, wrong = means.value * number + 0.5, (1 - means.value) * number + 0.5
    tail = (1 - 0.95) / 2
    low = np.where(means.value > 0, betaincinv(right, wrong, tail), 0)
    return Ends(low, np.where(means.value < 1, betaincinv(right, wrong, 1 - tail), 1))


def plain_means(populations: Sequence[Population], runs: int) -> None:
    """Proportions and other means, each on its own."""
    for kind in dict.fromkeys(p.kind for p in populations):
        table(f"Covered, times: {kind}", ["population", "truth", *map(str, SIZES)])
        for population in (p for p in populations if p.kind == kind):
            share, cells = not np.isnan(population.effect), []
            for n in SIZES:
                a, c = population.draw(np.random.default_rng(n), (runs, n))
                means = Means.of(a, c, np.array(share))
                ends = means.ends()
                known = (
                    width(jeffreys(means, population.effect))
                    if share
                    else 2 * 1.96 * float(means.value.std())
                )
                ratio = float(np.median(ends.high - ends.low)) if not share else width(ends)
                cells.append(f"{covered(ends, population.truth):.3f}, {ratio / known:.2f}")
            row(population.name, f"{population.truth:.4g}", *cells)


def bootstrap(first: tuple[Floats, ...], second: tuple[Floats, ...]) -> Ends:
    """The percentile bootstrap of a gap."""
    rng, drawn = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        means = []
        for a, c in (first, second):
            some = rng.integers(a.shape[1], size=a.shape[1])
            means.append(a[:, some].sum(1) / c[:, some].sum(1))
        drawn.append(means[0] - means[1])
    return Ends(*np.quantile(drawn, [0.025, 0.975], axis=0))


def gaps(populations: Sequence[Population], runs: int) -> None:
    """Two splits of one population, and one that is five points worse."""
    columns = ["iid, split", "population", "rejected", "covered", "times", "power", "bootstrap"]
    table("Gap: rejected at .05 and covered where there is none; power at a fall of .05", columns)
    for n, m in PAIRS:
        for population in populations:
            rng = np.random.default_rng(n + m)
            first, second = (population.draw(rng, (runs, k)) for k in (n, m))
            # a position that agreed no longer does with a chance that makes the fall .05
            worse = rng.binomial(second[0].astype(np.int64), 1 - 0.05 / population.truth)
            a, b = (Means.of(*x, SHARE) for x in (first, second))
            null = Differences(a, b, np.zeros(runs))
            below = null.p_value()
            rejected = (2 * np.minimum(below, 1 - below) < 0.05).mean()
            fall = Differences(a, Means.of(worse.astype(float), second[1], SHARE), np.zeros(runs))
            known = [jeffreys(x, population.effect) for x in (a, b)]
            best = np.hypot(*(k.high - k.low for k in known)).mean()
            some = [tuple(x[:BOOTSTRAPPED] for x in side) for side in (first, second)]
            plain = bootstrap(some[0], some[1])
            plain_fall = bootstrap(some[0], (worse[:BOOTSTRAPPED].astype(float), some[1][1]))
            row(
                f"{n}, {m}",
                population.name,
                f"{rejected:.3f}",
                f"{covered(null.ends(), 0):.3f}",
                f"{width(null.ends()) / best:.2f}",
                f"{(fall.ends().low > 0).mean():.2f}",
                f"{1 - covered(plain, 0):.3f}, power {(plain_fall.low > 0).mean():.2f}",
            )


def stopped(populations: Sequence[Population], runs: int, until: float) -> None:
    """What is printed of a cell that stops early, and of the gap of two."""
    table(
        f"Stopped at a width of {until}, at most 1,008 sequences: what is printed",
        ["population", "covered", "width", "sequences", "gap covered", "gap width"],
    )
    for population in populations:
        found = []
        for half in (0, 1):
            a, c = population.draw(np.random.default_rng(half), (runs, 1008))
            low, high = np.empty((2, runs))
            active, seen = np.arange(runs), np.zeros(runs)
            for stop in range(LOOK, a.shape[1] + 1, LOOK):
                sums = RatioSums.of(*(torch.from_numpy(x[active, :stop]) for x in (a, c)))
                low[active], high[active] = sequence_interval(sums, until)
                seen[active] = stop
                active = active[(high - low > until)[active]]
                if not len(active):
                    break
            used = np.arange(a.shape[1]) < seen[:, None]
            found.append(
                (Ends(low, high), (a * used)[:, None, None], (c * used)[:, None, None], seen)
            )
        ends = found[0][0]
        stopping = Stopping(until, PRIOR_CORRELATION)
        both = [Estimates.of(f[1], f[2], METRICS, stopping) for f in found]
        gap = Gaps.of(*both, 1, 0.02).ends
        row(
            population.name,
            f"{covered(ends, population.truth):.3f}",
            f"{width(ends):.4f}",
            f"{found[0][3].mean():.0f}",
            f"{covered(gap, 0):.3f}",
            f"{width(gap):.4f}",
        )


def models(runs: int) -> None:
    """Several models on one set of sequences; a gap that is 0 on average over models."""
    columns = ["models", "spread / error", "sequences", "mean covered", "gap covered", "gap times"]
    table("Over models: a model's own deviation in units of its sampling error", columns)
    for number in (3, 5, 10):
        for times in (0, 0.5, 1, 2, 4):
            for n in (100, 400):
                rng = np.random.default_rng(number * n)
                base, error = beta_binomial(0.9, 0.1), 0.0
                a, c = base.draw(rng, (2000, n))
                error = float((a.sum(1) / c.sum(1)).std())
                found = []
                own = rng.normal(0, times * error, size=(2, number, runs, 1))
                for side in range(2):
                    c = positions(rng, (runs, n))
                    common = rng.beta(0.9 * 9, 0.1 * 9, size=(runs, n))  # hard for all models
                    chance = np.clip(common + own[side], 0, 1)
                    # what is cut off at 0 and 1 must not move the mean
                    a = rng.binomial(c.astype(np.int64), chance).astype(float)
                    found.append((a, np.broadcast_to(c, a.shape)))
                truth = float(np.mean([a.sum() / c.sum() for a, c in found]))
                first, second = (
                    Estimates.of(*(np.moveaxis(x, 0, 1)[:, :, None] for x in side), METRICS, None)
                    for side in found
                )
                gap = Gaps.of(first, second, 1, 0.02)
                known = 2 * 1.96 * float(gap.value[:, -1].std())
                last = (Ends(*(end[:, -1] for end in e)) for e in (first.ends, gap.ends))
                mean, of_gap = last
                row(
                    number,
                    times,
                    n,
                    f"{covered(mean, truth):.3f}",
                    f"{covered(of_gap, 0):.3f}",
                    f"{width(of_gap) / known:.2f}",
                )


def several(
    rng: np.random.Generator, truths: Sequence[float], correlation: float, shape: tuple[int, int]
) -> tuple[Floats, Floats]:
    """[runs · proxies, 1, 1, sequences] sums of proxies that find the same sequences hard."""
    c = positions(rng, shape)
    hard = rng.integers(RANKS, size=shape)  # of a sequence among all, the same for all proxies
    more = 1 / correlation - 1
    ranks = (np.arange(RANKS) + 0.5) / RANKS
    chances = (betaincinv(p * more, (1 - p) * more, ranks)[hard] for p in truths)
    sums = [rng.binomial(c.astype(np.int64), chance) for chance in chances]
    flat = (-1, 1, 1, shape[1])
    return np.stack(sums, axis=1).astype(float).reshape(flat), np.repeat(c, len(truths), 0).reshape(
        flat
    )


def side_by_side(numbers: Sequence[Floats], runs: int) -> Floats:
    """[runs, proxies, splits] from [runs · proxies, 2, 1] of every split."""
    return np.stack([x[:, 0, 0].reshape(runs, -1) for x in numbers], axis=-1)


def selected(runs: int) -> None:
    """The largest of a head's gaps, where there is none: 3 sizes on 8 splits."""
    table("The largest of 24 gaps of a head, where there is none", ["p", "n", "covered", "times"])
    for p in (0.9, 0.95, 0.99):
        for n in (50, 100, 400):
            rng = np.random.default_rng(n)
            parts = [several(rng, [p] * 3, 0.1, (runs, n)) for _ in range(9)]
            iid, *splits = (Estimates.of(a, c, METRICS, None) for a, c in parts)
            made = [Gaps.of(iid, split, 24, 0.02) for split in splits]
            numbers = ([g.value for g in made], *([g.ends_all[k] for g in made] for k in (0, 1)))
            value, low, high = (side_by_side(x, runs).reshape(runs, -1) for x in numbers)
            largest = value.argmax(1)[:, None]
            chosen = Ends(*(np.take_along_axis(x, largest, 1)[:, 0] for x in (low, high)))
            best = 2 * np.quantile(np.abs(value).max(1), 0.95)
            row(p, n, f"{covered(chosen, 0):.3f}", f"{width(chosen) / best:.2f}")


TRUTHS = (0.93, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995, 0.999)


def verdicts(runs: int) -> None:
    """Audits of 8 proxies on 5 splits: what is found, and what is said falsely."""
    columns = ["correlation", "n", "any false illusion", "faithful, no gap", "illusion at .04"]
    columns += ["faithful at .0201", "faithful at .04"]
    table(f"{runs:,} audits of 8 proxies on 5 splits (share of audits; then of cells)", columns)
    for correlation in (0.1, 0.3):
        for n in (50, 100, 400):
            cells = []
            for fall in (0.0, 0.0201, 0.04):
                found = judged(np.random.default_rng(n), correlation, n, fall, runs)
                illusion = np.isin(found, ILLUSIONS)
                faithful = (found == FAITHFUL).mean()
                cells.append((illusion.any((1, 2)).mean(), illusion.mean(), faithful))
            none, little, much = cells
            numbers = none[0], none[2], much[1], little[2], much[2]
            row(correlation, n, *(f"{x:.3f}" for x in numbers))


def judged(
    rng: np.random.Generator, correlation: float, n: int, fall: float, runs: int
) -> NDArray[np.str_]:
    """[audits, proxies, splits] verdicts, all splits lower by `fall`."""
    thresholds = Thresholds()
    truths = [np.array(TRUTHS)] + [np.array(TRUTHS) - fall] * 5
    parts = [several(rng, list(t), correlation, (runs, n)) for t in truths]
    iid, *splits = (Estimates.of(a, c, METRICS, None) for a, c in parts)
    made = [Gaps.of(iid, split, 40, thresholds.tolerance) for split in splits]
    numbers = ([g.worse for g in made], *([g.ends[k] for g in made] for k in (0, 1)))
    worse, low, high = (side_by_side(x, runs) for x in numbers)
    adjusted = benjamini_hochberg(worse.reshape(runs, -1).T).T.reshape(worse.shape)
    found = np.empty(worse.shape, "<U40")
    value = iid.value[:, 0, 0].reshape(runs, -1)
    of_iid = [end[:, 0, 0].reshape(runs, -1) for end in iid.ends]
    for place in np.ndindex(worse.shape):
        low_iid, high_iid = (end[place[:2]] for end in of_iid)
        level = level_of(low_iid, high_iid, thresholds)
        change = change_of(low[place], high[place], adjusted[place], thresholds)
        found[place] = verdict(value[place[:2]], level, change, 1.0, 0.0, thresholds)
    return found


def diluted() -> None:
    """One illusion beside more and more harmless proxies."""
    table("An illusion (.941 → .701, 400 sequences) beside harmless proxies", ["beside", "verdict"])
    rng, thresholds = np.random.default_rng(0), Thresholds()
    iid, split = (beta_binomial(p, 0.1).draw(rng, (1, 400)) for p in (0.941, 0.701))
    gap = Differences(*(Means.of(*x, SHARE) for x in (iid, split)), np.zeros(1))
    for beside in (0, 5, 39, 50, 500, 5000):
        harmless = rng.uniform(0.5, 1, size=5 * beside + 4)
        p = benjamini_hochberg(np.concatenate([gap.p_value(thresholds.tolerance), harmless]))
        low, high = gap.ends()
        change = change_of(float(low[0]), float(high[0]), p[0], thresholds)
        level = level_of(*(float(x[0]) for x in gap.first.ends()), thresholds)
        row(beside, verdict(float(gap.first.value[0]), level, change, 1.0, 0.0, thresholds))


def main() -> None:
    parts = ("means", "gaps", "stopped", "models", "selected", "verdicts", "diluted")
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--runs", type=int, default=2000)
    arguments.add_argument("--audits", type=int, default=1000)
    arguments.add_argument("--until", type=float, default=0.02)
    arguments.add_argument("--run", type=Path, help="a folder that make demo left")
    arguments.add_argument("--only", nargs="+", choices=parts, default=parts)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    real = options.run and {"means", "gaps", "stopped"} & set(options.only)
    shares, others = of_dyck(options.run, 6000) if real else ([], [])
    if "means" in options.only:
        plain_means([*BETA_BINOMIAL, *shares, *DIVERGENCES, *others, *RARE_BAD], options.runs)
    if "gaps" in options.only:
        gaps([*BETA_BINOMIAL, *shares], options.runs)
    if "stopped" in options.only:
        stopped([*BETA_BINOMIAL, *shares, *RARE_BAD], min(options.runs, 500), options.until)
    if "models" in options.only:
        models(options.runs)
    if "selected" in options.only:
        selected(options.runs)
    if "verdicts" in options.only:
        verdicts(options.audits)
    if "diluted" in options.only:
        diluted()


if __name__ == "__main__":
    main()
