"""The engine: model and proxies over one split, summed per sequence.

Everything is arranged so that nothing is computed twice. The model runs once a batch and its state
before each layer is kept; a proxy starts from the state before its first edited layer; proxies that
start at the same layer run as one stack, along the copy axis. What a proxy's first edits read is
the model's own tensor, so it is computed once for the whole stack. The last layer and everything
after it run at scored positions only. On a CPU, batches run side by side, one thread each: at the
sizes that fit the cache that is nearly twice as fast on two cores as two threads on one batch. An
accelerator has one batch at a time, as large as it can hold, and the host waits for it once a
batch; sums are added on the host, in the order of the positions.

What is computed together (batches, stacks, looks) follows from the split, the proxies and the
settings alone, never from threads or what was done before. So the same call gives the same bytes on
one kind of processor, and only what does not fit the memory rounds in another way: it is halved,
and every cell says so (`CellSums.halved`).
"""

from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anamorph.auditing.model_run import ModelRun, ScoredBatch
from anamorph.auditing.proxies import Proxy
from anamorph.auditing.sizes import BATCH_TOKENS, BATCHES, MEMORY
from anamorph.errors import AnamorphError
from anamorph.faithfulness.comparison import position_metrics
from anamorph.faithfulness.confidence import RatioSums, sequence_interval
from anamorph.faithfulness.divergences import Candidates
from anamorph.faithfulness.estimates import Stopping
from anamorph.faithfulness.metrics import JUDGED, metric_names
from anamorph.faithfulness.sums import CellSums, SumIndex
from anamorph.machine.devices import out_of_memory
from anamorph.machine.threads import side_by_side, torch_threads
from anamorph.models.base import Model
from anamorph.simplifications import ProxySpec
from anamorph.tasks import Split
from anamorph.tasks.batches import even_batches

LOOK = 16  # sequences between two looks at whether a cell may stop
LOGITS = 128 * 2**20  # bytes for the logits of one proxy at some positions

LOGITS_ELSEWHERE = 4  # times the memory of a stack, for the logits of all of it

Stack = tuple[Proxy, ...]  # that run together, as copies of one model
Told = Callable[[int, int], None]  # of what is done, and the total


class DoesNotFit(AnamorphError):
    """The memory has no room for a single proxy on a batch."""


@dataclass(frozen=True)
class Settings:
    """How an audit is computed. But for `stopping`, numbers depend on it by rounding alone.

    Attributes:
        batch_tokens: tokens a batch, padding included.
        memory: bytes for the widest tensor of a stack of proxies.
        batches: without `stopping` a split is cut into a multiple of so many, all alike: as many
            for every thread.
        threads: for a model that one thread at a time may run, how many torch uses in an
            operation; None for as many as it uses now.
        stopping: stop each cell as soon as a confidence sequence of its `same_prediction` is so
            narrow (`anamorph.faithfulness.confidence`); the order of the sequences must be random.
            None to use all sequences.
    """

    batch_tokens: int = BATCH_TOKENS
    memory: int = MEMORY
    batches: int = BATCHES
    threads: int | None = None
    stopping: Stopping | None = None


def audit_split(
    model: Model,
    split: Split,
    candidates: NDArray[np.int64],
    proxies: Sequence[Proxy],
    settings: Settings | None = None,
    watch: Told = lambda done, total: None,
) -> dict[ProxySpec, CellSums]:
    """Compare proxies with the model on one split.

    Args:
        model: the original, in inference mode.
        split: all its sequences are used.
        candidates: token ids among which a prediction is chosen.
        proxies: ready to run; each gives one cell.
        settings: how it is computed; the defaults if it is None.
        watch: called with what is done and the total: batches, or with `stopping` cells.

    Returns:
        the sums of every cell.

    Raises:
        AnamorphError: if a number is not finite, or an edit does not fire exactly once a batch.
    """
    settings = settings or Settings()
    comparison = Comparison(model, split, candidates, proxies, settings.memory)
    parallel = model.parallel and all(proxy.parallel for proxy in proxies)
    with (
        model.session(),
        ExitStack() as sessions,
        batch_threads(model, parallel, settings) as workers,
    ):
        for proxy in proxies:
            sessions.enter_context(proxy.session())
        if settings.stopping is None:
            _all_sequences(comparison, split, settings, workers, watch)
        else:
            _until_narrow(comparison, split, settings, workers, watch)
    for spec, sums in comparison.cells.items():
        sums.require_finite(f"{spec} on split {split.name!r}")
    return comparison.cells


