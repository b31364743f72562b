"""Gemma Scope 1 (`params.npz`) and 2 (`params.safetensors` beside `config.json`).

JumpReLU throughout. The decoder's bias is not subtracted from what is read.
"""

import re
from pathlib import Path

from anamorph.simplifications.formats.coder import Encoder, SparseCoder
from anamorph.simplifications.formats.files import Weights, read_settings
from anamorph.simplifications.formats.stored import Stored

FIRST, SECOND = "params.npz", "params.safetensors"


def looks(path: Path) -> bool:
    """Whether a folder is of one of these formats."""
    return (path / FIRST).is_file() or (path / SECOND).is_file()


def read(path: Path) -> Stored:
    """The coder in a folder.

    Raises:
        AnamorphError: if it is damaged, or is one layer of a cross-layer transcoder.
    """
    return _first(path) if (path / FIRST).is_file() else _second(path)


def _first(path: Path) -> Stored:
    """Gemma Scope 1 says where it reads in the names of its folders alone, if they were kept."""
    weights = Weights(path / FIRST)
    encoder, decoder = weights.take("W_enc"), weights.take("W_dec")
    bias = weights.take("b_dec")
    coder = SparseCoder(
        Encoder(encoder, weights.take("b_enc"), threshold=weights.take("threshold")), decoder, bias
    )
    weights.end()
    whole = path.resolve().as_posix()
    layer = re.findall(r"/layer_(\d+)(?=/)", whole)
    kind = re.search(r"gemma-scope-[^/]*-(res|att|mlp|transcoders)(?=/)", whole)
    if not (layer and kind):
        return Stored(coder)
    reads, writes = PLACES[kind[1]]
    return Stored(coder, f"blocks.{layer[-1]}.{reads}", f"blocks.{layer[-1]}.{writes}")


PLACES = {
    "res": ("hook_resid_post", "hook_resid_post"),
    "att": ("attn.hook_z", "attn.hook_z"),
    "mlp": ("hook_mlp_out", "hook_mlp_out"),
    "transcoders": ("ln2.hook_normalized", "hook_mlp_out"),
}
"""What the releases of Gemma Scope 1 read and write, in TransformerLens' names."""


def _second(path: Path) -> Stored:
    said = read_settings(path / "config.json")
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
    return Stored(
        coder, said.get("hf_hook_point_in"), said.get("hf_hook_point_out"), said.get("model_name")
    )
