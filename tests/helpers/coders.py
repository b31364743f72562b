"""Sparse coders of random numbers, written as people have them on disk."""

from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from anamorph.simplifications.formats.coder import Encoder, SparseCoder
from anamorph.simplifications.formats.saelens import write


class Drawn:
    """Random numbers, one after the other."""

    def __init__(self, seed: int = 0) -> None:
        self.random = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 0.3) -> Tensor:
        """Of a shape, float32."""
        return scale * torch.randn(*shape, generator=self.random)


def sae(folder: Path, layer: int, width: int, features: int = 20, place: str = "resid_post") -> str:
    """The path of a TopK autoencoder in SAELens' format."""
    draw = Drawn(layer)
    bias = draw(width)
    encoder = Encoder(draw(width, features), draw(features), bias, k=4)
    coder = SparseCoder(encoder, draw(features, width), bias)
    write(folder, coder, reads=f"blocks.{layer}.hook_{place}", model="tiny")
    return str(folder)


def transcoder(folder: Path, layer: int, width: int, reads: str = "mlp.hook_in") -> str:
    """The path of a transcoder with a skip, in SAELens' format."""
    draw = Drawn(layer)
    coder = SparseCoder(
        Encoder(draw(width, 20), draw(20)), draw(20, width), draw(width), draw(width, width)
    )
    places = {"reads": f"blocks.{layer}.{reads}", "writes": f"blocks.{layer}.hook_mlp_out"}
    write(folder, coder, **places, model="tiny")
    return str(folder)


def settings(folder: Path, kind: str, reads: str = "mlp.hook_in") -> None:
    """What circuit-tracer has beside weights."""
    folder.mkdir(parents=True, exist_ok=True)
    said = {"model_kind": kind, "model_name": "tiny", "feature_input_hook": reads}
    (folder / "config.yaml").write_text(yaml.safe_dump(said))


def transcoder_set(folder: Path, layers: int, width: int) -> list[dict[str, Tensor]]:
    """Write a transcoder a layer, as circuit-tracer has them, and give their numbers."""
    settings(folder, "transcoder_set")
    draw, written = Drawn(5), []
    for layer in range(layers):
        shapes = {"W_enc": (20, width), "b_enc": (20,), "W_dec": (20, width), "b_dec": (width,)}
        written.append({name: draw(*shape) for name, shape in shapes.items()})
        save_file(written[-1], folder / f"layer_{layer}.safetensors")
    return written


def cross_layer(folder: Path, layers: int, width: int) -> list[dict[str, Tensor]]:
    """Write a cross-layer transcoder, as circuit-tracer has it, and give its numbers.

    Returns:
        of each layer `W_enc` [features, width], `b_enc`, `b_dec`, `threshold`, and `W_dec`
        [features, layers from this one on, width].
    """
    settings(folder, "cross_layer_transcoder")
    draw, written = Drawn(7), []
    for layer in range(layers):
        shapes = {"W_enc": (20, width), "b_enc": (20,), "b_dec": (width,)}
        numbers = {name: draw(*shape) for name, shape in shapes.items()}
        numbers["threshold"] = draw(20).abs()
        named = {f"{name}_{layer}": value for name, value in numbers.items()}
        save_file(named, folder / f"W_enc_{layer}.safetensors")
        numbers["W_dec"] = draw(20, layers - layer, width)
        save_file({f"W_dec_{layer}": numbers["W_dec"]}, folder / f"W_dec_{layer}.safetensors")
        written.append(numbers)
    return written
