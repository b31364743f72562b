"""All metrics of many proxies at many positions."""

import math
from importlib.util import find_spec

import torch
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.faithfulness.divergences import Candidates
from anamorph.faithfulness.formulas import PlainOutput, blocks
from anamorph.faithfulness.metric import Metric
from anamorph.faithfulness.metrics import all_metrics, metric_names
from anamorph.faithfulness.model_output import ATTENTION_METRICS, OUTPUT_METRICS, ModelOutput

ROUNDING = 1e-6  # by so much an added metric may lie outside its bounds


def model_output(logits: Tensor, targets: Tensor, candidates: Candidates) -> ModelOutput:
    """What the model predicts, in the fastest way to compare proxies with it on its device.

    Args:
        logits: [position, vocabulary] of the model.
        targets: [position] token ids.
        candidates: among which predictions are chosen.

    Raises:
        AnamorphError: if the candidates are of another vocabulary.
    """
    if logits.shape[-1] != candidates.vocabulary:
        raise AnamorphError(
            f"The model gives {logits.shape[-1]} logits, and candidates were chosen for its "
            f"vocabulary of {candidates.vocabulary}; its `vocabulary` must be the number of logits."
        )
    if logits.is_cuda and find_spec("triton"):
        from anamorph.faithfulness.kernels import KernelOutput  # the only place that needs Triton

        return KernelOutput.of(logits, targets, candidates)
    return PlainOutput.of(logits, targets, candidates)


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
        column |= _compare_attention(model, model_attention, proxy_attention)
    names = metric_names(attention=model_attention is not None)
    return torch.stack([column[name].expand(logits.shape[:2]) for name in names], dim=1)


def _compare_outputs(model: ModelOutput, logits: Tensor) -> dict[str, Tensor]:
    """Every metric of outputs, [copy, position]; [position] if it is of the model alone."""
    column = dict(zip(OUTPUT_METRICS, model.compare(logits), strict=True))
    for metric in _added("output"):
        values = column[metric.name] = logits.new_empty(logits.shape[:2], dtype=torch.float32)
        for rows in blocks(logits.shape[1], logits.shape[2], logits.device):
            for some in blocks(len(logits), model.logits[rows].numel(), logits.device):
                values[some, rows] = _of_outputs(metric, model[rows], logits[some, rows])
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


def _compare_attention(output: ModelOutput, model: Tensor, proxies: Tensor) -> dict[str, Tensor]:
    """Every metric of attention, [1 or copy, position], as there are proxies."""
    column = dict(zip(ATTENTION_METRICS, output.compare_attention(model, proxies), strict=True))
    heads, positions, keys = model.shape
    for metric in _added("attention"):
        values = column[metric.name] = model.new_empty(len(proxies), positions).float()
        for rows in blocks(positions, heads * keys, model.device):
            for copy, proxy in enumerate(proxies):
                values[copy, rows] = _of_attention(metric, model[:, rows], proxy[:, rows])
    return column


def _added(kind: str) -> list[Metric]:
    """The metrics of other packages."""
    return [m for m in all_metrics().values() if m.at is not None and m.kind == kind]


# The function of an added metric is given copies: it may write into them, and other metrics read
# the same tensors.


def _of_outputs(metric: Metric, model: ModelOutput, logits: Tensor) -> Tensor:
    assert metric.at is not None
    here = PlainOutput.of(_copy(model.logits), model.targets, model.candidates)
    return _checked(metric, metric.at(here, _copy(logits)), logits.shape[:2])


def _of_attention(metric: Metric, model: Tensor, proxy: Tensor) -> Tensor:
    assert metric.at is not None
    return _checked(metric, metric.at(_copy(model), _copy(proxy)), model.shape[1:2])


def _copy(values: Tensor) -> Tensor:
    return values.to(torch.float32, copy=True)


def _checked(metric: Metric, found: Tensor, shape: torch.Size) -> Tensor:
    """What an added metric gives, if it fits what the metric says of it."""
    if not isinstance(found, Tensor):
        raise AnamorphError(
            f"The metric {metric.name!r} gives a {type(found).__name__}; expected a tensor, a "
            "number a position."
        )
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
