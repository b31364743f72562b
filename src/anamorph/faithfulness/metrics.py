"""How far a proxy is from the model at one position: pure functions on tensors.

Every function broadcasts over leading axes, so that the model's `[1, batch, query, vocabulary]`
meets the proxies' `[copy, batch, query, vocabulary]`. Divergences are in bits; equal inputs give
exactly 0.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from anamorph.errors import AnamorphError

METRICS = (
    "same_prediction",
    "attention_jsd",
    "same_attention",
    "output_jsd",
    "output_kl",
    "model_accuracy",
    "proxy_accuracy",
    "model_cross_entropy",
    "proxy_cross_entropy",
    "proxy_only_right",
    "model_only_right",
    "different_errors",
)
"""All metrics, in the order in which they are reported."""

ATTENTION_METRICS = frozenset({"attention_jsd", "same_attention"})
HIGHER_IS_BETTER = frozenset(
    {"same_prediction", "same_attention", "model_accuracy", "proxy_accuracy"}
)

TIE = 1e-4
"""Relative difference up to which two attention probabilities count as equal: above the rounding of
float32 attention, below what a researcher would call a difference."""

# Elements in a block of intermediate values: small enough that the dozen passes over it stay in
# a core's cache, large enough that the overhead of a torch call does not count.
BLOCK = 2**18


def metric_names(attention: bool) -> tuple[str, ...]:
    """The metrics that `position_metrics` gives, with or without attention, in order."""
    return tuple(m for m in METRICS if attention or m not in ATTENTION_METRICS)


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
    # The ratios p/m and q/m sum to 2, so one division does for both, and equal probabilities give
    # log 1 = 0 exactly. Where both are 0 any ratio will do; the clamp keeps 0·log 0 at 0.
    ratio = p.div(middle).nan_to_num_(1.0).clamp_(1e-37, 2 - 2**-23)
    nats = ratio.log().mul_(p)
    nats.addcmul_(ratio.neg_().add_(2).log_(), q)
    return nats.sum(-1).mul_(0.5 / math.log(2)).clamp_(0, 1)


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Kullback-Leibler divergence KL(p ‖ q) in bits.

    Args:
        log_p: [..., outcome] natural log-probabilities of the model; -inf is allowed.
        log_q: [..., outcome] those of the proxy, broadcast against `log_p`.

    Returns:
        [...] float32, at least 0; infinite where `q` rules out what `p` allows.
    """
    return _kl(log_p.float(), log_p.float().exp(), log_q.float())


def _kl(log_p: Tensor, p: Tensor, log_q: Tensor) -> Tensor:
    nats = (log_p - log_q).mul_(p)
    total = nats.sum(-1)
    if total.isnan().any():  # 0·(±inf) or 0·(inf - inf), which count as 0; a true NaN stays
        total = nats.masked_fill_(p == 0, 0.0).sum(-1)
    return total.mul_(1 / math.log(2)).clamp_(min=0)


