"""`SAETrainer` of SAELens with a TopK autoencoder and its own settings.

Its sparse activations (`use_sparse_activations`) do not run with these on a CPU.
"""

import itertools
from collections.abc import Callable
from typing import Any

from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

PACKAGE = "sae-lens"


def train(
    points: Tensor, shape: dict[str, Any], steps: int, rate: float | None
) -> Callable[[Tensor], Tensor]:
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(d_in=points.shape[1], d_sae=shape["features"], k=shape["k"])
    )
    config = SAETrainerConfig(
        total_training_samples=steps * shape["batch"],
        train_batch_size_samples=shape["batch"],
        lr_end=rate or 3e-4,  # it is constant unless a schedule is asked for
        **({} if rate is None else {"lr": rate}),
    )
    batches = itertools.cycle(points.split(shape["batch"]))
    return SAETrainer(config, sae, batches).fit()
