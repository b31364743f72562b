"""Fingerprints of weights, so that a number can be told to belong to them."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import isfinite
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from anamorph.errors import AnamorphError
from anamorph.models.base import Batch, Model

REST = "the rest"  # embeddings, the head, and whatever else stands in no layer
CONFIGURATION = "the configuration"
MOST = 6  # parts that differ and are named
IDS = 16  # token ids that a model is tried on: some have fewer embeddings than logits


def fingerprint_of(module: nn.Module) -> dict[str, str]:
    """A digest of every layer's weights, and one of the rest.

    Parameters and the buffers that are saved with them count, by name, shape, number format and
    value. The first number in a parameter's name is taken for its layer.

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
    def of(cls, model: Model) -> "Identity":
        """What a model is now."""
        return cls(model.fingerprint(), probe_logits(model))

    def require_same(self, model: Model) -> None:
        """Refuse a model that was changed meanwhile, from another thread or by its own runs.

        Raises:
            AnamorphError: names what differs.
        """
        now = Identity.of(model)
        parts = [part for part in now.weights if self.weights.get(part) != now.weights[part]]
        if parts or not close_logits(self.logits, now.logits):
            what = differing(parts) or "it gives other logits: a hook, say, or an adapter"
            raise AnamorphError(
                f"The model was changed while it was audited ({what}). What was being computed is "
                "not kept; leave the model alone, and the same call goes on."
            )


def differing(parts: Sequence[str]) -> str:
    """What of a model differs, in words, from the names of its parts."""
    weights = [part for part in parts if part != CONFIGURATION]
    few = ", ".join(weights[:MOST]) + (f" and {len(weights) - MOST} more" if weights[MOST:] else "")
    said = [f"the weights of {few} differ"] if weights else []
    return " and ".join(said + (["its configuration differs"] if CONFIGURATION in parts else []))


def digest_of(configuration: Mapping[str, Any]) -> str:
    """A digest of JSON values."""
    text = json.dumps(configuration, sort_keys=True, default=str)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _add(digest: blake2b, name: str, value: object) -> None:
    """Take in what a module saves under a name: mostly a tensor, by shape, format and bytes."""
    if isinstance(value, Tensor):
        value = value.detach()
        if value.is_quantized:
            value = value.dequantize()
        if value.layout != torch.strided:
            value = value.to_dense()
        value = value.cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        for key in value:
            _add(digest, f"{name}[{key}]", value[key])
    elif isinstance(value, tuple | list):
        for number, item in enumerate(value):
            _add(digest, f"{name}[{number}]", item)
    elif isinstance(value, str | bytes | int | float | bool | None):
        digest.update(f"{name} {value!r} ".encode())
    else:  # of an object, its text may be its address
        digest.update(f"{name} {type(value).__name__} ".encode())


@torch.inference_mode()
def probe_logits(model: Model, length: int = 8) -> dict[str, Any]:
    """What a model says of a few made-up tokens: what hooks, adapters or code change shows here.

    Args:
        model: in inference mode.
        length: tokens of the sequences; at most the model's context.

    Returns:
        `format`, the number format, and `values`: 8 logits of each of two sequences, None where
        one is not finite.
    """
    length = min(length, model.context or length)
    ids = min(model.vocabulary, IDS)
    tokens = (torch.arange(2 * length).view(2, length) * 7 + 3) % ids
    tokens = tokens.to(model.device)
    with model.session():
        state = model.start(Batch(tokens, torch.ones_like(tokens).bool()))
        for layer in range(model.layers):
            state = model.layer(layer, state)
        last = model.logits(state)[0, :, -1]  # [2, vocabulary]
    some = last[:, torch.linspace(0, model.vocabulary - 1, 8).long().to(last.device)].flatten()
    values = [x if isfinite(x) else None for x in some.tolist()]
    return {"format": str(last.dtype).removeprefix("torch."), "values": values}


def close_logits(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> bool:
    """Whether two results of `probe_logits` are one model's, but for rounding."""
    if before is None or before["format"] != now["format"]:
        return False
    pairs = list(zip(before["values"], now["values"], strict=True))
    if any((x is None) != (y is None) for x, y in pairs):
        return False
    scale = median([abs(x) for x, _ in pairs if x is not None] or [1.0])
    tolerance = 1e-3 if now["format"] in ("float32", "float64") else 3e-2
    return all(abs(x - y) <= tolerance * (scale + abs(x)) for x, y in pairs if x is not None)