def cross_entropy(log_p: Tensor, targets: Tensor) -> Tensor:
    """-log2 p(target) in bits: [..., vocabulary] and [...] token ids give [...]."""
    picked = log_p.gather(-1, targets.expand(log_p.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    return picked.float().mul(-1 / math.log(2))


def predictions(logits: Tensor, candidates: Tensor) -> Tensor:
    """The likeliest candidate token, the lowest id among ties.

    Args:
        logits: [..., vocabulary].
        candidates: [candidates] token ids.

    Returns:
        [...] int64 token ids.

    Raises:
        AnamorphError: if there are no candidates or one lies outside the vocabulary.
    """
    candidates = candidates.to(logits.device).sort().values
    count, vocabulary = len(candidates), logits.shape[-1]
    if not count or candidates[0] < 0 or candidates[-1] >= vocabulary:
        raise AnamorphError(
            f"The candidates {candidates.tolist()[:8]} do not fit a vocabulary of {vocabulary} "
            "tokens; give at least one token id and none outside the vocabulary."
        )
    low, high = int(candidates[0]), int(candidates[-1])
    if high - low + 1 == count:  # a run of ids, as usual: a view instead of a slow gather
        return logits[..., low : high + 1].argmax(-1) + low
    return candidates[logits[..., candidates].argmax(-1)]


def attention_jsd(model: Tensor, proxy: Tensor) -> Tensor:
    """Jensen-Shannon divergence of attention patterns in bits, averaged over heads.

    Args:
        model: [..., head, query, key] probabilities; masked keys are 0.
        proxy: the same of the proxies, broadcast against `model`.

    Returns:
        [..., query] in [0, 1].
    """
    return jensen_shannon(model, proxy).mean(-2)


def same_attention(model: Tensor, proxy: Tensor) -> Tensor:
    """How far model and proxy agree on the key that a head attends to most.

    Without ties this is the share of heads whose arg-max is the same. Keys in one cluster tie but
    for rounding, which must not decide: all keys within `TIE` of the largest probability count as
    most attended, and the agreement is how much the two sets overlap (intersection over union).

    Args:
        model: [..., head, query, key] probabilities.
        proxy: the same of the proxies, broadcast against `model`.

    Returns:
        [..., query] in [0, 1].
    """
    return _overlap(_most_attended(model), _most_attended(proxy))


def _most_attended(pattern: Tensor) -> Tensor:
    """[..., key] 1.0 at the keys of the largest probability, else 0.0."""
    # As numbers, not Booleans, whose sums are several times slower on a CPU.
    return torch.ge(
        pattern, pattern.amax(-1, keepdim=True).mul_(1 - TIE), out=torch.empty_like(pattern)
    )


def _overlap(model: Tensor, proxy: Tensor) -> Tensor:
    both = (model * proxy).sum(-1)
    return both.div_(model.sum(-1) + proxy.sum(-1) - both).mean(-2)


def position_metrics(
    model_logits: Tensor,
    proxy_logits: Tensor,
    targets: Tensor,
    candidates: Tensor,
    model_attention: Tensor | None = None,
    proxy_attention: Tensor | None = None,
) -> Tensor:
    """All metrics at every position, for many proxies at once.

    "Right" means that the likeliest candidate is the target. Cross entropies and output divergences
    are over the whole vocabulary, in bits; `output_kl` is KL(model ‖ proxy).

    Args:
        model_logits: [1, batch, query, vocabulary].
        proxy_logits: [copy, batch, query, vocabulary].
        targets: [batch, query] token ids; any valid id at padding.
        candidates: [candidates] token ids among which a prediction is chosen.
        model_attention: [1, batch, head, query, key] probabilities, or None.
        proxy_attention: [1 or copy, batch, head, query, key], or None.

    Returns:
        [copy, metric, batch, query] float32; the metrics are `metric_names(attention=...)`, those
        of attention only where it is given.

    Raises:
        AnamorphError: if the candidates do not fit the vocabulary, or one attention is missing.
    """
    if (model_attention is None) != (proxy_attention is None):
        raise AnamorphError(
            "The attention of one of model and proxy is missing; give both or none."
        )
    copies, shape, vocabulary = len(proxy_logits), targets.shape, model_logits.shape[-1]
    names = metric_names(attention=proxy_attention is not None)
    out = model_logits.new_empty((copies, len(names), *shape), dtype=torch.float32)
    column = {name: out[:, i] for i, name in enumerate(names)}
    flat = {name: values.view(copies, -1) for name, values in column.items()}

    right_token = targets.flatten()
    model_rows = model_logits.reshape(-1, vocabulary)
    proxy_rows = proxy_logits.reshape(copies, -1, vocabulary)
    model_said = predictions(model_rows, candidates)
    proxy_said = predictions(proxy_rows, candidates)
    for rows in _blocks(len(right_token), vocabulary):
        log_p = model_rows[rows].float().log_softmax(-1)
        p = log_p.exp()
        flat["model_cross_entropy"][:, rows] = cross_entropy(log_p, right_token[rows])
        for copy in range(copies):
            log_q = proxy_rows[copy, rows].float().log_softmax(-1)
            flat["proxy_cross_entropy"][copy, rows] = cross_entropy(log_q, right_token[rows])
            flat["output_kl"][copy, rows] = _kl(log_p, p, log_q)
            flat["output_jsd"][copy, rows] = jensen_shannon(p, log_q.exp_())

    same, model_right = proxy_said == model_said, model_said == right_token
    proxy_right = proxy_said == right_token
    flat["same_prediction"].copy_(same)
    flat["model_accuracy"].copy_(model_right)
    flat["proxy_accuracy"].copy_(proxy_right)
    flat["proxy_only_right"].copy_(proxy_right & ~model_right)
    flat["model_only_right"].copy_(model_right & ~proxy_right)
    flat["different_errors"].copy_(~(same | model_right | proxy_right))

    if model_attention is not None and proxy_attention is not None:
        _, batch, *sizes = model_attention.shape  # sizes: head, query, key
        for some in _blocks(batch, math.prod(sizes)):
            p = model_attention[0, some].float()
            most_attended = _most_attended(p)
            for copy, attention in enumerate(proxy_attention):
                to = slice(copies) if len(proxy_attention) == 1 else copy
                q = attention[some].float()
                column["attention_jsd"][to, some] = attention_jsd(p, q)
                column["same_attention"][to, some] = _overlap(most_attended, _most_attended(q))
    return out


def _blocks(items: int, size: int) -> Iterator[slice]:
    """Consecutive slices of `items` things of `size` elements each, about `BLOCK` elements long."""
    step = max(1, BLOCK // max(1, size))
    return (slice(start, start + step) for start in range(0, items, step))
