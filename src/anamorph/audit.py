"""The audit: model and proxies over all splits, summed per sequence.

Everything is arranged so that nothing is computed twice. The model runs once a batch and its state
before each layer is kept; a proxy starts from the state before its first edited layer; proxies that
start at the same layer run as one stack, along the copy axis. What a proxy's first edits read is
the model's own tensor, so it is computed once for the whole stack. The last layer and everything
after it run at scored positions only.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.faithfulness import (
    CellKey,
    CellSums,
    ProxyInfo,
    SumIndex,
    Thresholds,
    position_metrics,
    tabulate,
)
from anamorph.models.base import Batch, Key, Model, Recording, State
from anamorph.models.sites import Site
from anamorph.simplifications import (
    Attachment,
    FittedProxies,
    FittedProxy,
    Proxy,
    Simplification,
    expand,
    fit,
)
from anamorph.tasks import Split, Task
from anamorph.tasks.batches import Targets, collate, plan, targets

BATCH_TOKENS = 4_096
MEMORY = 8 * 2**20  # bytes for the widest tensor of a stack: what stays in the cache is faster
ATTENTION_KINDS = ("query", "key", "pattern")

Head = tuple[int, int]  # layer, head


@dataclass(frozen=True)
class Audit:
    """All cells of a model, its proxies and a task.

    Attributes:
        results: every number with its interval, one a row; see `anamorph.faithfulness.tabulate`.
        gaps: every generalization gap with interval, p-value and verdict.
        proxies: the proxies with their fitted simplifications.
    """

    results: pl.DataFrame
    gaps: pl.DataFrame
    proxies: FittedProxies


def audit(
    model: Model,
    task: Task,
    simplify: Sequence[str | Attachment | Proxy],
    *,
    sequences: int = 1000,
    fit_sequences: int = 1000,
    resamples: int = 1000,
    seed: int = 0,
    thresholds: Thresholds | None = None,
    device: torch.device | str = "cpu",
) -> Audit:
    """Fit simplifications on `train`, put them into the model, and compare on every split.

    Args:
        model: the original, in inference mode.
        task: its data.
        simplify: spec strings or attachments; a list value stands for one proxy each.
        sequences: scored sequences of each split.
        fit_sequences: sequences of `train` that are fitted on.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        thresholds: where the lines between verdicts are drawn.
        device: where the model is.

    Raises:
        AnamorphError: if a proxy does not fit the model or the data, or a number is not finite.
    """
    proxies = with_identity(simplify)
    fitted = fit_on_train(model, proxies, task, fit_sequences, device)
    cells: dict[CellKey, CellSums] = {}
    for split in task.evaluated:
        part = scored_sequences(split, sequences)
        found = audit_split(
            model, part, task.candidates, [fitted[p] for p in proxies], device=device
        )
        cells |= {(0, str(proxy), split.name): sums for proxy, sums in found.items()}
    results, gaps = tabulate(
        cells,
        describe_proxies(proxies),
        {split.name: split.role for split in task.evaluated},
        reference=task.reference.name,
        resamples=resamples,
        seed=seed,
        thresholds=thresholds,
    )
    return Audit(results, gaps, fitted)


def with_identity(simplify: Sequence[str | Attachment | Proxy]) -> list[Proxy]:
    """The proxies that specs stand for, behind the identity."""
    return [Proxy(()), *(proxy for proxy in expand(simplify) if proxy.attachments)]


def describe_proxies(proxies: Sequence[Proxy]) -> list[ProxyInfo]:
    """How results name the proxies."""
    return [ProxyInfo(str(p), p.method, p.size, p.sites) for p in proxies]


def fit_batches(task: Task, sequences: int, device: torch.device | str = "cpu") -> Iterator[Batch]:
    """The first sequences of `train`, in their order, in batches."""
    sample = task.train.take(np.arange(min(sequences, len(task.train))))
    return (collate(sample, part).to(device) for part in plan(sample.lengths, BATCH_TOKENS))


def fit_on_train(
    model: Model,
    proxies: Sequence[Proxy],
    task: Task,
    sequences: int,
    device: torch.device | str = "cpu",
) -> FittedProxies:
    """Fit proxies to the first sequences of `train`.

    Raises:
        AnamorphError: as `anamorph.simplifications.fit`; names the split.
    """
    try:
        return fit(model, proxies, fit_batches(task, sequences, device))
    except AnamorphError as error:
        raise AnamorphError(f"Split {task.train.name!r}: {error}") from error


def scored_sequences(split: Split, most: int | None = None) -> Split:
    """The first `most` sequences of a split that have a scored position: the others say nothing."""
    counts = np.add.reduceat(split.scored.astype(np.int64), split.offsets[:-1])
    return split.take(np.flatnonzero(counts)[:most])


@torch.inference_mode()
def audit_split(
    model: Model,
    split: Split,
    candidates: NDArray[np.int64],
    proxies: Sequence[FittedProxy],
    *,
    batch_tokens: int = BATCH_TOKENS,
    memory: int = MEMORY,
    device: torch.device | str = "cpu",
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> dict[Proxy, CellSums]:
    """Compare proxies with the model on one split.

    Attention metrics of a proxy average over the heads whose queries, keys or patterns it edits; if
    it edits none of those, over all heads from its first edited layer on (of the whole model for
    the identity).

    Args:
        model: the original, in inference mode.
        split: all its sequences are used.
        candidates: token ids among which a prediction is chosen.
        proxies: fitted; each gives one cell.
        batch_tokens: tokens a batch, padding included; the numbers do not depend on it.
        memory: bytes for the widest tensor of a stack of proxies; nor on this.
        device: where the model is.
        watch: called after every batch with the batches done and their total.

    Returns:
        the sums of every cell.

    Raises:
        AnamorphError: if a number is not finite, or an edit does not fire exactly once a batch.
    """
    index = SumIndex.of(split)
    cells = {fitted.proxy: CellSums(index, device=device) for fitted in proxies}
    groups = _groups(proxies, model)
    order = np.argsort(split.lengths, kind="stable")
    batches = plan(split.lengths[order], batch_tokens)
    chosen = torch.from_numpy(candidates).to(device)
    for number, part in enumerate(batches):
        sequences = order[part]
        wanted = targets(split, sequences)
        rows = index.rows_at(wanted.number[wanted.valid]).to(device)
        wanted = wanted.to(device)
        run = _ModelRun.of(model, collate(split, sequences).to(device), wanted)
        for group in groups:
            for stack in _chunks(group.proxies, run.stack_bytes(group.first_layer), memory):
                values = _compare(run, stack, group.heads, chosen)
                for fitted, metrics in zip(stack, values, strict=True):
                    cells[fitted.proxy].add_rows(rows, metrics)
        watch(number + 1, len(batches))
    for proxy, sums in cells.items():
        sums.require_finite(f"{proxy} on split {split.name!r}")
    return cells


@dataclass(frozen=True)
class _Group:
    """Proxies that start at the same layer and are compared on the same heads' attention."""

    first_layer: int
    heads: tuple[Head, ...]
    proxies: tuple[FittedProxy, ...]


