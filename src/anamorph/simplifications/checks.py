"""The laws that every simplification must keep, as a test that anybody can run on their own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from anamorph.errors import AnamorphError
from anamorph.simplifications.base import Simplification, Simplified
from anamorph.simplifications.estimator import is_learnt
from anamorph.simplifications.in_place import IN_PLACE, finite_stays, shape_stays
from anamorph.simplifications.placing import is_earlier
from anamorph.simplifications.registry import simplification_names
from anamorph.simplifications.spec import parse
from anamorph.simplifications.statistics.base import beside, can_merge
from anamorph.simplifications.trial import Trial, require, require_close, some_site
from anamorph.simplifications.weight_change import WeightChange
from anamorph.simplifications.weight_checks import WEIGHT_LAWS, weight_trials


def check_simplification(
    simplification: Simplification,
    *,
    dim: int | Sequence[int] = 8,
    points: int = 200,
    seed: int = 0,
) -> None:
    """Check a simplification against every law that applies to it.

    Args:
        simplification: what to check; copies of it are fitted, itself it stays as it is.
        dim: the width of the points that it is tried on, such as that of a site of yours
            (`am.list_sites(model)` tells it). Of a replacement that writes another width than it
            reads: those of all that is read, and last of what is written.
        points: how many points, all of them distinct.
        seed: of the points.

    Raises:
        AssertionError: if a law is broken; the message starts with the law, and names the widths.
        AnamorphError: if there are not as many widths as it reads and writes.
    """
    trial = Trial.of(simplification, _widths(simplification, dim), points, seed)
    if isinstance(simplification, WeightChange):
        for law, check in list(LAWS.items())[:2]:  # of its hyper-parameters and its text
            _kept(law, trial, partial(check, trial))
        for of_weights in weight_trials(simplification, trial.widths[0], trial.points[0], seed):
            for law, test in WEIGHT_LAWS.items():
                _kept(law, trial, partial(test, of_weights))
        return
    for law, check in LAWS.items():
        _kept(law, trial, partial(check, trial.fresh()))


def _widths(simplification: Simplification, dim: int | Sequence[int]) -> tuple[int, ...]:
    """Of what is read, if it is a replacement, and last of what is mapped or written."""
    read = len(simplification.reads(some_site(min(simplification.kinds))))
    if isinstance(dim, int):
        return (dim,) * (read + 1)
    if len(dim) != read + 1:
        raise AnamorphError(
            f"{simplification!r} reads {read} sites and writes one; give {read + 1} widths, those "
            f"of what is read and last of what is written, or one for all; got dim={tuple(dim)}."
        )
    return tuple(dim)


def _kept(law: str, trial: Trial, check: Callable[[], None]) -> None:
    """Check a law; an error of any kind is a breach of it."""
    try:
        check()
    except Exception as error:
        same = len({*trial.widths}) == 1
        dim = trial.widths[0] if same else trial.widths
        raise AssertionError(f"{law}: {trial.tried!r}, with dim={dim}: {error}") from error


def _hyper_parameters(trial: Trial) -> None:
    kind = type(trial.tried)
    parameters = inspect.signature(kind).parameters.values()
    named = [p for p in parameters if p.kind is not p.POSITIONAL_OR_KEYWORD or p.name != kind.first]
    loose = [p.name for p in named if p.kind is not p.KEYWORD_ONLY]
    require(not loose, f"{loose} of __init__ can be given by position")
    marks = {name: object() for name in kind.defaults()}
    stored = vars(kind(**marks))
    changed = [name for name, mark in marks.items() if stored.get(name) is not mark]
    require(not changed, f"__init__ does not store {changed} as given")


def _text(trial: Trial) -> None:
    if {part.name for part in trial.tried.parts()} <= set(simplification_names()):
        attached = trial.tried @ f"*.*.{min(trial.tried.kinds)}"
        (proxy,) = parse(str(attached))
        require(proxy == Simplified((attached,)), f"it reads as {proxy}")


def _reads(trial: Trial) -> None:
    for site in map(some_site, sorted(trial.tried.kinds)):
        reads = trial.tried.reads(site)
        late = [str(read) for read in reads if read != site and not is_earlier(read, site)]
        require(not late, f"at {site} it reads {', '.join(late)}")


def _returns_self(trial: Trial) -> None:
    fresh = trial.tried.clone()
    require(fresh.fit(*trial.points) is fresh, "fit returns something else")


def _underscore(trial: Trial) -> None:
    fresh = trial.tried.clone()
    before = dict(vars(fresh))
    after = vars(fresh.fit(*trial.points))
    changed = [k for k in before if k not in after or after[k] is not before[k]]
    require(not changed, f"fit changes the hyper-parameters {changed}")
    learnt = [k for k in after if k not in before and not is_learnt(k) and not k.startswith("_")]
    require(not learnt, f"fit sets {learnt}")


def _input_untouched(trial: Trial) -> None:
    points = (*trial.points, *trial.sequences.given)
    kept = [x.clone() for x in points]
    fitted = trial.fitted()
    require(all(map(torch.equal, points, kept)), "fit changes its input")
    trial.mapped(fitted)
    trial.sequences.mapped(fitted)
    require(all(map(torch.equal, points, kept)), "calling changes its input")


def _nan(trial: Trial) -> None:
    for bad in (float("nan"), float("inf")):
        trial.points[0][len(trial.points[0]) // 2, 0] = bad
        try:
            trial.fitted()
        except AnamorphError:
            continue
        require(False, f"fit takes a {bad} for a number")


def _leading_axes(trial: Trial) -> None:
    fitted = trial.fitted()
    whole = trial.mapped(fitted)
    half = len(whole) // 2
    folded = fitted(*(x[: 2 * half].reshape(2, half, 1, -1) for x in trial.given))
    require_close(
        folded.reshape(2 * half, -1),
        whole[: 2 * half],
        "folded into more axes, points map elsewhere",
    )
    singly = torch.stack([fitted(*point) for point in zip(*trial.given, strict=True)])
    require_close(singly, whole, "one at a time, points map elsewhere")


def _affine(trial: Trial) -> None:
    fitted = trial.fitted()
    said = fitted.affine()
    if said is not None:
        require(len(trial.points) == 1, "a replacement is a function of what it reads")
        matrix, bias = (part.to(trial.points[0]) for part in said)
        by_hand = trial.points[0] @ matrix + bias
        require_close(by_hand, trial.mapped(fitted), "x @ matrix + bias is another point")


def _refit(trial: Trial) -> None:
    fresh = trial.fitted()
    expected = trial.mapped(fresh)
    again = trial.mapped(fresh.fit(*trial.points))
    require(torch.equal(again, expected), "the same data give another map")
    fresh.fit(*(x.flip(-1) for x in trial.points))
    again = trial.mapped(fresh.fit(*trial.points))
    require(torch.equal(again, expected), "what was fitted before leaves traces")


def _streams(trial: Trial) -> None:
    expected, x = trial.mapped(), beside(trial.points)
    for size in (1, 7, len(x)):
        statistic = trial.statistic()
        if statistic is None:
            return
        for chunk in torch.split(x, size):
            statistic.update(chunk)
        learnt = trial.mapped(trial.tried.clone().learn(statistic))
        require_close(learnt, expected, f"in chunks of {size} it learns another map")


def _merges(trial: Trial) -> None:
    statistic = trial.statistic()
    if not can_merge(statistic):
        return
    x = beside(trial.points)
    parts, start = [], 0
    for chunk in torch.split(x, len(x) // 3):
        parts.append(statistic.part(start))
        parts[-1].update(chunk)
        start += len(chunk)
    for part in parts[1:]:
        parts[0].merge(part)
    learnt = trial.mapped(trial.tried.clone().learn(parts[0]))
    require_close(learnt, trial.mapped(), "of parts put together it learns another map")


def _save_and_load(trial: Trial) -> None:
    fitted = trial.fitted()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "simplification.safetensors"
        fitted.save(path)
        loaded = type(fitted).load(path)
    require(loaded == fitted, f"it comes back as {loaded}")
    same = torch.equal(trial.mapped(loaded), trial.mapped(fitted))
    require(same, "it comes back as another map")


def _full_size(trial: Trial) -> None:
    (x, *_), tried = trial.given, trial.tried
    size = tried.exact_size(x.shape[1], len(x))
    if size is None or tried.size_name is None:
        return
    params: dict[str, Any] = {**tried.get_params(), tried.size_name: size}
    full = trial.mapped(tried.with_params(params).fit(*trial.points))
    error = (full - trial.points[-1]).abs().max().item()
    require_close(full, trial.points[-1], f"at {size} points move by up to {error:.2g}")


LAWS: dict[str, Callable[[Trial], None]] = {
    "hyper-parameters are keyword-only and stored as given": _hyper_parameters,
    "the text reads back as the same simplification": _text,
    "what is read is computed before what is written": _reads,
    "fit returns self": _returns_self,
    "what is learnt ends in an underscore": _underscore,
    "the input stays as it is": _input_untouched,
    "a NaN or infinity is refused": _nan,
    "shape, dtype and device stay": shape_stays,
    "finite points stay finite": finite_stays,
    "every point is mapped by itself": _leading_axes,
    "an affine map is what it says": _affine,
    "a second fit gives the same": _refit,
    "a statistic updated in chunks teaches the same": _streams,
    "a statistic of parts teaches the same": _merges,
    "save and load keep every bit": _save_and_load,
    "full size is the identity": _full_size,
    **IN_PLACE,
}
"""Every law by its text, in the order in which they are checked."""
