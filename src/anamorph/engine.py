"""The engine: model and proxies over one split, summed per sequence.

Everything is arranged so that nothing is computed twice. The model runs once a batch and its state
before each layer is kept; a proxy starts from the state before its first edited layer; proxies that
start at the same layer run as one stack, along the copy axis. What a proxy's first edits read is
the model's own tensor, so it is computed once for the whole stack. The last layer and everything
after it run at scored positions only. On a CPU, batches run side by side, one thread each: at the
sizes that fit the cache that is nearly twice as fast on two cores as two threads on one batch.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.faithfulness import (
    CellSums,
    ModelOutput,
    RatioSequence,
    SumIndex,
    metric_names,
    position_metrics,
)
from anamorph.faithfulness.confidence import PRIOR_CORRELATION
from anamorph.faithfulness.sums import WHOLE
from anamorph.models.base import Batch, Model, Recording, State
from anamorph.models.sites import Site
from anamorph.simplifications import FittedProxy, Proxy
from anamorph.stacks import stacked_edits
from anamorph.tasks import Split
from anamorph.tasks.batches import Targets, collate, even_batches, targets

BATCH_TOKENS = 4_096
LOOK = 16  # sequences between two looks at whether a cell may stop
LOGITS = 128 * 2**20  # bytes for the logits of one proxy at some positions
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
    until: float | None = None,
    correlation: float = PRIOR_CORRELATION,
    finished: Callable[[Proxy, CellSums], None] = lambda proxy, sums: None,
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
        until: stop each cell as soon as a confidence sequence of its `same_prediction` is so
            narrow (`anamorph.faithfulness.confidence`). The order of the sequences must be random.
        correlation: of positions in a sequence, assumed with `until` before disagreement shows it.
        finished: called with every cell as soon as it is done.
        device: where the model is.
        watch: called with what is done and the total: batches, or with `until` cells.

    Returns:
        the sums of every cell.

    Raises:
        AnamorphError: if a number is not finite, or an edit does not fire exactly once a batch.
    """
    index = SumIndex.of(split)
    groups = _groups(proxies, model)
    names = metric_names(attention=any(group.heads for group in groups))
    cells = {fitted.proxy: CellSums(index, names, device) for fitted in proxies}
    heads = {head for group in groups for head in group.heads}
    chosen = torch.from_numpy(candidates).to(device)

    def begin(sequences: NDArray[np.int64]) -> tuple[_ModelRun, Tensor]:
        wanted = targets(split, sequences)
        rows = index.rows_at(wanted.number[wanted.valid]).to(device)  # no batch shares a sequence
        batch = collate(split, sequences).to(device)
        if model.causal:  # nothing behind the last prediction has a say in it
            needed = int(wanted.at.max()) + 1
            batch = Batch(batch.tokens[:, :needed], batch.mask[:, :needed])
        return _ModelRun.of(model, batch, wanted.to(device), heads, chosen), rows

    def add(run: _ModelRun, rows: Tensor, stack: _Group) -> None:
        for fitted, metrics in zip(stack.proxies, _compare(run, stack), strict=True):
            cells[fitted.proxy].add_rows(rows, metrics)

    @torch.inference_mode()
    def whole(sequences: NDArray[np.int64]) -> None:
        run, rows = begin(sequences)
        for stack in run.stacks(groups, memory):
            add(run, rows, stack)

    with model.session():
        if until is None:
            workers = torch.get_num_threads() if torch.device(device).type == "cpu" else 1
            batches = even_batches(split, np.arange(len(split)), batch_tokens, workers)
            for done, _ in enumerate(side_by_side(whole, batches[::-1], device), start=1):
                watch(done, len(batches))
        else:
            following = _Following(cells, index, until, correlation)
            for start in range(0, len(split), LOOK):
                look = np.arange(start, min(start + LOOK, len(split)))
                for sequences in even_batches(split, look, batch_tokens):
                    with torch.inference_mode():
                        run, rows = begin(sequences)
                    stacks = run.stacks([g.only(following.active) for g in groups], memory)
                    one = torch.inference_mode()(lambda s, run=run, rows=rows: add(run, rows, s))
                    for _ in side_by_side(one, stacks, device):
                        pass
                for proxy in following.look(look):
                    _finish(proxy, cells[proxy], split, finished)
                watch(len(cells) - len(following.active), len(cells))
                if not following.active:
                    break
            watch(len(cells), len(cells))
            proxies = [fitted for fitted in proxies if fitted.proxy in following.active]
    for fitted in proxies:
        _finish(fitted.proxy, cells[fitted.proxy], split, finished)
    return cells


