"""The engine: model and proxies over one split, summed per sequence.

Everything is arranged so that nothing is computed twice. The model runs once a batch and its state
before each layer is kept; a proxy starts from the state before its first edited layer; proxies that
start at the same layer run as one stack, along the copy axis. What a proxy's first edits read is
the model's own tensor, so it is computed once for the whole stack. The last layer and everything
after it run at scored positions only. On a CPU, batches run side by side, one thread each: at the
sizes that fit the cache that is nearly twice as fast on two cores as two threads on one batch.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.faithfulness import CellSums, SumIndex, position_metrics
from anamorph.models.base import Batch, Model, Recording, State
from anamorph.models.sites import Site
from anamorph.simplifications import FittedProxy, Proxy
from anamorph.stacks import stacked_edits
from anamorph.tasks import Split
from anamorph.tasks.batches import Targets, collate, plan, targets

BATCH_TOKENS = 4_096
MEMORY = 8 * 2**20  # bytes for the widest tensor of a stack: what stays in the cache is faster
ATTENTION_KINDS = ("query", "key", "pattern")

Head = tuple[int, int]  # layer, head

_Item = TypeVar("_Item")


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
    compared = {head for group in groups for head in group.heads}
    order = np.argsort(split.lengths, kind="stable")
    batches = plan(split.lengths[order], batch_tokens)
    chosen = torch.from_numpy(candidates).to(device)

    @torch.inference_mode()
    def work(part: NDArray[np.int64]) -> None:
        sequences = order[part]
        wanted = targets(split, sequences)
        rows = index.rows_at(wanted.number[wanted.valid]).to(device)  # no batch shares a sequence
        batch = collate(split, sequences).to(device)
        run = _ModelRun.of(model, batch, wanted.to(device), compared)
        for group in groups:
            for stack in _chunks(group.proxies, run.stack_bytes(group.first_layer), memory):
                values = _compare(run, stack, group.heads, chosen)
                for fitted, metrics in zip(stack, values, strict=True):
                    cells[fitted.proxy].add_rows(rows, metrics)

    for done, _ in enumerate(side_by_side(work, batches[::-1], device), start=1):
        watch(done, len(batches))
    for proxy, sums in cells.items():
        sums.require_finite(f"{proxy} on split {split.name!r}")
    return cells


def side_by_side(
    work: Callable[[_Item], None], items: Sequence[_Item], device: torch.device | str
) -> Iterator[None]:
    """Work on items, on a CPU as many at a time as torch has threads, with one thread each.

    What is left is given up as soon as one fails, or when the caller stops iterating.

    Yields:
        after every item, in their order.
    """
    if torch.device(device).type != "cpu":  # a device keeps itself busy
        yield from map(work, items)
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(threads)
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


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
        patterns: [1, batch, query, key] of each compared head, at the scored positions.
        logits: [1, batch, query, vocabulary] at the scored positions.
    """

    model: Model
    wanted: Targets
    states: list[State]
    patterns: Recording
    logits: Tensor

    @classmethod
    def of(cls, model: Model, batch: Batch, wanted: Targets, heads: Iterable[Head]) -> "_ModelRun":
        patterns = _patterns_of(heads)
        states = [model.start(batch)]
        for layer in range(model.layers):
            states.append(model.layer(layer, states[-1], record=patterns, at=wanted.at))
        return cls(model, wanted, states, patterns, model.logits(states[-1]))

    def stack_bytes(self, first_layer: int) -> int:
        """Bytes of the widest tensor that one more proxy in a stack adds."""
        batch, positions = self.states[0].mask.shape
        queries = self.wanted.at.shape[1]
        heads = len({site.head for site in self.model.sites if site.kind == "query"})
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
    logits, patterns = run_stack(run, stack, heads)
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


def _patterns_of(heads: Iterable[Head]) -> Recording:
    return {Site(layer, head, "pattern"): None for layer, head in heads}


def _rows_of_heads(patterns: Recording, heads: Sequence[Head], valid: Tensor) -> Tensor:
    """[copy, 1, head, scored position, key] attention of the given heads at the valid targets."""
    places = valid.flatten().nonzero()[:, 0]
    picked = []
    for site in _patterns_of(heads):
        pattern = patterns[site]
        assert pattern is not None
        # index_select copies whole rows: several times faster than a Boolean mask
        picked.append(pattern.flatten(1, 2).index_select(1, places))
    return torch.stack(picked, dim=1)[:, None]


def run_stack(
    run: _ModelRun, stack: Sequence[FittedProxy], heads: Iterable[Head]
) -> tuple[Tensor, Recording]:
    """Logits and attention patterns of a stack of proxies, from their first edited layer on.

    Raises:
        AnamorphError: if an edit does not fire exactly once.
    """
    model, first = run.model, stack[0].first_layer
    edits = stacked_edits(stack)
    patterns = _patterns_of(heads)
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
