"""`topk_sae` as it is fitted in an audit: points come in the order of the stream."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from anamorph.simplifications.methods.topk import TopKSAE

PACKAGE = "anamorph"


def train(
    points: Tensor, shape: dict[str, Any], steps: int, rate: float | None
) -> Callable[[Tensor], Tensor]:
    sae = TopKSAE(features=shape["features"], k=shape["k"], batch=shape["batch"], rate=rate)
    return sae.fit(points[: steps * shape["batch"]])
