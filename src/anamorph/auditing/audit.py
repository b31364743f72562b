"""The audit: fit simplifications, put them into the model, compare on every split."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from anamorph.auditing.another import check_models
from anamorph.auditing.samples import few_sequences, fit_batches
from anamorph.auditing.works import Auditor, merge, plan
from anamorph.errors import AnamorphError
from anamorph.faithfulness.gaps import Thresholds
from anamorph.faithfulness.measuring import ProxyInfo
from anamorph.faithfulness.tables import tabulate
from anamorph.models.base import Model
from anamorph.simplifications import (
    FittedProxies,
    ProxySpec,
    Simplified,
    Spec,
    check_proxies,
    expand,
    fit,
)
from anamorph.tasks import Task
from anamorph.tasks.batches import collate
from anamorph.tasks.checks import check_context, check_direction, check_vocabulary


@dataclass(frozen=True)
class Audit:
    """All cells of a model, its proxies and a task.

    Attributes:
        results: every number with its interval, one a row; see `anamorph.faithfulness.tabulate`.
        gaps: every generalization gap with interval, p-value and verdict.
        contrasts: how the levels of facets differ within a split.
        proxies: the proxies with their fitted simplifications.
    """

    results: pl.DataFrame
    gaps: pl.DataFrame
    contrasts: pl.DataFrame
    proxies: FittedProxies


def audit(
    model: Model,
    task: Task,
    simplify: Sequence[Spec],
    *,
    sequences: int = 1000,
    fit_sequences: int = 1000,
    learnt: float | None = None,
    thresholds: Thresholds | None = None,
    resamples: int | None = None,
) -> Audit:
    """Fit simplifications on `train`, put them into the model, and compare on every split.

    Args:
        model: the original, in inference mode.
        task: its data.
        simplify: spec strings or attachments; a list value stands for one proxy each.
        sequences: scored sequences of each split.
        fit_sequences: sequences of `train` that are fitted on.
        learnt: accuracy on the reference that the model must be above for verdicts on it to mean
            anything; what the task says by default (`learnt_of`).
        thresholds: where the lines between verdicts are drawn.
        resamples: has no effect: intervals are no longer made by resampling.

    Raises:
        AnamorphError: if an argument lies out of its range, a proxy does not fit the model or the
            data, or a number is not finite.
    """
    require_sizes(sequences=(sequences, 2), fit_sequences=(fit_sequences, 1))
    if resamples is not None:
        warnings.warn(
            "resamples has no effect: intervals are no longer made by resampling; leave it out.",
            DeprecationWarning,
            stacklevel=2,
        )
    proxies = with_identity(simplify)
    check_audit(model, task, proxies)
    fitted = fit_on_train(model, proxies, task, fit_sequences)
    auditor = Auditor(model, task, proxies, fitted, sequences)
    works = plan(proxies, model, [split.name for split in task.evaluated])
    cells = merge((work, auditor.execute(work)) for work in works)
    tables = tabulate(
        cells,
        describe_proxies(proxies),
        {split.name: split.role for split in task.evaluated},
        reference=task.reference.name,
        learnt=learnt_of(task) if learnt is None else learnt,
        thresholds=thresholds,
    )
    return Audit(*tables, fitted)


def learnt_of(task: Task) -> float:
    """The accuracy on the reference that a model must be above for verdicts on it to mean anything.

    What the task says; or else the share of its most frequent target, which needs no model.
    """
    if task.learnt is not None:
        return task.learnt
    targets = task.reference.tokens[task.reference.scored]
    return float(np.unique(targets, return_counts=True)[1].max() / len(targets))


def check_audit(
    model: Model, task: Task, proxies: Sequence[ProxySpec]
) -> dict[str, dict[str, str]]:
    """Whether model, data and proxies fit together, before any time is spent.

    Returns:
        the fingerprints of other models, by their spec strings.

    Raises:
        AnamorphError: if they do not.
    """
    check_vocabulary(task, model.vocabulary)
    check_direction(task, model.causal)
    if model.context is not None:
        check_context(task, model.context)
    model.check(few_sequences(task, model))
    check_proxies(model, simplified(proxies), collate(task.train, np.arange(1)))
    return check_models(proxies, model, task)


def require_sizes(**sizes: tuple[int, int]) -> None:
    """Check arguments, each given with the least that it may be.

    Raises:
        AnamorphError: names an argument that is no whole number, or is below that.
    """
    for name, (value, least) in sizes.items():
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not whole or value < least:
            raise AnamorphError(
                f"{name} is {value!r}; expected a whole number, and at least {least}."
            )


def with_identity(simplify: Spec | Sequence[Spec]) -> list[ProxySpec]:
    """The proxies that specs stand for, behind the identity."""
    return expand([Simplified(()), *([simplify] if isinstance(simplify, Spec) else simplify)])


def simplified(proxies: Sequence[ProxySpec]) -> list[Simplified]:
    """The proxies that are made by simplifications."""
    return [proxy for proxy in proxies if isinstance(proxy, Simplified)]


def describe_proxies(proxies: Sequence[ProxySpec]) -> list[ProxyInfo]:
    """How results name the proxies."""
    return [
        ProxyInfo(str(p), p.method, p.family, p.size_name, p.size, p.control, p.sites)
        for p in proxies
    ]


def fit_on_train(
    model: Model,
    proxies: Sequence[ProxySpec],
    task: Task,
    sequences: int,
) -> FittedProxies:
    """Fit what is to be fitted of proxies to the first sequences of `train`.

    Raises:
        AnamorphError: as `anamorph.simplifications.fit`; names the split.
    """
    try:
        return fit(model, simplified(proxies), fit_batches(task, sequences))
    except AnamorphError as error:
        raise AnamorphError(f"Split {task.train.name!r}: {error}") from error
