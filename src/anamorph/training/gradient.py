"""The gradient of next-token prediction, in one pass over a batch, or in pieces on a CPU.

At these sizes two CPU threads with a half of a batch each are much faster than two threads on one
tensor.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PIECE = 2048  # tokens of which the gradient is taken at once on a CPU


def set_gradient(model: nn.Module, bfloat16: bool, tokens: Tensor, mask: Tensor) -> Tensor:
    """Set the gradient of every parameter.

    Args:
        model: [batch, position] token ids to [batch, position, vocabulary] logits.
        bfloat16: whether to multiply matrices in bfloat16.
        tokens: [batch, position].
        mask: [batch, position], False where a sequence is padded.

    Returns:
        the loss, in bits a token.
    """
    model.zero_grad()
    loss = _summed_loss(model, bfloat16, tokens, mask) / mask[:, 1:].sum()
    torch.autograd.backward(loss)
    return loss.detach() / math.log(2)


@contextmanager
def gradient_in_pieces(
    model: nn.Module, bfloat16: bool
) -> Iterator[Callable[[Tensor, Tensor], Tensor]]:
    """A function of tokens and mask that does what `set_gradient` does, faster on a CPU.

    It takes the gradient in pieces that fit a CPU's caches, a share of the sequences in each of
    torch's threads. How many there are makes a difference by rounding.
    """
    parameters, threads = list(model.parameters()), torch.get_num_threads()

    def share(given: tuple[Tensor, Tensor], count: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        total: Tensor | None = None
        pieces = min(len(given[0]), math.ceil(given[0].numel() / PIECE))
        for piece in zip(*(torch.tensor_split(x, pieces) for x in given), strict=True):
            loss = _summed_loss(model, bfloat16, *piece) / count
            found = torch.autograd.grad(loss, parameters)
            if total is None:
                total, gradients = loss.detach(), found
            else:
                total += loss.detach()
                torch._foreach_add_(gradients, found)
        assert total is not None
        return total, gradients

    def set_gradient(tokens: Tensor, mask: Tensor) -> Tensor:
        count = mask[:, 1:].sum()
        shares = zip(tokens.chunk(threads), mask.chunk(threads), strict=True)
        losses, gradients = zip(*pool.map(lambda some: share(some, count), shares), strict=True)
        for parameter, *found in zip(parameters, *gradients, strict=True):
            parameter.grad = torch.stack(found).sum(0)  # in a fixed order
        return torch.stack(losses).sum() / math.log(2)

    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield set_gradient
    finally:
        torch.set_num_threads(threads)  # MKL's threads are one number for all


def _summed_loss(model: nn.Module, bfloat16: bool, tokens: Tensor, mask: Tensor) -> Tensor:
    """The cross-entropy of all real tokens but the first, in nats."""
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=bfloat16):
        logits = model(tokens[:, :-1]).float()
    wanted = tokens[:, 1:].masked_fill(~mask[:, 1:], -100)
    return F.cross_entropy(
        logits.flatten(0, 1), wanted.flatten(), ignore_index=-100, reduction="sum"
    )
