"""All metrics of many proxies at many positions, in few passes over the vocabulary.

The formulas are those of `divergences`, arranged so that the model's side is computed once for all
proxies, and a proxy costs one exponential and one logarithm for each outcome. With `d` the
log-ratio of proxy to model and `r = exp d`, KL(model ‖ proxy) is the mean of `-d` under the model,
and twice the Jensen-Shannon divergence is the mean of `r d - (1 + r) log((1 + r) / 2)`. Equal
logits give `d = 0` to the bit, and so exactly 0.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from anamorph.errors import AnamorphError
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
from anamorph.faithfulness.metric import Metric
from anamorph.faithfulness.metrics import all_metrics, metric_names

ROUNDING = 1e-6  # by so much an added metric may lie outside its bounds

# Elements in a block of intermediate values: on a CPU few enough to stay in a core's cache, and so
# many that the overhead of a torch call does not count.
BLOCK = 2**19
BLOCK_ELSEWHERE = 2**26

# With log-probabilities of the model above the first, and sums of the proxy's in the range of the
# second, nothing underflows. What lies outside is measured in the slower way.
LOWEST = -80.0
SUMS = 1e-20, 1e30


@dataclass(frozen=True)
class ModelOutput:
    """What the model predicts at some positions.

    Attributes:
        logits: [position, vocabulary] float32.
        p: its probabilities, likewise.
        total: [position, 1], the sum of `p` as rounding has it.
        lowest: the lowest log-probability.
        targets: [position] token ids.
        said: [position] its prediction: the likeliest candidate, the lowest id among ties.
        cross_entropy: [position] bits.
        candidates: among which predictions are chosen.
    """

    logits: Tensor
    p: Tensor
    total: Tensor
    lowest: float
    targets: Tensor
    said: Tensor
    cross_entropy: Tensor
    candidates: Candidates

    @classmethod
    def of(cls, logits: Tensor, targets: Tensor, candidates: Tensor) -> "ModelOutput":
        """From [position, vocabulary] logits, [position] and [candidate] token ids.

        Raises:
            AnamorphError: if the candidates do not fit the vocabulary.
        """
        choice = Candidates.of(candidates, logits.shape[-1])
        logits = logits.float()
        log_p = logits.log_softmax(-1)
        entropy = cross_entropy(log_p, targets)
        lowest = float(log_p.min()) if log_p.numel() else 0.0
        p = log_p.exp_()
        total = p.sum(-1, keepdim=True)  # as `_dot` adds up, so that equal logits give 1
        return cls(logits, p, total, lowest, targets, choice.best(logits), entropy, choice)

    def __getitem__(self, rows: slice) -> "ModelOutput":
        """At some of the positions."""
        tensors: dict[str, Any] = {k: x[rows] for k, x in vars(self).items() if torch.is_tensor(x)}
        return replace(self, **tensors)


def position_metrics(
    model: ModelOutput,
    logits: Tensor,
    model_attention: Tensor | None = None,
    proxy_attention: Tensor | None = None,
) -> Tensor:
    """All metrics at every position, for many proxies at once.

    "Right" means that the prediction is the target. Where candidates of a proxy tie for the highest
    logit, its prediction is that of the model if it is one of them, or else the target if that is.
    Cross entropies and output divergences are over the whole vocabulary, in bits; `output_kl` is
    KL(model ‖ proxy).

    Args:
        model: at the same positions.
        logits: [copy, position, vocabulary] of the proxies.
        model_attention: [head, position, key] probabilities, or None.
        proxy_attention: [1 or copy, head, position, key], or None.

    Returns:
        [copy, metric, position] float32; the metrics are `metric_names(attention=...)`, those of
        attention only where it is given.

    Raises:
        AnamorphError: if one attention is missing, or if a metric of another package gives numbers
            of another shape or range than it should.
    """
    if (model_attention is None) != (proxy_attention is None):
        raise AnamorphError(
            "The attention of either model or proxy is missing; give both or neither."
        )
    column = _compare_outputs(model, logits)
    if model_attention is not None and proxy_attention is not None:
        column |= _compare_attention(model_attention, proxy_attention)
    names = metric_names(attention=model_attention is not None)
    return torch.stack([column[name].expand(logits.shape[:2]) for name in names], dim=1)


def _compare_outputs(model: ModelOutput, logits: Tensor) -> dict[str, Tensor]:
    """Every metric of outputs, [copy, position]; [position] if it is of the model alone."""
    copies, positions, vocabulary = logits.shape
    added = [m for m in all_metrics().values() if m.at is not None and m.kind == "output"]
    ours = "same_prediction", "proxy_accuracy", "output_jsd", "output_kl", "proxy_cross_entropy"
    shape, names = (copies, positions), [*ours, *(metric.name for metric in added)]
    column = {name: logits.new_empty(shape, dtype=torch.float32) for name in names}
    # fresh memory for every block would cost as much as the arithmetic
    numbers = min(logits.numel(), max(_block(logits.device), vocabulary))
    space = model.p.new_empty(3, numbers)
    for rows in _blocks(positions, vocabulary, logits.device):
        here = model[rows]
        for some in _blocks(copies, here.logits.numel(), logits.device):
            of_proxies = logits[some, rows].float()
            values = (
                *_predictions(here, of_proxies),
                *_divergences(here, of_proxies, space[:, : of_proxies.numel()]),
                *(_checked(m, here, of_proxies, of_proxies.shape[:2]) for m in added),
            )
            for name, value in zip(names, values, strict=True):
                column[name][some, rows] = value
    model_right = (model.said == model.targets).float()
    same, proxy_right = column["same_prediction"], column["proxy_accuracy"]
    return column | {
        "model_accuracy": model_right,
        "model_cross_entropy": model.cross_entropy,
        "proxy_only_right": proxy_right * (1 - model_right),
        "model_only_right": (1 - proxy_right) * model_right,
        "flips": (proxy_right - model_right).abs(),
        "different_errors": (1 - same) * (1 - proxy_right) * (1 - model_right),
    }


def _compare_attention(model: Tensor, proxies: Tensor) -> dict[str, Tensor]:
    """Every metric of attention, [1 or copy, position], as there are proxies."""
    heads, positions, keys = model.shape
    added = [m for m in all_metrics().values() if m.at is not None and m.kind == "attention"]
    shape, names = (len(proxies), positions), ["attention_jsd", "same_attention"]
    names += [metric.name for metric in added]
    column = {name: model.new_empty(shape, dtype=torch.float32) for name in names}
    for rows in _blocks(positions, heads * keys, model.device):
        p = model[:, rows].float()
        most = most_attended(p)
        for copy, proxy in enumerate(proxies):
            q = proxy[:, rows].float()
            values = [attention_jsd(p, q), overlap(most, most_attended(q))]
            values += [_checked(metric, p, q, p.shape[1:2]) for metric in added]
            for name, value in zip(names, values, strict=True):
                column[name][copy, rows] = value
    return column


def _checked(
    metric: Metric, model: ModelOutput | Tensor, proxy: Tensor, shape: torch.Size
) -> Tensor:
    """What the function of an added metric gives, if it fits what the metric says of it.

    The function is given copies: it may write into them, and other metrics read the same tensors.
    """
    assert metric.at is not None
    if isinstance(model, Tensor):
        model = model.clone()
    else:
        model = replace(model, logits=model.logits.clone(), p=model.p.clone())
    found: Tensor = metric.at(model, proxy.clone())
    if found.shape != shape:
        raise AnamorphError(
            f"The metric {metric.name!r} gives a tensor of shape {list(found.shape)}; expected "
            f"{list(shape)}, a number a position."
        )
    most: float = math.inf
    expected = (
        "from 0, as intervals are made on the logarithm. Offer what rises and what falls as two "
        "metrics."
    )
    if metric.bounded:
        most, expected = 1, "in [0, 1], as it is said to be bounded."
    if bool(((found < -ROUNDING) | (found > most + ROUNDING)).any()):
        raise AnamorphError(
            f"The metric {metric.name!r} gives numbers from {found.min().item():.9g} to "
            f"{found.max().item():.9g}; expected them {expected}"
        )
    return found.float().clamp(0, most)


def _blocks(items: int, size: int, device: torch.device) -> Iterator[slice]:
    """Slices that cut `items` things of `size` elements each into parts of about a block."""
    step = max(1, _block(device) // max(1, size))
    return (slice(start, start + step) for start in range(0, items, step))


def _block(device: torch.device) -> int:
    return BLOCK if device.type == "cpu" else BLOCK_ELSEWHERE


def _predictions(model: ModelOutput, logits: Tensor) -> tuple[Tensor, Tensor]:
    """[copy, position] whether a proxy predicts what the model does, and whether the target."""
    highest = model.candidates.highest(logits)
    same = picked(logits, model.said) == highest
    right = (picked(logits, model.targets) == highest) & model.candidates.hold(model.targets)
    return same, torch.where(same, model.said == model.targets, right)


def _divergences(
    model: ModelOutput, logits: Tensor, space: Tensor
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


def _careful_divergences(model: ModelOutput, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_p, log_q = model.logits.log_softmax(-1), logits.log_softmax(-1)
    return (
        jensen_shannon(log_p.exp(), log_q.exp()),
        kl(log_p, log_q),
        cross_entropy(log_q, model.targets),
    )


def _dot(a: Tensor, b: Tensor, space: Tensor) -> Tensor:
    """[..., vocabulary] twice to [...]; `space`, of the larger shape, is written over."""
    return torch.mul(a, b, out=space).sum(-1)
