"""sparsify's `SparseCoder` in the loop of its `Trainer`, which itself wants a model to run.

Its optimizer is the one that its configuration names first, sign descent without a schedule.
"""

from collections.abc import Callable
from typing import Any

import torch
from schedulefree import ScheduleFreeWrapper
from sparsify import SparseCoder, SparseCoderConfig
from sparsify.sign_sgd import SignSGD
from torch import Tensor

PACKAGE = "eai-sparsify"


def train(
    points: Tensor, shape: dict[str, Any], steps: int, rate: float | None
) -> Callable[[Tensor], Tensor]:
    config = SparseCoderConfig(num_latents=shape["features"], k=shape["k"])
    coder = SparseCoder(points.shape[1], config, dtype=torch.float32)
    usual = 5e-3 / (shape["features"] / 2**14) ** 0.5
    optimizer = ScheduleFreeWrapper(SignSGD(coder.parameters(), lr=rate or usual), momentum=0.95)
    optimizer.train()
    for step, some in zip(range(steps), points.split(shape["batch"]), strict=False):
        if step == 0:
            coder.b_dec.data = some.mean(0)
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x=some, total_variance=(some - some.mean(0)).pow(2).sum())
        out.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
    optimizer.eval()
    coder.set_decoder_norm_to_unit_norm()
    return lambda x: coder(x).sae_out
