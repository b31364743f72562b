"""All of our metrics from rows of logits or attention, in Triton kernels for a GPU.

The formulas are those of `divergences`. Every row of logits is read twice: once for its
log-sum-exp and its likeliest candidate, and once beside the model's row for the divergences. A
program takes one row in blocks and keeps a number for each element of a block, to be added up at
the end. Model and proxies are summarised by the same kernel, so that equal rows give equal
log-probabilities to the bit, and divergences of exactly 0. Nothing here waits for the device.

Triton is imported with this file, which only `comparison.model_output` does, where it is of use.
"""

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
import triton
import triton.language as tl
from torch import Tensor

from anamorph.faithfulness.divergences import NATS, TIE, Candidates
from anamorph.faithfulness.model_output import ATTENTION_METRICS, OUTPUT_METRICS, ModelOutput

BLOCK = 2048  # elements of a row that a program takes at a time
PER_WARP = 256  # of which a warp takes so many

INF = tl.constexpr(math.inf)
BIT = tl.constexpr(NATS)
TIED = tl.constexpr(1 - TIE)
NOTHING = tl.constexpr(1e-37)  # less than this has no logarithm on a GPU, and does not count


@dataclass(frozen=True)
class KernelOutput(ModelOutput):
    """What the model predicts at some positions, in its own dtype.

    Attributes:
        highest: [position] the highest logit.
        log_total: [position] log of the sum of exp(logit - highest).
        candid: [position] whether the target is a candidate.
    """

    highest: Tensor
    log_total: Tensor
    candid: Tensor

    @classmethod
    def of(cls, logits: Tensor, targets: Tensor, candidates: Candidates) -> Self:
        """From [position, vocabulary] logits and [position] token ids."""
        logits, targets = _rows(logits), _rows(targets)
        bits = logits.new_empty(len(logits), dtype=torch.float32)
        numbers, said = _summary(logits[None], targets, candidates, bits)
        highest, log_total, _ = numbers
        candid = candidates.hold(targets)
        return cls(logits, targets, said, bits, candidates, highest, log_total, candid)

    def compare(self, logits: Tensor) -> Tensor:
        """`OUTPUT_METRICS` of the proxies' logits, as [metric, copy, position]."""
        logits = _rows(logits)
        copies, positions, vocabulary = logits.shape
        shape = len(OUTPUT_METRICS), copies, positions
        found = logits.new_empty(shape, dtype=torch.float32)
        numbers, _ = _summary(logits, self.targets, self.candidates, found[-1])
        rows = copies * positions
        with torch.cuda.device_of(logits):
            _compare_logits[(rows,)](
                (self.logits, self.logits.stride(0)),
                (self.highest, self.log_total, self.said, self.targets, self.candid),
                (logits, *logits.stride()[:2]),
                numbers,
                found,
                (rows, positions, vocabulary),
                **_plan(vocabulary),
            )
        return found

    @staticmethod
    def compare_attention(model: Tensor, proxies: Tensor) -> Tensor:
        """`ATTENTION_METRICS` of probabilities, as [metric, 1 or copy, position]."""
        model, proxies = _rows(model), _rows(proxies)
        copies, heads, positions, keys = proxies.shape
        shape = len(ATTENTION_METRICS), copies, heads, positions
        found = model.new_empty(shape, dtype=torch.float32)
        rows = copies * heads * positions
        with torch.cuda.device_of(model):
            _compare_patterns[(rows,)](
                (model, *model.stride()[:2]),
                (proxies, *proxies.stride()[:3]),
                found,
                (rows, heads, positions, keys),
                **_plan(keys),
            )
        return found.mean(2)


def _rows(values: Tensor) -> Tensor:
    """The same, with neighbours on the last axis side by side in memory."""
    return values if values.stride(-1) == 1 else values.contiguous()


