"""Any transformer of scikit-learn that can be undone: `estimator(of=FastICA, n_components=8)`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.machine.process import as_found
from anamorph.simplifications.base import Simplification
from anamorph.simplifications.fingerprint import fingerprint_of
from anamorph.simplifications.grammar import Scalar
from anamorph.simplifications.scikit import (
    Unkept,
    can_be_undone,
    estimator_named,
    estimator_of,
    names_of,
    state_of,
)
from anamorph.simplifications.statistics.reservoir import USUAL, Reservoir

OWN = ("of", "seed", "reservoir")
"""The parameters that are not the estimator's."""


class Estimator(Simplification):
    """What a transformer or pipeline of scikit-learn keeps: `inverse_transform(transform(x))`.

    In a text, `of` names a class, or those of a pipeline: `estimator(of=FastICA, n_components=8)`,
    `estimator(of=StandardScaler+PCA, pca__n_components=8)`. It computes in float64, on the CPU.

    Args:
        of: the estimator, which need not be fitted and stays as it is.
        seed: of the sample, and of everything in the estimator whose `random_state` is None.
        reservoir: at most so many points, drawn uniformly from the stream, are fitted to.

    Attributes:
        estimator_: the fitted estimator.
        sample_: [points, dim] what it was fitted to, where it holds more than arrays, numbers and
            text of scikit-learn's own classes: a file keeps the sample then, and it is fitted again
            when it is read.

    Examples:
        >>> from sklearn.decomposition import FastICA
        >>> Estimator(FastICA(3)) @ "1.*.key"
        Attachment('estimator(of=FastICA, n_components=3)@1.*.key')
    """

    name: ClassVar[str] = "estimator"
    first: ClassVar[str | None] = "of"

    estimator_: Any
    sample_: Tensor

    def __init__(self, of: Any, *, seed: int = 0, reservoir: int = USUAL) -> None:
        self.of = of
        self.seed = seed
        self.reservoir = reservoir

    # Hyper-parameters and text

    @classmethod
    def with_params(cls, given: Mapping[str, Any]) -> Self:
        """See `Fittable.with_params`; `of` is a text, with the estimator's parameters beside it."""
        if not isinstance(given.get("of"), str):
            raise AnamorphError(
                "estimator needs of, the name of a transformer of scikit-learn, such as "
                "estimator(of=FastICA, n_components=8); or of a pipeline of several, such as "
                "estimator(of=StandardScaler+PCA, pca__n_components=8)."
            )
        own = {key: given[key] for key in OWN if key in given}
        params = {key: value for key, value in given.items() if key not in OWN}
        return cls(**own | {"of": estimator_named(own["of"], params)})

    def get_params(self) -> dict[str, Any]:
        """The hyper-parameters as a text has them."""
        return {**self._names, "seed": self.seed, "reservoir": self.reservoir}

    def clone(self) -> Self:
        """The same hyper-parameters, nothing learnt."""
        return type(self)(self.of, seed=self.seed, reservoir=self.reservoir)

    def fingerprint(self) -> str:
        """See `Fittable.fingerprint`."""
        return fingerprint_of(type(self), self.get_params())

    @cached_property
    def _names(self) -> dict[str, Scalar]:
        return names_of(self.of)

    @property
    def method(self) -> str:
        """The names of its classes, such as `StandardScaler+PCA`."""
        return str(self._names["of"])

    @property
    def size_name(self) -> str | None:  # type: ignore[override]
        """`n_components`, of whichever step has it, if it is a number."""
        sized = [
            key
            for key, value in self._names.items()
            if key.rpartition("__")[2] == "n_components" and type(value) is int
        ]
        return sized[0] if len(sized) == 1 else None

    @property
    def size(self) -> float | None:
        """How many components there are."""
        return float(self._names[self.size_name]) if self.size_name else None

    def validate(self, dim: int | None = None) -> None:
        """See `Simplification.validate`."""
        with as_found():  # here: it takes two seconds to import
            from sklearn.base import BaseEstimator
        if not isinstance(self.of, BaseEstimator):
            raise AnamorphError(
                f"am.Estimator takes a transformer of scikit-learn, such as FastICA(8); got "
                f"{self.of!r}."
            )
        if not can_be_undone(self.of):
            raise AnamorphError(
                f"{self}: it has no inverse_transform, without which what it keeps of a point "
                "cannot be put back; choose a transformer, or a pipeline of transformers, that has."
            )
        self.require_whole("seed", least=0)
        self.require_whole("reservoir", least=1)
        if self.seed >= 2**32:
            raise AnamorphError(f"{self}: seed must be below 2**32; got {self.seed}.")

    # Fit

    def statistic(self, dim: int) -> Reservoir:
        """A sample of the points."""
        self.validate(dim)
        return Reservoir(capacity=int(self.reservoir), seed=int(self.seed))

    def learn(self, statistic: Reservoir) -> Self:
        """Fit a copy of the estimator.

        Raises:
            AnamorphError: if no point was seen, or scikit-learn refuses the points.
        """
        if not statistic.seen:
            raise AnamorphError(f"{self}: there are no points to fit to; give at least one.")
        points = statistic.points()
        fitted = self._fitted(points)
        try:
            return self.load_state(state_of(fitted))  # as whoever reads it from a file has it
        except Unkept:
            self.load_state({})
            self.sample_, self.estimator_ = points, fitted
            return self

    def _fitted(self, points: Tensor) -> Any:
        with as_found():
            from sklearn.base import clone
            from threadpoolctl import threadpool_limits

        with as_found(), threadpool_limits(limits=1):
            estimator = clone(self.of)
            drawing = [
                key
                for key, value in estimator.get_params().items()
                if key.rpartition("__")[2] == "random_state" and value is None
            ]
            estimator.set_params(**dict.fromkeys(drawing, self.seed))
            try:
                return estimator.fit(points.numpy())
            except ValueError as error:
                raise self._refused(error) from error

    def state_dict(self) -> dict[str, Tensor]:
        """What the estimator has learnt; or the sample that it learnt from."""
        if "sample_" in vars(self):
            return {"sample_": self.sample_}
        return state_of(self.estimator_) if "estimator_" in vars(self) else {}

    def load_state(self, state: Mapping[str, Tensor]) -> Self:
        """See `Fittable.load_state`."""
        super().load_state({})
        if "sample_" in state:
            self.sample_, self.estimator_ = state["sample_"], self._fitted(state["sample_"])
        elif state:
            self.estimator_ = estimator_of(state)
        return self

    # Use

    def __call__(self, x: Tensor) -> Tensor:
        """What the estimator keeps of `x` [..., dim]; of a point with a NaN, NaN."""
        points = x.detach().reshape(-1, x.shape[-1]).cpu().to(torch.float64, copy=True)
        finite = points.isfinite().all(dim=1)
        made = torch.full_like(points, torch.nan)
        if finite.any():
            made[finite] = self._kept(points[finite])
        return made.to(x).view(x.shape)

    def _kept(self, points: Tensor) -> Tensor:
        try:
            code = self.estimator_.transform(points.numpy())
            made = np.asarray(self.estimator_.inverse_transform(code), dtype=np.float64)
        except ValueError as error:
            raise self._refused(error) from error
        if made.shape != points.shape:
            raise AnamorphError(
                f"{self}: inverse_transform gives {list(made.shape)} for {list(points.shape)}; "
                "choose a transformer that gives back as many dimensions as it was given."
            )
        return torch.from_numpy(made)

    def _refused(self, error: ValueError) -> AnamorphError:
        return AnamorphError(
            f"{self}: scikit-learn refuses the points or a parameter: {error} A step before may "
            "make them fit, such as of=MinMaxScaler+NMF, minmaxscaler__clip=true."
        )
