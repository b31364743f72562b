"""Intervals of ratios and of their differences, for data in which only sequences are independent.

A pooled mean is p̂ = Σa / Σc: sequence i adds aᵢ (the sum of a metric) over cᵢ scored positions.
Sequences are independent draws; the positions of one are not. Resampling sequences fails where it
matters most here: near agreement 1 most resamples hold no disagreement at all. Four steps are taken
instead:

1. *The standard error* of p̂ by linearisation, each sequence's part enlarged by its leverage
   hᵢ = cᵢ/Σc, as in the jackknife:  e² = Σ (aᵢ − p̂cᵢ)² / (1 − hᵢ)² / (Σc)².
   It has n* − 1 degrees of freedom. n* = (Σc)²/Σc² is the number of sequences of equal length that
   weigh as much (Kish 1965, "Survey Sampling").

2. *Shares*, the metrics that are 0 or 1 at a position: the binomial interval of Clopper and Pearson
   (1934) on an effective number of positions (Korn and Graubard 1998, "Confidence intervals for
   proportions with small expected number of positive counts estimated from survey data"),

       N = Σc / d · (z/t)²,   d = (e²(Σc)² + b·d₀) / (p̂(1−p̂)·Σc + b),   d₀ = 1 + ρ₀(c* − 1).

   d is the design effect: the factor by which dependence within sequences raises the variance over
   Bernoulli's. At perfect agreement it is 0/0, so it is shrunk towards d₀, as if the correlation
   within sequences were known to be ρ₀ from b positions' worth of disagreement; c* = Σc²/Σc is the
   length of the sequence that a random position lies in. z/t, the normal quantile over Student's,
   allows for d being an estimate. So an interval keeps a width at perfect agreement, and is
   lopsided like the binomial.

3. *Other means*, of divergences and cross entropies, which are not negative: p̂·exp(±t·e/p̂),
   Student's interval on the scale of the logarithm. e² counts one sequence more, which deviates as
   much as the worst of those seen. Kinds of sequences that were not seen are not allowed for.

4. *Differences*: the distances of the ends from the two means are added in squares, less twice
   their correlation if both are of the same sequences (Zou and Donner 2008, "Construction of
   confidence limits about effect measures"; Newcombe 1998 for shares). The p-value is the error
   rate at which the interval's end would lie on the margin. So p-values and intervals agree, and a
   p-value can be as small as the data make it.

Over several models, all audited on the same sequences, a mean has two sources of error: the
sequences (steps 1 to 3 on the means over models of each sequence's sums), and the models, by
Student's t over their values. Both distances are added in squares. The sampling error of single
models counts in both, so the interval is on the safe side.

How well they cover, and how wide they are: `docs/intervals.md`, `python benchmarks/coverage.py`.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

with warnings.catch_warnings():  # it adds a filter
    from scipy.special import betaincinv, ndtr, ndtri, stdtrit

Floats = NDArray[np.float64]

LEVEL = 0.95  # of all intervals that are printed
PRIOR_CORRELATION = 0.2  # ρ₀: within sequences, until disagreement shows what it is
PRIOR_WORTH = 3.0  # b: positions' worth of disagreement that this counts for
BISECTIONS = 24  # p-values are found to three digits and more
MOST_Z = 37.0  # no p-value is below 10⁻²⁹⁹
MOST_T = 1e100  # Student's quantile where SciPy gives none


class Ends(NamedTuple):
    """Lower and upper ends, each [...]."""

    low: Floats
    high: Floats


@dataclass(frozen=True)
class Means:
    """Ratios Σa / Σc, and what their intervals are made from: arrays of one shape [...].

    Attributes:
        value: the ratio; NaN where there is no position.
        error: its standard error over sequences.
        positions: Σc.
        length: c*, scored positions of the sequence that a random position lies in.
        freedom: n* − 1.
        share: whether it is a share.
        spread: standard error over models; 0 for one model.
        models: how many.
    """

    value: Floats
    error: Floats
    positions: Floats
    length: Floats
    freedom: Floats
    share: NDArray[np.bool_]
    spread: Floats
    models: NDArray[np.int64]

    @classmethod
    def of(cls, sums: Floats, counts: Floats, share: NDArray[np.bool_]) -> Self:
        """Of one model.

        Args:
            sums: [..., sequences] of a metric.
            counts: [..., sequences] scored positions, broadcast against `sums`; 0 where a sequence
                was not seen.
            share: [...] or broadcast against it, whether the metric is 0 or 1 at a position.
        """
        return cls._made(sums, counts, share, lambda numbers: numbers)

    @classmethod
    def of_every_model(cls, sums: Floats, counts: Floats, share: NDArray[np.bool_]) -> Self:
        """Of each model, and, if there are several, of the mean over models behind them.

        Args:
            sums: [proxy, model, ..., sequences], of the same sequences for every model.
            counts: broadcast against `sums`.
            share: as for `of`.

        Returns:
            means of shape [proxy, model + 1, ...]; [proxy, 1, ...] of a single model.
        """
        means = cls._made(sums, counts, share, with_mean)
        models = np.ones_like(means.models)
        models[:, -1] = sums.shape[1]
        return replace(means, spread=_spread(means.value), models=models)

    @classmethod
    def _made(
        cls,
        sums: Floats,
        counts: Floats,
        share: NDArray[np.bool_],
        over_models: Callable[[Floats], Floats],
    ) -> Self:
        """As `of`; `over_models` puts the means over models behind what is computed of each."""
        counts = np.broadcast_to(counts, np.broadcast_shapes(sums.shape, counts.shape))
        total = counts.sum(-1)
        some = np.maximum(total, 1)
        squares = (counts * counts).sum(-1)
        length = squares / some
        value = over_models(np.where(total > 0, sums.sum(-1) / some, np.nan))
        error = np.sqrt((over_models(residuals(sums, counts)) ** 2).sum(-1))
        worst = over_models(_worst(sums, counts) * length / some)
        return cls(
            value=value,
            error=np.where(share, error, np.hypot(error, worst)),
            positions=over_models(total.astype(np.float64)),
            length=over_models(length),
            freedom=over_models(total**2 / np.maximum(squares, 1) - 1),
            share=np.broadcast_to(share, value.shape),
            spread=np.zeros_like(value),
            models=np.ones(value.shape, np.int64),
        )

    def __getitem__(self, key: Any) -> Self:
        return type(self)(*(values[key] for values in vars(self).values()))

    def of_sequences(self, z: Floats) -> Ends:
        """The ends of an interval that allows for the error over sequences alone.

        Args:
            z: the normal quantile of the error rate, such as 1.96 for 5 %; broadcast.
        """
        z = np.broadcast_to(z, self.value.shape)
        t = student(z, self.freedom)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            factor = np.exp(np.where(self.value > 0, t * self.error / self.value, 0))
            found = Ends(np.array(self.value / factor), np.array(self.value * factor))
        some = self.share
        for end, of_shares in zip(found, self[some]._as_share(z[some], t[some]), strict=True):
            end[some] = of_shares
        return found

    def _as_share(self, z: Floats, t: Floats) -> Ends:
        """The ends of step 2."""
        p = np.clip(self.value, 0, 1)
        prior = PRIOR_WORTH * (1 + PRIOR_CORRELATION * (self.length - 1))
        inflated = (self.error * self.positions) ** 2 + prior
        effect = inflated / (p * (1 - p) * self.positions + PRIOR_WORTH)
        number = np.maximum(self.positions / effect * (z / t) ** 2, 1e-9)
        tail = ndtr(-z)
        right, wrong = p * number, (1 - p) * number
        with np.errstate(invalid="ignore"):
            low = np.where(right > 0, betaincinv(np.maximum(right, 1e-12), wrong + 1, tail), 0.0)
            high = np.where(
                wrong > 0, 1 - betaincinv(np.maximum(wrong, 1e-12), right + 1, tail), 1.0
            )
        return Ends(low, high)

    def distances(self, z: Floats) -> Ends:
        """How far the ends lie below and above the value, for the error over sequences alone."""
        low, high = self.of_sequences(z)
        return Ends(np.maximum(self.value - low, 0), np.maximum(high - self.value, 0))

    def ends(self, level: float = LEVEL) -> Ends:
        """The interval; NaN where there is none, as for fewer than two sequences."""
        z = np.full_like(self.value, quantile(level))
        below, above = self.distances(z)
        models = _of_models(self.spread, self.models, z)
        low = np.maximum(self.value - np.hypot(below, models), 0)
        high = np.minimum(self.value + np.hypot(above, models), np.where(self.share, 1, np.inf))
        return _known(low, high, self.freedom)


@dataclass(frozen=True)
class Differences:
    """Means minus other means, or differences minus others; see step 4 of the module.

    Attributes:
        first: the means, or differences.
        second: what is taken from them.
        spread: standard error of the difference over models; 0 for one model.
        correlation: of the two errors over sequences; 0 for independent splits.
    """

    first: "Means | Differences"
    second: "Means | Differences"
    spread: Floats
    correlation: Floats | float = 0.0

    @classmethod
    def of_every_model(
        cls,
        first: "Means | Differences",
        second: "Means | Differences",
        correlation: Floats | float = 0.0,
    ) -> "Differences":
        """Of means as `Means.of_every_model` gives them, or of differences of such means."""
        return cls(first, second, _spread(first.value - second.value), correlation)

    @property
    def value(self) -> Floats:
        """[...] the differences."""
        return self.first.value - self.second.value

    @property
    def models(self) -> NDArray[np.int64]:
        """[...] how many models each is over."""
        return self.first.models

    @property
    def freedom(self) -> Floats:
        """[...] of Student's t over sequences, the less of both."""
        return np.minimum(self.first.freedom, self.second.freedom)

    def ends(self, z: Floats | float | None = None) -> Ends:
        """The interval; NaN where there is none.

        Args:
            z: the normal quantile of the error rate, broadcast; that of a 95 % interval by default.
        """
        z = np.broadcast_to(quantile(LEVEL) if z is None else z, self.value.shape)
        below, above = self._distances_over_all(z)
        return _known(self.value - below, self.value + above, self.freedom)

    def distances(self, z: Floats) -> Ends:
        """How far the ends lie below and above the value, for the error over sequences alone."""
        return self._distances(z, 0.0)

    def _distances(self, z: Floats, models: Floats | float) -> Ends:
        first, second = self.first.distances(z), self.second.distances(z)
        with np.errstate(over="ignore", invalid="ignore"):  # of two sequences ends may be infinite
            below, above = (
                np.sqrt(np.maximum(a * a + b * b - 2 * self.correlation * a * b, 0) + models**2)
                for a, b in ((first.low, second.high), (first.high, second.low))
            )
        return Ends(below, above)

    def _distances_over_all(self, z: Floats) -> Ends:
        """For the error over sequences and models."""
        return self._distances(z, _of_models(self.spread, self.models, z))

    def p_value(self, margin: float = 0.0) -> Floats:
        """One-sided p-value of "the difference is at most `margin`"; NaN where there is none.

        It is the error rate, on its side, of the interval whose lower end lies on the margin.
        """
        return self._known_p(ndtr(-self._score(margin)))

    def p_value_of_none(self) -> Floats:
        """Two-sided p-value of "the difference is 0"; NaN where there is none."""
        return self._known_p(2 * ndtr(-np.abs(self._score(0.0))))

    def _known_p(self, p: Floats) -> Floats:
        return np.where(np.isfinite(self.value) & (self.freedom > 0), p, np.nan)

    def _score(self, margin: float) -> Floats:
        """The normal quantile at which an end of the interval lies on the margin.

        It is negative if that end is the upper one.
        """
        apart = self.value - margin
        low, high = np.zeros_like(apart), np.full_like(apart, MOST_Z)
        for _ in range(BISECTIONS):
            z = (low + high) / 2
            below, above = self._distances_over_all(np.maximum(z, 1e-6))
            beyond = np.where(apart >= 0, below, above) < np.abs(apart)
            low, high = np.where(beyond, z, low), np.where(beyond, high, z)
        return np.where(apart >= 0, low, -low)


