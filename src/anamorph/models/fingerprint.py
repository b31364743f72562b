"""Fingerprints of weights, so that a number can be told to belong to them."""

import re
from hashlib import blake2b

import torch
from torch import Tensor, nn

REST = "the rest"  # embeddings, the head, and whatever else stands in no layer


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
        add_tensor(kept, name, value)
    order = sorted(hashes, key=lambda part: (part == REST, len(part), part))
    return {part: hashes[part].hexdigest() for part in order}


def add_tensor(digest: blake2b, name: str, value: Tensor) -> None:
    """Take a tensor's name, shape, number format and bytes into a digest."""
    value = value.detach().cpu().contiguous()
    digest.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
    digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