def side_by_side(
    work: Callable[[_Item], None], items: Sequence[_Item], device: torch.device | str
) -> Iterator[None]:
    """Work on items, on a CPU as many at a time as torch has threads, with one thread each.

    What is left is given up as soon as one fails, or when the caller stops iterating.

    Yields:
        after every item, in their order.
    """
    threads = torch.get_num_threads()
    if threads == 1 or torch.device(device).type != "cpu":  # another device keeps itself busy
        yield from map(work, items)
        return
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(work, items)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


class _Following:
    """Which cells still have to go on, by the confidence sequences of their `same_prediction`."""

    def __init__(
        self, cells: dict[Proxy, CellSums], index: SumIndex, until: float, correlation: float
    ) -> None:
        self.cells, self.index = cells, index
        self.order = list(cells)
        self.active = set(cells)
        self.ratios = RatioSequence(len(cells), until, prior_correlation=correlation)

    def look(self, sequences: NDArray[np.int64]) -> list[Proxy]:
        """Take in new sequences of all active cells, and drop those that are narrow enough."""
        rows = np.flatnonzero(np.isin(self.index.sequence, sequences) & (self.index.facet == WHOLE))
        places = [i for i, proxy in enumerate(self.order) if proxy in self.active]
        metric = self.cells[self.order[0]].metrics.index("same_prediction")
        sums = torch.stack([self.cells[self.order[i]].sums[metric, rows] for i in places]).cpu()
        self.ratios.update(sums, torch.from_numpy(self.index.tokens[rows]), torch.tensor(places))
        width = self.ratios.width()
        for i in places:
            self.cells[self.order[i]].seen = int(sequences[-1]) + 1
            if width[i] <= self.ratios.until:
                self.active.remove(self.order[i])
        return [self.order[i] for i in places if self.order[i] not in self.active]


def _finish(
    proxy: Proxy, sums: CellSums, split: Split, finished: Callable[[Proxy, CellSums], None]
) -> None:
    sums.require_finite(f"{proxy} on split {split.name!r}")
    finished(proxy, sums)


@dataclass(frozen=True)
class _Group:
    """Proxies that start at the same layer and are compared on the same heads' attention."""

    first_layer: int
    heads: tuple[Head, ...]
    proxies: tuple[FittedProxy, ...]

    def only(self, active: Container[Proxy]) -> "_Group":
        """Those that are still active."""
        return replace(self, proxies=tuple(f for f in self.proxies if f.proxy in active))


def _groups(proxies: Sequence[FittedProxy], model: Model) -> list[_Group]:
    sites = model.sites
    found: dict[tuple[int, tuple[Head, ...]], list[FittedProxy]] = {}
    for fitted in proxies:
        key = fitted.first_layer, attention_heads(fitted, sites)
        found.setdefault(key, []).append(fitted)
    return [_Group(layer, heads, tuple(found[layer, heads])) for layer, heads in sorted(found)]


def attention_heads(fitted: FittedProxy, sites: Sequence[Site]) -> tuple[Head, ...]:
    """The heads over which a proxy's attention metrics average; see `audit_split`."""
    every = {(s.layer, s.head) for s in sites if s.kind == "pattern" and s.head is not None}
    if not every:
        return ()
    per_layer = len({head for _, head in every})
    shared = per_layer // max(1, len({s.head for s in sites if s.kind == "key"}))
    edited = {
        (s.layer, head)
        for s in fitted.by_site
        if s.kind in ATTENTION_KINDS and s.head is not None
        for head in (range(s.head * shared, (s.head + 1) * shared) if s.kind == "key" else [s.head])
    }
    layers = max(layer for layer, _ in every) + 1
    start = fitted.first_layer if fitted.first_layer < layers else 0
    return tuple(sorted(edited or {head for head in every if head[0] >= start}))


