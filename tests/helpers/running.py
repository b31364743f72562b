"""Models run with plain functions in place of edits, and with what is recorded kept."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from anamorph.models.base import Batch, Edit, EditBy, LayerKind, Model

Function = Callable[[Tensor], Tensor]


def edits_by(functions: Mapping[LayerKind, Any] | None) -> dict[LayerKind, Edit]:
    """Edits of functions and fitted simplifications; what is one already stays."""
    return {
        key: function if isinstance(function, Edit) else EditBy(function)
        for key, function in (functions or {}).items()
    }


@torch.inference_mode()
def run(
    model: Model,
    batch: Batch,
    edits: Mapping[LayerKind, Any] | None = None,
    record: dict[Any, Any] | None = None,
    at: Tensor | None = None,
) -> Tensor:
    """[copy, batch, query, vocabulary] logits; fills in what is to be recorded."""
    ran = model.run(batch, edits_by(edits), list(record or ()), at)
    if record is not None:
        record.update(ran.recorded)
    return model.logits(ran.state)
