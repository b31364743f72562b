"""Does a confidence sequence hold at every look, and what does stopping early cost?

    python benchmarks/sequences.py [--runs N] [--prior-correlation R] [--sequences N]
    python benchmarks/sequences.py --worst [--until W ...]
    python benchmarks/sequences.py --priors

Prints the tables of docs/confidence.md. A run draws sequences of one kind, looks after every 16 and
stops as soon as the interval is narrow enough, or when the sequences are used up. It is *covered*
if the truth lies in the interval that it ends with, and *covered at all looks* if it lay in every
interval on the way too. `--worst` searches for the kinds that are covered worst: a screening of
hundreds, then fresh and longer runs of the worst found. Otherwise a list of usual kinds is compared
with

- the interval of the central limit theorem for a number of sequences fixed beforehand (how many
  it takes, with the variance known: a lower limit for any method),
- the asymptotic confidence sequence (Waudby-Smith et al. 2024, Theorem 2.2) of the linearised
  ratio, which trusts a variance estimate of 0, from the same 16 sequences on,
- the hedged betting confidence sequence (Waudby-Smith and Ramdas 2024, "Estimating means of bounded
  random variables by betting"), which holds exactly, for any sequences of at most 128 positions.
"""

import argparse
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from anamorph.faithfulness.confidence import PRIOR_CORRELATION, RatioSums, sequence_interval

BATCH = 16
ALPHA = 0.05
Floats = NDArray[np.float64]
Drawer = Callable[[np.random.Generator, tuple[int, int]], tuple[Floats, Floats]]


class Case(NamedTuple):
    name: str
    truth: float
    draw: Drawer  # generator and (runs, sequences) → numerators, counts


VARYING, GEOMETRIC, LOG_NORMAL = "16–128", "geometric, mean 14", "log-normal, mean 14"
Length = int | str


def counts_of(rng: np.random.Generator, shape: tuple[int, ...], length: Length) -> Floats:
    if length == VARYING:
        return rng.integers(16, 129, size=shape).astype(float)
    if length == GEOMETRIC:  # as far closers of Dyck sentences, about
        return rng.geometric(1 / 14, size=shape).astype(float)
    if length == LOG_NORMAL:
        return np.exp(rng.normal(math.log(14) - 0.5, 1, size=shape)).round().clip(1)
    return np.full(shape, float(length))


def beta_binomial(p: float, correlation: float, length: Length) -> Case:
    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Floats, Floats]:
        c, chance = counts_of(rng, shape, length), np.full(shape, p)
        if correlation:
            more = 1 / correlation - 1
            chance = rng.beta(p * more, (1 - p) * more, size=shape)
        return rng.binomial(c.astype(int), chance).astype(float), c

    return Case(f"p = {p}, ρ = {correlation}, {length}", p, draw)


def mixed(share: float, rare: float, usual: float, length: Length) -> Case:
    """A share of the sequences agrees at `rare`, the others at `usual`."""

    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Floats, Floats]:
        c = counts_of(rng, shape, length)
        chance = np.where(rng.random(shape) < share, rare, usual)
        return rng.binomial(c.astype(int), chance).astype(float), c

    name = f"{share:.2%} at {rare}, else {usual}, {length}".replace(".00%", "%")
    return Case(name, share * rare + (1 - share) * usual, draw)


def long_ones_fail(share: float, length: Length) -> Case:
    """The longest sequences agree nowhere, the others everywhere."""
    c = counts_of(np.random.default_rng(1), (2_000_000,), length)
    longest = np.quantile(c, 1 - share)

    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Floats, Floats]:
        c = counts_of(rng, shape, length)
        return np.where(c > longest, 0, c), c

    name = f"the longest {share:.1%} at 0, else 1, {length}"
    return Case(name, float(c[c <= longest].sum() / c.sum()), draw)


def worse_when_long() -> Case:
    """Agreement falls with length: the ratio is not the mean of the sequences' means."""
    lengths = np.arange(16, 129)
    falls = 1 - 0.1 * (lengths / 128) ** 2

    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Floats, Floats]:
        c = counts_of(rng, shape, length=VARYING)
        mean = 1 - 0.1 * (c / 128) ** 2
        return rng.binomial(c.astype(int), rng.beta(9 * mean, 9 * (1 - mean))).astype(float), c

    return Case("worse when long, ρ = 0.1, 16–128", float(lengths @ falls / lengths.sum()), draw)


def divergence() -> Case:
    """A Jensen-Shannon divergence: continuous, small, alike within a sequence."""

    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Floats, Floats]:
        c, own = counts_of(rng, shape, length=VARYING), rng.beta(1, 24, size=shape)
        # The mean of c beta(20·own, 20·(1 − own)) values, matched in mean and variance.
        more = 21 * c - 1
        return c * rng.beta(own * more, (1 - own) * more), c

    return Case("divergence of mean 0.04, 16–128", 0.04, draw)