@dataclass(frozen=True)
class _ModelRun:
    """What the model itself makes of a batch.

    Attributes:
        states: the state before each layer, and after the last.
        patterns: [1, batch, query, key] of each compared head, at the scored positions.
        places: [scored position] of the valid targets, counted over the batch.
        output: what it predicts there, in the same order.
    """

    model: Model
    wanted: Targets
    states: list[State]
    patterns: Recording
    places: Tensor
    output: ModelOutput

    @classmethod
    def of(
        cls,
        model: Model,
        batch: Batch,
        wanted: Targets,
        heads: Iterable[Head],
        candidates: Tensor,
    ) -> "_ModelRun":
        patterns = _patterns_of(heads)
        states = [model.start(batch)]
        for layer in range(model.layers):
            states.append(model.layer(layer, states[-1], record=patterns, at=wanted.at))
        places = wanted.valid.flatten().nonzero()[:, 0]
        logits = model.logits(_rows_of_state(states[-1], places))[0, 0]
        output = ModelOutput.of(logits, wanted.token.flatten()[places], candidates)
        return cls(model, wanted, states, patterns, places, output)

    def stacks(self, groups: Sequence[_Group], memory: int) -> list[_Group]:
        """Proxies that run together, few enough for a memory in bytes."""
        return [
            replace(group, proxies=group.proxies[start : start + step])
            for group in groups
            for step in [max(1, memory // self._bytes(group))]
            for start in range(0, len(group.proxies), step)
        ]

    def _bytes(self, group: _Group) -> int:
        """Bytes of the widest tensor that one more proxy in a stack adds."""
        batch, positions = self.states[0].mask.shape
        queries = self.wanted.at.shape[1]
        width = self.states[0].residual.shape[-1]
        rows = queries if group.first_layer >= self.model.layers - 1 else positions
        heads = len({head for _, head in group.heads})
        return 4 * batch * max(queries * heads * positions, rows * 4 * width)


def _compare(run: _ModelRun, stack: _Group) -> Tensor:
    """[copy, metric, scored position] of a stack of proxies, in the order of the valid targets.

    A stack that does not fit the memory is halved.

    Raises:
        AnamorphError: if not even a single proxy fits.
    """
    try:
        return _compare_at_once(run, stack)
    except RuntimeError as error:
        if not _out_of_memory(error):
            raise
        half = len(stack.proxies) // 2
        if not half:
            raise AnamorphError(
                f"Out of memory with a single proxy on a batch of {run.states[0].mask.numel():,} "
                "tokens; give fewer batch_tokens, or shorter sequences."
            ) from error
    parts = stack.proxies[:half], stack.proxies[half:]
    return torch.cat([_compare(run, replace(stack, proxies=part)) for part in parts])


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _compare_at_once(run: _ModelRun, stack: _Group) -> Tensor:
    state, patterns = run_stack(run, stack.proxies, stack.heads)
    copies, places = len(stack.proxies), run.places
    names = metric_names(attention=bool(stack.heads))
    out = state.residual.new_empty((copies, len(names), len(places)), dtype=torch.float32)
    step = max(1, LOGITS // (4 * run.output.logits.shape[-1]))
    for rows in (slice(i, i + step) for i in range(0, len(places), step)):
        some = places[rows]
        logits = run.model.logits(_rows_of_state(state, some))[:, 0]
        attention = (
            (
                _rows_of_heads(run.patterns, stack.heads, some)[0],
                _rows_of_heads(patterns, stack.heads, some),
            )
            if stack.heads
            else ()
        )
        out[:, :, rows] = position_metrics(
            run.output[rows], logits.expand(copies, -1, -1), *attention
        )
    return out


def _patterns_of(heads: Iterable[Head]) -> Recording:
    return {Site(layer, head, "pattern"): None for layer, head in heads}


def _rows_of_heads(patterns: Recording, heads: Sequence[Head], places: Tensor) -> Tensor:
    """[copy, head, scored position, key] attention of the given heads at some targets."""
    picked = []
    for site in _patterns_of(heads):
        pattern = patterns[site]
        assert pattern is not None
        # index_select copies whole rows: several times faster than a Boolean mask
        picked.append(pattern.flatten(1, 2).index_select(1, places))
    copies = max(len(pattern) for pattern in picked)  # one as long as no proxy has changed it
    return torch.stack([pattern.expand(copies, -1, -1) for pattern in picked], dim=1)


def _rows_of_state(state: State, places: Tensor) -> State:
    """The state at some targets, counted over the batch, as one long sequence."""
    residual = state.residual.flatten(1, 2).index_select(1, places)[:, None]
    return replace(state, residual=residual, at=None)


def run_stack(
    run: _ModelRun, stack: Sequence[FittedProxy], heads: Iterable[Head]
) -> tuple[State, Recording]:
    """Last state and attention patterns of a stack of proxies, from their first edited layer on.

    Raises:
        AnamorphError: if an edit does not fire exactly once.
    """
    model, first = run.model, stack[0].first_layer
    edits = stacked_edits(stack)
    # Of heads before the first edited layer the patterns are the model's own.
    patterns: Recording = {
        Site(layer, head, "pattern"): run.patterns[Site(layer, head, "pattern")]
        if layer < first
        else None
        for layer, head in heads
    }
    if first == model.layers:  # the identity: nothing to run again
        return run.states[-1], patterns
    state = run.states[first]
    for layer in range(first, model.layers):
        state = model.layer(layer, state, edits, patterns, at=run.wanted.at)
    for key, edit in edits.items():
        if edit.fired != 1:
            raise AnamorphError(
                f"The edit of {key.kind} in layer {key.layer} fired {edit.fired} times in one run; "
                "expected once. The model does not pass this tensor on, so nothing was measured."
            )
    return state, patterns