def _groups(proxies: Sequence[FittedProxy], model: Model) -> list[_Group]:
    found: dict[tuple[int, tuple[Head, ...]], list[FittedProxy]] = {}
    for fitted in proxies:
        key = fitted.first_layer, attention_heads(fitted, model.sites)
        found.setdefault(key, []).append(fitted)
    return [_Group(layer, heads, tuple(group)) for (layer, heads), group in found.items()]


def attention_heads(fitted: FittedProxy, sites: Sequence[Site]) -> tuple[Head, ...]:
    """The heads over which a proxy's attention metrics average; see `audit_split`."""
    edited = {
        (s.layer, s.head)
        for s in fitted.by_site
        if s.kind in ATTENTION_KINDS and s.head is not None
    }
    every = {(s.layer, s.head) for s in sites if s.kind == "pattern" and s.head is not None}
    layers = max(layer for layer, _ in every) + 1
    start = fitted.first_layer if fitted.first_layer < layers else 0
    return tuple(sorted(edited or {head for head in every if head[0] >= start}))


@dataclass(frozen=True)
class _ModelRun:
    """What the model itself makes of a batch.

    Attributes:
        states: the state before each layer, and after the last.
        patterns: [1, batch, head, query, key] of each layer, at the scored positions.
        logits: [1, batch, query, vocabulary] at the scored positions.
    """

    model: Model
    wanted: Targets
    states: list[State]
    patterns: Recording
    logits: Tensor

    @classmethod
    def of(cls, model: Model, batch: Batch, wanted: Targets) -> "_ModelRun":
        patterns: Recording = {Key(layer, "pattern"): None for layer in range(model.layers)}
        states = [model.start(batch)]
        for layer in range(model.layers):
            states.append(model.layer(layer, states[-1], record=patterns, at=wanted.at))
        return cls(model, wanted, states, patterns, model.logits(states[-1]))

    def stack_bytes(self, first_layer: int) -> int:
        """Bytes of the widest tensor that one more proxy in a stack adds."""
        batch, positions = self.states[0].mask.shape
        queries = self.wanted.at.shape[1]
        heads = max(p.shape[2] for p in self.patterns.values() if p is not None)
        width = self.states[0].residual.shape[-1]
        rows = queries if first_layer >= self.model.layers - 1 else positions
        return 4 * batch * max(queries * heads * positions, rows * 4 * width)


