"""The gradient of next-token prediction, for training."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    import lightning_fabric as lf

PIECE = 2048  # tokens of which a CPU takes the gradient at once


class Gradient:
    """The gradient of a batch; on a CPU in pieces that fit its caches, a share of them a thread.

    At these sizes two threads with a half each are much faster than two threads on one tensor.
    """

    def __init__(self, fabric: "lf.Fabric", model: nn.Module) -> None:
        self.fabric = fabric
        self.parameters = list(model.parameters())
        self.whole = fabric.device.type != "cpu" or fabric.world_size > 1
        # Fabric's wrapper allows no backward pass but its own, which sums into the parameters.
        self.model = model if self.whole else cast(nn.Module, model.module)
        self.threads = torch.get_num_threads()
        self.pool = ThreadPoolExecutor(
            self.threads, initializer=torch.set_num_threads, initargs=(1,)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()
        torch.set_num_threads(self.threads)  # MKL's threads are one number for all

    def __call__(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Set gradients from tokens and mask [batch, position]; gives the loss in bits a token."""
        count = mask[:, 1:].sum()
        if self.whole:
            loss = self._loss(tokens, mask) / count
            self.fabric.backward(loss)
            return loss.detach() / math.log(2)

        def part(given: tuple[Tensor, Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
            total: Tensor | None = None
            pieces = min(len(given[0]), math.ceil(given[0].numel() / PIECE))
            for piece in zip(*(torch.tensor_split(x, pieces) for x in given), strict=True):
                loss = self._loss(*piece) / count
                found = torch.autograd.grad(loss, self.parameters)
                if total is None:
                    total, gradients = loss.detach(), found
                else:
                    total += loss.detach()
                    torch._foreach_add_(gradients, found)
            assert total is not None
            return total, gradients

        parts = zip(tokens.chunk(self.threads), mask.chunk(self.threads), strict=True)
        losses, gradients = zip(*self.pool.map(part, parts), strict=True)
        for parameter, *found in zip(self.parameters, *gradients, strict=True):
            parameter.grad = torch.stack(found).sum(0)  # in a fixed order
        return torch.stack(losses).sum() / math.log(2)

    def _loss(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The cross-entropy of all real tokens but the first, in nats, summed."""
        with self.fabric.autocast():
            logits = self.model(tokens[:, :-1]).float()
        wanted = tokens[:, 1:].masked_fill(~mask[:, 1:], -100)
        return F.cross_entropy(
            logits.flatten(0, 1), wanted.flatten(), ignore_index=-100, reduction="sum"
        )
