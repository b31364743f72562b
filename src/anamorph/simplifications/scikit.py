"""Estimators of scikit-learn: named by text, and kept without pickle."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.machine.process import as_found
from anamorph.simplifications.fingerprint import fingerprint_of
from anamorph.simplifications.grammar import Scalar

MODULES = ("cluster", "decomposition", "feature_selection", "preprocessing", "random_projection")
"""The public modules of scikit-learn whose classes a text can name."""

ATTRIBUTES = "attributes_"
"""The entry of a state that holds, as JSON in UTF-8, everything but the arrays."""


class Unkept(Exception):
    """A state holds more than arrays, numbers and text of scikit-learn's own classes."""


def estimator_named(names: str, params: Mapping[str, Scalar]) -> Any:
    """An estimator, not fitted, by the names of its classes.

    Args:
        names: `FastICA`, or of a pipeline `StandardScaler+PCA`.
        params: as `set_params` takes them: `n_components`, of a step `pca__n_components`.

    Raises:
        AnamorphError: if there is no such class or parameter.
    """
    steps = [_transformer(name) for name in names.split("+")]
    if len(steps) > 1:
        for key in params:
            if "__" not in key:  # the pipeline's own: it could read pickles from `memory`
                raise AnamorphError(
                    f"{key} is not a parameter of a step of {names}: write the step's name in "
                    f"lower case before it, such as {names.split('+')[-1].lower()}__{key}."
                )
    try:
        return (steps[0] if len(steps) == 1 else _pipeline(steps)).set_params(**params)
    except ValueError as error:
        raise AnamorphError(f"scikit-learn refuses a parameter of {names}: {error}") from error


def names_of(estimator: Any) -> dict[str, Scalar]:
    """What names an estimator: its classes as `of`, and the parameters that are not the usual.

    Of what `estimator_named` cannot make again, `of` holds a digest.
    """
    steps = [step for _, step in estimator.steps] if _is_pipeline(estimator) else [estimator]
    classes = [type(step) for step in steps]
    found: dict[str, Scalar] = {"of": "+".join(kind.__name__ for kind in classes)}
    pipeline = _is_pipeline(estimator)
    known = all(_classes().get(kind.__name__) is kind for kind in classes)
    if known and (not pipeline or estimator.memory is None):
        prefixes = [f"{name}__" for name, _ in _pipeline(steps).steps] if pipeline else [""]
        for prefix, step in zip(prefixes, steps, strict=True):
            found |= {prefix + key: value for key, value in _unusual(step).items()}
        if all(isinstance(value, Scalar) and "-" not in key for key, value in found.items()):
            return found
    return {"of": f"{type(estimator).__name__}-{fingerprint_of(estimator)[:12]}"}


def can_be_undone(estimator: Any) -> bool:
    """Whether an estimator, or a class, transforms and has `inverse_transform`; it may depend."""
    return hasattr(estimator, "transform") and hasattr(estimator, "inverse_transform")


def _unusual(estimator: Any) -> dict[str, Any]:
    """The parameters of an estimator that differ from the defaults of its class."""
    parameters = inspect.signature(type(estimator)).parameters
    given = {
        key: value.item() if isinstance(value, np.generic) else value
        for key, value in estimator.get_params(deep=False).items()
    }
    return {
        key: value
        for key, value in given.items()
        if value is not parameters[key].default and fingerprint_of(value) != _usual(parameters[key])
    }


def _usual(parameter: inspect.Parameter) -> str:
    return fingerprint_of(parameter.default)


def _transformer(name: str) -> Any:
    kind = _classes().get(name)
    if kind is None or not can_be_undone(kind):
        there = sorted(name for name, found in _classes().items() if can_be_undone(found))
        raise AnamorphError(
            f"A text can name no transformer {name!r}; it can name those of scikit-learn that have "
            f"inverse_transform: {', '.join(there)}."
        )
    try:
        return kind()
    except TypeError as error:
        raise AnamorphError(
            f"{name} of scikit-learn needs more than numbers and text ({error}); give am.Estimator "
            "the object, for am.audit."
        ) from error


@cache
def _classes() -> dict[str, type]:
    """The estimators of the public modules, by name."""
    with as_found():  # here: it takes two seconds to import
        from sklearn.base import BaseEstimator

        modules = [import_module(f"sklearn.{module}") for module in MODULES]
    return {
        name: found
        for module in modules
        for name in module.__all__
        if isinstance(found := vars(module)[name], type) and issubclass(found, BaseEstimator)
    }


def _pipeline(steps: list[Any]) -> Any:
    with as_found():
        from sklearn.pipeline import make_pipeline
    return make_pipeline(*steps)


def _is_pipeline(estimator: Any) -> bool:
    with as_found():
        from sklearn.pipeline import Pipeline
    return type(estimator) is Pipeline


# State


def state_of(estimator: Any) -> dict[str, Tensor]:
    """Everything that a fitted estimator holds, as tensors.

    Raises:
        Unkept: if that cannot be.
    """
    arrays: list[Tensor] = []
    told = json.dumps(_told(estimator, arrays)).encode()
    numbered = {f"array_{number}_": array for number, array in enumerate(arrays)}
    return {ATTRIBUTES: torch.frombuffer(bytearray(told), dtype=torch.uint8), **numbered}


def estimator_of(state: Mapping[str, Tensor]) -> Any:
    """The estimator whose state it is.

    Raises:
        AnamorphError: if the state names a class that is not scikit-learn's.
    """
    return _made(json.loads(state[ATTRIBUTES].numpy().tobytes()), state)


def _told(value: Any, arrays: list[Tensor]) -> Any:
    """A value in JSON; what it holds of arrays goes to `arrays`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf":
        try:
            # In one layout, on which how a product rounds may depend.
            arrays.append(torch.from_numpy(np.array(value, order="C")))
        except TypeError as error:
            raise Unkept(str(value.dtype)) from error
        return {"array": len(arrays) - 1}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_told(item, arrays) for item in value]}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": {key: _told(item, arrays) for key, item in value.items()}}
    name = type(value).__name__
    if _is_pipeline(value) or _classes().get(name) is type(value):
        held = {key: _told(item, arrays) for key, item in vars(value).items()}
        return {"class": name, "attributes": held}
    raise Unkept(name)


def _made(told: Any, state: Mapping[str, Tensor]) -> Any:
    """The value that `_told` told."""
    match told:
        case {"array": int(number)}:
            return state[f"array_{number}_"].numpy()[()]
        case {"list": list(items)}:
            return [_made(item, state) for item in items]
        case {"tuple": list(items)}:
            return tuple(_made(item, state) for item in items)
        case {"dict": dict(items)}:
            return {key: _made(item, state) for key, item in items.items()}
        case {"class": str(name), "attributes": dict(held)}:
            estimator = _empty(name)
            vars(estimator).update({key: _made(item, state) for key, item in held.items()})
            return estimator
    return told


def _empty(name: str) -> Any:
    kind: Any = type(_pipeline([])) if name == "Pipeline" else _classes().get(name)
    if kind is None:
        raise AnamorphError(
            f"The state is of a class {name!r}, which this version of scikit-learn does not have; "
            "fit again."
        )
    return kind.__new__(kind)
