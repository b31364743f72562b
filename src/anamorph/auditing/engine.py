"""The engine: model and proxies over one split, summed per sequence.

Everything is arranged so that nothing is computed twice. The model runs once a batch and its state
before each layer is kept; a proxy starts from the state before its first edited layer; proxies that
start at the same layer run as one stack, along the copy axis. What a proxy's first edits read is
the model's own tensor, so it is computed once for the whole stack. The last layer and everything
after it run at scored positions only. On a CPU, batches run side by side, one thread each: at the
sizes that fit the cache that is nearly twice as fast on two cores as two threads on one batch.

What is computed together (batches, stacks, looks) follows from the split, the proxies and the
constants here alone, never from threads or what was done before. So the same call gives the same
bytes on one kind of processor, and only a stack that does not fit the memory rounds in another way.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anamorph.auditing.stacks import stacked_edits
from anamorph.errors import AnamorphError
from anamorph.faithfulness.comparison import ModelOutput, position_metrics
from anamorph.faithfulness.confidence import PRIOR_CORRELATION, RatioSequence
from anamorph.faithfulness.metrics import metric_names
from anamorph.faithfulness.sums import WHOLE, CellSums, SumIndex
from anamorph.machine.threads import side_by_side, torch_threads
from anamorph.models.base import Batch, Model, Recorded, State
from anamorph.models.layout import layout_of
from anamorph.models.sites import Site
from anamorph.simplifications import FittedProxy, Simplified
from anamorph.tasks import Split
from anamorph.tasks.batches import Targets, collate, even_batches, targets

BATCH_TOKENS = 4_096
BATCHES = 4  # as many for each of 1, 2 and 4 threads
LOOK = 16  # sequences between two looks at whether a cell may stop
LOGITS = 128 * 2**20  # bytes for the logits of one proxy at some positions
MEMORY = 8 * 2**20  # bytes for the widest tensor of a stack: what stays in the cache is faster
ATTENTION_KINDS = ("query", "key", "pattern")

Head = tuple[int, int]  # layer, head


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
    batches: int = BATCHES,
    threads: int | None = None,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> dict[Simplified, CellSums]:
    """Compare proxies with the model on one split.

    Attention metrics of a proxy average over the heads whose queries, keys or patterns it edits; if
    it edits none of those, over all heads from its first edited layer on (of the whole model for
    the identity).

    Args:
        model: the original, in inference mode.
        split: all its sequences are used.
        candidates: token ids among which a prediction is chosen.
        proxies: fitted; each gives one cell.
        batch_tokens: tokens a batch, padding included; numbers differ by rounding alone.
        memory: bytes for the widest tensor of a stack of proxies; likewise.
        until: stop each cell as soon as a confidence sequence of its `same_prediction` is so
            narrow (`anamorph.faithfulness.confidence`). The order of the sequences must be random.
        correlation: of positions in a sequence, assumed with `until` before disagreement shows it.
        batches: without `until` a split is cut into a multiple of so many, all alike: as many for
            every thread. Numbers differ by rounding alone.
        threads: for a model that one thread at a time may run, how many torch uses in an
            operation, by which numbers may differ by rounding; None for as many as it uses now.
        watch: called with what is done and the total: batches, or with `until` cells.

    Returns:
        the sums of every cell.

    Raises:
        AnamorphError: if a number is not finite, or an edit does not fire exactly once a batch.
    """
    index = SumIndex.of(split)
    groups = _groups(proxies, model)
    names = metric_names(attention=any(group.heads for group in groups))
    cells = {fitted.proxy: CellSums(index, names, model.device) for fitted in proxies}
    heads = {head for group in groups for head in group.heads}
    chosen = torch.from_numpy(candidates).to(model.device)

    def begin(sequences: NDArray[np.int64]) -> tuple[_ModelRun, Tensor]:
        wanted = targets(split, sequences)
        rows = index.rows_at(wanted.number[wanted.valid])  # no batch shares a sequence
        batch = collate(split, sequences).to(model.device)
        if model.causal:  # nothing behind the last prediction has a say in it
            needed = int(wanted.at.max()) + 1
            batch = Batch(batch.tokens[:, :needed], batch.mask[:, :needed])
        run = _ModelRun.of(model, batch, wanted.to(model.device), heads, chosen)
        return run, rows.to(model.device)

    def add(run: _ModelRun, rows: Tensor, stack: _Group) -> None:
        for fitted, metrics in zip(stack.proxies, _compare(run, stack), strict=True):
            cells[fitted.proxy].add_rows(rows, metrics)

    @torch.inference_mode()
    def whole(sequences: NDArray[np.int64]) -> None:
        run, rows = begin(sequences)
        for stack in run.stacks(groups, memory):
            add(run, rows, stack)

    with model.session(), _threads(model, threads) as workers:
        if until is None:
            parts = even_batches(split, np.arange(len(split)), batch_tokens, batches)
            for done, _ in enumerate(side_by_side(whole, parts[::-1], workers), start=1):
                watch(done, len(parts))
        else:
            following = _Following(cells, index, until, correlation)
            for start in range(0, len(split), LOOK):
                look = np.arange(start, min(start + LOOK, len(split)))
                for sequences in even_batches(split, look, batch_tokens):
                    with torch.inference_mode():
                        run, rows = begin(sequences)
                    stacks = run.stacks([g.only(following.active) for g in groups], memory)
                    one = torch.inference_mode()(lambda s, run=run, rows=rows: add(run, rows, s))
                    for _ in side_by_side(one, stacks, workers):
                        pass
                following.look(look)
                watch(len(cells) - len(following.active), len(cells))
                if not following.active:
                    break
            watch(len(cells), len(cells))
    for proxy, sums in cells.items():
        sums.require_finite(f"{proxy} on split {split.name!r}")
    return cells


@contextmanager
def _threads(model: Model, threads: int | None) -> Iterator[int]:
    """Set torch's threads as a model needs them; gives how many batches may run at a time."""
    if model.device.type != "cpu":  # it keeps itself busy
        yield 1
        return
    used = 1 if model.parallel else (threads or torch.get_num_threads())
    with torch_threads(used) as before:
        yield before if model.parallel else 1


