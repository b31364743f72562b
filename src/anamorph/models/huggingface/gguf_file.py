"""What a GGUF file holds and transformers does not read."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anamorph.errors import AnamorphError

FREQUENCIES = "rope_freqs.weight"


def require_gguf_read(model: nn.Module, path: Path) -> None:
    """Scale rotary positions as a file says, and make sure that nothing else was left out.

    Transformers takes the tensors that it knows and silently leaves the rest. The scaling of rotary
    positions in Llama 3.1 and models like it is part of that rest.

    Args:
        model: as transformers loaded it from the file; its rotary frequencies are scaled.
        path: the file.

    Raises:
        AnamorphError: if a layer of the file holds more numbers than that of the model, or rotary
            positions are scaled in a way that transformers does not read from such files.
    """
    from gguf import GGUFReader

    reader: Any = GGUFReader(path)
    _require_layers(model, reader)
    config: Any = model.config
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        return  # transformers has read it
    scaling = _text(reader, f"{_text(reader, 'general.architecture')}.rope.scaling.type")
    factors = [tensor.data for tensor in reader.tensors if tensor.name == FREQUENCIES]
    scaled = [_scale(model, torch.from_numpy(x.copy()).float().flatten()) for x in factors]
    if scaling != "none" or not all(scaled):
        raise AnamorphError(
            f"{path.name} scales rotary positions in a way that transformers does not read from "
            f"GGUF files ({FREQUENCIES if factors else scaling}), so its logits would be others. "
            "Give the model as safetensors (a folder as save_pretrained writes it)."
        )


def _text(reader: Any, name: str) -> str:
    """A text in the file's metadata; `none` if it has no such text."""
    field = reader.fields.get(name)
    return "none" if field is None else bytes(field.parts[field.data[0]]).decode()


def _require_layers(model: nn.Module, reader: Any) -> None:
    """Whether every layer of the file fits into a layer of the model."""
    held, taken = Counter[int](), Counter[int]()
    names: dict[int, str] = {}
    for tensor in reader.tensors:
        if place := re.match(r"blk\.(\d+)\.", tensor.name):
            held[int(place[1])] += int(tensor.n_elements)
            names.setdefault(int(place[1]), tensor.name)
    for name, value in model.state_dict().items():
        if place := re.search(r"\.(\d+)\.", name):
            taken[int(place[1])] += value.numel()
    further = any(key.endswith(".nextn_predict_layers") for key in reader.fields)
    for layer in sorted(held):
        ahead = further and layer not in taken  # it predicts tokens further ahead
        if held[layer] > taken[layer] and not ahead:
            raise AnamorphError(
                f"Layer {layer} of the file ({names[layer]} and others) holds {held[layer]:,} "
                f"numbers, and that of {type(model).__name__} {taken[layer]:,}: transformers would "
                "leave the others out. Give the model as safetensors (a folder as save_pretrained "
                "writes it)."
            )


def _scale(model: nn.Module, factors: torch.Tensor) -> bool:
    """Divide rotary frequencies by [pairs] factors, as llama.cpp does; whether there are any."""
    named = [x for name, x in model.named_buffers() if name.split(".")[-1] == "inv_freq"]
    found = [x.div_(factors) for x in named if x.shape == factors.shape]
    return bool(found)