def quantile(level: float) -> float:
    """The normal quantile of a two-sided interval: 1.96 for 0.95."""
    return float(ndtri((1 + level) / 2))


def student(z: Floats, freedom: Floats) -> Floats:
    """Student's quantile at the error rate of the normal quantile `z`."""
    found: Floats = -stdtrit(np.maximum(freedom, 1e-3), ndtr(-z))
    return np.where(found > 0, np.maximum(found, z), MOST_T)  # far out SciPy gives -inf


def correlation(first: Floats, second: Floats) -> Floats:
    """[...] correlation of two means' errors, from the residuals [..., sequences] of both."""
    both = (first * second).sum(-1)
    size = np.sqrt((first**2).sum(-1) * (second**2).sum(-1))
    found: Floats = np.divide(both, size, out=np.zeros_like(both), where=size > 0)
    return found


def beside(values: NDArray[Any], over_all: NDArray[Any]) -> NDArray[Any]:
    """[proxy, model, ...], and, if there are several models, what holds over all behind them."""
    return np.concatenate([values, over_all], axis=1) if values.shape[1] > 1 else values


def with_mean(values: Floats) -> Floats:
    """[proxy, model, ...], and, if there are several models, their mean behind them."""
    return values if values.shape[1] == 1 else beside(values, values.mean(1, keepdims=True))


