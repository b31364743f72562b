"""What a simplification is: a map from a site's activations to simpler ones.

A simplification never sees its data whole. It names a small *statistic* of the stream, a statistic
is updated with a few points at a time, and `learn` turns it into the learnt attributes. Statistics
with equal keys are the same, so that every rank of SVD and of PCA can be learnt from one pass.

The rest is scikit-learn's contract: hyper-parameters are keyword-only and stored as given, what is
learnt ends in `_`, `fit` returns self.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from functools import cache
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.models.sites import HEAD_KINDS, LAYER_KINDS
from anamorph.models.weights import read_weights, write_weights
from anamorph.simplifications.fingerprint import fingerprint_of

if TYPE_CHECKING:
    from anamorph.simplifications.attach import Attachment
    from anamorph.simplifications.chain import Chain

VECTOR_KINDS = frozenset({*HEAD_KINDS, *LAYER_KINDS} - {"pattern"})
"""The kinds of site whose last axis has a fixed width, so that something can be fitted there."""


class NotFittedError(AnamorphError, AttributeError):
    """A learnt attribute was asked for before `fit`."""


class Statistic(Protocol):
    """What a fit must see of a stream of points. It is small, however long the stream.

    What it holds depends on the points and their order, never on how they were cut into updates.
    """

    @property
    def key(self) -> Hashable:
        """Statistics with equal keys, fed with the same stream, are equal."""
        ...

    def update(self, x: Tensor) -> None:
        """Take in `x` [points, dim], of any dtype and device."""
        ...


class Simplification(ABC):
    """A map from activations `[..., dim]` to simpler ones of the same shape, dtype and device.

    A subclass has a keyword-only `__init__` that stores its hyper-parameters and does nothing else,
    and defines `name`, `statistic`, `learn` and `__call__`. `check_simplification` tests it.

    Attributes:
        name: what it is called in specs.
        size_name: the hyper-parameter that says how simple the result is; None if there is none.
        kinds: the kinds of site at which it may stand.
    """

    name: ClassVar[str]
    size_name: ClassVar[str | None] = None
    kinds: ClassVar[frozenset[str]] = VECTOR_KINDS

    _statistic: Statistic | None = None
    _stale: bool = False  # the statistic holds points that the learnt attributes do not know of

    @abstractmethod
    def statistic(self, dim: int) -> Statistic | None:
        """An empty statistic for points of width `dim`, or None if there is nothing to fit.

        Raises:
            AnamorphError: if a hyper-parameter makes no sense for this width.
        """

    @abstractmethod
    def learn(self, statistic: Any) -> Self:
        """Set the learnt attributes, float64 tensors, from a statistic that has seen the data."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Map `x` [..., dim], every point by itself, in the dtype of `x`."""

    def apply(self, x: Tensor, context: Any) -> Tensor:
        """Map `x` where it is in the model; override it to use what is known of the points.

        Args:
            x: [batch, position, dim], or of a pattern [batch, query, key].
            context: the tokens, the mask and the positions of `x` (`anamorph.models.base.Context`).

        Returns:
            a tensor of the shape, dtype and device of `x`; what `__call__` gives by default.
        """
        return self(x)

    def validate(self, dim: int | None = None) -> None:
        """Check the hyper-parameters, as far as can be done before any data is seen.

        Raises:
            AnamorphError: if one makes no sense, on its own or for points of width `dim`.
        """
        return None

    def exact_size(self, dim: int, points: int) -> int | None:
        """The size at which `points` distinct points of width `dim` are left as they are."""
        return None

    def affine(self) -> tuple[Tensor, Tensor] | None:
        """(matrix [dim, dim], bias [dim]) in float64 if the map is `x @ matrix + bias`."""
        return None

    def parts(self) -> tuple[Simplification, ...]:
        """The simplifications that are applied one after the other: itself, if not a chain."""
        return (self,)

    # Fitting

    def fit(self, x: Tensor) -> Self:
        """Learn from `x` [..., dim], and from nothing seen before.

        Raises:
            AnamorphError: if `x` holds a NaN or infinity, or does not suit the hyper-parameters.
        """
        self._statistic = None
        self._forget()
        self.partial_fit(x)
        self._settle()
        return self

    def partial_fit(self, x: Tensor) -> Self:
        """Take in `x` [..., dim] besides what was seen before; learning waits until it is needed.

        Raises:
            AnamorphError: if `x` holds a NaN or infinity, or does not suit the hyper-parameters.
        """
        points = as_points(x)
        if self._statistic is None:
            self._statistic = self.statistic(points.shape[1])
        if self._statistic is not None:
            self._statistic.update(points)
            self._forget()
            self._stale = True
        return self

    def __getattr__(self, name: str) -> Any:
        # Only called for what is missing: a learnt attribute that was not needed until now.
        if not is_learnt(name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if self._stale:
            self._settle()
            return getattr(self, name)
        raise NotFittedError(f"{self} has no {name}: it is not fitted, or learns no such thing.")

    def _settle(self) -> None:
        if self._stale:
            self._stale = False  # before learning, which may fail
            self.learn(self._statistic)

    def _forget(self) -> None:
        for name in [n for n in vars(self) if is_learnt(n)]:
            delattr(self, name)

    # Hyper-parameters and text

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The hyper-parameters with their default values; `inspect.Parameter.empty` for none."""
        return dict(_defaults(cls))

    def get_params(self) -> dict[str, Any]:
        """The hyper-parameters as they were given."""
        return {name: getattr(self, name) for name in self.defaults()}

    def clone(self) -> Self:
        """The same hyper-parameters, nothing learnt."""
        return type(self)(**self.get_params())

    @property
    def size(self) -> float | None:
        """The hyper-parameter that says how simple the result is: a rank, a number of clusters."""
        return None if self.size_name is None else float(getattr(self, self.size_name))

    def text(self, *, without: str | None = None, **extra: object) -> str:
        """The spec text: the name, and the parameters that differ from their defaults.

        Args:
            without: a parameter that is left out.
            extra: what stands beside the parameters.
        """
        defaults = self.defaults()
        given = {k: v for k, v in self.get_params().items() if v != defaults[k] and k != without}
        given |= extra
        inside = ", ".join(f"{key}={_value_text(value)}" for key, value in given.items())
        return f"{self.name}({inside})" if inside else self.name

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return str(self)

    def __eq__(self, other: object) -> bool:
        """Equal name and hyper-parameters; what was learnt does not count."""
        return type(self) is type(other) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    # Putting together

    def __add__(self, other: Simplification) -> Chain:
        """`SVD(rank=8) + KMeans(clusters=64)`: one after the other at the same site."""
        from anamorph.simplifications.chain import Chain

        if not isinstance(other, Simplification):
            return NotImplemented
        return Chain(stages=(*self.parts(), *other.parts()))

    def at(self, sites: str, *, joint: bool = False) -> Attachment:
        """Attach to the sites of a pattern, such as `1.*.{query,key}`.

        Args:
            sites: the pattern; see `anamorph.models.sites`.
            joint: whether the sites of one head share one fit.
        """
        from anamorph.simplifications.attach import Attachment

        return Attachment(self, sites, joint)

    def __matmul__(self, sites: str) -> Attachment:
        """`SVD(rank=4) @ "1.*.{query,key}"`: attach, each site with a fit of its own."""
        return self.at(sites)

    # Keeping

    def fingerprint(self) -> str:
        """A digest of what it is made of beside its text: arrays it holds, files it names, code.

        Override it if what it does depends on something else, such as a table in a data base.
        """
        return fingerprint_of(self)

    def state_dict(self) -> dict[str, Tensor]:
        """What was learnt, by attribute name; empty if nothing was."""
        self._settle()
        return {name: value for name, value in vars(self).items() if is_learnt(name)}

    def load_state(self, state: Mapping[str, Tensor]) -> Self:
        """Set what `state_dict` gave."""
        self._statistic, self._stale = None, False
        self._forget()
        for name, value in state.items():
            setattr(self, name, value)
        return self

    def save(self, path: Path | str) -> None:
        """Write to a safetensors file, with the spec text in its metadata.

        Raises:
            AnamorphError: if the file cannot be written.
        """
        write_weights(path, self.state_dict(), {"spec": str(self)})

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what `save` wrote.

        Raises:
            AnamorphError: if the file cannot be read or holds another kind of simplification.
        """
        from anamorph.simplifications.spec import parse_simplification

        state, metadata = read_weights(path)
        if "spec" not in metadata:
            raise AnamorphError(f"{path} holds no simplification; give a file made by save().")
        own = {} if inspect.isabstract(cls) else {cls.name: cls}
        loaded = parse_simplification(metadata["spec"], known=own)
        if not isinstance(loaded, cls):
            raise AnamorphError(f"{path} holds {loaded}, not {cls.__name__}; use its own class.")
        return loaded.load_state(state)


@cache  # a signature is slow to inspect, and texts and hashes of simplifications ask for it
def _defaults(kind: type[Simplification]) -> Mapping[str, Any]:
    return {p.name: p.default for p in inspect.signature(kind).parameters.values()}


def is_learnt(name: str) -> bool:
    """Whether an attribute of this name is learnt: it ends, and does not begin, with `_`."""
    return name.endswith("_") and not name.startswith("_")


def as_points(x: Tensor) -> Tensor:
    """`x` [..., dim] as [points, dim].

    Raises:
        AnamorphError: if `x` has no axes, or holds a NaN or infinity.
    """
    if x.ndim == 0:
        raise AnamorphError("Cannot fit to a single number; give activations [..., dim].")
    points = x.detach().reshape(-1, x.shape[-1])
    if not torch.isfinite(points).all():
        bad = (~torch.isfinite(points)).any(dim=1).nonzero()[0].item()
        raise AnamorphError(
            f"Cannot fit to activations with a NaN or infinity (first at point {bad} of "
            f"{len(points)}); find out where in the model it comes from."
        )
    return points


def require_whole(owner: Simplification, parameter: str, least: int) -> None:
    """Raise an AnamorphError unless a hyper-parameter is a whole number of at least `least`."""
    value = getattr(owner, parameter)
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise AnamorphError(
            f"{owner}: {parameter} must be a whole number, {least} or more; got {value!r}."
        )


def _value_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
