"""What a metric is. Reports describe metrics without torch, which must not be imported here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Metric:
    """A number at every scored position, of which results give means.

    Attributes:
        name: in results; an identifier.
        label: on axes and in tables.
        unit: "share" (0 or 1 at a position, or the mean of such; shown in per cent), "bits", or
            what else it counts.
        better: whether a "higher" or "lower" value is better; None if neither is.
        direction: what a large or small value says.
        meaning: one sentence.
        at: the function of a position; see below. None for those that `position_metrics` computes
            all in one pass.
        kind: "output", of logits, or "attention", of attention patterns.
        about: whether it compares "both", or is of the "model" or the "proxy" alone. What compares
            both is known of the model itself, without error.
        bounded: whether it lies in [0, 1] at every position. A share always does.
        per_sequence: whether results give the mean over sequences too.
        contrasted: whether the levels of facets are compared in it.

    Numbers are from 0 on, as intervals are made on the logarithm. `at(model, logits)` of an output
    metric is given a `ModelOutput` at some positions and the proxies' logits [copy, position,
    vocabulary], and gives [copy, position]. `at(model, proxy)` of an attention metric is given
    attention probabilities [head, position, key] twice, and gives [position].
    """

    name: str
    label: str
    unit: str
    better: Literal["higher", "lower"] | None
    direction: str
    meaning: str
    at: Callable[..., Any] | None = None
    kind: Literal["output", "attention"] = "output"
    about: Literal["both", "model", "proxy"] = "both"
    bounded: bool = False
    per_sequence: bool = False
    contrasted: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "bounded", self.bounded or self.share)

    @property
    def share(self) -> bool:
        """Whether it is 0 or 1 at a position (of several heads the mean of that)."""
        return self.unit == "share"

    def worst(self, values: Sequence[float]) -> float:
        """The worst of some values."""
        return min(values) if self.better == "higher" else max(values)
