"""What rounding alone does to the numbers of an audit."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anamorph.auditing.audit import fit_on_task
from anamorph.auditing.engine import Settings, audit_split
from anamorph.auditing.proxies import SimplifiedProxy
from anamorph.auditing.samples import scored_sequences
from anamorph.auditing.sizes import BATCH_TOKENS
from anamorph.machine.devices import in_float64
from anamorph.machine.threads import torch_threads
from anamorph.models.base import LayerKind, Model
from anamorph.simplifications import SVD, Simplification, Simplified
from anamorph.tasks import Task
from anamorph.tasks.batches import collate, targets

TOGETHER = 4  # sequences of a batch in which rounding is measured


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
        threads: see `anamorph.auditing.engine.Settings`.

    Returns:
        the mean of each metric, and `simplification`; None if the model has no queries.
    """
    first = LayerKind(0, "query")
    if not any((site.layer, site.kind) == first for site in model.sites):
        return None
    batch = collate(task.train, np.arange(1)).to(model.device)
    with torch.inference_mode(), model.session():
        query = model.run(batch, record=[first], stop=1).recorded[first]
    whole = Simplified((SVD(rank=query.shape[-1]) @ "0.*.{query,key}",))
    fitted = fit_on_task(model, [whole], task, sequences)[whole]
    rotated = {site: _RoundTrip.of(svd) for site, svd in fitted.by_site.items()}
    proxy = SimplifiedProxy(replace(fitted, by_site=rotated), model)
    settings = Settings(batch_tokens=batch_tokens, threads=threads)
    part = scored_sequences(task.reference, sequences)
    (sums,) = audit_split(model, part, task.candidates, [proxy], settings).values()
    rows = sums.index.whole
    means = sums.sums[:, rows].sum(1).cpu() / sums.index.tokens[rows].sum()
    return {"simplification": str(whole), **dict(zip(sums.metrics, means.tolist(), strict=True))}


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
        return in_float64(model.logits(state)[0][wanted.valid][:, chosen])

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


class _RoundTrip(SVD):
    """Rotates to the singular directions and back, so that only rounding differs.

    In two products: multiplied out into one, they would be the identity.
    """

    @classmethod
    def of(cls, whole: Simplification) -> "_RoundTrip":
        assert isinstance(whole, SVD)
        made = cls(rank=whole.rank)
        made.components_ = whole.components_  # [dim, dim]
        return made

    def affine(self) -> None:  # type: ignore[override]
        return None

    def __call__(self, x: Tensor) -> Tensor:
        axes = self.components_.to(x)
        return x @ axes.T @ axes