class _Following:
    """Which cells still have to go on, by the confidence sequences of their `same_prediction`."""

    def __init__(
        self, cells: dict[Simplified, CellSums], index: SumIndex, until: float, correlation: float
    ) -> None:
        self.cells, self.index = cells, index
        self.order = list(cells)
        self.active = set(cells)
        self.ratios = RatioSequence(len(cells), until, prior_correlation=correlation)

    def look(self, sequences: NDArray[np.int64]) -> None:
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


@dataclass(frozen=True)
class _Group:
    """Proxies that start at the same layer and are compared on the same heads' attention."""

    first_layer: int
    heads: tuple[Head, ...]
    proxies: tuple[FittedProxy, ...]

    def only(self, active: Container[Simplified]) -> "_Group":
        """Those that are still active."""
        return replace(self, proxies=tuple(f for f in self.proxies if f.proxy in active))


def _groups(proxies: Sequence[FittedProxy], model: Model) -> list[_Group]:
    sites = model.sites
    found: dict[tuple[int, tuple[Head, ...]], list[FittedProxy]] = {}
    for fitted in proxies:
        heads = attention_heads(fitted.by_site, fitted.first_layer, sites)
        found.setdefault((fitted.first_layer, heads), []).append(fitted)
    return [_Group(layer, heads, tuple(found[layer, heads])) for layer, heads in sorted(found)]


def attention_heads(
    edited: Iterable[Site], first_layer: int, sites: Sequence[Site]
) -> tuple[Head, ...]:
    """The heads over which a proxy's attention metrics average; see `audit_split`.

    Args:
        edited: the sites that the proxy edits.
        first_layer: the first layer of these; the number of layers for the identity.
        sites: the model's.
    """
    every = {(s.layer, s.head) for s in sites if s.kind == "pattern" and s.head is not None}
    layout = layout_of(sites)
    own: set[Head] = set()
    for site in edited:
        if site.kind in ATTENTION_KINDS and site.head is not None:
            read = layout[site.layer].reading(site.head, site.kind)
            own |= {(site.layer, head) for head in read} & every
    return tuple(sorted(own or {h for h in every if h[0] >= first_layer} or every))


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
    patterns: Recorded
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
        record, patterns = _patterns_of(heads), Recorded()
        states = [model.start(batch)]
        for layer in range(model.layers):
            state, recorded = model.layer(layer, states[-1], record=record, at=wanted.at)
            states.append(state)
            patterns |= recorded
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


def _patterns_of(heads: Iterable[Head]) -> list[Site]:
    return [Site(layer, head, "pattern") for layer, head in heads]


def _rows_of_heads(patterns: Recorded, heads: Sequence[Head], places: Tensor) -> Tensor:
    """[copy, head, scored position, key] attention of the given heads at some targets."""
    # index_select copies whole rows: several times faster than a Boolean mask
    picked = [patterns[site].flatten(1, 2).index_select(1, places) for site in _patterns_of(heads)]
    copies = max(len(pattern) for pattern in picked)  # one as long as no proxy has changed it
    return torch.stack([pattern.expand(copies, -1, -1) for pattern in picked], dim=1)


def _rows_of_state(state: State, places: Tensor) -> State:
    """The state at some targets, counted over the batch, as one long sequence."""
    residual = state.residual.flatten(1, 2).index_select(1, places)[:, None]
    return replace(state, residual=residual, at=None)


def run_stack(
    run: _ModelRun, stack: Sequence[FittedProxy], heads: Iterable[Head]
) -> tuple[State, Recorded]:
    """Last state and attention patterns of a stack of proxies, from their first edited layer on.

    Raises:
        AnamorphError: if an edit does not fire exactly once.
    """
    model, first = run.model, stack[0].first_layer
    edits = stacked_edits(stack)
    # What comes before the first edit is the model's own; the identity has nothing to run again.
    record = _patterns_of(heads)
    own = {site: run.patterns[site] for site in record if site.layer < first}
    state, recorded = model.run(run.states[first], edits, record, run.wanted.at, first)
    for key, edit in edits.items():
        if edit.fired != 1:
            raise AnamorphError(
                f"The edit of {key.kind} in layer {key.layer} fired {edit.fired} times in one run; "
                "expected once. The model does not pass this tensor on, so nothing was measured."
            )
    return state, own | recorded
