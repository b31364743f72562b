"""Causal self-attention for training.

On a CPU, torch's fused attention is slow for small heads, above all in its backward pass. Here each
block of queries is multiplied with all keys that it may see, for all heads of a batch at once. For
8 sequences of 256 tokens, 4 heads of 32 dimensions and one thread, forward and backward together
take about two thirds of the time that torch's take.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 64  # queries: enough for fast products, few enough to leave out most of the future


def causal_attention(packed: Tensor, turn: Tensor | None = None) -> Tensor:
    """What the heads give, [batch, position, head, dim]; no position sees those behind it.

    Scores are divided by √dim (Vaswani et al. 2017, arXiv 1706.03762).

    Args:
        packed: [batch, position, 3, head, dim] queries, keys and values.
        turn: [position, dim / 2, 2] for rotary positions; see `rotated`.
    """
    if packed.device.type == "cpu" and packed.dtype in (torch.float32, torch.float64):
        return _Blocks.apply(packed, turn)  # type: ignore[no-untyped-call, no-any-return]
    query, key, value = packed.permute(2, 0, 3, 1, 4)
    if turn is not None:
        query, key = rotated(query, turn), rotated(key, turn)
    return F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)


def rotated(x: Tensor, turn: Tensor) -> Tensor:
    """Each pair of neighbouring dimensions, turned by an angle (rotary positions, Su et al. 2021).

    Args:
        x: [..., dim] any floats.
        turn: [..., dim / 2, 2] the cosines and sines of the angles.
    """
    real = torch.promote_types(x.dtype, torch.float32)  # as torch has no complex bfloat16
    turned = _pairs(x.to(real)) * torch.view_as_complex(turn.to(real))
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


class _Blocks(torch.autograd.Function):
    """`causal_attention` in blocks: on a CPU, in float32 or float64."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, turn: Tensor | None) -> Tensor:
        batch, length, _, heads, dim = packed.shape
        parts = packed.permute(2, 0, 3, 1, 4).clone(memory_format=torch.contiguous_format)
        parts = parts.flatten(1, 2)  # [3, batch · head, position, dim]
        parts[0] *= dim**-0.5
        if turn is not None:
            turn = torch.view_as_complex(turn.to(packed.dtype))
            _pairs(parts[:2]).mul_(turn)
        query, key, value = parts
        future = packed.new_full((BLOCK, BLOCK), -torch.inf).triu_(1)
        patterns, outputs = [], []
        for start, end in _blocks(length):
            scores = query[:, start:end] @ key[:, :end].mT
            scores[:, :, start:] += future[: end - start, : end - start]
            patterns.append(torch.softmax(scores, dim=-1, out=scores))
            outputs.append(scores @ value[:, :end])
        output = torch.cat(outputs, dim=1)
        ctx.save_for_backward(parts, output, turn, *patterns)
        return output.view(batch, heads, length, dim).transpose(1, 2).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        parts, output, turn, *patterns = ctx.saved_tensors
        query, key, value = parts
        batch, length, heads, dim = gradients[0].shape
        gradient = gradients[0].transpose(1, 2).reshape(output.shape)
        # With p a row of the pattern and d its gradient, the scores' is p · (d - Σ p · d); and
        # Σ p · d is the sum over the output times its gradient.
        mean = (gradient * output).sum(dim=-1, keepdim=True)
        to_parts = torch.empty_like(parts)
        _, to_key, to_value = to_parts
        to_query: list[Tensor] = []
        for (start, end), pattern in reversed(list(zip(_blocks(length), patterns, strict=True))):
            rows = gradient[:, start:end]
            scores = rows @ value[:, :end].mT
            scores.sub_(mean[:, start:end]).mul_(pattern)
            to_query.insert(0, scores @ key[:, :end])
            if end == length:
                torch.bmm(scores.mT, query[:, start:end], out=to_key)
                torch.bmm(pattern.mT, rows, out=to_value)
            else:
                to_key[:, :end] += scores.mT @ query[:, start:end]
                to_value[:, :end] += pattern.mT @ rows
        torch.cat(to_query, dim=1, out=to_parts[0])
        to_parts[0] *= dim**-0.5
        if turn is not None:
            _pairs(to_parts[:2]).mul_(turn.conj())
        return to_parts.view(3, batch, heads, length, dim).permute(1, 3, 0, 2, 4), None


def _pairs(x: Tensor) -> Tensor:
    """Neighbouring dimensions [..., dim] as complex numbers [..., dim / 2]."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))  # type: ignore[no-untyped-call]


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]
