"""What the model predicts, ready for proxies to be compared with it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from anamorph.faithfulness.divergences import Candidates

OUTPUT_METRICS = (
    "same_prediction",
    "proxy_accuracy",
    "output_jsd",
    "output_kl",
    "proxy_cross_entropy",
)
ATTENTION_METRICS = "attention_jsd", "same_attention"


@dataclass(frozen=True)
class ModelOutput(ABC):
    """What the model predicts at some positions.

    A subclass is a way to compare: `PlainOutput` in formulas of torch, which are the reference;
    `KernelOutput` in kernels for a GPU. The model's side is computed once for all proxies.

    Attributes:
        logits: [position, vocabulary].
        targets: [position] token ids.
        said: [position] its prediction: the likeliest candidate, the lowest id among ties.
        cross_entropy: [position] bits.
        candidates: among which predictions are chosen.
    """

    logits: Tensor
    targets: Tensor
    said: Tensor
    cross_entropy: Tensor
    candidates: Candidates

    @classmethod
    @abstractmethod
    def of(cls, logits: Tensor, targets: Tensor, candidates: Candidates) -> Self:
        """From [position, vocabulary] logits and [position] token ids."""

    @abstractmethod
    def compare(self, logits: Tensor) -> Tensor:
        """`OUTPUT_METRICS` of the proxies' [copy, position, vocabulary] logits.

        Returns:
            [metric, copy, position] float32; how ties are decided, `position_metrics` says.
        """

    @staticmethod
    @abstractmethod
    def compare_attention(model: Tensor, proxies: Tensor) -> Tensor:
        """`ATTENTION_METRICS` of probabilities, averaged over heads.

        Args:
            model: [head, position, key].
            proxies: [1 or copy, head, position, key].

        Returns:
            [metric, 1 or copy, position] float32.
        """

    def __getitem__(self, rows: slice) -> Self:
        """At some neighbouring positions."""
        tensors: dict[str, Any] = {k: x[rows] for k, x in vars(self).items() if torch.is_tensor(x)}
        return replace(self, **tensors)
