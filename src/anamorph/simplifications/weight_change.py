"""Changes of weights: a simplification of the matrices that stand behind a site."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from anamorph.errors import AnamorphError, told_where
from anamorph.models.base import Model
from anamorph.models.matrices import Matrix
from anamorph.models.sites import Site
from anamorph.simplifications.base import Simplification, Simplified

Matrices = Mapping[str, Tensor]
"""By name each matrix behind a site, [out, in] float64: `output = matrix @ input + bias`. Of a
head's pattern they are two, W_Q and W_K, in this order."""


@dataclass(frozen=True)
class Seen:
    """What a change of weights is fitted to at a site.

    Attributes:
        site: where.
        matrices: the model's own.
        inputs: by the name of a matrix the statistic of its inputs, as `statistic` made it.
    """

    site: Site
    matrices: Matrices
    inputs: Mapping[str, Any]


class WeightChange(Simplification):
    """Makes the matrices behind a site simpler; the model then runs with the new ones.

    At `mlp` they are those of that layer's MLP, at `attention` those of its queries, keys, values
    and outputs. Biases stay. A subclass defines `simpler`, or where the matrices of a site belong
    together `change`; one that is fitted to what the matrices are given, `statistic`, which is
    called with the width of one matrix's inputs, and `study`.

    Attributes:
        learnt_: what was learnt of each matrix, under `name:what`.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"attention", "mlp"})
    chains: ClassVar[bool] = False

    learnt_: dict[str, Tensor]

    @abstractmethod
    def simpler(self, matrix: Tensor, learnt: Mapping[str, Tensor]) -> Tensor:
        """The matrix that stands in for one, [out, in] float64, by what `study` gave of it."""

    def study(self, matrix: Tensor, inputs: Any) -> dict[str, Tensor]:
        """What has to be kept of a matrix [out, in] float64 and the statistic of its inputs."""
        return {}

    def learn(self, statistic: Seen | None) -> Self:
        """See `Estimator.learn`; the statistic is what was seen at the site."""
        self.learnt_ = {}
        for name, matrix in statistic.matrices.items() if statistic else ():
            assert statistic is not None
            for what, value in self.study(matrix, statistic.inputs[name]).items():
                self.learnt_[f"{name}:{what}"] = value
        return self

    def change(self, site: Site, matrices: Matrices) -> dict[str, Tensor]:
        """By name the new matrices, [out, in] float64, of those behind a site that change."""
        return {name: self.simpler(m, self.learnt_of(name)) for name, m in matrices.items()}

    def learnt_of(self, name: str) -> dict[str, Tensor]:
        """What was learnt of a matrix, by what it is."""
        parts = ((key.rpartition(":"), value) for key, value in self.learnt_.items())
        return {what: value for (of, _, what), value in parts if of == name}

    def __call__(self, x: Tensor) -> Tensor:
        """A change of weights maps no activations.

        Raises:
            AnamorphError: always.
        """
        raise AnamorphError(f"{self} changes weights; it maps no activations.")

    def state_dict(self) -> dict[str, Tensor]:
        """See `Estimator.state_dict`."""
        return dict(vars(self).get("learnt_", {}))

    def load_state(self, state: Mapping[str, Tensor]) -> Self:
        """See `Estimator.load_state`."""
        self.learnt_ = dict(state)
        return self


def changes_weights(proxy: Simplified) -> bool:
    """Whether a proxy is the model with other weights.

    Raises:
        AnamorphError: if only a part of its attachments changes weights.
    """
    of_weights = [isinstance(a.simplification, WeightChange) for a in proxy.attachments]
    if any(of_weights) and not all(of_weights):
        raise AnamorphError(
            f"{proxy} changes weights and also activations. A proxy does one of the two: give each "
            "as a proxy of its own."
        )
    return any(of_weights)


@torch.inference_mode()
def changed_matrices(model: Model, by_site: Mapping[Site, Simplification]) -> dict[Matrix, Tensor]:
    """What a proxy that changes weights puts in place of which matrices of a model.

    Returns:
        by matrix the new one, [out, in], in the model's number format.

    Raises:
        AnamorphError: if the model does not say which matrices stand behind a site, or a new one is
            not finite or of another shape.
    """
    found: dict[Matrix, Tensor] = {}
    for site, change in by_site.items():
        assert isinstance(change, WeightChange)
        with told_where(change, site):
            named = {matrix.name: matrix for matrix in model.matrices(site)}
            own = {name: matrix.read() for name, matrix in named.items()}
            changed = change.change(site, own)
        for name, new in changed.items():
            if new.shape != own[name].shape or not new.isfinite().all():
                raise AnamorphError(
                    f"{change}, at {site}, must give numbers {list(own[name].shape)} in "
                    f"place of {name}; it gave {list(new.shape)}, or a NaN or infinity."
                )
            found[named[name]] = new.to(named[name].dtype)
    return found
