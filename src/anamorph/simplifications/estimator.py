"""The contract of what can be fitted, which is scikit-learn's: `fit` returns self.

Hyper-parameters are keyword-only and stored as given; what is learnt ends in `_`.

What is fitted never sees its data whole. It names a small *statistic* of the stream, a statistic is
updated with a few points at a time, and `learn` turns it into the learnt attributes. Statistics
with equal keys are the same, so that every rank of SVD and of PCA can be learnt from one pass.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.models.base import Context
from anamorph.models.sites import Site
from anamorph.simplifications.fingerprint import fingerprint_of
from anamorph.simplifications.grammar import PATH, value_text
from anamorph.simplifications.prepared import READY, Prepared
from anamorph.simplifications.statistics.base import Statistic, as_points, beside

OF_ATTACHMENT = ("joint", "on", "keep")  # in a spec, what any simplification takes
CONTRACT = frozenset(
    f"anamorph.simplifications.{name}"
    for name in ("base", "estimator", "prepared", "replacement", "weight_change")
)
"""The files of the contract, whose names are taken."""


class NotFittedError(AnamorphError, AttributeError):
    """A learnt attribute was asked for before `fit`."""


@dataclass(frozen=True)
class Where:
    """A place in a model, as a simplification is told of it.

    Attributes:
        sites: what is written; several if they share a fit.
        reads: what a replacement reads for the first of them.
        widths: of what is read, and last of what is written; empty where they are not known, as in
            a run that is read again, and of patterns.
        model: what the model says of itself (`Model.describe`); empty where it is not known.
    """

    sites: tuple[Site, ...]
    reads: tuple[Site, ...] = ()
    widths: tuple[int, ...] = ()
    model: Mapping[str, Any] = field(default_factory=dict)


class Fittable(Prepared, ABC):
    """A map with hyper-parameters and learnt attributes; its text names it.

    Attributes:
        name: what it is called in specs.
        size_name: the hyper-parameter that says how simple the result is; None if there is none.
        control: what it is a control for by its nature, as random directions are "random"; None if
            it is a view.
        first: the hyper-parameter that may be given by position; None if there is none.
        kept: whether a run keeps what was learnt. What comes from files that its hyper-parameters
            name need not be: it is learnt again from them, whose digests the run holds.
        one_fit: whether all sites of an attachment share one fit, as of what one file holds.
    """

    name: ClassVar[str]
    size_name: ClassVar[str | None] = None
    control: ClassVar[str | None] = None
    first: ClassVar[str | None] = None
    kept: ClassVar[bool] = True
    one_fit: ClassVar[bool] = False

    def __init_subclass__(cls, **more: Any) -> None:
        """Refuse hyper-parameters that specs or the contract use: they would never arrive.

        Raises:
            AnamorphError: names them.
        """
        super().__init_subclass__(**more)
        contract = [vars(base) for base in cls.__mro__ if base.__module__ in CONTRACT]
        ours = {name for names in contract for name, value in names.items() if callable(value)}
        ours |= {"name", "kinds"}
        own = [] if cls.__module__ in CONTRACT else inspect.signature(cls.__init__).parameters
        if taken := [name for name in own if name in OF_ATTACHMENT or name in ours]:
            raise AnamorphError(
                f"The simplification {cls.__name__} has a parameter {' and '.join(taken)}, which "
                f"means something else: {', '.join(OF_ATTACHMENT)} of a spec belong to where it "
                "stands, and others to the contract. Give it another name."
            )

    def statistic(self, dim: int) -> Statistic | None:
        """An empty statistic for points of width `dim`; by default None: there is nothing to fit.

        Raises:
            AnamorphError: if a hyper-parameter makes no sense for this width.
        """
        return None

    def placed(self, where: Where) -> Self:
        """Itself for one place in a model, before it learns; by default it is the same anywhere.

        Override it in what depends on where it stands, such as a folder with a file a layer. Return
        a clone that knows what it needs.

        Raises:
            AnamorphError: if it does not suit the place.
        """
        return self

    def learn(self, statistic: Any) -> Self:
        """Set the learnt attributes, tensors of any dtype; it is called once before use.

        Args:
            statistic: that saw the data; None if there is nothing to fit. What is learnt may then
                come from elsewhere, such as a file.
        """
        return self

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Map `x` [..., dim], every point by itself, in the dtype of `x`."""

    def apply(self, x: Tensor, *, context: Context) -> Tensor:
        """Map `x` where it is in the model; override it to use what is known of the points.

        Args:
            x: [batch, position, dim], or of a pattern [batch, query, key].
            context: the tokens, the mask and the positions of `x`.

        Returns:
            a tensor of the shape, dtype and device of `x`; what `__call__` gives by default.
        """
        return self(x)

    def encode(self, *read: Any, **_: Any) -> Tensor | None:
        """The features of points, [..., features]; one that is not zero is active.

        Args:
            read: what `__call__` is given.

        Returns:
            those of one layer; None if there are none, as by default.
        """
        return None

    def validate(self, dim: int | None = None) -> None:
        """Check what can be checked of the hyper-parameters before any data is seen.

        Raises:
            AnamorphError: if one makes no sense, on its own or for points of width `dim`.
        """
        return None

    def exact_size(self, dim: int, points: int) -> int | None:
        """The size at which `points` distinct points of width `dim` are left as they are."""
        return None

    def affine(self) -> tuple[Tensor, Tensor] | None:
        """(matrix [dim, dim], bias [dim]) in float64 if the map is `x @ matrix + bias`.

        It is None for a map that needs more than the point, by `apply`. By default it is what the
        factors give, if there are any.
        """
        factors = self.factors()
        return None if factors is None else (factors[0] @ factors[1], factors[2])

    def factors(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """(down [dim, rank], up [rank, dim], bias [dim]) if the map is `x @ down @ up + bias`.

        In float64, as `affine`, which need not be said then. A low rank is less to compute.
        """
        return None

    def product(self) -> tuple[Tensor, Tensor] | None:
        """`affine()`, unless a class below the one that defines it maps points in another way."""
        return self.affine() if self._defines("affine", "factors") else None

    def products(self, x: Tensor) -> tuple[Tensor, ...] | None:
        """The matrices by which points are multiplied in turn and last the bias, made once.

        They are the factors where these are less to compute, else the one matrix [dim, dim]; None
        where `product()` is. In the dtype of `x`, on its device.
        """
        if not self._defines("affine", "factors"):
            return None
        return self.prepared(x, "products", self._products) or None

    def _products(self) -> tuple[Tensor, ...]:
        factors = self.factors() if self._defines("factors") else None
        if factors is not None and 2 * len(factors[1]) < len(factors[2]):
            return factors
        return self.affine() or ()

    def _defines(self, *names: str) -> bool:
        """Whether one of these methods is defined, and no class below maps points otherwise."""
        for kind in type(self).__mro__:
            if not vars(kind).keys().isdisjoint(names):
                return True
            if not vars(kind).keys().isdisjoint(("affine", "apply", "__call__")):
                break
        return False

    def fit(self, *points: Tensor) -> Self:
        """Learn from points [..., dim], and from nothing seen before.

        Args:
            points: what a map maps; of a replacement what is read, in the order of `reads`, and
                last what is written, with as many points each.

        Raises:
            AnamorphError: if there is a NaN or infinity, if one has more points than another, or if
                they do not suit the hyper-parameters.
        """
        parts = [as_points(x) for x in points]
        if len({len(part) for part in parts}) != 1:
            raise AnamorphError(
                f"{self}: what is read and what is written must have as many points; got "
                f"{', '.join(str(len(part)) for part in parts)}."
            )
        statistic = self.statistic(*(part.shape[1] for part in parts))
        self.load_state({})
        if statistic is not None:
            statistic.update(beside(parts))
        self.learn(statistic)
        return self

    # Hyper-parameters and text

    @classmethod
    def with_params(cls, given: Mapping[str, Any]) -> Self:
        """Make one with these hyper-parameters.

        Raises:
            AnamorphError: if one is missing, or is not a hyper-parameter.
        """
        defaults = cls.defaults()
        missing = [
            k for k, v in defaults.items() if v is inspect.Parameter.empty and k not in given
        ]
        unknown = [k for k in given if k not in defaults]
        if missing or unknown:
            alone = ", which a value without a name would be" if PATH in unknown else ""
            problem = (
                f"has no {', '.join(unknown)}{alone}" if unknown else f"needs {', '.join(missing)}"
            )
            raise AnamorphError(
                f"{cls.name} {problem}. Its parameters are: {', '.join(defaults) or 'none'} "
                "(and joint=true, which shares one fit among the sites of a head; on=SPLIT, which "
                "fits on that split, a slice of it or a mixture; and keep=1, which leaves the "
                "first position as it is)."
            )
        return cls(**given)

    @classmethod
    @cache  # a signature is slow to inspect, and texts and hashes of simplifications ask for it
    def defaults(cls) -> Mapping[str, Any]:
        """Each hyper-parameter's default value, or `inspect.Parameter.empty`."""
        return {p.name: p.default for p in inspect.signature(cls).parameters.values()}

    def get_params(self) -> dict[str, Any]:
        """The hyper-parameters as they were given."""
        return {name: getattr(self, name) for name in self.defaults()}

    def clone(self) -> Self:
        """The same hyper-parameters, nothing learnt."""
        return type(self)(**self.get_params())

    def text(self, *, without: str | None = None, **extra: object) -> str:
        """The spec text: the name, and the parameters that differ from their defaults.

        Args:
            without: a parameter that is left out.
            extra: what is written besides the parameters.
        """
        usual = {key: _value_text(value) for key, value in self.defaults().items()}
        given = {key: _value_text(value) for key, value in (self.get_params() | extra).items()}
        inside = ", ".join(
            f"{key}={text}"
            for key, text in given.items()
            if key != without and text != usual.get(key)
        )
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

    @property
    def method(self) -> str:
        """What results call it, without parameters: its name."""
        return self.name

    @property
    def size(self) -> float | None:
        """The hyper-parameter that says how simple the result is: a rank, a number of clusters."""
        return None if self.size_name is None else float(getattr(self, self.size_name))

    def require_whole(self, parameter: str, least: int) -> None:
        """Raise an AnamorphError unless a hyper-parameter is a whole number, at least `least`."""
        value = getattr(self, parameter)
        if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
            raise AnamorphError(
                f"{self}: {parameter} must be a whole number, {least} or more; got {value!r}."
            )

    # What was learnt

    def __getattr__(self, name: str) -> Any:
        # Python asks here only for an attribute that is missing.
        if not is_learnt(name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise NotFittedError(f"{self} has no {name}: it is not fitted, or learns no such thing.")

    def state_dict(self) -> dict[str, Tensor]:
        """What was learnt and is kept, by attribute name."""
        return {n: value for n, value in vars(self).items() if is_learnt(n) and self.kept}

    def load_state(self, state: Mapping[str, Tensor]) -> Self:
        """Set what `state_dict` gave, in place of all that was learnt before."""
        for name in [name for name in vars(self) if is_learnt(name)]:
            delattr(self, name)
        for name, value in state.items():
            setattr(self, name, value)
        return self

    def export(self, folder: Path | str, site: Site, model: str) -> Path | None:
        """Write what was learnt in a form that other packages read, if there is one.

        Args:
            folder: a folder is made in it.
            site: where it stands.
            model: the name of the model.

        Returns:
            the folder that was made; None if there is no such form, as by default.

        Raises:
            AnamorphError: if the form cannot name the site, or the folder cannot be written.
        """
        return None

    def fingerprint(self) -> str:
        """A digest of what it is made of beside its text: arrays it holds, files it names, code.

        Override it if what it does depends on something else, such as a table in a data base.
        """
        own = vars(self).items()
        held = {name: value for name, value in own if not (is_learnt(name) or name == READY)}
        return fingerprint_of(type(self), held)


def is_learnt(name: str) -> bool:
    """Whether an attribute of this name is learnt: it ends, and does not begin, with `_`."""
    return name.endswith("_") and not name.startswith("_")


def _value_text(value: object) -> str:
    if isinstance(value, Tensor | np.ndarray):  # whose own text leaves out most of a large one
        return f"array-{fingerprint_of(value)[:12]}"
    return value_text(value)
