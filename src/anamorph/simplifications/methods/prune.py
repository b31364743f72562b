"""Weights set to zero: `prune(density=0.5)@*.{attention,mlp}`."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from anamorph.errors import require
from anamorph.simplifications.statistics.squares import Squares
from anamorph.simplifications.weight_change import WeightChange


class Prune(WeightChange):
    """The least of each row's weights set to zero: by magnitude, or times its input's norm.

    Weights of a row, which all make one output, are compared with each other alone, as Wanda does:
    of each row the same share stays. With `by=wanda` it is the magnitude times the norm of what the
    weight is multiplied by, on the data that it is fitted to, that is compared.

    Source: Sun et al. (2024), A simple and effective pruning approach for large language models,
    arXiv 2306.11695.

    Args:
        density: the share of the weights of a row, from 0 to 1, that stay; rounded up.
        by: `magnitude`, or `wanda`, which is fitted to data.
    """

    name: ClassVar[str] = "prune"
    size_name: ClassVar[str | None] = "density"

    def __init__(self, *, density: float, by: Literal["magnitude", "wanda"] = "magnitude") -> None:
        self.density, self.by = density, by

    def validate(self, dim: int | None = None) -> None:
        """See `Estimator.validate`."""
        require(f"{self}: density", self.density, least=0, most=1)
        require(f"{self}: by", self.by, among=("magnitude", "wanda"))

    def statistic(self, dim: int) -> Squares | None:
        """The squares of the inputs, for Wanda."""
        return Squares(dim) if self.by == "wanda" else None

    def study(self, matrix: Tensor, inputs: Any) -> dict[str, Tensor]:
        """The norm of each input."""
        return {"norms": inputs.norms}

    def simpler(self, matrix: Tensor, learnt: Mapping[str, Tensor]) -> Tensor:
        """The matrix [out, in] float64 with zeros in it."""
        worth = matrix.abs() * learnt.get("norms", torch.ones(()))
        count = int((1 - self.density) * matrix.shape[1] + 1e-9)  # so that 0.71 of 100 leaves 29
        least = worth.argsort(dim=1, stable=True)[:, :count]
        return matrix.scatter(1, least, 0.0)
