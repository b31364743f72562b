"""Weights of a few bits: `quantize(bits=4)@*.mlp`."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from anamorph.errors import require
from anamorph.simplifications.statistics.moments import Moments
from anamorph.simplifications.weight_change import WeightChange

DAMPING = 0.01  # of the mean second moment, added to all; as in GPTQ's own code


class Quantize(WeightChange):
    """Weights of so many bits, each group of a row between its own two ends.

    A group, `group` neighbouring weights of a row, may hold 2^bits numbers, evenly spaced with a
    zero point: they reach from its lowest weight to its highest, and hold zero. Every weight is
    rounded to the nearest. With `calibrated=true` the weights of a row are rounded one after the
    other, and what is not yet rounded makes up for the error in the outputs on the data that it is
    fitted to: GPTQ, by the second moments of what each matrix is given in the model as it is. A row
    whose outputs are better rounded to nearest is left so.

    Source: Frantar et al. (2023), GPTQ, arXiv 2210.17323.

    Args:
        bits: of a weight, from 2 to 8.
        group: how many neighbouring weights of a row share two ends.
        calibrated: whether it is fitted to data.
    """

    name: ClassVar[str] = "quantize"
    size_name: ClassVar[str | None] = "bits"

    def __init__(self, *, bits: int, group: int = 128, calibrated: bool = False) -> None:
        self.bits, self.group, self.calibrated = bits, group, calibrated

    def validate(self, dim: int | None = None) -> None:
        """See `Estimator.validate`."""
        require(f"{self}: bits", self.bits, whole=True, least=2, most=8)
        require(f"{self}: group", self.group, whole=True, least=1)
        require(f"{self}: calibrated", self.calibrated, among=(True, False))

    def statistic(self, dim: int) -> Moments | None:
        """The moments of the inputs, if it is calibrated."""
        return Moments(dim) if self.calibrated else None

    def study(self, matrix: Tensor, inputs: Any) -> dict[str, Tensor]:
        """What the calibrated weights are: whole numbers, and the ends of their groups."""
        second = inputs.second
        nearest = to_nearest(matrix, self.bits, self.group)
        made = making_up(matrix, second, self.bits, self.group)
        errors = [
            output_errors(matrix, some.weights(self.group), second) for some in (nearest, made)
        ]
        better = (errors[1] < errors[0])[:, None]
        chosen = [torch.where(better, new, old) for new, old in zip(made, nearest, strict=True)]
        return dict(zip(Rounded._fields, chosen, strict=True))

    def simpler(self, matrix: Tensor, learnt: Mapping[str, Tensor]) -> Tensor:
        """The matrix [out, in] float64 with rounded weights."""
        if self.calibrated:
            return Rounded(**learnt).weights(self.group)
        return to_nearest(matrix, self.bits, self.group).weights(self.group)


class Rounded(NamedTuple):
    """Weights as whole numbers: a weight is `step · (number - zero)`.

    Attributes:
        numbers: [out, in] uint8.
        step: [out, group of columns] float64.
        zero: [out, group of columns] uint8, the number that stands for zero.
    """

    numbers: Tensor
    step: Tensor
    zero: Tensor

    def weights(self, group: int) -> Tensor:
        """[out, in] float64, for so many columns a group."""
        columns = torch.arange(self.numbers.shape[1]) // group
        return self.step[:, columns] * (self.numbers.double() - self.zero.double()[:, columns])


def to_nearest(matrix: Tensor, bits: int, group: int) -> Rounded:
    """A matrix [out, in] with every weight rounded to the nearest number of its group."""
    parts = torch.split(matrix, group, dim=1)
    grids = [_grid(part, bits) for part in parts]
    numbers = [_numbers(part, *grid, bits) for part, grid in zip(parts, grids, strict=True)]
    return _rounded(numbers, grids)


def making_up(matrix: Tensor, second: Tensor, bits: int, group: int) -> Rounded:
    """A matrix [out, in] rounded by GPTQ's algorithm, column after column.

    Args:
        matrix: float64.
        second: [in, in] float64 the second moments of its inputs.
        bits: of a weight.
        group: of columns.
    """
    left = matrix.clone()  # what is to be rounded still, with what it has to make up for
    damped = second + (DAMPING * second.diagonal().mean() or 1.0) * torch.eye(len(second)).double()
    # Row i tells how the weights behind i make up best for an error in weight i.
    factor = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    numbers, grids = [], []
    for start in range(0, matrix.shape[1], group):
        part = left[:, start : start + group]
        stop = start + part.shape[1]
        step, zero = _grid(part, bits)
        errors = torch.zeros_like(part)
        for i in range(start, stop):
            number = _numbers(left[:, i : i + 1], step, zero, bits)
            error = (left[:, i : i + 1] - step * (number - zero)) / factor[i, i]
            left[:, i + 1 : stop] -= error * factor[i, i + 1 : stop]
            errors[:, i - start] = error[:, 0]
            numbers.append(number)
        left[:, stop:] -= errors @ factor[start:stop, stop:]
        grids.append((step, zero))
    return _rounded(numbers, grids)


def output_errors(matrix: Tensor, other: Tensor, second: Tensor) -> Tensor:
    """[out] the mean square by which outputs differ, for inputs of these second moments."""
    apart = matrix - other
    return (apart @ second * apart).sum(1)


def _grid(weights: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The step and the number of zero, [out, 1] float64, for a group of weights [out, column]."""
    low = weights.amin(1, keepdim=True).clamp(max=0)
    high = weights.amax(1, keepdim=True).clamp(min=0)
    step = (high - low) / (2**bits - 1)
    step = step.where(step > 0, 1.0)  # where all weights are zero
    return step, (-low / step).round()


def _numbers(weights: Tensor, step: Tensor, zero: Tensor, bits: int) -> Tensor:
    """[out, column] float64 the whole numbers that are nearest."""
    return ((weights / step).round() + zero).clamp(0, 2**bits - 1)


def _rounded(numbers: list[Tensor], grids: list[tuple[Tensor, Tensor]]) -> Rounded:
    steps, zeros = zip(*grids, strict=True)
    whole, zero = (torch.cat(list(x), dim=1).to(torch.uint8) for x in (numbers, zeros))
    return Rounded(whole, torch.cat(steps, dim=1), zero)