def _chunks(
    proxies: Sequence[FittedProxy], bytes_each: int, memory: int
) -> Iterator[Sequence[FittedProxy]]:
    step = max(1, memory // bytes_each)
    return (proxies[start : start + step] for start in range(0, len(proxies), step))


def _compare(
    run: _ModelRun, stack: Sequence[FittedProxy], heads: Sequence[Head], candidates: Tensor
) -> Tensor:
    """[copy, metric, scored position] of a stack of proxies, in the order of the valid targets."""
    valid = run.wanted.valid
    logits, patterns = run_stack(run, stack, {layer for layer, _ in heads})
    if stack[0].first_layer == run.model.layers:
        logits = logits.expand(len(stack), *logits.shape[1:])
    values = position_metrics(
        run.logits[:, valid][:, None],
        logits[:, valid][:, None],
        run.wanted.token[valid][None],
        candidates,
        _rows_of_heads(run.patterns, heads, valid),
        _rows_of_heads(patterns, heads, valid),
    )
    return values[:, :, 0]


def _rows_of_heads(patterns: Recording, heads: Sequence[Head], valid: Tensor) -> Tensor:
    """[copy, 1, head, scored position, key] attention of the given heads at the valid targets."""
    picked = []
    for layer, head in heads:
        pattern = patterns[Key(layer, "pattern")]
        assert pattern is not None
        picked.append(pattern[:, :, head][:, valid])  # [copy, scored position, key]
    return torch.stack(picked, dim=1)[:, None]


def run_stack(
    run: _ModelRun, stack: Sequence[FittedProxy], layers: set[int]
) -> tuple[Tensor, Recording]:
    """Logits and attention patterns of a stack of proxies, from their first edited layer on.

    Raises:
        AnamorphError: if an edit does not fire exactly once.
    """
    model, first = run.model, stack[0].first_layer
    edits = stacked_edits(stack)
    patterns: Recording = {Key(layer, "pattern"): None for layer in layers}
    if first == model.layers:  # the identity: nothing to run again
        return run.logits, {key: run.patterns[key] for key in patterns}
    state = run.states[first]
    for layer in range(first, model.layers):
        state = model.layer(layer, state, edits, patterns, at=run.wanted.at)
    for key, edit in edits.items():
        if edit.fired != 1:
            raise AnamorphError(
                f"The edit of {key.kind} in layer {key.layer} fired {edit.fired} times in one run; "
                "expected once. The model does not pass this tensor on, so nothing was measured."
            )
    return model.logits(state), patterns


class StackedEdit:
    """The edits of all proxies of a stack to one tensor of a layer.

    Args:
        placed: for each copy the simplification at each head (None for kinds without heads); a head
            that is not there is left as it is.
    """

    def __init__(self, placed: Sequence[Mapping[int | None, Simplification]]) -> None:
        self.placed = placed
        self.fired = 0

    def __call__(self, x: Tensor) -> Tensor:
        """[1 or copy, batch, ...] to [copy, batch, ...]."""
        self.fired += 1
        heads = sorted({h for placed in self.placed for h in placed}, key=lambda h: h or 0)
        if heads == [None] or (x.dim() == 5 and heads == list(range(x.shape[2]))):
            out = x.new_empty(len(self.placed), *x.shape[1:])  # every copy is written below
        else:
            out = x.expand(len(self.placed), *x.shape[1:]).clone()
        for head in heads:
            here = x if head is None else x[:, :, head]
            self._edit_head(head, here, out if head is None else out[:, :, head])
        return out

    def _edit_head(self, head: int | None, x: Tensor, out: Tensor) -> None:
        """Write every copy of one head: x [1 or copy, batch, ...], out [copy, batch, ...]."""
        affine = {}
        for copy, placed in enumerate(self.placed):
            source = x[copy if len(x) > 1 else 0]
            if head not in placed:
                out[copy] = source
            elif (map_ := placed[head].affine()) is not None:
                affine[copy] = map_
            else:
                out[copy] = placed[head](source)
        if affine:
            copies = list(affine)
            matrix = torch.stack([m for m, _ in affine.values()]).to(x)  # [affine, dim, dim]
            bias = torch.stack([b for _, b in affine.values()]).to(x)  # [affine, dim]
            out[copies] = _affine(x if len(x) == 1 else x[copies], matrix, bias)


def _affine(x: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    """X [1 or copy, ..., dim], matrix [copy, dim, dim], bias [copy, dim] to [copy, ..., dim]."""
    shape, copies, dim = x.shape[1:], len(matrix), matrix.shape[-1]
    if len(x) == 1:  # one matrix product for the whole stack
        flat = x.reshape(-1, dim) @ matrix.transpose(0, 1).reshape(dim, -1) + bias.flatten()
        return flat.view(-1, copies, dim).transpose(0, 1).reshape(copies, *shape)
    return torch.baddbmm(bias[:, None], x.reshape(copies, -1, dim), matrix).reshape(copies, *shape)


def stacked_edits(stack: Sequence[FittedProxy]) -> dict[Key, StackedEdit]:
    """The edits that make the copies of a stack into the given proxies."""
    keys = {Key(site.layer, site.kind) for fitted in stack for site in fitted.by_site}
    return {
        key: StackedEdit(
            [
                {
                    site.head: simplification
                    for site, simplification in fitted.by_site.items()
                    if (site.layer, site.kind) == key
                }
                for fitted in stack
            ]
        )
        for key in sorted(keys)
    }
