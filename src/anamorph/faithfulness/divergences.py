"""How far a proxy is from the model at one position: pure functions of tensors.

All of them broadcast over leading axes: the model's `[1, batch, query, vocabulary]` goes with the
proxies' `[copy, batch, query, vocabulary]`. Divergences are in bits; equal inputs give exactly 0.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anamorph.errors import AnamorphError

NATS = math.log(2)  # in a bit

TIE = 1e-4
"""Relative difference up to which two attention probabilities count as equal: above the rounding of
float32 attention, below what a researcher would call a difference."""


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence in bits, in [0, 1].

    Args:
        p: [..., outcome] probabilities; zeros are allowed.
        q: [..., outcome] probabilities, broadcast against `p`.

    Returns:
        [...] float32; exactly 0 where `p` and `q` are equal, NaN where one holds a NaN.

    Source: Lin (1991), "Divergence measures based on the Shannon entropy", with equal weights.
    """
    p, q = p.float(), q.float()
    middle = (p + q).mul_(0.5)
    # The ratios p/m and q/m sum to 2, so one division is enough for both, and equal probabilities
    # give log 1 = 0 exactly. Where both are 0 the ratio does not matter; the clamp keeps 0·log 0 at
    # 0.
    ratio = p.div(middle).nan_to_num_(1.0).clamp_(1e-37, 2 - 2**-23)
    nats = ratio.log().mul_(p)
    nats.addcmul_(ratio.neg_().add_(2).log_(), q)
    return nats.sum(-1).mul_(0.5 / NATS).clamp_(0, 1)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Kullback-Leibler divergence KL(p ‖ q) in bits.

    Args:
        log_p: [..., outcome] natural log-probabilities of the model; -inf is allowed.
        log_q: [..., outcome] those of the proxy, broadcast against `log_p`.

    Returns:
        [...] float32, at least 0; infinite where `q` rules out what `p` allows.
    """
    log_p, log_q = log_p.float(), log_q.float()
    p = log_p.exp()
    nats = (log_p - log_q).mul_(p)
    nats = nats.masked_fill_(p == 0, 0.0)  # 0·(±inf) and 0·(inf - inf) count as 0
    return nats.sum(-1).mul_(1 / NATS).clamp_(min=0)


def cross_entropy(log_p: Tensor, targets: Tensor) -> Tensor:
    """-log2 p(target) in bits: [..., vocabulary] and [...] token ids give [...]."""
    return picked(log_p, targets).float().mul(-1 / NATS)


def picked(values: Tensor, tokens: Tensor) -> Tensor:
    """[..., vocabulary] and [...] token ids, broadcast, to the values [...] of these tokens."""
    return values.gather(-1, tokens.expand(values.shape[:-1])[..., None])[..., 0]


@dataclass(frozen=True)
class Candidates:
    """The tokens among which a prediction is chosen.

    Attributes:
        tokens: [candidate] ids in order.
        vocabulary: how many tokens there are.
        run: their slice of the vocabulary if they are consecutive, as they mostly are. A slice is a
            view; picking them is a slow copy.
        chosen: [vocabulary] whether a token is one of them; None if they are consecutive.
    """

    tokens: Tensor
    vocabulary: int
    run: slice | None
    chosen: Tensor | None

    @classmethod
    def of(
        cls, tokens: NDArray[np.int64], vocabulary: int, device: torch.device | str = "cpu"
    ) -> "Candidates":
        """Of [candidate] token ids in any order, for outputs on a device.

        Raises:
            AnamorphError: if there are no candidates or one lies outside the vocabulary.
        """
        tokens = np.sort(tokens)
        if not len(tokens) or tokens[0] < 0 or tokens[-1] >= vocabulary:
            raise AnamorphError(
                f"The candidates {tokens.tolist()[:8]} do not fit a vocabulary of {vocabulary} "
                "tokens; give at least one token id and none outside the vocabulary."
            )
        low, high = int(tokens[0]), int(tokens[-1])
        ids = torch.from_numpy(tokens).to(device)
        if high - low + 1 == len(tokens):
            return cls(ids, vocabulary, slice(low, high + 1), None)
        chosen = torch.from_numpy(np.isin(np.arange(vocabulary), tokens)).to(device)
        return cls(ids, vocabulary, None, chosen)

    def best(self, logits: Tensor) -> Tensor:
        """The likeliest, the lowest id among ties: [..., vocabulary] to [...] ids."""
        return self.tokens[self._of(logits).argmax(-1)]

    def highest(self, logits: Tensor) -> Tensor:
        """The logit of the likeliest: [..., vocabulary] to [...]."""
        return self._of(logits).amax(-1)

    def hold(self, tokens: Tensor) -> Tensor:
        """Which of some [...] ids are candidates."""
        if self.chosen is not None:
            return self.chosen[tokens]
        assert self.run is not None
        inside: Tensor = (tokens >= self.run.start) & (tokens < self.run.stop)
        return inside

    def _of(self, logits: Tensor) -> Tensor:
        return logits[..., self.run if self.run else self.tokens]


def attention_jsd(model: Tensor, proxy: Tensor) -> Tensor:
    """Jensen-Shannon divergence of attention patterns in bits, averaged over heads.

    Args:
        model: [..., head, query, key] probabilities; masked keys are 0.
        proxy: the same of the proxies, broadcast against `model`.

    Returns:
        [..., query] in [0, 1].
    """
    return jensen_shannon(model, proxy).mean(-2)


def most_attended(pattern: Tensor) -> Tensor:
    """[..., key] 1.0 at the keys of the largest probability, else 0.0.

    Keys in one cluster tie but for rounding, which must not decide. So all keys within `TIE` of the
    largest probability count as most attended.
    """
    # Numbers, as sums of Booleans are several times slower on a CPU.
    return torch.ge(
        pattern, pattern.amax(-1, keepdim=True).mul_(1 - TIE), out=torch.empty_like(pattern)
    )


def overlap(model: Tensor, proxy: Tensor) -> Tensor:
    """How far model and proxy agree on the keys that heads attend to most, averaged over heads.

    Without ties this is the share of heads with the same arg-max; with ties, how much the two sets
    overlap (intersection over union).

    Args:
        model: [..., head, query, key] from `most_attended`.
        proxy: the same of the proxies, broadcast against `model`.

    Returns:
        [..., query] in [0, 1].
    """
    both = (model * proxy).sum(-1)
    return both.div_(model.sum(-1) + proxy.sum(-1) - both).mean(-2)