def _plan(row: int) -> dict[str, Any]:
    """How a program takes a row of so many elements.

    No product is fused with a sum, which a compiler does here and not there.
    """
    block = min(BLOCK, triton.next_power_of_2(row))
    return {"BLOCK": block, "num_warps": max(1, block // PER_WARP), "enable_fp_fusion": False}


def _summary(
    logits: Tensor, targets: Tensor, candidates: Candidates, bits: Tensor
) -> tuple[Tensor, Tensor]:
    """What is needed of rows of [copy, position, vocabulary] logits before they are compared.

    Returns:
        [3, copy · position]: the highest logit, the log of the sum of exp(logit - highest), and the
        highest logit of a candidate.
        [copy · position] the likeliest candidate.
        `bits`, [copy, position], is filled with the cross entropy.
    """
    copies, positions, vocabulary = logits.shape
    rows = copies * positions
    numbers = logits.new_empty((3, rows), dtype=torch.float32)
    said = targets.new_empty(rows)
    run = candidates.run or slice(0, vocabulary)
    with torch.cuda.device_of(logits):
        _summarise[(rows,)](
            (logits, *logits.stride()[:2]),
            targets,
            candidates.chosen,
            (run.start, run.stop),
            (numbers, said, bits),
            (rows, positions, vocabulary),
            **_plan(vocabulary),
        )
    return numbers, said


@triton.jit
def _summarise(proxies, targets, chosen, run, found, sizes, BLOCK: tl.constexpr):
    """One row of logits, of the model or of a proxy: see `_summary`."""
    logits, copy_stride, position_stride = proxies
    low, high = run
    numbers, said, bits = found
    rows, positions, vocabulary = sizes
    row = tl.program_id(0).to(tl.int64)
    position = row % positions
    logits += row // positions * copy_stride + position * position_stride
    highest = tl.full([BLOCK], -INF, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    best = highest
    token = tl.full([BLOCK], 0, tl.int32) + vocabulary  # none yet
    for start in range(0, vocabulary, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(logits + at, mask=at < vocabulary, other=-INF).to(tl.float32)
        before, highest = highest, tl.maximum(highest, x)
        shift = tl.where(highest == -INF, 0.0, highest)
        total = total * tl.exp(before - shift) + tl.exp(x - shift)
        among = (at >= low) & (at < high)
        if chosen is not None:
            among &= tl.load(chosen + at, mask=at < vocabulary, other=0) != 0
        better = among & ((x > best) | (token == vocabulary))
        best = tl.where(better, x, best)
        token = tl.where(better, at, token)
    top = tl.max(highest)
    total *= tl.exp(highest - tl.where(top == -INF, 0.0, top))
    # in float64, as the order differs with how rows lie in memory, and must not show
    log_total = tl.log(tl.sum(total.to(tl.float64)).to(tl.float32))
    likeliest = tl.max(best)
    token = tl.min(tl.where(best == likeliest, token, vocabulary))
    target = tl.load(logits + tl.load(targets + position)).to(tl.float32)
    tl.store(numbers + row, top)
    tl.store(numbers + rows + row, log_total)
    tl.store(numbers + 2 * rows + row, likeliest)
    tl.store(said + row, tl.minimum(token, vocabulary - 1))  # of NaNs, some token
    tl.store(bits + row, (log_total - (target - top)) / BIT)


@triton.jit
def _compare_logits(model, of_model, proxies, numbers, found, sizes, BLOCK: tl.constexpr):
    """One row of a proxy beside the model's: all of `OUTPUT_METRICS` but the last."""
    x_logits, model_stride = model
    x_highests, x_totals, said, targets, candid = of_model
    logits, copy_stride, position_stride = proxies
    rows, positions, vocabulary = sizes
    row = tl.program_id(0).to(tl.int64)
    position = row % positions
    x_logits += position * model_stride
    logits += row // positions * copy_stride + position * position_stride
    x_highest, x_total = tl.load(x_highests + position), tl.load(x_totals + position)
    y_highest, y_total = tl.load(numbers + row), tl.load(numbers + rows + row)
    jsd = tl.zeros([BLOCK], tl.float32)
    kl = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocabulary, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(x_logits + at, mask=at < vocabulary, other=-INF).to(tl.float32)
        y = tl.load(logits + at, mask=at < vocabulary, other=-INF).to(tl.float32)
        log_p, log_q = x - x_highest - x_total, y - y_highest - y_total
        p, d = tl.exp(log_p), log_p - log_q
        kl += tl.where(p == 0, 0.0, p * d)  # 0·(±inf) and 0·(inf - inf) count as 0
        jsd += _jensen_shannon(p, tl.exp(log_q), tl.abs(d))
    likeliest = tl.load(numbers + 2 * rows + row)
    says, target = tl.load(said + position), tl.load(targets + position)
    same = tl.load(logits + says).to(tl.float32) == likeliest
    right = (tl.load(logits + target).to(tl.float32) == likeliest) & (
        tl.load(candid + position) != 0
    )
    right = (same & (says == target)) | (~same & right)
    tl.store(found + row, same.to(tl.float32))
    tl.store(found + rows + row, right.to(tl.float32))
    tl.store(found + 2 * rows + row, _bits(jsd))
    nats = tl.sum(kl)
    tl.store(found + 3 * rows + row, tl.where(nats < 0, 0.0, nats) / BIT)


@triton.jit
def _compare_patterns(model, proxies, found, sizes, BLOCK: tl.constexpr):
    """One head's attention from one position, of a proxy beside the model's."""
    p_rows, p_head, p_position = model
    q_rows, q_copy, q_head, q_position = proxies
    rows, heads, positions, keys = sizes
    row = tl.program_id(0).to(tl.int64)
    copy, head, position = row // positions // heads, row // positions % heads, row % positions
    p_rows += head * p_head + position * p_position
    q_rows += copy * q_copy + head * q_head + position * q_position
    p_most = tl.zeros([BLOCK], tl.float32)
    q_most = tl.zeros([BLOCK], tl.float32)
    for start in range(0, keys, BLOCK):
        at = start + tl.arange(0, BLOCK)
        p_most = tl.maximum(p_most, tl.load(p_rows + at, mask=at < keys, other=0).to(tl.float32))
        q_most = tl.maximum(q_most, tl.load(q_rows + at, mask=at < keys, other=0).to(tl.float32))
    p_least, q_least = tl.max(p_most) * TIED, tl.max(q_most) * TIED  # that count as most attended
    jsd = tl.zeros([BLOCK], tl.float32)
    both = tl.zeros([BLOCK], tl.float32)
    either = tl.zeros([BLOCK], tl.float32)
    for start in range(0, keys, BLOCK):
        at = start + tl.arange(0, BLOCK)
        p = tl.load(p_rows + at, mask=at < keys, other=0).to(tl.float32)
        q = tl.load(q_rows + at, mask=at < keys, other=0).to(tl.float32)
        jsd += _jensen_shannon(p, q, tl.abs(tl.log(p) - tl.log(q)))
        p_in, q_in = (p >= p_least) & (at < keys), (q >= q_least) & (at < keys)
        both += (p_in & q_in).to(tl.float32)
        either += (p_in | q_in).to(tl.float32)
    tl.store(found + row, _bits(jsd))
    tl.store(found + rows + row, tl.div_rn(tl.sum(both), tl.sum(either)))


@triton.jit
def _jensen_shannon(p, q, d):
    """Twice the divergence of two probabilities in nats; `d` is |log p - log q|."""
    over = -tl.log(0.5 + 0.5 * tl.exp(-d))  # log of the larger over the mean, 0 where equal
    larger = tl.where(p + q < NOTHING, 0.0, tl.maximum(p, q) * over)  # a NaN stays
    smaller = tl.minimum(p, q)
    return larger + tl.where(smaller < NOTHING, 0.0, smaller * (over - d))


@triton.jit
def _bits(twice):
    """Twice a divergence in nats, to be added up, to bits in [0, 1]; a NaN stays."""
    bits = tl.sum(twice) * 0.5 / BIT
    return tl.where(bits < 0, 0.0, tl.where(bits > 1, 1.0, bits))