def _all_sequences(
    comparison: "Comparison", split: Split, settings: Settings, workers: int, watch: Told
) -> None:
    """Batches side by side, the longest sequences first."""
    numbers = np.arange(len(split))
    parts = even_batches(split, numbers, settings.batch_tokens, settings.batches)
    for done, _ in enumerate(side_by_side(comparison.whole, parts[::-1], workers), start=1):
        watch(done, len(parts))


def _until_narrow(
    comparison: "Comparison", split: Split, settings: Settings, workers: int, watch: Told
) -> None:
    """A few sequences at a time, and the stacks of a batch side by side."""
    assert settings.stopping is not None
    cells = comparison.cells
    active = dict(cells)
    for start in range(0, len(split), LOOK):
        stop = min(start + LOOK, len(split))
        for sequences in even_batches(split, np.arange(start, stop), settings.batch_tokens):
            run = comparison.run(sequences)
            stacks = comparison.stacks(run, active)
            parts = [[stack] for stack in stacks] if run.on_host else [stacks]
            for _ in side_by_side(partial(comparison.add, run), parts, workers):
                pass
        for cell in active.values():
            cell.seen = stop
        active = _wide(active, comparison.index, stop, settings.stopping)
        watch(len(cells) - len(active), len(cells))
        if not active:
            break
    watch(len(cells), len(cells))


def _wide(
    cells: dict[ProxySpec, CellSums], index: SumIndex, seen: int, stopping: Stopping
) -> dict[ProxySpec, CellSums]:
    """The cells whose confidence sequence of `same_prediction` is still too wide at this look."""
    rows = slice(np.searchsorted(index.sequence[index.whole], seen))
    sums = torch.stack([c.sums[c.metrics.index(JUDGED), rows] for c in cells.values()])
    ratios = RatioSums.of(sums, torch.from_numpy(index.tokens[rows]).double())
    ends = sequence_interval(ratios, stopping.until, prior_correlation=stopping.correlation)
    wide = (ends[1] - ends[0] > stopping.until).tolist()
    return {spec: cell for (spec, cell), go_on in zip(cells.items(), wide, strict=True) if go_on}


@contextmanager
def batch_threads(model: Model, parallel: bool, settings: Settings) -> Iterator[int]:
    """Set torch's threads as models need them; gives how many batches may run at a time.

    Args:
        model: that is run.
        parallel: whether it and its proxies may be run by two threads at once.
        settings: how many threads another model has.
    """
    parallel = parallel and model.device.type == "cpu"  # any other keeps itself busy
    with torch_threads(1 if parallel else (settings.threads or torch.get_num_threads())) as before:
        yield before if parallel else 1


