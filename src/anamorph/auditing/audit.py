"""The audit: fit simplifications, put them into the model, compare on every split."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import polars as pl

from anamorph.auditing.another import check_models
from anamorph.auditing.at_sites import at_sites
from anamorph.auditing.options import AuditOptions
from anamorph.auditing.samples import few_sequences, fit_data, scored_task, unwatched
from anamorph.auditing.sizes import usual_batches
from anamorph.auditing.works import Auditor, Work, merge, plan
from anamorph.faithfulness.confidence import PRIOR_CORRELATION
from anamorph.faithfulness.gaps import Thresholds
from anamorph.faithfulness.matrix import Matrix
from anamorph.faithfulness.measuring import CellKey, ProxyInfo
from anamorph.faithfulness.spooled import SpooledTables, spooled
from anamorph.faithfulness.sums import CellSums
from anamorph.faithfulness.tables import Tables, parts, tabulate
from anamorph.models.base import Model
from anamorph.progress import Event, Watch
from anamorph.progress.watching import watching
from anamorph.showing import Card, Showing
from anamorph.simplifications import (
    FittedProxies,
    ProxySpec,
    Simplified,
    Spec,
    Sweep,
    check_proxies,
    expand,
    fit,
    sweep,
)
from anamorph.tasks import Task
from anamorph.tasks.checks import check_context, check_direction, check_vocabulary
from anamorph.tasks.fitted_on import HALF, ORACLE

Simplify = Spec | Iterable[Spec]
"""One spec or several."""

FITTING = "fitting"  # a step


@dataclass(frozen=True, repr=False)
class Audit(Showing):
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

    def _card(self) -> Card:
        matrix = Matrix.of(self.results, self.gaps)
        tables = {"results": self.results, "gaps": self.gaps, "contrasts": self.contrasts}
        rows = ", ".join(f".{name} ({len(table):,} rows)" for name, table in tables.items())
        return matrix.card(
            "Audit",
            f"All of it, as polars tables: {rows}. Fitted: .proxies",
        )

    def at_sites(self, model: Model, task: Task) -> pl.DataFrame:
        """What proxies do at their own sites: explained variance, L0 and dead features.

        Args:
            model: which was audited.
            task: on whose data.

        Returns:
            a row a proxy, split and site; see `anamorph.auditing.at_sites.at_sites`.
        """
        return at_sites(model, scored_task(task, self.proxies).evaluated, self.proxies.values())


def audit(
    model: Model,
    task: Task,
    simplify: Simplify,
    *,
    by: Sweep = "all",
    sequences: int = 1000,
    fit_sequences: int = 1000,
    until: float | None = None,
    correlation: float = PRIOR_CORRELATION,
    learnt: float | None = None,
    batch_tokens: int | None = None,
    stack_memory: int | None = None,
    thresholds: Thresholds | None = None,
    watch: Watch | None = None,
    resamples: int | None = None,
) -> Audit:
    """Fit simplifications on `train`, put them into the model, and compare on every split.

    Args:
        model: the original, in inference mode.
        task: its data.
        simplify: spec strings or attachments; a list value stands for one proxy each.
        by: one proxy a `head`, one a `layer`, or `all` sites of a spec at once.
        sequences: scored sequences of each split, at most.
        fit_sequences: sequences of `train` that are fitted on, at most.
        until: stop each cell when a confidence sequence of its `same_prediction` is so narrow.
        correlation: of the positions of a sequence, assumed with `until` before any disagreement
            shows what it is, 0.5 by default; see `anamorph.faithfulness.confidence`.
        learnt: accuracy on the reference that the model must be above for verdicts on it to mean
            anything; what the task says by default (`anamorph.auditing.options.learnt_of`).
        batch_tokens: tokens a batch; what suits the model and its device by default. Numbers differ
            by rounding alone.
        stack_memory: bytes for the widest tensor of proxies that run together; likewise.
        thresholds: where the lines between verdicts are drawn.
        watch: told of progress; by default bars in a notebook, and nothing elsewhere.
        resamples: has no effect: intervals are no longer made by resampling.

    Raises:
        AnamorphError: if an argument lies out of its range, a proxy does not fit the model or the
            data, or a number is not finite.
    """
    options = AuditOptions(
        by=by,
        sequences=sequences,
        fit_sequences=fit_sequences,
        until=until,
        correlation=correlation,
        learnt=learnt,
        batch_tokens=batch_tokens,
        stack_memory=stack_memory,
        thresholds=thresholds or Thresholds(),
    ).resolved(task, model)
    if resamples is not None:
        warnings.warn(
            "resamples has no effect: intervals are no longer made by resampling; leave it out.",
            DeprecationWarning,
            stacklevel=2,
        )
    proxies = proxies_of(model, simplify, options.by)
    check_audit(model, task, proxies)
    settings = options.settings(usual_batches(model))
    with watching(watch) as told:
        read = partial(_fitting, told)
        fitted = fit_on_task(model, proxies, task, options.fit_sequences, read)
        told(Event(FITTING, 1, 1))
        auditor = Auditor(model, task, proxies, fitted, options.sequences, settings)
        tables = tabulated(merge(_executed(auditor, told)), task, proxies, options)
    return Audit(*tables, fitted)


def _fitting(watch: Watch, done: int, total: int) -> None:
    """Tells of a batch that is read; what is learnt of all of them comes after the last."""
    watch(Event(FITTING, done, total + 1))


def _executed(auditor: Auditor, watch: Watch) -> Iterator[tuple[Work, dict[str, CellSums]]]:
    """All works, one after the other."""
    names = [split.name for split in auditor.task.evaluated]
    works = plan(list(auditor.specs.values()), auditor.model, names)
    for done, work in enumerate(works):
        watch(Event("audit", done, len(works)))
        yield work, auditor.execute(work)
    watch(Event("audit", len(works), len(works)))


def proxies_of(model: Model, simplify: Simplify, by: Sweep = "all") -> list[ProxySpec]:
    """What specs stand for on a model, behind the identity, each once.

    Args:
        model: whose sites are meant.
        simplify: one spec or several, as for `audit`.
        by: as for `audit`.

    Raises:
        AnamorphError: if a spec cannot be read or split so.
    """
    return with_identity(sweep(simplify, model.sites, by))


def listed(simplify: Simplify) -> list[Spec]:
    """One spec or several, as a list."""
    return [simplify] if isinstance(simplify, Spec) else list(simplify)


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
    scored_task(task, proxies)
    check_proxies(model, simplified(proxies), fit_data(task, 1, proxies), task.train.name)
    return check_models(proxies, model, task)


def with_identity(simplify: Simplify) -> list[ProxySpec]:
    """The proxies that specs stand for, behind the identity."""
    return expand([Simplified(()), *expand(simplify)])


def simplified(proxies: Sequence[ProxySpec]) -> list[Simplified]:
    """The proxies that are made by simplifications."""
    return [proxy for proxy in proxies if isinstance(proxy, Simplified)]


def tabulated(
    cells: Mapping[CellKey, CellSums],
    task: Task,
    proxies: Sequence[ProxySpec],
    options: AuditOptions,
) -> Tables:
    """`tabulate`, as the options of an audit say; they are resolved."""
    return tabulate(
        cells,
        described(proxies),
        {split.name: split.role for split in task.evaluated},
        reference=task.reference.name,
        learnt=options.learnt,
        thresholds=options.thresholds,
        stopping=options.stopping,
    )


def tabulated_in_files(
    cells: Mapping[CellKey, CellSums],
    task: Task,
    proxies: Sequence[ProxySpec],
    options: AuditOptions,
    floor: Mapping[str, float],
) -> AbstractContextManager[SpooledTables]:
    """The same tables in temporary files, however many proxies there are; floor as `tabulate`'s."""
    roles = {split.name: split.role for split in task.evaluated}
    reference, thresholds = task.reference.name, options.thresholds
    made = parts(cells, described(proxies), roles, reference, thresholds, floor, options.stopping)
    return spooled(made, thresholds, options.learnt)


