"""The gradient of next-token prediction, in one pass over a batch.

`cpu/gradient.py` has the same, faster, for a CPU.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
    loss = summed_loss(model, bfloat16, tokens, mask) / mask[:, 1:].sum()
    torch.autograd.backward(loss)
    return loss.detach() / math.log(2)


def summed_loss(model: nn.Module, bfloat16: bool, tokens: Tensor, mask: Tensor) -> Tensor:
    """The cross-entropy of all real tokens but the first, in nats; arguments as above."""
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=bfloat16):
        logits = model(tokens[:, :-1]).float()
    wanted = tokens[:, 1:].masked_fill(~mask[:, 1:], -100)
    return F.cross_entropy(
        logits.flatten(0, 1), wanted.flatten(), ignore_index=-100, reduction="sum"
    )
