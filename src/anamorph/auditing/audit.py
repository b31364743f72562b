"""The audit: fit simplifications, put them into the model, compare on every split."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from anamorph.auditing.engine import BATCH_TOKENS, audit_split
from anamorph.auditing.works import plan as plan_works
from anamorph.errors import AnamorphError
from anamorph.faithfulness.gaps import Thresholds
from anamorph.faithfulness.measuring import CellKey, ProxyInfo
from anamorph.faithfulness.sums import WHOLE, CellSums
from anamorph.faithfulness.tables import tabulate
from anamorph.machine.threads import torch_threads
from anamorph.models.base import Batch, LayerKind, Model
from anamorph.simplifications import (
    SVD,
    Attachment,
    FittedProxies,
    Simplification,
    Simplified,
    check_proxies,
    expand,
    fit,
)
from anamorph.tasks import Split, Task
from anamorph.tasks.batches import collate, plan, targets
from anamorph.tasks.checks import check_context, check_direction, check_vocabulary

TRIED = 256  # tokens of a sequence on which a model is compared with itself, at most
TOGETHER = 4  # sequences of a batch in which rounding is measured


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
    simplify: Sequence[str | Attachment | Simplified],
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
    cells: dict[CellKey, CellSums] = {}
    for split in task.evaluated:
        part = scored_sequences(split, sequences)
        for some in plan_works(proxies, model):
            found = audit_split(model, part, task.candidates, [fitted[p] for p in some])
            cells |= {(0, str(proxy), split.name): sums for proxy, sums in found.items()}
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


def check_audit(model: Model, task: Task, proxies: Sequence[Simplified]) -> None:
    """Whether model, data and proxies fit together, before any time is spent.

    Raises:
        AnamorphError: if they do not.
    """
    check_vocabulary(task, model.vocabulary)
    check_direction(task, model.causal)
    if model.context is not None:
        check_context(task, model.context)
    model.check(few_sequences(task, model))
    check_proxies(model, proxies, collate(task.train, np.arange(1)))


def few_sequences(task: Task, model: Model) -> Batch:
    """Four sequences of the reference on which a model is tried: the two longest and the first two.

    They are cut to 256 tokens.
    """
    part = scored_sequences(task.reference)
    longest = np.argsort(-part.lengths, kind="stable")[:2]
    batch = collate(part, np.unique([*longest, *range(min(2, len(part)))]))
    return Batch(batch.tokens[:, :TRIED], batch.mask[:, :TRIED]).to(model.device)


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


def noise_floor(
    model: Model,
    task: Task,
    *,
    sequences: int = 16,
    batch_tokens: int = BATCH_TOKENS,
    threads: int | None = None,
) -> dict[str, Any] | None:
    """What rounding alone does to every metric.

    Queries and keys of the first layer are rotated to their singular directions and back, in the
    model's number format, which changes nothing but how it rounds, from there through all layers.
    Differences below what comes out mean nothing.

    Args:
        model: the original, in inference mode.
        task: its data; the reference split is measured on.
        sequences: of the reference, and of `train`; the first so many.
        batch_tokens: tokens a batch; numbers differ by rounding alone.
        threads: as for `audit_split`.

    Returns:
        the mean of each metric, and `simplification`; None if the model has no queries.
    """
    first = LayerKind(0, "query")
    if not any((site.layer, site.kind) == first for site in model.sites):
        return None
    batch = collate(task.train, np.arange(1)).to(model.device)
    with torch.inference_mode(), model.session():
        query = model.run(batch, record=[first], stop=1).recorded[first]
    (proxy,) = expand([f"svd(rank={query.shape[-1]})@0.*.{{query,key}}"])
    (fitted,) = fit_on_train(model, [proxy], task, sequences).values()
    rotated = {site: _ThereAndBack.of(whole) for site, whole in fitted.by_site.items()}
    part = scored_sequences(task.reference, sequences)
    sums = audit_split(
        model,
        part,
        task.candidates,
        [replace(fitted, by_site=rotated)],
        batch_tokens=batch_tokens,
        threads=threads,
    )[proxy]
    rows = np.flatnonzero(sums.index.facet == WHOLE)
    means = sums.sums[:, rows].sum(1).cpu() / sums.index.tokens[rows].sum()
    return {"simplification": str(proxy), **dict(zip(sums.metrics, means.tolist(), strict=True))}


@torch.inference_mode()
def rounding(model: Model, task: Task, *, sequences: int = 16) -> dict[str, float]:
    """What batching alone does to the model's logits, and where that could turn a prediction.

    Another batch size, processor or device rounds in another way. Where the model's two best
    candidates are no further apart than that, their order is chance: a tie.

    Args:
        model: the original, in inference mode.
        task: its data; the reference split is measured on.
        sequences: of the reference; the first so many.

    Returns:
        logits: the largest difference between a candidate's logit in a batch of all and alone;
        positions: how many scored positions were looked at; ties: at how many of them the two
        best candidates are at most twice that difference apart.
    """
    part = scored_sequences(task.reference, sequences)
    chosen = torch.from_numpy(task.candidates).to(model.device)

    def logits(some: NDArray[np.int64]) -> Tensor:
        """[scored position, candidate], sequence by sequence."""
        wanted = targets(part, some).to(model.device)
        state = model.run(collate(part, some).to(model.device), at=wanted.at).state
        return model.logits(state)[0][wanted.valid][:, chosen].double()

    apart, between = 0.0, []
    with model.session(), torch_threads(1):
        for start in range(0, len(part), TOGETHER):
            some = np.arange(start, min(start + TOGETHER, len(part)))
            together = logits(some)
            alone = torch.cat([logits(some[i : i + 1]) for i in range(len(some))])
            difference = (together - alone).abs()
            apart = max(apart, float(difference[difference.isfinite()].max()))
            best = alone.topk(min(2, alone.shape[1]), dim=1).values
            between.append((best[:, 0] - best[:, -1]).cpu())
    gaps = torch.cat(between)
    ties = int((gaps <= 2 * apart).sum()) if len(task.candidates) > 1 else 0
    return {"logits": apart, "positions": len(gaps), "ties": ties}


class _ThereAndBack(SVD):
    """All singular directions and back, in two steps: in one, rounding would cancel."""

    @classmethod
    def of(cls, whole: Simplification) -> "_ThereAndBack":
        assert isinstance(whole, SVD)
        made = cls(rank=whole.rank)
        made.components_ = whole.components_  # [dim, dim]
        return made

    def affine(self) -> None:  # type: ignore[override]
        return None

    def __call__(self, x: Tensor) -> Tensor:
        axes = self.components_.to(x)
        return x @ axes.T @ axes


def with_identity(simplify: Sequence[str | Attachment | Simplified]) -> list[Simplified]:
    """The proxies that specs stand for, behind the identity."""
    return [Simplified(()), *(proxy for proxy in expand(simplify) if proxy.attachments)]


def describe_proxies(proxies: Sequence[Simplified]) -> list[ProxyInfo]:
    """How results name the proxies."""
    return [
        ProxyInfo(str(p), p.method, p.family, p.size_name, p.size, None, p.sites) for p in proxies
    ]


def fit_batches(task: Task, sequences: int) -> Iterator[Batch]:
    """The first sequences of `train`, in their order, in batches."""
    sample = task.train.take(np.arange(min(sequences, len(task.train))))
    return (collate(sample, part) for part in plan(sample.lengths, BATCH_TOKENS))


def fit_on_train(
    model: Model,
    proxies: Sequence[Simplified],
    task: Task,
    sequences: int,
) -> FittedProxies:
    """Fit proxies to the first sequences of `train`.

    Raises:
        AnamorphError: as `anamorph.simplifications.fit`; names the split.
    """
    try:
        return fit(model, proxies, fit_batches(task, sequences))
    except AnamorphError as error:
        raise AnamorphError(f"Split {task.train.name!r}: {error}") from error


def scored_sequences(split: Split, most: int | None = None) -> Split:
    """The first `most` sequences of a split that have a scored position: the others say nothing."""
    counts = np.add.reduceat(split.scored.astype(np.int64), split.offsets[:-1])
    return split.take(np.flatnonzero(counts)[:most])