CASES = [
    *(
        beta_binomial(p, correlation, length)
        for p in (0.5, 0.9, 0.98, 0.995)
        for correlation in (0, 0.05, 0.2)
        for length in (64, VARYING)
    ),
    mixed(0.02, 0.3, 0.999, length=64),
    mixed(0.02, 0.3, 0.999, length=VARYING),
    mixed(0.03, 0.0, 1.0, length=64),
    worse_when_long(),
    divergence(),
    beta_binomial(1.0, 0, length=64),
    beta_binomial(1.0, 0, length=VARYING),
]
SHORT = [
    *(beta_binomial(p, r, 31) for p in (0.95, 0.985, 0.995) for r in (0, 0.02, 0.05, 0.1)),
    mixed(0.02, 0.3, 0.999, 31),
    mixed(0.02, 0.0, 0.99, 31),
]


def searched(until: float) -> list[Case]:
    """What `--worst` screens: kinds of which a rare part, about as large as the width, is worse."""
    lengths = (8, 64, VARYING, GEOMETRIC, LOG_NORMAL)
    shares = until * np.array([0.75, 1, 1.1, 1.5, 2.5, 5])
    return [
        *(
            mixed(share, rare, usual, length)
            for share in shares.round(5).tolist()
            for rare in (0.0, 0.3)
            for usual in (1.0, 0.99, 0.9)
            for length in lengths
        ),
        *(
            beta_binomial(p, correlation, length)
            for p in (0.9, 0.97, 0.99, 0.995)
            for correlation in (0.05, 0.3, 0.9)
            for length in lengths
        ),
    ]


class Found(NamedTuple):
    """Means over runs.

    Attributes:
        covered: whether the last interval held the truth.
        always: whether all did.
        reached: whether the width was reached.
        sequences: at the stop.
        positions: at the stop.
    """

    covered: float
    always: float
    reached: float
    sequences: float
    positions: float


def sequential(a: Floats, c: Floats, truth: float, until: float, prior: float) -> Found:
    """What following many runs at once gives: numerators and counts [runs, sequences]."""
    runs, most = a.shape
    sums, (low, high) = RatioSums(*torch.zeros(6, runs).double()), np.empty((2, runs))
    always, active, stop = np.ones(runs, bool), np.arange(runs), np.full(runs, most)
    numerators, counts = torch.from_numpy(a), torch.from_numpy(c)
    for start in range(0, most, BATCH):
        new = slice(start, start + BATCH)
        more = RatioSums.of(numerators[active, new], counts[active, new])
        sums = RatioSums(*map(torch.add, sums, more))
        ends = (end.numpy() for end in sequence_interval(sums, until, ALPHA, prior))
        low[active], high[active] = ends
        always[active] &= ((low <= truth) & (truth <= high))[active]
        done = (high - low <= until)[active]
        sums = RatioSums(*(total[torch.from_numpy(~done)] for total in sums))
        stop[active[done]] = min(start + BATCH, most)
        active = active[~done]
        if not len(active):
            break
    covered = (low <= truth) & (truth <= high)
    positions = c.cumsum(axis=1)[np.arange(runs), stop - 1]
    reached = 1 - len(active) / runs
    return Found(covered.mean(), always.mean(), reached, stop.mean(), positions.mean())


def asymptotic(a: Floats, c: Floats, truth: float, until: float) -> float:
    """Share of runs that the unregularised asymptotic confidence sequence covers."""
    n = np.arange(BATCH, a.shape[1] + 1, BATCH)
    A, C, AA, AC, CC = (x.cumsum(axis=1)[:, n - 1] for x in (a, c, a * a, a * c, c * c))
    mean = A / C
    variance = (AA - 2 * mean * AC + mean**2 * CC).clip(0) / (n - 1) / (C / n) ** 2
    spread = -2 * math.log(ALPHA)
    rho2 = (spread + math.log(spread) + 1) / 100  # tightest about 100 sequences
    t = n * rho2 + 1
    half = np.sqrt(variance * 2 * t / (n**2 * rho2) * np.log(np.sqrt(t) / ALPHA))
    low = np.maximum.accumulate((mean - half).clip(0, 1), axis=1)
    high = np.minimum.accumulate((mean + half).clip(0, 1), axis=1)
    before = np.cumsum(high - low <= until, axis=1) <= 1  # up to the stop
    return float((((low <= truth) & (truth <= high)) | ~before).all(axis=1).mean())


