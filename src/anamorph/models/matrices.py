"""The matrices of a model's weights that stand behind a site, as modules hold them."""

from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix by which a module multiplies what it is given: `output = matrix @ input + bias`.

    Attributes:
        name: path of the module in the model, and which part of its outputs if it is not all.
        module: an `nn.Linear`, or a `Conv1D` of transformers, which stores it transposed.
        inputs: the module at which its inputs are seen; one for all that are given the same.
        rows: [out] the outputs of the module that are its own; None for all of them.
    """

    name: str
    module: nn.Module
    inputs: nn.Module
    rows: Tensor | None = None

    @property
    def outputs(self) -> int:
        """How many outputs the module has, its own and others'."""
        return _weight(self.module).shape[is_transposed(self.module)]

    @property
    def width(self) -> int:
        """How many numbers it is given."""
        return _weight(self.module).shape[not is_transposed(self.module)]

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the module's weights."""
        return _weight(self.module).dtype

    @property
    def bytes(self) -> int:
        """Of all of the module's weights, its own and others'."""
        return _weight(self.module).nbytes

    def read(self) -> Tensor:
        """[out, in] a copy in float64, on the CPU."""
        whole = _weight(self.module).detach().to("cpu", torch.float64, copy=True)
        whole = whole.T.contiguous() if is_transposed(self.module) else whole
        return whole if self.rows is None else whole[self.rows]


def stand_in(module: nn.Module, changed: Iterable[tuple[Matrix, Tensor]]) -> nn.Module:
    """The module with other matrices; all else is shared with it, and it stays as it is.

    Args:
        module: that holds the matrices.
        changed: each matrix with the new one, [out, in], in any number format.
    """
    weight = _weight(module).detach().clone()
    view = weight.T if is_transposed(module) else weight
    for matrix, new in changed:
        view[slice(None) if matrix.rows is None else matrix.rows.to(view.device)] = new.to(view)
    other = copy(module)
    other.__dict__.pop("forward", None)  # one that a session has put there
    other._parameters = {**module._parameters, "weight": nn.Parameter(weight, requires_grad=False)}
    return other


def named_linear(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules within one, itself included, that multiply by a matrix, with their paths."""
    for name, inner in module.named_modules(prefix=prefix):
        if (isinstance(inner, nn.Linear) or is_transposed(inner)) and _is_matrix(inner):
            yield name, inner


def is_transposed(module: nn.Module) -> bool:
    """Whether it is a `Conv1D` of transformers, whose weight is [in, out]."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def _is_matrix(module: nn.Module) -> bool:
    """Whether its weight is plain numbers: not packed, and not made by something else."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.dim() == 2 and weight.is_floating_point()


def _weight(module: nn.Module) -> Tensor:
    weight = module._parameters["weight"]
    assert weight is not None  # as `named_linear` found it
    return weight
