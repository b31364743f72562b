"""Fingerprints of models, by which it is known that a number belongs to a model as it is now."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import isfinite
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anamorph.errors import AnamorphError
from anamorph.machine.devices import in_float64
from anamorph.models.base import Batch, Model

REST = "the rest"  # embeddings, the head, and whatever else stands in no layer
CONFIGURATION = "the configuration"
MOST = 6  # names of parts in an error


def fingerprint_of(module: nn.Module) -> dict[str, str]:
    """A digest of every layer's weights, and one of the rest.

    Of parameters, and of buffers that are saved with them, the name, shape, number format and
    values count. The first number in a name is taken for the layer.

    Returns:
        digests by `layer 0`, `layer 1`, … and `the rest`; equal for equal weights, on any device.
    """
    hashes: dict[str, blake2b] = {}
    for name, value in sorted(module.state_dict().items()):
        number = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
        part = f"layer {int(number[1])}" if number else REST
        kept = hashes.setdefault(part, blake2b(digest_size=16))
        _add(kept, name, value)
    order = sorted(hashes, key=lambda part: (part == REST, len(part), part))
    return {part: hashes[part].hexdigest() for part in order}


@dataclass(frozen=True)
class Identity:
    """What a model was when an audit of it began.

    Attributes:
        weights: as `Model.fingerprint` gives them.
        logits: as `probe_logits` gives them.
    """

    weights: Mapping[str, str]
    logits: Mapping[str, Any]

    @classmethod
    def of(cls, model: Model, batch: Batch) -> "Identity":
        """What a model is now, by its weights and by what it says of a batch."""
        return cls(model.fingerprint(), probe_logits(model, batch))

    def require_same(self, model: Model, batch: Batch) -> None:
        """Refuse a model that has changed since, from another thread or by its own runs.

        Raises:
            AnamorphError: names what differs.
        """
        now = Identity.of(model, batch)
        parts = [part for part in now.weights if self.weights.get(part) != now.weights[part]]
        if parts or not close_logits(self.logits, now.logits):
            what = differing(parts) or "it gives other logits, as with a new hook or adapter"
            raise AnamorphError(
                f"The model was changed while it was audited ({what}). What was being computed is "
                "not kept. Leave the model alone and make the same call again: it goes on with "
                "what was kept."
            )


def differing(parts: Sequence[str]) -> str:
    """In words, what of a model differs, given the names of the parts that do."""
    weights = [part for part in parts if part != CONFIGURATION]
    few = ", ".join(weights[:MOST]) + (f" and {len(weights) - MOST} more" if weights[MOST:] else "")
    said = [f"the weights of {few} differ"] if weights else []
    return " and ".join(said + (["its configuration differs"] if CONFIGURATION in parts else []))


def digest_of(configuration: Mapping[str, Any]) -> str:
    """A digest of JSON values."""
    text = json.dumps(configuration, sort_keys=True, default=str)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _add(digest: blake2b, name: str, value: object) -> None:
    """Take in what a module saves under a name: of a tensor its shape, format and bytes."""
    if isinstance(value, Tensor):
        value = value.detach()
        if value.is_quantized:
            value = value.dequantize()
        if value.layout != torch.strided:
            value = value.to_dense()
        value = value.cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping | tuple | list):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            _add(digest, f"{name}[{key}]", item)
    elif isinstance(value, str | bytes | int | float | bool | None):
        digest.update(f"{name} {value!r} ".encode())
    else:  # of an object, its text may be its address
        digest.update(f"{name} {type(value).__name__} ".encode())


@torch.inference_mode()
def probe_logits(model: Model, batch: Batch) -> dict[str, Any]:
    """What a model says of a few sequences; a hook, an adapter or other code shows here.

    Args:
        model: in inference mode.
        batch: right-padded sequences of the data, on any device.

    Returns:
        `format`, the number format, and `values`, 11 of every sequence: the means over positions
        of the logsumexp of the logits, of the largest logit and of the logit of the token there,
        and 8 logits of the last position; None for what is not finite.
    """
    values: list[float | None] = []
    with model.session():
        for tokens, mask in zip(batch.tokens, batch.mask, strict=True):
            alone = tokens[None, : int(mask.sum())].to(model.device)
            state = model.run(Batch.whole(alone)).state
            logits = model.logits(state)[0, 0]  # [position, vocabulary]
            own = logits.gather(1, alone[0, :, None].clamp(max=logits.shape[1] - 1))
            means = [
                in_float64(x).mean() for x in (logits.float().logsumexp(1), logits.amax(1), own)
            ]
            some = torch.linspace(0, logits.shape[1] - 1, 8).long().to(logits.device)
            found = [*(x.item() for x in means), *logits[-1, some].tolist()]
            values += [x if isfinite(x) else None for x in found]
    return {"format": str(logits.dtype).removeprefix("torch."), "values": values}


def close_logits(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> bool:
    """Whether two results of `probe_logits` are equal up to rounding."""
    if before is None or before["format"] != now["format"]:
        return False
    old, new = (np.array(logits["values"], dtype=float) for logits in (before, now))  # None is NaN
    scale = median(np.abs(old[np.isfinite(old)]).tolist() or [1.0])
    tolerance = 1e-3 if now["format"] in ("float32", "float64") else 1e-2
    return old.shape == new.shape and np.allclose(
        new, old, rtol=tolerance, atol=tolerance * scale, equal_nan=True
    )
