"""Confidence sequences: intervals of a pooled mean that hold at every look, so one may stop early.

A pooled mean is p = E[a] / E[c]: a sequence adds a (the sum of a metric in [0, 1], such as its
agreeing positions) over c scored positions. Sequences are independent draws; the positions of one
are not. An interval that is made for one sample size fails if an audit looks after every batch and
stops when it likes what it sees. A confidence sequence holds at all looks at once:

    P(low_t ≤ p ≤ high_t for every t) ≥ 1 − alpha.

The method is a beta-binomial mixture on an effective number of positions:

1. *Effective positions* (Rao and Scott 1992, "A simple method for the analysis of clustered binary
   data"). With p̂ = Σa / Σc, the n sequences are worth N = Σc / d independent positions. d is the
   design effect: the factor by which dependence within sequences raises the variance over
   Bernoulli's. A plain estimate of it is 0/0 at perfect agreement, so it is shrunk towards d₀:

       d  = (n/(n−1) · Σ(a − p̂c)² + b·d₀) / (p̂(1−p̂) · Σc + b)
       d₀ = 1 + ρ₀(c* − 1),   b = c*/2,   c* = Σc²/Σc,

   as if the correlation within sequences were known to be ρ₀ from half a sequence's worth of
   disagreement. With ρ₀ = 0.5 a sequence counts as two positions at most until disagreement shows
   that it may count for more.

2. *The mixture* (Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon 2021, "Time-uniform,
   nonparametric, nonasymptotic confidence sequences", the two-sided beta-binomial mixture). The
   interval holds every m that a Beta(km, k(1−m)) mixture of alternatives does not rule out:

       M(m) = B(km + Np̂, k(1−m) + N(1−p̂)) / (B(km, k(1−m)) · m^(Np̂) · (1−m)^(N(1−p̂))) < 1/alpha.

   With k = (1 + 2m(1−m)/w) / 4w it is tightest about when its width reaches w, at any m.

3. *What has not been drawn yet*. If a share s of all sequences is of some kind, n sequences hold
   none of it with probability (1 − s)ⁿ, whatever the others show. So the evidence against an m
   below p̂ is at most (p̂/m)ⁿ, as a share 1 − m/p̂ that fails whole may have been missed; and that
   against an m above p̂ is at most ((1−p̂)/(1−m))ⁿ. Here n = (Σc)²/Σc², the number of sequences of
   equal length that weigh as much. Stopping takes at least ln(1/alpha)/w of them: 150 for w = 0.02.

Intervals of earlier looks are not intersected: if a new kind of sequence turns up, the interval
widens again, and an early mistake is mended. So the interval that made a cell stop holds more often
than all its looks together, and it depends on the sums at the stop alone.

It is assumed that sequences come in random order, whatever is seen, and that no rare kind of
sequence both fails and is much longer than the others. Each cell's sequence of intervals holds by
itself; among many cells some will miss.

For N independent values in [0, 1], step 2 is exact (Ville's inequality). So is step 3 by itself,
as a first failure ends (1 − s)ⁿ. As d is an estimate, the whole is asymptotic, in the sense of
Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas (2024), "Time-uniform central limit theory and
asymptotic confidence sequences": for many sequences M approaches their Gaussian mixture. Unlike
theirs, the interval keeps a width at perfect agreement, and is lopsided like the binomial. It is
about the population of sequences: that a split is finite does not shorten it.

The lowest coverage found by search, at the stop, is 0.93 for alpha = 0.05, where 1 or 2 % of the
sequences fail whole; it is less if these are by far the longest. Figures, and what else was tried:
`docs/confidence.md`; reproduce them with `python benchmarks/sequences.py`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

FEWEST_SEQUENCES = 16
"""A cell that has seen fewer sequences has the interval [0, 1]."""

PRIOR_CORRELATION = 0.5
"""ρ₀: the correlation within sequences that is assumed until there is disagreement to see."""

BISECTIONS = 32  # ends of intervals are found to within 2^-32, outwards


class RatioSums(NamedTuple):
    """What a ratio and its interval are made from: float64 tensors of one shape, such as [cells].

    Attributes:
        sequences: how many have positions that count.
        a: Σ a over sequences, the numerator.
        c: Σ c, the denominator.
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

        A sequence of count 0 has no position that counts, or was not seen: it changes nothing.
        """
        a, c = numerators, counts.expand_as(numerators)
        terms = ((c > 0).double(), a, c, a * a, a * c, c * c)
        return cls(*(x.sum(dim=-1) for x in terms))


def design_effect(sums: RatioSums, prior_correlation: float = PRIOR_CORRELATION) -> Tensor:
    """[cells] the factor by which dependence within sequences raises the variance of a pooled mean.

    It is 1 for independent Bernoulli positions, the length of the sequences if all positions of one
    are alike, and below 1 for values that vary less than Bernoulli's. See step 1 of the module.

    Args:
        sums: of at least two sequences a cell.
        prior_correlation: ρ₀, towards which it is shrunk.
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
    """The confidence sequence at one look: low and high, each of the shape of `mean`.

    All m against which the evidence is below 1/alpha (steps 2 and 3 of the module). They form an
    interval around `mean`.

    Args:
        mean: float64 in [0, 1].
        positions: N, the effective number of independent positions, above 0; as `mean`.
        sequences: n of step 3, the effective number of sequences, above 0; as `mean`.
        until: w, the width at which the sequence is to be tight; valid is any that is chosen before
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
    """Log evidence against m: that of step 2, or its bound by step 3 if that is less."""
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
    """The interval of one look: low and high, float64, each of the shape of `sums`.

    With probability 1 − alpha it holds at every look at once. So it holds whatever made a cell
    stop, even another metric's interval. It is [0, 1] below `FEWEST_SEQUENCES`.

    Args:
        sums: of a metric in [0, 1] over independent sequences in random order.
        until: as for `mixture_interval`.
        alpha: likewise; one, or as `sums`.
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
    """P-values of "the first mean − the second mean ≤ margin" that hold at every look.

    p is the smallest error rate α at which the `sequence_interval`s of rate α/2 lie more than
    `margin` apart, low₁ − high₂ > margin, and 1 if there is none. That is

        p = 2 / max over m of min(M₁(m), M₂(m − margin)),  mean₂ + margin < m < mean₁.

    If the hypothesis is true, P(p ≤ α at any look of either, whatever stopped them) ≤ α, by the
    union bound: the two need not be independent. The test is one-sided; but since both intervals
    are two-sided, all claims about one gap, in both directions and at any margins, are wrong with
    probability α together. So the smaller p of (first, second) and (second, first) at margin 0 is
    a p-value of "the gap is 0", without doubling.

    Args:
        first: sums of a metric in [0, 1].
        second: the same for other sequences.
        margin: above −1 and below 1; one, or as `first`.
        until: of both sequences.
        prior_correlation: ρ₀ of step 1.

    Returns:
        of the shape of `first`, in (0, 1].
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
    """Means, effective positions and sequences; 0.5, 1 and 1 for fewer than two sequences."""
    known = sums.sequences >= 2
    mean = (sums.a / sums.c).clamp(0, 1)
    positions = sums.c / design_effect(sums, prior_correlation)
    sequences = sums.c**2 / sums.cc
    return mean.where(known, 0.5), positions.where(known, 1.0), sequences.where(known, 1.0)
