"""What a metric is. Torch must not be imported here: reports describe metrics without it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Metric:
    """A number at every scored position; results give its means.

    Attributes:
        name: in results; an identifier.
        label: on axes and in tables.
        unit: "share" (0 or 1 at a position, or the mean of such; shown in per cent), "bits", or
            whatever else it counts.
        better: whether a "higher" or "lower" value is better; None if neither is.
        direction: what a large or small value says.
        meaning: one sentence.
        at: the function of a position, see below; None for ours that `position_metrics` computes in
            one pass.
        kind: "output" if it is of logits, "attention" if it is of attention patterns.
        about: whether it compares "both", or is of the "model" or the "proxy" alone. One that
            compares both has a known value for the model itself.
        bounded: whether it lies in [0, 1] at every position. A share always does.
        per_sequence: whether results give the mean over sequences too.
        contrasted: whether results compare it between the levels of a facet.

    No number may be below 0, as intervals are made on the logarithm. `at(model, logits)` of an
    output metric is given a `PlainOutput` at some positions and the proxies' logits [copy,
    position, vocabulary], both in float32, and returns [copy, position]. `at(model, proxy)` of an
    attention metric is given the attention probabilities of both, each [head, position, key], and
    returns [position].
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
        """Whether it is 0 or 1 at a position, or the mean of that over heads."""
        return self.unit == "share"

    def worst(self, values: Sequence[float]) -> float:
        """The worst of some values."""
        return min(values) if self.better == "higher" else max(values)
