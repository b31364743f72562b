"""A module tried on a few tokens: whether its numbers can be relied on, and what it sees.

Before a module is audited it is run in every way in which an audit runs it: again, in batches of
other sizes and orders, on shorter and longer sequences, with padding. Its logits of a sequence must
be the same in all of them.
"""

import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from math import ceil, inf
from pathlib import Path
from random import Random
from threading import Barrier
from time import monotonic, sleep
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from anamorph.errors import AnamorphError
from anamorph.models.wrapped import same_logits

SHORT = 6  # tokens of a short sequence
LONG = (128, 64, 32, 16, 8)  # tokens of a long one: the first of these that the module can take
ROWS = 4  # sequences of a batch
FEW = 3  # different token ids of a sequence that repeats them
SECONDS = 1.0  # for which two threads are tried


@dataclass(frozen=True)
class Probe:
    """A module and how it is called.

    Attributes:
        module: in inference mode.
        call: from tokens and mask, both [batch, position], to logits [batch, position, vocabulary].
        vocabulary: how many token ids it knows; see `known_ids`.
        context: the longest sequence, in tokens; None if it is not known.
        device: where its tokens go.
    """

    module: nn.Module
    call: Callable[[Tensor, Tensor], Tensor]
    vocabulary: int
    context: int | None
    device: torch.device

    def require_steady(self) -> None:
        """Refuse a module whose logits of a sequence depend on what runs before it or beside it.

        Raises:
            AnamorphError: if they do, are NaN, or if it keeps more with every run; says which.
        """
        tokens = self._tokens(ROWS, self._short, 0)
        first = self._run(tokens)
        self._require_numbers(tokens, first)
        sizes = [_sizes(self.module)]
        for _ in range(2):
            self._require_same(self._run(tokens), first, AGAIN)
            sizes.append(_sizes(self.module))
        for name, size in sizes[0].items():
            if size < sizes[1].get(name, 0) < sizes[2].get(name, 0):
                raise AnamorphError(
                    f"{self._name} keeps more in {name} with every run, so an audit would fill "
                    "the memory. Turn that off, or clear it in forward=lambda module, tokens, "
                    "mask: …"
                )
        self._require_same(self._run(tokens.flip(0)).flip(0), first, BESIDE)
        for row in range(ROWS):
            self._require_same(self._run(tokens[[row]]), first[[row]], BESIDE)
        if self._longer is not None:
            many = self._run(self._longer)
            self._require_numbers(self._longer, many)
            self._require_same(self._run(self._longer[-1:]), many[-1:], BESIDE)
        self._require_same(self._run(tokens), first, AFTER)

    def require_threads(self) -> None:
        """Refuse a module that gives other logits when two threads run it at once.

        Raises:
            AnamorphError: if that was seen. That it was not seen proves nothing.
        """
        batches = [self._tokens(ROWS, self._short, seed) for seed in (0, 1)]
        if not alike_at_once(self._run, batches, self._same):
            raise AnamorphError(
                f"{self._name} gives other logits when two threads run it at once: it keeps "
                "something of a run where the other sees it, such as activations on self. Leave "
                "out threads=True."
            )

    def causal(self) -> bool:
        """Whether no position sees those behind it, at a few places of a few sequences.

        Some sequences repeat a few ids and some are long, since a module may see the future only
        where it finds a certain token, or only from some length on.
        """
        lengths = [self._short] * 3 + ([] if self._longer is None else [self._longer.shape[1]])
        return all(self._sees_nothing_behind(n, seed) for seed, n in enumerate(lengths))

    def _sees_nothing_behind(self, length: int, seed: int) -> bool:
        """Whether logits stay the same if the tokens behind are others, or are not there."""
        cuts = sorted({1, 2, length // 4, length // 2, length - 1} & {*range(1, length)})
        tokens = self._tokens(1, length, seed)
        if seed != 2:
            tokens = tokens[:, -FEW:].repeat(1, length)[:, :length]
        whole = self._run(tokens)
        for cut in cuts[-2:]:
            if not self._same(self._run(tokens[:, :cut]), whole[:, :cut]):
                return False
        others = tokens.repeat(len(cuts), 1)
        behind = torch.arange(length, device=self.device) >= others.new_tensor(cuts)[:, None]
        new = self._tokens(1, int(behind.sum()), seed + 10)[0]
        others[behind] = torch.where(new == others[behind], (new + 1) % self.vocabulary, new)
        changed = self._run(others)
        return all(self._same(changed[[r], :cut], whole[:, :cut]) for r, cut in enumerate(cuts))

    def pads(self) -> bool:
        """Whether padding at the right changes nothing for the real tokens, whatever it is."""
        tokens = self._tokens(ROWS, self._short, 0)
        lengths = [max(1, tokens.shape[1] - row) for row in range(ROWS)]
        columns = torch.arange(tokens.shape[1], device=self.device)
        mask = columns < torch.tensor(lengths, device=self.device)[:, None]
        alone = torch.cat([self._run(tokens[[row], :n])[0] for row, n in enumerate(lengths)])
        return all(
            self._same(self.call(tokens.where(mask, filler), mask.clone())[mask], alone)
            for filler in (torch.zeros_like(tokens), self._tokens(ROWS, tokens.shape[1], 5))
        )

    @property
    def _name(self) -> str:
        return type(self.module).__name__

    @property
    def _short(self) -> int:
        return min(SHORT, self.context or SHORT)

    def _tokens(self, rows: int, length: int, seed: int) -> Tensor:
        """[rows, length] token ids, all different if there are enough; 0 and the last first."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randperm(self.vocabulary, generator=generator)
        special = torch.tensor([0, self.vocabulary - 1])  # as padding or unknown tokens often are
        ids = torch.cat([special, ids[~torch.isin(ids, special)]])
        return ids[torch.arange(rows * length) % len(ids)].view(rows, length).to(self.device)

    @cached_property
    def _longer(self) -> Tensor | None:
        """[ROWS, position] tokens of long sequences, if the module takes any."""
        if self.context is None and self.device.type != "cpu":
            return None  # a position too many can end the process there
        for length in LONG if self.context is None else [min(LONG[0], self.context)]:
            tokens = self._tokens(ROWS, length, 7)
            try:
                self._run(tokens)
                return tokens
            except Exception as error:  # of every kind that a module may raise
                if self.context is not None:
                    raise AnamorphError(
                        f"{self._name} cannot run on {length} tokens, though its context is said "
                        f"to be {self.context}: {type(error).__name__}: {error}"
                    ) from error
        return None

    def _run(self, tokens: Tensor) -> Tensor:
        """Logits of whole sequences, copied, as a module may write over what it takes or gave."""
        return self.call(tokens.clone(), torch.ones_like(tokens).bool()).clone()

    def _same(self, a: Tensor, b: Tensor) -> bool:
        halves = {p.dtype for p in self.module.parameters()} & {torch.float16, torch.bfloat16}
        dtype = halves.pop() if halves else a.dtype  # logits may be made float32 at the end
        return same_logits(a.to(dtype), b.to(dtype))

    def _require_same(self, found: Tensor, expected: Tensor, otherwise: str) -> None:
        if not self._same(found, expected):
            raise AnamorphError(f"{self._name} {otherwise}")

    def _require_numbers(self, tokens: Tensor, logits: Tensor) -> None:
        """Refuse logits of which no softmax can be made."""
        for wrong, what in (
            (logits.isnan().any(-1), "gives NaN"),
            ((logits == torch.inf).any(-1), "gives a logit of infinity"),
            ((logits == -torch.inf).all(-1), "rules out every token (all logits are -inf)"),
        ):
            if bool(wrong.any()):
                row, position = wrong.nonzero()[0].tolist()
                ids = tokens[row, : position + 1].tolist()
                raise AnamorphError(
                    f"{self._name} {what} for token ids {ids[-12:]} (at position {position}), so "
                    "nothing can be measured. Look for it in the module's weights, and in its "
                    "softmax, where a position that sees nothing gives NaN."
                )


AGAIN = (
    "gives other logits when it runs again on the same tokens: it is random, or keeps something "
    "from run to run, such as a cache. Turn that off, for instance with forward=lambda module, "
    "tokens, mask: module(tokens, use_cache=False)."
)
AFTER = (
    "gives other logits for the same tokens after it has run on others: it keeps something from "
    "run to run, such as a cache, a counter or the longest length so far. Turn that off, or set it "
    "back in forward=lambda module, tokens, mask: …"
)
BESIDE = (
    "gives other logits for a sequence when others are beside it in the batch: something in it "
    "counts over the batch, such as a batch norm without running statistics, experts of limited "
    "capacity, dynamic quantization, a sort, or a cache. Its numbers would depend on the batches."
)


def _sizes(module: nn.Module) -> dict[str, int]:
    """How much every list, set or mapping that a submodule holds has in it."""
    return {
        f"{path}.{name}" if path else name: len(value)
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, Sized) and not isinstance(value, str | Tensor | nn.Module)
    }


def known_ids(call: Callable[[Tensor, Tensor], Tensor], logits: Tensor) -> int:
    """How many token ids a module takes: fewer than it has logits, if those are padded.

    Args:
        call: as in `Probe`.
        logits: [batch, position, vocabulary] that it gave.
    """

    def takes(token: int) -> bool:
        tokens = torch.full(logits.shape[:2], token, device=logits.device)
        try:
            call(tokens, torch.ones_like(tokens).bool())
        except IndexError:
            return False
        return True

    every = logits.shape[-1]
    if logits.device.type != "cpu" or takes(every - 1):  # elsewhere such an id can end the process
        return every
    return bisect_left(range(every), True, lo=1, key=lambda token: not takes(token))


def alike_at_once(
    run: Callable[[Tensor], Tensor],
    batches: Sequence[Tensor],
    same: Callable[[Tensor, Tensor], bool],
    seconds: float = SECONDS,
) -> bool:
    """Whether two batches, each in a thread of its own, give what they give alone.

    They take turns: first, between two lines of one run the other runs whole, which finds what one
    run leaves where the other reads it; then, for some time, each pauses between lines by chance.
    """
    expected = [run(tokens) for tokens in batches]

    @torch.inference_mode()
    def right(number: int, between: Callable[[], None] | None = None) -> bool:
        with nullcontext() if between is None else _between_lines(between):
            found = run(batches[number])
        return same(found, expected[number])

    return (
        _right_between_lines(right, 0, 1, seconds)
        and _right_between_lines(right, 1, 0, seconds)
        and _right_by_chance(right, seconds)
    )


def _right_between_lines(right: Callable[..., bool], one: int, other: int, seconds: float) -> bool:
    """Whether a batch, and another that runs whole between its lines, give what they give alone.

    It does so between any two lines, or between as many as there is time for.
    """
    begun: list[Future[bool]] = []
    lines, step = 0, inf  # at first they are only counted

    def interrupt() -> None:
        nonlocal lines
        lines += 1
        if lines % step == 0 and (not begun or begun[-1].done()):
            begun.append(pool.submit(right, other))
            wait(begun[-1:], timeout=10 * alone + 0.1)  # it may wait for a lock of this run

    try:
        with ThreadPoolExecutor(1) as pool:
            start = monotonic()
            right(one, interrupt)
            alone = monotonic() - start
            step, lines = max(1, ceil(lines * alone / seconds)), 0
            return right(one, interrupt) and all(x.result() for x in begun)
    except Exception:  # of every kind that a module may raise where alone it raises nothing
        return False


def _right_by_chance(right: Callable[..., bool], seconds: float) -> bool:
    """Whether two batches that pause between lines by chance give what they give alone."""
    start, draw = Barrier(2), Random(0)

    def pause() -> None:
        sleep(draw.random() / 2000 if draw.random() < 0.3 else 0)

    def steady(number: int) -> bool:
        start.wait(timeout=60)
        end = monotonic() + seconds
        while monotonic() < end:
            if not right(number, pause):
                return False
        return True

    with ThreadPoolExecutor(2) as pool:
        return all(pool.map(steady, (0, 1)))


@contextmanager
def _between_lines(do: Callable[[], None]) -> Iterator[None]:
    """Call a function between any two lines that this thread runs, except torch's own."""
    of_torch = str(Path(torch.__file__).parent)

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename.startswith(of_torch):
            return None
        do()
        return trace

    usual = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(usual)
