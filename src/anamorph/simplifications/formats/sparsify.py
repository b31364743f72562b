"""EleutherAI's sparsify: a folder for each place, with `cfg.json` and `sae.safetensors`.

The name of the folder is that of the module whose output is read: `layers.3`, `layers.3.mlp`. A
transcoder reads the input of that module and writes its output.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from anamorph.errors import AnamorphError
from anamorph.files import replacing
from anamorph.models.sites import Site
from anamorph.simplifications.formats.coder import Encoder, SparseCoder
from anamorph.simplifications.formats.files import Weights, read_settings
from anamorph.simplifications.formats.stored import Stored

WEIGHTS = "sae.safetensors"


def looks(path: Path) -> bool:
    """Whether a folder is of this format."""
    return (path / "cfg.json").is_file() and (path / WEIGHTS).is_file()


def read(path: Path) -> Stored[SparseCoder]:
    """The coder in a folder.

    Raises:
        AnamorphError: if it is damaged, or of an activation that is not known.
    """
    said = read_settings(path / "cfg.json")
    transcodes = bool(said.get("transcode", False))
    module = path.resolve().name
    return Stored(
        partial(_coder, path, said, transcodes),
        f"{module}.input" if transcodes else f"{module}.output",
        f"{module}.output",
    )


def _coder(path: Path, said: dict[str, Any], transcodes: bool) -> SparseCoder:
    activation, k = said.get("activation", "topk"), int(said["k"])
    if activation not in ("topk", "groupmax"):
        raise AnamorphError(
            f"{path}: the activation is {activation!r}; expected 'topk' or 'groupmax'."
        )
    weights = Weights(path / WEIGHTS)
    bias = weights.take("b_dec")
    coder = SparseCoder(
        Encoder(
            weights.take("encoder.weight").T,
            weights.take("encoder.bias"),
            None if transcodes else bias,
            k=k if activation == "topk" else None,
            groups=k if activation == "groupmax" else None,
        ),
        weights.take("W_dec"),
        bias,
        skip.T if (skip := weights.maybe("W_skip")) is not None else None,
    )
    weights.end()
    return coder


def write_at(folder: Path | str, coder: SparseCoder, site: Site) -> Path:
    """Write a TopK transcoder of an MLP, into a folder of its own named as its layer's module.

    Returns:
        that folder.

    Raises:
        AnamorphError: if it is of another kind, or the folder cannot be written.
    """
    encoder, path = coder.encoder, Path(folder) / f"layers.{site.layer}.mlp"
    others = (encoder.centre, encoder.threshold, encoder.groups)
    plain = encoder.rectified and encoder.k is not None and all(x is None for x in others)
    if site.kind != "mlp" or not plain or coder.read != coder.written:
        raise AnamorphError(
            f"{site}: what is written for sparsify must be a TopK transcoder of an MLP that reads "
            f"as many numbers as it writes; this reads {coder.read} and writes {coder.written}."
        )
    tensors = {
        "encoder.weight": encoder.weight.T,
        "encoder.bias": encoder.bias,
        "W_dec": coder.weight,
        "b_dec": coder.bias,
    } | ({} if coder.skip is None else {"W_skip": coder.skip.T})
    said = {
        "activation": "topk",
        "num_latents": coder.features,
        "k": encoder.k,
        "skip_connection": coder.skip is not None,
        "transcode": True,
        "normalize_decoder": False,
        "d_in": coder.read,
    }
    with replacing(path / WEIGHTS) as temporary:
        save_file({name: x.float().contiguous() for name, x in tensors.items()}, temporary)
    with replacing(path / "cfg.json") as temporary:
        temporary.write_text(json.dumps(said, indent=1), encoding="utf-8")
    return path