class Comparison:
    """Model and proxies on the sequences of a split, and the sums that grow from them.

    Args:
        model: the original.
        split: where the sequences are from.
        candidates: [candidate] token ids among which a prediction is chosen.
        proxies: what is compared with the model.
        memory: bytes for the widest tensor of a stack.

    Attributes:
        index: the rows of the split's sums.
        cells: the sums of every proxy.
    """

    def __init__(
        self,
        model: Model,
        split: Split,
        candidates: NDArray[np.int64],
        proxies: Sequence[Proxy],
        memory: int,
    ) -> None:
        self.model, self.split, self.memory = model, split, memory
        self.index = SumIndex.of(split)
        self.candidates = Candidates.of(candidates, model.vocabulary, model.device)
        self.heads = {head for proxy in proxies for head in proxy.heads}
        alike: dict[tuple[object, ...], list[Proxy]] = {}
        for proxy in proxies:
            alike.setdefault(proxy.stack, []).append(proxy)
        self.alike = [tuple(alike[key]) for key in sorted(alike)]
        self.cells = {
            proxy.spec: CellSums(self.index, metric_names(bool(proxy.heads))) for proxy in proxies
        }

    def whole(
        self, sequences: NDArray[np.int64], active: Container[ProxySpec] | None = None
    ) -> None:
        """Add the metrics of all proxies, or of those that are active, on some sequences.

        What does not fit the memory is done on halves of them.

        Raises:
            DoesNotFit: if a single proxy does not, not even on a single sequence.
        """
        left = {spec for spec in self.cells if active is None or spec in active}
        try:
            run = self.run(sequences)
            stacks = self.stacks(run, left)
            for some in [[stack] for stack in stacks] if run.on_host else [stacks]:
                self.add(run, some)
                left -= {proxy.spec for stack in some for proxy in stack}
            return
        except DoesNotFit:
            if len(sequences) == 1:
                raise
        for spec in left:
            self.cells[spec].halved = True
        for half in np.array_split(sequences, 2):
            self.whole(half, left)

    @torch.inference_mode()
    def run(self, sequences: NDArray[np.int64]) -> ModelRun:
        """The model itself on some sequences.

        Raises:
            DoesNotFit: if it does not fit the memory.
        """
        scored = ScoredBatch.of(self.split, self.index, sequences, self.model)
        with _fitting(scored):
            return ModelRun.of(self.model, scored, self.heads, self.candidates)

    def stacks(self, run: ModelRun, active: Container[ProxySpec] | None = None) -> list[Stack]:
        """The proxies, or those that are active, that run together and fit the memory."""
        found = []
        for proxies in self.alike:
            step = max(1, self.memory // proxies[0].bytes(run))
            some = [p for p in proxies if active is None or p.spec in active]
            found += [tuple(some[i : i + step]) for i in range(0, len(some), step)]
        return found

    @torch.inference_mode()
    def add(self, run: ModelRun, stacks: Sequence[Stack]) -> None:
        """Add the metrics of stacks of proxies on the batch of a run.

        All are begun before the host waits, once, for all. None is added unless all fit the memory.

        Raises:
            DoesNotFit: if one does not, not even alone.
        """
        begun = [self._compared(run, stack) for stack in stacks]
        home = torch.cat([values.flatten() for values in begun]).cpu()
        parts = torch.split(home, [values.numel() for values in begun])
        for stack, values, part in zip(stacks, begun, parts, strict=True):
            for proxy, metrics in zip(stack, part.view(values.shape), strict=True):
                self.cells[proxy.spec].add_rows(run.scored.rows, metrics)

    def _compared(self, run: ModelRun, stack: Stack) -> Tensor:
        """[copy, metric, scored position] of a stack, which is halved if it does not fit."""
        try:
            with _fitting(run.scored):
                return _compare(run, stack, self.memory)
        except DoesNotFit:
            if len(stack) == 1:
                raise
        for proxy in stack:
            self.cells[proxy.spec].halved = True
        half = len(stack) // 2
        return torch.cat([self._compared(run, part) for part in (stack[:half], stack[half:])])


@contextmanager
def _fitting(scored: ScoredBatch) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise DoesNotFit(
            f"Out of memory with a single proxy on a batch of {scored.batch.mask.numel():,} "
            "tokens; give fewer batch_tokens, shorter sequences, or a device with more memory."
        ) from error


def _compare(run: ModelRun, stack: Stack, memory: int) -> Tensor:
    """[copy, metric, scored position] of a stack of proxies, in the order of the valid targets."""
    outcome, heads = stack[0].run(run, stack), stack[0].heads
    copies, places, logits = len(stack), run.scored.places, run.output.logits
    names = metric_names(attention=bool(heads))
    out = logits.new_empty((copies, len(names), len(places)), dtype=torch.float32)
    step = max(1, LOGITS // (4 * logits.shape[-1]))
    if not run.on_host:  # the memory is that of all copies
        step = max(1, LOGITS_ELSEWHERE * memory // (4 * copies * logits.shape[-1]))
    for rows in (slice(i, i + step) for i in range(0, len(places), step)):
        some = places[rows]
        theirs = outcome.logits(some).to(logits.device)
        attention = (
            (run.outcome.attention(heads, some)[0], outcome.attention(heads, some)) if heads else ()
        )
        out[:, :, rows] = position_metrics(
            run.output[rows], theirs.expand(copies, -1, -1), *(x.to(out.device) for x in attention)
        )
    return out
