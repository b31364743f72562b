"""Tiny saved models, and what can be wrong with them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import anamorph as am
from anamorph.models.base import Batch
from anamorph.models.huggingface.load import load_model
from huggingface_models import make

hf = pytest.importorskip("transformers")

Weights = dict[str, Tensor]
FILE = "model.safetensors"
LLAMA, BERT, GPT2, QWEN = "llama", "bert", "gpt2", "qwen2"


def folder(
    path: Path, name: str = LLAMA, change: Callable[[Weights], Weights] | None = None
) -> Path:
    """A saved model, its weights changed in the file."""
    make(name).save_pretrained(path)  # type: ignore[operator]
    if change is not None:
        save_file(change(load_file(path / FILE)), path / FILE, {"format": "pt"})
    return path


def configured(path: Path, **changes: Any) -> Path:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))
    return path


def renamed(of: str, to: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name.replace(of, to, 1): x for name, x in weights.items()}


def within(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {prefix + name: x for name, x in weights.items()}


def without(*parts: str) -> Callable[[Weights], Weights]:
    return lambda weights: {n: x for n, x in weights.items() if not any(p in n for p in parts)}


def logits(model: am.HuggingFace, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        return model.logits(model.run(Batch.whole(tokens)).state)[0]


def requires(path: Path, *sentences: str) -> None:
    with pytest.raises(am.AnamorphError) as told:
        load_model(path)
    for sentence in sentences:
        assert sentence in str(told.value), str(told.value)
    assert "\n" not in str(told.value)
