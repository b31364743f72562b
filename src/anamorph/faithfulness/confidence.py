"""Confidence sequences: intervals of a pooled mean that hold at every look, so one may stop early.

A pooled mean is p = E[a] / E[c]: a sequence adds a (the sum of a metric in [0, 1], such as its
agreeing positions) over c scored positions. Sequences are independent draws; the positions of one
are not. An interval made for one sample size fails if an audit looks after every batch and stops
when it likes what it sees. A confidence sequence holds at all looks at once:

    P(low_t ≤ p ≤ high_t for every t) ≥ 1 − alpha.

The method is a beta-binomial mixture on an effective number of positions:

1. *Effective positions* (Rao and Scott 1992, "A simple method for the analysis of clustered binary
   data"). With p̂ = Σa / Σc, the n sequences are worth N = Σc / d independent positions, where d is
   the design effect, by which dependence within sequences inflates the variance over Bernoulli's.
   A plain estimate is 0/0 at perfect agreement, so that it is shrunk towards a prior d₀:

       d  = (n/(n−1) · Σ(a − p̂c)² + b·d₀) / (p̂(1−p̂) · Σc + b)
       d₀ = 1 + ρ₀(c* − 1),   b = c*/2,   c* = Σc²/Σc,

   that is, as if ρ₀ were the correlation within sequences, known from one half of a sequence's
   worth of disagreement. With ρ₀ = 0.5 a sequence counts as two positions at most until
   disagreement shows that it may count for more.

2. *The mixture* (Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon 2021, "Time-uniform,
   nonparametric, nonasymptotic confidence sequences", the two-sided beta-binomial mixture). The
   interval holds each m that a Beta(km, k(1−m)) mixture of alternatives does not rule out:

       M(m) = B(km + Np̂, k(1−m) + N(1−p̂)) / (B(km, k(1−m)) · m^(Np̂) · (1−m)^(N(1−p̂))) < 1/alpha.

   k = (1 + 2m(1−m)/w) / 4w makes it tight about when its width reaches w, at any m.

3. *What has not been drawn yet*. A kind of sequence that makes up a share s was missed by n
   sequences with probability (1 − s)ⁿ, whatever the others show. So the evidence against an m
   below p̂ is at most (p̂/m)ⁿ, as if a share 1 − m/p̂ might fail whole, and that against an m above
   it ((1−p̂)/(1−m))ⁿ, with n = (Σc)²/Σc², the number of sequences as long as that in which a
   random position lies. Stopping takes at least ln(1/alpha)/w such sequences: 150 for w = 0.02.

There is no running intersection: if a kind that was not seen before turns up, the interval widens
again, and an early mistake is mended. So an interval that made a cell stop holds more often than
all its looks together, and depends on the sums at the stop alone.

For N independent values in [0, 1], step 2 is exact (Ville's inequality); so is step 3 by itself,
as a first failure ends (1 − s)ⁿ. Estimating d makes the whole asymptotic, in the sense of
Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (2024), "Time-uniform central limit theory and
asymptotic confidence sequences": for many sequences M approaches their Gaussian mixture. Unlike
theirs, the interval keeps a width at perfect agreement, and is lopsided like the binomial. The
target is the population of sequences; a finite split gives no shorter interval.

The worst found by search, at the stop: 0.93 for alpha = 0.05, where 1 or 2 % of the sequences fail
whole; less if these are the longest by far. Figures and what else was tried: `docs/confidence.md`;
reproduce them with `python benchmarks/sequences.py`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from anamorph.errors import AnamorphError, require

FEWEST_SEQUENCES = 16
"""Until a cell has seen so many sequences, its interval is [0, 1]."""

PRIOR_CORRELATION = 0.5
"""Correlation of positions within a sequence that is assumed until there is disagreement to see."""

BISECTIONS = 32  # ends of intervals are found to within 2^-32, outwards


class RatioSums(NamedTuple):
    """What a ratio estimate is made from: float64 tensors, all of one shape, such as [cells].

    Attributes:
        sequences: how many have positions that count.
        a: Σ a, over sequences, of the sums in the numerator.
        c: Σ c, of the counts in the denominator.
        aa: Σ a².
        ac: Σ a·c.
        cc: Σ c².
    """

    sequences: Tensor
    a: Tensor
    c: Tensor
    aa: Tensor
    ac: Tensor
    cc: Tensor

    @classmethod
    def of(cls, numerators: Tensor, counts: Tensor) -> "RatioSums":
        """From float64 numerators [..., sequences] and counts, [sequences] or as numerators.

        A count of 0 is a sequence without positions that count, or one not seen: it has no say.
        """
        a, c = numerators, counts.expand_as(numerators)
        terms = ((c > 0).double(), a, c, a * a, a * c, c * c)
        return cls(*(x.sum(dim=-1) for x in terms))


def design_effect(sums: RatioSums, prior_correlation: float = PRIOR_CORRELATION) -> Tensor:
    """By how much dependence within sequences inflates the variance of a pooled mean: [cells].

    1 for independent Bernoulli positions, the length of sequences if all positions of one are the
    same, below 1 for values that vary less than Bernoulli's. Step 1 of the module's method.

    Args:
        sums: at least two sequences a cell.
        prior_correlation: ρ₀, what it is shrunk towards.
    """
    mean = sums.a / sums.c
    squares = (sums.aa - 2 * mean * sums.ac + mean**2 * sums.cc).clamp(min=0)  # Σ (a − p̂c)²
    length = sums.cc / sums.c  # of the sequence that a random position lies in
    prior, worth = 1 + prior_correlation * (length - 1), length / 2
    inflated = squares * sums.sequences / (sums.sequences - 1) + worth * prior
    return inflated / (mean * (1 - mean) * sums.c + worth)


def mixture_interval(
    mean: Tensor,
    positions: Tensor,
    sequences: Tensor,
    until: float,
    alpha: float | Tensor = 0.05,
) -> tuple[Tensor, Tensor]:
    """The confidence sequence at one look: low and high, each as `mean`.

    Steps 2 and 3 of the module's method: all m against which the evidence is below 1/alpha. They
    form an interval around `mean`.

    Args:
        mean: float64 in [0, 1].
        positions: N, the effective number of independent positions; as `mean`, above 0.
        sequences: n of step 3, the effective number of sequences; as `mean`, above 0.
        until: the width at which the sequence is to be tight; any choice is valid if made before
            the data are seen.
        alpha: chance that some interval of the sequence misses the truth; one, or as `mean`.
    """
    tiny, most = 1e-12, -torch.as_tensor(alpha, dtype=mean.dtype, device=mean.device).log()
    ends = []
    for end in (tiny, 1 - tiny):
        outer, inner = torch.full_like(mean, end), mean.clamp(tiny, 1 - tiny)
        for _ in range(BISECTIONS):
            middle = (outer + inner) / 2
            inside = _log_evidence(middle, mean, positions, sequences, until) < most
            inner = torch.where(inside, middle, inner)
            outer = torch.where(inside, outer, middle)
        ends.append(outer)
    low, high = ends
    return low.where(low > 2 * tiny, 0.0), high.where(high < 1 - 2 * tiny, 1.0)


def _log_evidence(
    m: Tensor, mean: Tensor, positions: Tensor, sequences: Tensor, until: float
) -> Tensor:
    """Log evidence against m: of the mixture, or what the sequences not drawn yet leave of it."""
    k = (1 + 2 * m * (1 - m) / until) / (4 * until)
    ones, zeros = positions * mean, positions * (1 - mean)
    prior = _log_beta(k * m, k * (1 - m))
    mixed = _log_beta(k * m + ones, k * (1 - m) + zeros) - prior
    mixture = mixed - torch.xlogy(ones, m) - torch.xlogy(zeros, 1 - m)
    drawn = torch.where(m < mean, mean / m, (1 - mean) / (1 - m)).log()
    return mixture.minimum(sequences * drawn)


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)


def sequence_interval(
    sums: RatioSums,
    until: float,
    alpha: float | Tensor = 0.05,
    prior_correlation: float = PRIOR_CORRELATION,
) -> tuple[Tensor, Tensor]:
    """The interval of one look: low and high, float64, each as `sums`.

    It holds at every look at once with probability 1 − alpha, so whatever made a cell stop, also
    another metric's interval. [0, 1] below `FEWEST_SEQUENCES`.

    Args:
        sums: of a metric in [0, 1] over independent sequences in random order.
        until: the width at which the sequence is tight, set before the data are seen.
        alpha: chance that some interval misses the truth: one, or as `sums`.
        prior_correlation: ρ₀ of step 1.
    """
    low, high = mixture_interval(*_effective(sums, prior_correlation), until, alpha)
    enough = sums.sequences >= FEWEST_SEQUENCES
    return low.where(enough, 0.0), high.where(enough, 1.0)


def sequence_p_value(
    first: RatioSums,
    second: RatioSums,
    margin: float | Tensor,
    until: float,
    prior_correlation: float = PRIOR_CORRELATION,
) -> Tensor:
    """Anytime-valid p-values of "the first mean − the second mean ≤ margin": as `first`, in (0, 1].

    The duality of `sequence_interval`: p is the smallest level α at which the intervals of level
    α/2 lie more than `margin` apart, low₁ − high₂ > margin, and 1 if there is none. That is

        p = 2 / max over m of min(M₁(m), M₂(m − margin)),  mean₂ + margin < m < mean₁.

    If the hypothesis is true, P(p ≤ α at any look of either, whatever stopped them) ≤ α, by the
    union bound: the two need not be independent. One-sided; but since both intervals are
    two-sided, all claims about one gap, in both directions and at any margins, are wrong with
    probability α together. So the smaller p of (first, second) and (second, first) at margin 0 is
    a p-value of "the gap is 0", undoubled.

    Args:
        first: sums of a metric in [0, 1].
        second: the same for other sequences.
        margin: above −1 and below 1; one, or as `first`.
        until: of both sequences.
        prior_correlation: ρ₀ of step 1.
    """
    ours, theirs = (_effective(sums, prior_correlation) for sums in (first, second))
    margin = torch.as_tensor(margin, dtype=ours[0].dtype, device=ours[0].device)
    tiny = 1e-12
    near, far = (theirs[0] + margin).clamp(min=tiny), ours[0].minimum(1 - tiny + margin)
    apart = (far > near) & (first.sequences.minimum(second.sequences) >= FEWEST_SEQUENCES)
    most = torch.zeros_like(near)
    for _ in range(BISECTIONS):  # M₁ falls and M₂ rises with m: the best m is where they cross
        m = (near + far) / 2
        falls = _log_evidence(m, *ours, until)
        rises = _log_evidence((m - margin).clamp(tiny, 1 - tiny), *theirs, until)
        most = most.maximum(falls.minimum(rises))
        near, far = m.where(falls > rises, near), far.where(falls > rises, m)
    return (2 * (-most).exp()).clamp(max=1).where(apart, 1.0)


def _effective(sums: RatioSums, prior_correlation: float) -> tuple[Tensor, Tensor, Tensor]:
    """Means, effective positions and effective sequences; 0.5, 1 and 1 if it is too few to tell."""
    known = sums.sequences >= 2
    mean = (sums.a / sums.c).clamp(0, 1)
    positions = sums.c / design_effect(sums, prior_correlation)
    sequences = sums.c**2 / sums.cc
    return mean.where(known, 0.5), positions.where(known, 1.0), sequences.where(known, 1.0)


class RatioSequence:
    """Confidence sequences of the pooled means of many cells.

    Each call of `update` is a look. A cell that has stopped is left out of later updates and keeps
    its interval. Each cell's sequence holds with probability 1 − alpha by itself, not all at once.

    Assumes that sequences come in random order, independent of what is seen; that the metric lies
    in [0, 1]; and that what is rare among sequences is not both ruinous and much longer than the
    others (see docs/confidence.md).

    Args:
        cells: how many.
        until: the full width of the interval (high − low) that is aimed at.
        alpha: chance that an interval misses the truth at any look.
        prior_correlation: correlation within sequences to assume until disagreement is seen.
        device: where the sums are kept.

    Raises:
        AnamorphError: if an argument lies outside its range.

    Source: see the module.
    """

    def __init__(
        self,
        cells: int,
        until: float,
        alpha: float = 0.05,
        prior_correlation: float = PRIOR_CORRELATION,
        device: torch.device | str = "cpu",
    ) -> None:
        require("The number of cells to follow", cells, least=1)
        require("The width to stop at", until, above=0, most=1)
        require("alpha", alpha, above=0, most=0.5)
        require("The prior correlation", prior_correlation, above=0, most=1)
        self.until = until
        self.alpha = alpha
        self.prior_correlation = prior_correlation
        self.sums = RatioSums(*torch.zeros(6, cells, dtype=torch.float64, device=device))
        self._low = torch.zeros_like(self.sums.a)
        self._high = torch.ones_like(self.sums.a)

    def update(self, numerators: Tensor, counts: Tensor, cells: Tensor | None = None) -> None:
        """Add new sequences to some cells, and look.

        Args:
            numerators: [cells, new] sums of a metric in [0, 1] over each sequence's positions.
            counts: [new] scored positions of each sequence, at least 1; [cells, new] where cells
                see sequences of their own.
            cells: which cells the rows are, as indices without repeats; all of them by default.

        Raises:
            AnamorphError: if shapes do not fit, or a numerator lies outside [0, count].
        """
        where = self.sums.a.device
        numerators, counts = numerators.to(where).double(), counts.to(where).double()
        every = torch.arange(len(self.sums.a), device=where)
        rows = every if cells is None else every[cells.to(where)]
        self._require(numerators, counts, rows)
        for total, more in zip(self.sums, RatioSums.of(numerators, counts), strict=True):
            total[rows] += more
        sums = RatioSums(*(total[rows] for total in self.sums))
        low, high = sequence_interval(sums, self.until, self.alpha, self.prior_correlation)
        self._low[rows], self._high[rows] = low, high

    def interval(self) -> tuple[Tensor, Tensor]:
        """Low and high, each [cells]: [0, 1] until a cell has `FEWEST_SEQUENCES`."""
        return self._low.clone(), self._high.clone()

    def width(self) -> Tensor:
        """High − low: [cells]. A cell may stop once this is at most `until`."""
        return self._high - self._low

    def _require(self, numerators: Tensor, counts: Tensor, rows: Tensor) -> None:
        expected = (len(rows), counts.shape[-1] if counts.dim() else 0)
        fits = numerators.shape == expected and counts.shape in (expected, expected[1:])
        if not fits or not counts.numel():
            raise AnamorphError(
                f"The numerators are {list(numerators.shape)} and the counts "
                f"{list(counts.shape)}; expected [{len(rows)}, new] and [new], with at least one "
                "new sequence. Give a row a cell, or name the cells."
            )
        if len(set(rows.tolist())) != len(rows):
            raise AnamorphError(
                f"The cells {rows.tolist()[:8]} name one twice; expected each at most once. "
                "Give all new sequences of a cell in one row."
            )
        if not bool((counts >= 1).all()):
            raise AnamorphError(
                f"The smallest count is {counts.min().item():g}; expected at least 1. Leave out "
                "sequences that have no scored positions."
            )
        # Sums of float32 values may pass their bounds by rounding.
        counts = counts.expand_as(numerators)
        outside = ~((numerators >= -1e-6 * counts) & (numerators <= (1 + 1e-6) * counts))
        if bool(outside.any()):
            row, column = outside.nonzero()[0].tolist()
            raise AnamorphError(
                f"A numerator is {numerators[row, column].item():g} over "
                f"{counts[row, column].item():g} positions; expected it between 0 and the count. "
                "Only means of metrics in [0, 1] can be followed, such as same_prediction."
            )
