"""Gemma Scope 1 (`params.npz`) and 2 (`params.safetensors` beside `config.json`).

JumpReLU throughout. The decoder's bias is not subtracted from what is read.
"""

import re
from functools import partial
from pathlib import Path

from anamorph.errors import AnamorphError
from anamorph.simplifications.formats.coder import Encoder, SparseCoder
from anamorph.simplifications.formats.cross_layer import CrossLayer
from anamorph.simplifications.formats.files import Weights, read_settings
from anamorph.simplifications.formats.stored import Stored

FIRST, SECOND = "params.npz", "params.safetensors"

ACROSS = "params_layer_{}.safetensors"
"""A layer of a cross-layer transcoder; its features' numbers for earlier layers are not used."""


def looks(path: Path) -> bool:
    """Whether a folder is of one of these formats."""
    return (path / FIRST).is_file() or (path / SECOND).is_file()


def read(path: Path) -> Stored[SparseCoder]:
    """The coder in a folder.

    Raises:
        AnamorphError: if it is damaged, or is one layer of a cross-layer transcoder.
    """
    return _first(path) if (path / FIRST).is_file() else _second(path)


def _first(path: Path) -> Stored[SparseCoder]:
    """Gemma Scope 1 says where it reads in the names of its folders alone, if they were kept."""
    coder = partial(_first_coder, path)
    whole = path.resolve().as_posix()
    layer = re.findall(r"/layer_(\d+)(?=/)", whole)
    kind = re.search(r"gemma-scope-[^/]*-(res|att|mlp|transcoders)(?=/)", whole)
    if not (layer and kind):
        return Stored(coder)
    reads, writes = PLACES[kind[1]]
    return Stored(coder, f"blocks.{layer[-1]}.{reads}", f"blocks.{layer[-1]}.{writes}")


def _first_coder(path: Path) -> SparseCoder:
    weights = Weights(path / FIRST)
    encoder, decoder = weights.take("W_enc"), weights.take("W_dec")
    bias = weights.take("b_dec")
    coder = SparseCoder(
        Encoder(encoder, weights.take("b_enc"), threshold=weights.take("threshold")), decoder, bias
    )
    weights.end()
    return coder


PLACES = {
    "res": ("hook_resid_post", "hook_resid_post"),
    "att": ("attn.hook_z", "attn.hook_z"),
    "mlp": ("hook_mlp_out", "hook_mlp_out"),
    "transcoders": ("ln2.hook_normalized", "hook_mlp_out"),
}
"""What the releases of Gemma Scope 1 read and write, in TransformerLens' names."""


def _second(path: Path) -> Stored[SparseCoder]:
    said = read_settings(path / "config.json")
    reads = said.get("hf_hook_point_in")
    return Stored(
        partial(_second_coder, path),
        reads,
        said.get("hf_hook_point_out") or reads,
        said.get("model_name"),
    )


def _second_coder(path: Path) -> SparseCoder:
    weights = Weights(path / SECOND)
    skip = weights.maybe("affine_skip_connection")
    bias = weights.take("b_dec")
    coder = SparseCoder(
        Encoder(weights.take("w_enc"), weights.take("b_enc"), threshold=weights.take("threshold")),
        weights.take("w_dec"),
        bias,
        skip,
    )
    weights.end()
    return coder


def looks_across(path: Path) -> bool:
    """Whether a folder is a cross-layer transcoder of Gemma Scope 2."""
    return (path / ACROSS.format(0)).is_file()


def read_across(path: Path, layer: int) -> Stored[CrossLayer]:
    """The cross-layer transcoder in a folder, as it is where it writes one layer.

    Raises:
        AnamorphError: if it is damaged, or lacks a layer.
    """
    return Stored(
        partial(_cross_layer, path),
        f"model.layers.{layer}.pre_feedforward_layernorm.output",
        f"model.layers.{layer}.post_feedforward_layernorm.output",
    )


def _cross_layer(path: Path) -> CrossLayer:
    encoders, decoders, biases, skips = [], [], [], []
    for layer in range(len(list(path.glob(ACROSS.format("*"))))):
        weights = Weights(path / ACROSS.format(layer))
        encoder, bias, threshold = (weights.take(x) for x in ("w_enc", "b_enc", "threshold"))
        encoders.append(Encoder(encoder, bias, threshold=threshold))
        decoders.append(weights.take("w_dec")[:, layer:])
        biases.append(weights.take("b_dec"))
        skips.append(weights.maybe("affine_skip_connection"))
        weights.end()
    known = [skip for skip in skips if skip is not None]
    if len(known) not in (0, len(skips)):
        raise AnamorphError(
            f"{path}: only {len(known)} of {len(skips)} layers have an affine_skip_connection; "
            "all or none must. Fetch the others again."
        )
    return CrossLayer(tuple(encoders), tuple(decoders), tuple(biases), tuple(known) or None)
