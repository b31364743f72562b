"""circuit-tracer: a folder with `config.yaml`, and files for each layer of an MLP's stand-in.

A *set* has a transcoder a layer (`layer_3.safetensors`). A *cross-layer transcoder* has features a
layer (`W_enc_3.safetensors`) that write to the MLP of their own layer and of all behind it
(`W_dec_3.safetensors`).
"""

from functools import partial
from pathlib import Path
from typing import Any

from anamorph.errors import AnamorphError
from anamorph.simplifications.formats.coder import Encoder, SparseCoder
from anamorph.simplifications.formats.cross_layer import CrossLayer
from anamorph.simplifications.formats.files import Weights, read_settings
from anamorph.simplifications.formats.stored import Stored

CONFIG = "config.yaml"
SET, CROSS = "transcoder_set", "cross_layer_transcoder"
ACTIVATIONS = ("relu", "topk", "jump_relu")


def looks(path: Path) -> bool:
    """Whether a folder is a set of transcoders, one a layer."""
    return (path / CONFIG).is_file()


def read(path: Path, layer: int | None) -> Stored[SparseCoder]:
    """The transcoder of one layer of a set; of the first that there is if no layer is said.

    Raises:
        AnamorphError: if it is damaged, has no such layer, or is a cross-layer transcoder.
    """
    said = _settings(path, SET)
    if layer is None:
        layer = min((int(p.stem.partition("_")[2]) for p in path.glob("layer_*")), default=0)
    reads, writes = (f"blocks.{layer}.{place}" for place in _places(said))
    return Stored(partial(_coder, path, layer, said), reads, writes, said.get("model_name"))


def _coder(path: Path, layer: int, said: dict[str, Any]) -> SparseCoder:
    file = _file(path, "layer_{}.safetensors", layer)
    activation, k = said.get("activation"), said.get("k")
    if activation not in (None, *ACTIVATIONS) or (activation == "topk" and k is None):
        raise AnamorphError(
            f"{path / CONFIG}: the activation is {activation!r} with k {k!r}; expected one of "
            f"{', '.join(ACTIVATIONS)}, and k for topk."
        )
    weights = Weights(file)
    weights.drop("k")
    threshold = weights.maybe("activation_function.threshold")
    skip = weights.maybe("W_skip")
    top = activation == "topk"
    coder = SparseCoder(
        Encoder(
            weights.take("W_enc").T,
            weights.take("b_enc"),
            rectified=threshold is None and not top,  # neither of its two others clips at zero
            threshold=None if top or activation == "relu" else threshold,
            k=None if k is None or not top else int(k),
        ),
        weights.take("W_dec"),
        weights.take("b_dec"),
        None if skip is None else skip.T,
    )
    weights.end()
    return coder


def read_across(path: Path, layer: int) -> Stored[CrossLayer]:
    """The cross-layer transcoder in a folder, as it is where it writes one layer.

    Raises:
        AnamorphError: if it is damaged, lacks a layer, or is a set of transcoders.
    """
    said = _settings(path, CROSS)
    reads, writes = (f"blocks.{layer}.{place}" for place in _places(said))
    return Stored(partial(_cross_layer, path), reads, writes, said.get("model_name"))


def _cross_layer(path: Path) -> CrossLayer:
    layers = len(list(path.glob("W_enc_*.safetensors")))
    encoders, decoders, biases = [], [], []
    for layer in range(layers):
        weights = Weights(_file(path, "W_enc_{}.safetensors", layer))
        threshold = weights.maybe(f"threshold_{layer}")
        encoders.append(
            Encoder(
                weights.take(f"W_enc_{layer}").T,
                weights.take(f"b_enc_{layer}"),
                rectified=threshold is None,
                threshold=None if threshold is None else threshold.flatten(),
            )
        )
        biases.append(weights.take(f"b_dec_{layer}"))
        weights.end()
        more = Weights(_file(path, "W_dec_{}.safetensors", layer))
        decoders.append(more.take(f"W_dec_{layer}"))
        more.end()
    return CrossLayer(tuple(encoders), tuple(decoders), tuple(biases))


def _settings(path: Path, kind: str) -> dict[str, Any]:
    said = read_settings(path / CONFIG)
    if said.get("model_kind") != kind:
        use = {SET: "transcoder(PATH)", CROSS: "clt(PATH)"}
        other = use.get(str(said.get("model_kind")))
        raise AnamorphError(
            f"{path / CONFIG} says model_kind {said.get('model_kind')!r}; expected {kind!r} here."
            + (f" Use {other}." if other else "")
        )
    return said


def _places(said: dict[str, Any]) -> tuple[str, str]:
    return (
        said.get("feature_input_hook", "hook_resid_mid"),
        said.get("feature_output_hook", "hook_mlp_out"),
    )


def _file(path: Path, pattern: str, layer: int) -> Path:
    file = path / pattern.format(layer)
    if not file.is_file():
        there = sorted(p.name for p in path.glob(pattern.format("*")))
        raise AnamorphError(
            f"{path} has no {file.name}; it has: {', '.join(there) or 'no such files'}."
        )
    return file