def betting(a: Floats, c: Floats, truth: float, until: float) -> float:
    """Mean sequences until the hedged betting interval is narrow enough, infinite if not all are.

    For each candidate m the payoffs are (a − m·c)/128, of mean 0 at the truth and at least −m;
    bets are the paper's predictable plug-in, at most 3/4 of what cannot be lost.
    """
    m = np.unique(np.clip(truth + np.arange(-0.15, 0.15, until / 20), 1e-9, 1 - 1e-9))
    longest = c.max()
    runs, most = a.shape
    wealth = np.zeros((2, runs, len(m)))
    ruled_out = np.zeros((runs, len(m)), bool)
    stop = np.full(runs, math.inf)
    A, C, squares = np.full((runs, 1), 0.5), np.ones((runs, 1)), np.full((runs, 1), 0.25)
    for t in range(1, most + 1):
        x, y = a[:, t - 1 : t], c[:, t - 1 : t]
        variance = squares / t
        bet = np.sqrt(2 * math.log(2 / ALPHA) / (variance * t * math.log(1 + t)))
        payoff = (x - m * y) / longest
        wealth[0] += np.log1p(np.minimum(bet, 0.75 / m) * payoff)
        wealth[1] += np.log1p(-np.minimum(bet, 0.75 / (1 - m)) * payoff)
        ruled_out |= wealth.max(axis=0) >= math.log(2 / ALPHA)
        A, C = A + x / longest, C + y / longest
        squares = squares + ((x - A / C * y) / longest) ** 2
        if t % BATCH == 0:
            low = np.where(ruled_out[:, 0], m[ruled_out.argmin(axis=1)], 0.0)
            high = np.where(ruled_out[:, -1], m[::-1][ruled_out[:, ::-1].argmin(axis=1)], 1.0)
            stop = np.where(np.isinf(stop) & (high - low <= until), t, stop)
            if np.isfinite(stop).all():
                break
    return float(stop.mean())


def fixed(case: Case, until: float) -> float:
    """Sequences that a normal interval of the true variance needs, at one look."""
    a, c = case.draw(np.random.default_rng(1), (1, 200_000))
    variance = (a - case.truth * c).var() / c.mean() ** 2
    return float((2 * 1.96) ** 2 * variance / until**2)


def priors(runs: int) -> None:
    """Share covered and mean sequences taken, by the prior correlation: sequences of 31."""
    tried = (0.5, 0.2, 0.1, 0.02)
    print(f"| sequences | {' | '.join(map(str, tried))} |\n| --- |{' --- |' * len(tried)}")
    for case in SHORT:
        a, c = case.draw(np.random.default_rng(0), (runs, 512))
        found = [sequential(a, c, case.truth, 0.02, prior) for prior in tried]
        cells = [f"{f.covered:.3f}, {f.sequences:.0f}" for f in found]
        print(f"| {case.name} | {' | '.join(cells)} |", flush=True)


def worst(until: float, prior: float, runs: int) -> None:
    """Screen `searched`, then measure the worst with fresh runs.

    With them the two kinds that were worst in longer searches, and long sequences that fail.
    """
    screened = []
    for case in searched(until):
        a, c = case.draw(np.random.default_rng(2), (200, math.ceil(15 / until)))
        screened.append((sequential(a, c, case.truth, until, prior), case))
    by_end = [case for _, case in sorted(screened, key=lambda x: x[0].covered)[:3]]
    by_look = [case for _, case in sorted(screened, key=lambda x: x[0].always)[:2]]
    known = [mixed(until, 0.0, 1.0, VARYING), mixed(1.5 * until, 0.0, 0.99, VARYING)]
    long = long_ones_fail(until / 5, GEOMETRIC)
    print(f"\nWidth {until}, prior correlation {prior}, the worst of {len(screened)} kinds:\n")
    print("| sequences | covered | at all looks |\n| --- | --- | --- |")
    for case in {c.name: c for c in (*by_end, *by_look, *known, long)}.values():
        most = math.ceil(25 / until)
        parts = [
            sequential(
                *case.draw(np.random.default_rng(seed), (500, most)), case.truth, until, prior
            )
            for seed in range(3, 3 + runs // 500)
        ]
        found = Found(*np.mean(parts, axis=0))
        print(f"| {case.name} | {found.covered:.3f} | {found.always:.3f} |", flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--runs", type=int, default=2000)
    arguments.add_argument("--sequences", type=int, default=2048, help="in a run, at most")
    arguments.add_argument("--until", type=float, nargs="+", default=[0.02, 0.005])
    arguments.add_argument("--prior-correlation", type=float, default=PRIOR_CORRELATION)
    arguments.add_argument("--bets", type=int, default=24, help="runs of the slow betting bound")
    arguments.add_argument("--priors", action="store_true", help="compare prior correlations")
    arguments.add_argument("--worst", action="store_true", help="search for the worst kinds")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    if options.priors:
        priors(options.runs)
        return
    for until in options.until:
        if options.worst:
            worst(until, options.prior_correlation, options.runs)
            continue
        print(f"\nWidth {until}, prior correlation {options.prior_correlation}:\n")
        print(
            "| sequences | covered | at all looks | AsympCS, all looks | sequences to stop "
            "| positions | fixed n | betting |"
        )
        print(f"| --- |{' --- |' * 7}")
        for case in CASES:
            a, c = case.draw(np.random.default_rng(0), (options.runs, options.sequences))
            found = sequential(a, c, case.truth, until, options.prior_correlation)
            plain = asymptotic(a, c, case.truth, until)
            bets = betting(a[: options.bets], c[: options.bets], case.truth, until)
            over = f"> {options.sequences:,}"
            cells = [
                case.name,
                f"{found.covered:.3f}",
                f"{found.always:.3f}",
                f"{plain:.3f}",
                f"{found.sequences:,.0f}" if found.reached == 1 else over,
                f"{found.positions:,.0f}" if found.reached == 1 else "",
                f"{fixed(case, until):,.0f}",
                f"{bets:,.0f}" if math.isfinite(bets) else over,
            ]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