def described(proxies: Sequence[ProxySpec]) -> list[ProxyInfo]:
    """How the tables describe proxies.

    A control is one of a view in the audit: what is fitted elsewhere of one that is alike but for
    `on=`, in whose family it stands; what is one by nature of those at the same sites that have
    sizes of the same name and leave the same positions (`keep=`). Without such a view it is a view
    itself.
    """

    def place(p: ProxySpec) -> tuple[object, ...]:
        kept = tuple(a.keep for a in p.attachments) if isinstance(p, Simplified) else ()
        return p.sites, p.size_name, kept

    views = [p for p in proxies if p.control is None]
    families = {p.family for p in views}
    places = {place(p) for p in views}

    def describe(p: ProxySpec) -> ProxyInfo:
        fitted = p.control in (ORACLE, HALF)
        known = p.view in families if fitted else place(p) in places
        control, family = (p.control, p.view) if p.control and known else (None, p.family)
        return ProxyInfo(str(p), p.method, family, p.size_name, p.size, control, p.sites)

    return [describe(p) for p in proxies]


def fit_on_task(
    model: Model,
    proxies: Sequence[ProxySpec],
    task: Task,
    sequences: int,
    watch: Callable[[int, int], None] = unwatched,
) -> FittedProxies:
    """Fit what is to be fitted of proxies to the first sequences of `train`, or of their `on=`.

    Args:
        model: the original.
        proxies: what to fit; other models are passed over.
        task: its data.
        sequences: how many are fitted on, at most; see `fit_data`.
        watch: as of `fit_data`.

    Raises:
        AnamorphError: as `anamorph.simplifications.fit`.
    """
    data = fit_data(task, sequences, proxies, watch)
    return fit(model, simplified(proxies), data, task.train.name)
