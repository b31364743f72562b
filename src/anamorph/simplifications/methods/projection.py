"""A projection that somebody has made: a matrix from a file."""

import warnings
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.simplifications.base import Simplification

ROUNDING = 1e-3
"""By so much of its largest entry a matrix may miss what a projection is, as in float16."""


class GivenProjection(Simplification):
    """The projection in a file: a matrix P, by which every activation `x` becomes `x @ P`.

    Args:
        path: of an `.npy` file, or of a `.safetensors` file with one tensor. It holds P [dim, dim],
            which is its own square; or fewer rows than `dim`, [rank, dim], which are orthonormal:
            then P is the projection on them.

    Attributes:
        matrix_: [dim, dim] float64.
    """

    name: ClassVar[str] = "projection"
    first: ClassVar[str | None] = "path"

    matrix_: Tensor

    def __init__(self, *, path: str) -> None:
        self.path = path

    def validate(self, dim: int | None = None) -> None:
        """See `Simplification.validate`; for points of a width, the file is read and checked."""
        if not isinstance(self.path, str):
            raise AnamorphError(f"{self}: path must be that of a file; got {self.path!r}.")
        if dim is None:
            return
        matrix = self._matrix()
        if len(matrix) != dim:
            raise AnamorphError(
                f"{self}: the matrix is for {len(matrix)} dimensions, and the activations have "
                f"{dim}. Give one of [{dim}, {dim}], or attach it to sites of that width."
            )
        if _largest(matrix - matrix.T) > ROUNDING * _largest(matrix):
            warnings.warn(
                f"{self}: the matrix is not symmetric, so that it does not project at right "
                "angles. x @ P is computed, x a row: if P was meant for columns, transpose it.",
                stacklevel=2,
            )

    def statistic(self, dim: int) -> None:
        """Nothing is fitted; but the width of a site must be that of the matrix."""
        self.validate(dim)

    def learn(self, statistic: None) -> Self:
        """Take the matrix from the file."""
        self.matrix_ = self._matrix()
        return self

    def affine(self) -> tuple[Tensor, Tensor]:
        """The matrix, and no bias."""
        return self.matrix_, torch.zeros_like(self.matrix_[0])

    def __call__(self, x: Tensor) -> Tensor:
        """Project `x` [..., dim]."""
        return x @ self.prepared(x, "matrix", lambda: self.matrix_)

    def _matrix(self) -> Tensor:
        """[dim, dim] float64, checked."""
        given = _read(Path(self.path).expanduser()).double()
        if given.ndim != 2 or not 0 < given.shape[0] <= given.shape[1]:
            raise AnamorphError(
                f"{self}: the file holds an array of shape {list(given.shape)}; expected a matrix "
                "[dim, dim], or orthonormal rows [rank, dim]."
            )
        if not given.isfinite().all():
            raise AnamorphError(f"{self}: the file holds a NaN or an infinity; expected numbers.")
        if given.shape[0] < given.shape[1]:
            wrong = _largest(given @ given.T - torch.eye(len(given)).double())
            if wrong > ROUNDING:
                raise AnamorphError(
                    f"{self}: the rows in the file are not orthonormal (their products miss those "
                    f"by up to {wrong:.2g}). Give torch.linalg.qr(rows.T).Q.T, or the matrix "
                    "[dim, dim] itself."
                )
            return given.T @ given
        wrong = _largest(given @ given - given)
        if wrong > ROUNDING * max(1.0, _largest(given)):
            raise AnamorphError(
                f"{self}: the matrix in the file is not a projection: applied twice it differs "
                f"from itself by up to {wrong:.2g}. Give P with P @ P = P; any other map can be "
                "written as a simplification of its own."
            )
        return given


def _largest(x: Tensor) -> float:
    return x.abs().max().item()


def _read(path: Path) -> Tensor:
    """The one array in a file; nothing in it is executed."""
    if path.suffix not in (".npy", ".safetensors"):
        raise AnamorphError(
            f"{path} is neither .npy nor .safetensors; save the matrix by numpy.save, or by "
            "safetensors.torch.save_file."
        )
    try:
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float64))
        tensors = load_file(path)
    except (OSError, ValueError, EOFError, SafetensorError) as error:
        raise AnamorphError(f"Cannot read {path}: {error}.") from error
    if len(tensors) != 1:
        raise AnamorphError(
            f"{path} holds {len(tensors)} tensors ({', '.join(sorted(tensors))}); expected one."
        )
    return next(iter(tensors.values()))
