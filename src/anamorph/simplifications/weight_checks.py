"""The laws that a change of weights must keep; `check_simplification` checks them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from anamorph.models.sites import Site
from anamorph.simplifications.weight_change import Matrices, Seen, WeightChange


@dataclass(frozen=True)
class WeightTrial:
    """A change of weights, and what it is tried on.

    Attributes:
        tried: itself it is not fitted.
        site: where.
        matrices: [out, in] float64 each.
        points: [points, in] what all of them are given.
    """

    tried: WeightChange
    site: Site
    matrices: Matrices
    points: Tensor

    def fitted(self, chunks: Sequence[Tensor] | None = None) -> WeightChange:
        """A copy that is fitted to the points, as they are or in chunks."""
        inputs: dict[str, Any] = {}
        for name, matrix in self.matrices.items():
            statistic = self.tried.clone().statistic(matrix.shape[1])
            if statistic is not None:
                for chunk in [self.points] if chunks is None else chunks:
                    statistic.update(chunk)
                inputs[name] = statistic
        return self.tried.clone().learn(Seen(self.site, self.matrices, inputs) if inputs else None)

    def changed(self, by: WeightChange | None = None) -> dict[str, Tensor]:
        """The new matrices."""
        return (by or self.fitted()).change(self.site, self.matrices)


def weight_trials(change: WeightChange, dim: int, points: Tensor, seed: int) -> list[WeightTrial]:
    """One for every kind of site that it suits.

    Args:
        change: what is checked.
        dim: the width of what matrices are given.
        points: [points, dim] what they are given.
        seed: of the matrices.
    """
    random, found = torch.Generator().manual_seed(seed), []
    for kind in sorted(change.kinds):
        out = (dim, dim) if kind == "pattern" else (dim + 3, dim - 3)
        made = (torch.randn(n, dim, generator=random, dtype=torch.float64) for n in out)
        site = Site(3, 0 if kind == "pattern" else None, kind)
        found.append(WeightTrial(change, site, dict(zip("ab", made, strict=True)), points))
    return found


def _learnt(trial: WeightTrial) -> None:
    fresh = trial.tried.clone()
    before = set(vars(fresh))
    if fresh.statistic(trial.points.shape[1]) is None:
        _require(fresh.learn(None) is fresh, "learn returns something else")
        more = {k for k in vars(fresh).keys() - before if not k.endswith("_") and k[0] != "_"}
        _require(not more, f"learn sets {sorted(more)}")


def _matrices(trial: WeightTrial) -> None:
    kept = {name: matrix.clone() for name, matrix in trial.matrices.items()}
    for name, new in trial.changed().items():
        same = new.shape == kept[name].shape and new.dtype == kept[name].dtype
        _require(same, f"{list(kept[name].shape)} becomes {list(new.shape)}, {new.dtype}")
        _require(bool(new.isfinite().all()), "it gives a NaN or infinity")
    untouched = all(torch.equal(trial.matrices[name], kept[name]) for name in kept)
    _require(untouched, "it changes the matrices that it is given")


def _again(trial: WeightTrial) -> None:
    _require_equal(trial.changed(), trial.changed(), "the same data give other matrices")


def _chunks(trial: WeightTrial) -> None:
    for size in (1, 7):
        other = trial.changed(trial.fitted(torch.split(trial.points, size)))
        for name, new in trial.changed().items():
            close = torch.allclose(other[name], new, rtol=1e-4, atol=1e-4)
            _require(close, f"in chunks of {size} it learns another")


def _save_and_load(trial: WeightTrial) -> None:
    fitted = trial.fitted()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "change.safetensors"
        fitted.save(path)
        loaded = type(fitted).load(path)
    _require_equal(trial.changed(loaded), trial.changed(fitted), "it comes back as another")


WEIGHT_LAWS: dict[str, Callable[[WeightTrial], None]] = {
    "learn returns self, and what is learnt ends in an underscore": _learnt,
    "matrices keep their shape and format, and stay as they are": _matrices,
    "a second fit gives the same matrices": _again,
    "inputs in chunks teach the same": _chunks,
    "save and load keep every bit of what was learnt": _save_and_load,
}
"""Every law of a change of weights by its text, in the order in which they are checked."""


def _require(kept: bool, otherwise: str) -> None:
    if not kept:
        raise AssertionError(otherwise)


def _require_equal(a: dict[str, Tensor], b: dict[str, Tensor], otherwise: str) -> None:
    same = a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    _require(same, otherwise)