def _spread(values: Floats) -> Floats:
    """Standard errors over models of values that `with_mean` gave: 0 of each model, then theirs."""
    found, each = np.zeros_like(values), values[:, :-1]
    if each.shape[1]:
        found[:, -1] = each.std(axis=1, ddof=1) / np.sqrt(each.shape[1])
    return found


def residuals(sums: Floats, counts: Floats) -> Floats:
    """[..., sequences] what each adds to the error of Σ sums / Σ counts, see step 1."""
    total = np.maximum(counts.sum(-1, keepdims=True), 1)
    part = counts / total
    residual = sums / total - sums.sum(-1, keepdims=True) / total * part
    found: Floats = np.divide(residual, 1 - part, out=np.zeros_like(residual), where=part < 1)
    return found


def _worst(sums: Floats, counts: Floats) -> Floats:
    """[...] how far the mean of a single sequence lies from Σ sums / Σ counts at most."""
    value = sums.sum(-1, keepdims=True) / np.maximum(counts.sum(-1, keepdims=True), 1)
    rates = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    found: Floats = np.where(counts > 0, np.abs(rates - value), 0).max(-1)
    return found


def _of_models(spread: Floats, models: NDArray[np.int64], z: Floats) -> Floats:
    apart, count = np.broadcast_to(spread, z.shape), np.broadcast_to(models, z.shape)
    found, several = np.zeros_like(z), count > 1
    freedom = count[several].astype(np.float64) - 1
    found[several] = apart[several] * student(z[several], freedom)
    return found


def _known(low: Floats, high: Floats, freedom: Floats) -> Ends:
    known = np.isfinite(low) & np.isfinite(high) & (freedom > 0)
    return Ends(np.where(known, low, np.nan), np.where(known, high, np.nan))
