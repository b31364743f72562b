"""The metrics of many proxies in plain formulas of torch, in few passes over the vocabulary.

The formulas are those of `divergences`, arranged so that the model's side is computed once for all
proxies, and a proxy costs one exponential and one logarithm for each outcome. With `d` the
log-ratio of proxy to model and `r = exp d`, KL(model ‖ proxy) is the mean of `-d` under the model,
and twice the Jensen-Shannon divergence is the mean of `r d - (1 + r) log((1 + r) / 2)`. Equal
logits give `d = 0` to the bit, and so exactly 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from anamorph.faithfulness.divergences import (
    NATS,
    Candidates,
    attention_jsd,
    cross_entropy,
    jensen_shannon,
    kl,
    most_attended,
    overlap,
    picked,
)
from anamorph.faithfulness.model_output import ATTENTION_METRICS, OUTPUT_METRICS, ModelOutput

# Elements in a block of intermediate values: on a CPU few enough to stay in a core's cache, and so
# many that the overhead of a torch call does not count.
BLOCK = 2**19
BLOCK_ELSEWHERE = 2**26

# With log-probabilities of the model above the first, and sums of the proxy's in the range of the
# second, nothing underflows. What lies outside is measured in the slower way.
LOWEST = -80.0
SUMS = 1e-20, 1e30


@dataclass(frozen=True)
class PlainOutput(ModelOutput):
    """What the model predicts at some positions, in float32; added metrics are given this.

    Attributes:
        p: [position, vocabulary] its probabilities.
        total: [position, 1], the sum of `p` as rounding has it.
        lowest: the lowest log-probability.
    """

    p: Tensor
    total: Tensor
    lowest: float

    @classmethod
    def of(cls, logits: Tensor, targets: Tensor, candidates: Candidates) -> Self:
        """From [position, vocabulary] logits and [position] token ids."""
        logits = logits.float()
        log_p = logits.log_softmax(-1)
        entropy = cross_entropy(log_p, targets)
        lowest = float(log_p.min()) if log_p.numel() else 0.0
        p = log_p.exp_()
        total = p.sum(-1, keepdim=True)  # as `_dot` adds up, so that equal logits give 1
        said = candidates.best(logits)
        return cls(logits, targets, said, entropy, candidates, p, total, lowest)

    def compare(self, logits: Tensor) -> Tensor:
        """`OUTPUT_METRICS` of the proxies' logits, as [metric, copy, position]."""
        copies, positions, vocabulary = logits.shape
        shape = len(OUTPUT_METRICS), copies, positions
        found = logits.new_empty(shape, dtype=torch.float32)
        # fresh memory for every block would cost as much as the arithmetic
        numbers = min(logits.numel(), max(_block(logits.device), vocabulary))
        space = self.p.new_empty(3, numbers)
        for rows in blocks(positions, vocabulary, logits.device):
            here = self[rows]
            for some in blocks(copies, here.logits.numel(), logits.device):
                of_proxies = logits[some, rows].float()
                values = (
                    *_predictions(here, of_proxies),
                    *_divergences(here, of_proxies, space[:, : of_proxies.numel()]),
                )
                for column, value in zip(found, values, strict=True):
                    column[some, rows] = value
        return found

    @staticmethod
    def compare_attention(model: Tensor, proxies: Tensor) -> Tensor:
        """`ATTENTION_METRICS` of probabilities, as [metric, 1 or copy, position]."""
        heads, positions, keys = model.shape
        shape = len(ATTENTION_METRICS), len(proxies), positions
        found = model.new_empty(shape, dtype=torch.float32)
        for rows in blocks(positions, heads * keys, model.device):
            p = model[:, rows].float()
            most = most_attended(p)
            for copy, proxy in enumerate(proxies):
                q = proxy[:, rows].float()
                found[0, copy, rows] = attention_jsd(p, q)
                found[1, copy, rows] = overlap(most, most_attended(q))
        return found


def blocks(items: int, size: int, device: torch.device) -> Iterator[slice]:
    """Slices that cut `items` things of `size` elements each into parts of about a block."""
    step = max(1, _block(device) // max(1, size))
    return (slice(start, start + step) for start in range(0, items, step))


def _block(device: torch.device) -> int:
    return BLOCK if device.type == "cpu" else BLOCK_ELSEWHERE


def _predictions(model: PlainOutput, logits: Tensor) -> tuple[Tensor, Tensor]:
    """[copy, position] whether a proxy predicts what the model does, and whether the target."""
    highest = model.candidates.highest(logits)
    same = picked(logits, model.said) == highest
    right = (picked(logits, model.targets) == highest) & model.candidates.hold(model.targets)
    return same, torch.where(same, model.said == model.targets, right)


def _divergences(
    model: PlainOutput, logits: Tensor, space: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """[copy, position] output_jsd, output_kl and proxy_cross_entropy, all in bits.

    `space`, [3, copy · position · vocabulary], is written over.
    """
    space = space.view(3, *logits.shape)
    d = torch.sub(logits, model.logits, out=space[0])
    r = torch.exp(d, out=space[1])
    total = _dot(model.p, r, space[2])[..., None].div_(model.total)  # 1 where all is equal
    smallest, largest = total.aminmax()
    if not (model.lowest > LOWEST and smallest > SUMS[0] and largest < SUMS[1]):  # or a NaN
        return _careful_divergences(model, logits)
    d.sub_(total.log())
    bits = picked(d, model.targets).div_(-NATS).add_(model.cross_entropy)
    kl_ = _dot(model.p, d, space[2]).div_(-NATS).clamp_(min=0)
    d.mul_(r.div_(total))
    half = r.add_(1).mul_(0.5)
    d.sub_(torch.log(half, out=space[2]).mul_(half), alpha=2)
    jsd = _dot(model.p, d, space[2]).mul_(0.5 / NATS).clamp_(0, 1)
    undone = jsd.isnan()
    if bool(undone.any()):  # the proxy rules out a token, 0 · -inf; or there is a NaN before
        jsd = torch.where(undone, _careful_divergences(model, logits)[0], jsd)
    return jsd, kl_, bits


def _careful_divergences(model: PlainOutput, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_p, log_q = model.logits.log_softmax(-1), logits.log_softmax(-1)
    return (
        jensen_shannon(log_p.exp(), log_q.exp()),
        kl(log_p, log_q),
        cross_entropy(log_q, model.targets),
    )


def _dot(a: Tensor, b: Tensor, space: Tensor) -> Tensor:
    """[..., vocabulary] twice to [...]; `space`, of the larger shape, is written over."""
    return torch.mul(a, b, out=space).sum(-1)
