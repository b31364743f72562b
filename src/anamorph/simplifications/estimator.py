"""scikit-learn's contract: hyper-parameters and what is learnt, as attributes of one object.

Hyper-parameters are keyword-only and stored as given; what is learnt ends in `_`.
"""

from __future__ import annotations

import inspect
from abc import ABC
from collections.abc import Mapping
from functools import cache
from numbers import Integral
from typing import Any, ClassVar, Self

from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.simplifications.fingerprint import fingerprint_of


class NotFittedError(AnamorphError, AttributeError):
    """A learnt attribute was asked for before `fit`."""


class Estimator(ABC):
    """Something with a name, hyper-parameters and learnt attributes; its text names it.

    Attributes:
        name: what it is called in specs.
    """

    name: ClassVar[str]

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
            problem = f"has no {', '.join(unknown)}" if unknown else f"needs {', '.join(missing)}"
            raise AnamorphError(
                f"{cls.name} {problem}. Its parameters are: {', '.join(defaults) or 'none'} "
                "(and joint=true, which shares one fit among the sites of a head; and on=SPLIT, "
                "which fits on that split)."
            )
        return cls(**given)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Each hyper-parameter's default value, or `inspect.Parameter.empty`."""
        return dict(_defaults(cls))

    def get_params(self) -> dict[str, Any]:
        """The hyper-parameters as they were given."""
        return {name: getattr(self, name) for name in self.defaults()}

    def clone(self) -> Self:
        """The same hyper-parameters, nothing learnt."""
        return type(self)(**self.get_params())

    def text(self, **extra: object) -> str:
        """The spec text: the name, and the parameters that differ from their defaults."""
        defaults = self.defaults()
        given = {k: v for k, v in self.get_params().items() if v != defaults[k]} | extra
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

    def __getattr__(self, name: str) -> Any:
        # Python asks here only for an attribute that is missing.
        if not is_learnt(name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise NotFittedError(f"{self} has no {name}: it is not fitted, or learns no such thing.")

    def require_whole(self, parameter: str, least: int) -> None:
        """Raise an AnamorphError unless a hyper-parameter is a whole number, at least `least`."""
        value = getattr(self, parameter)
        if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
            raise AnamorphError(
                f"{self}: {parameter} must be a whole number, {least} or more; got {value!r}."
            )

    def state_dict(self) -> dict[str, Tensor]:
        """What was learnt, by attribute name; empty if nothing was."""
        return {name: value for name, value in vars(self).items() if is_learnt(name)}

    def load_state(self, state: Mapping[str, Tensor]) -> Self:
        """Set what `state_dict` gave, in place of all that was learnt before."""
        for name in [name for name in vars(self) if is_learnt(name)]:
            delattr(self, name)
        for name, value in state.items():
            setattr(self, name, value)
        return self

    def fingerprint(self) -> str:
        """A digest of what it is made of beside its text: arrays it holds, files it names, code.

        Override it if what it does depends on something else, such as a table in a data base.
        """
        held = {name: value for name, value in vars(self).items() if not is_learnt(name)}
        return fingerprint_of(type(self), held)


@cache  # a signature is slow to inspect, and texts and hashes of simplifications ask for it
def _defaults(kind: type[Estimator]) -> Mapping[str, Any]:
    return {p.name: p.default for p in inspect.signature(kind).parameters.values()}


def is_learnt(name: str) -> bool:
    """Whether an attribute of this name is learnt: it ends, and does not begin, with `_`."""
    return name.endswith("_") and not name.startswith("_")


def _value_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
