"""The laws that every simplification must keep, as a test that anybody can run on their own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.simplifications.base import Simplification, Simplified
from anamorph.simplifications.estimator import is_learnt
from anamorph.simplifications.registry import simplification_names
from anamorph.simplifications.spec import parse

Check = Callable[[Simplification, Tensor], None]


def check_simplification(
    simplification: Simplification, *, dim: int = 8, points: int = 200, seed: int = 0
) -> None:
    """Check a simplification against every law that applies to it.

    Args:
        simplification: what to check; copies of it are fitted, itself it stays as it is.
        dim: the width of the points that it is tried on.
        points: how many points, all of them distinct.
        seed: of the points.

    Raises:
        AssertionError: if a law is broken; the message starts with the law.
    """
    generator = torch.Generator().manual_seed(seed)
    mix, noise = (torch.randn(n, dim, generator=generator) for n in (dim, points))
    x = 0.5 + noise @ mix
    if simplification.kinds == {"pattern"}:
        x = x.softmax(dim=-1)
    for law, check in LAWS.items():
        try:
            check(simplification, x.clone())
        except Exception as error:
            raise AssertionError(f"{law}: {simplification!r}: {error}") from error


def _hyper_parameters(simplification: Simplification, x: Tensor) -> None:
    kind = type(simplification)
    parameters = inspect.signature(kind).parameters.values()
    loose = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    _require(not loose, f"{loose} of __init__ can be given by position")
    marks = {name: object() for name in kind.defaults()}
    stored = vars(kind(**marks))
    changed = [name for name, mark in marks.items() if stored.get(name) is not mark]
    _require(not changed, f"__init__ does not store {changed} as given")


def _text(simplification: Simplification, x: Tensor) -> None:
    if not {part.name for part in simplification.parts()} <= set(simplification_names()):
        return
    (site_kind, *_) = sorted(simplification.kinds)
    attached = simplification @ f"*.*.{site_kind}"
    (proxy,) = parse(str(attached))
    _require(proxy == Simplified((attached,)), f"it reads as {proxy}")


def _returns_self(simplification: Simplification, x: Tensor) -> None:
    fresh = simplification.clone()
    _require(fresh.fit(x) is fresh, "fit returns something else")


def _underscore(simplification: Simplification, x: Tensor) -> None:
    fresh = simplification.clone()
    before = dict(vars(fresh))
    after = vars(fresh.fit(x))
    changed = [k for k in before if k not in after or after[k] is not before[k]]
    _require(not changed, f"fit changes the hyper-parameters {changed}")
    learnt = [k for k in after if k not in before and not is_learnt(k) and not k.startswith("_")]
    _require(not learnt, f"fit sets {learnt}")


def _input_untouched(simplification: Simplification, x: Tensor) -> None:
    kept = x.clone()
    fitted = simplification.clone().fit(x)
    _require(torch.equal(x, kept), "fit changes its input")
    fitted(x)
    _require(torch.equal(x, kept), "calling changes its input")


def _nan(simplification: Simplification, x: Tensor) -> None:
    for bad in (float("nan"), float("inf")):
        x[len(x) // 2, 0] = bad
        try:
            simplification.clone().fit(x)
        except AnamorphError:
            continue
        _require(False, f"fit takes a {bad} for a number")


def _shape(simplification: Simplification, x: Tensor) -> None:
    fitted = simplification.clone().fit(x)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        given = x.to(dtype)
        got = fitted(given)
        for what in ("shape", "dtype", "device"):
            before, after = getattr(given, what), getattr(got, what)
            _require(before == after, f"{what} {before} becomes {after}")


def _leading_axes(simplification: Simplification, x: Tensor) -> None:
    fitted = simplification.clone().fit(x)
    whole = fitted(x)
    half = len(x) // 2
    folded = fitted(x[: 2 * half].reshape(2, half, 1, -1)).reshape(2 * half, -1)
    _require(_close(folded, whole[: 2 * half]), "folded into more axes, points map elsewhere")
    singly = torch.stack([fitted(point) for point in x])
    _require(_close(singly, whole), "one at a time, points map elsewhere")


def _refit(simplification: Simplification, x: Tensor) -> None:
    fresh = simplification.clone().fit(x)
    expected = fresh(x)
    _require(torch.equal(fresh.fit(x)(x), expected), "the same data give another map")
    fresh.fit(x.flip(-1))
    _require(torch.equal(fresh.fit(x)(x), expected), "what was fitted before leaves traces")


def _streams(simplification: Simplification, x: Tensor) -> None:
    expected = simplification.clone().fit(x)(x)
    for size in (1, 7, len(x)):
        fresh = simplification.clone()
        statistic = fresh.statistic(x.shape[1])
        if statistic is None:
            return
        for chunk in torch.split(x, size):
            statistic.update(chunk)
        _require(
            _close(fresh.learn(statistic)(x), expected),
            f"in chunks of {size} it learns another map",
        )


def _save_and_load(simplification: Simplification, x: Tensor) -> None:
    fitted = simplification.clone().fit(x)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "simplification.safetensors"
        fitted.save(path)
        loaded = type(simplification).load(path)
    _require(loaded == fitted, f"it comes back as {loaded}")
    _require(torch.equal(loaded(x), fitted(x)), "it comes back as another map")


def _full_size(simplification: Simplification, x: Tensor) -> None:
    size = simplification.exact_size(x.shape[1], len(x))
    if size is None or simplification.size_name is None:
        return
    params: dict[str, Any] = {**simplification.get_params(), simplification.size_name: size}
    full = type(simplification)(**params).fit(x)
    error = (full(x) - x).abs().max().item()
    _require(_close(full(x), x), f"at {full} points move by up to {error:.2g}")


LAWS: dict[str, Check] = {
    "hyper-parameters are keyword-only and stored as given": _hyper_parameters,
    "the text reads back as the same simplification": _text,
    "fit returns self": _returns_self,
    "what is learnt ends in an underscore": _underscore,
    "the input stays as it is": _input_untouched,
    "a NaN or infinity is refused": _nan,
    "shape, dtype and device stay": _shape,
    "every point is mapped by itself": _leading_axes,
    "a second fit gives the same": _refit,
    "a statistic updated in chunks teaches the same": _streams,
    "save and load keep every bit": _save_and_load,
    "full size is the identity": _full_size,
}
"""Every law by its text, in the order in which they are checked."""


def _require(kept: bool, otherwise: str) -> None:
    if not kept:
        raise AssertionError(otherwise)


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-4)
