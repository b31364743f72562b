"""dictionary_learning: a folder with `config.json` and `ae.pt`, read without running anything.

A BatchTopK coder is one with a threshold here, as in the package itself outside of training.
"""

import re
from functools import partial
from pathlib import Path
from typing import Any

from anamorph.errors import AnamorphError
from anamorph.simplifications.formats.coder import Encoder, SparseCoder, gated
from anamorph.simplifications.formats.files import Weights, read_settings
from anamorph.simplifications.formats.stored import Stored

WEIGHTS = "ae.pt"

KINDS = (
    "AutoEncoder",
    "AutoEncoderNew",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "GatedAutoEncoder",
    "JumpReluAutoEncoder",
    "MatryoshkaBatchTopKSAE",
)
"""The classes of the package."""

MODULE = r"(?:.*\.)?(?:layers|h)\.\d+(?:\..+)?"
"""A name that a module in a layer has; people also give names of their own."""

UNCENTRED = ("AutoEncoderNew", "JumpReluAutoEncoder")
"""Those that do not subtract the decoder's bias from what they read."""

JUMPING = ("BatchTopKSAE", "JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE")
"""Those that use their threshold; `AutoEncoderTopK` has one too, and uses `k`."""

BIASES = ("b_dec", "bias", "decoder.bias")
"""What the decoder's bias is called."""


def looks(path: Path) -> bool:
    """Whether a folder is of this format."""
    return (path / "config.json").is_file() and (path / WEIGHTS).is_file()


def read(path: Path) -> Stored[SparseCoder]:
    """The coder in a folder.

    Raises:
        AnamorphError: if it is damaged, holds code, or is of a class that is not known.
    """
    said = read_settings(path / "config.json")
    trainer: dict[str, Any] = said.get("trainer", {})
    coder = partial(_coder, path, str(trainer.get("dict_class", "")))
    place = trainer.get("submodule_name")
    if place is not None and re.fullmatch(MODULE, place):
        place += ".input" if said.get("buffer", {}).get("io") == "in" else ".output"
    return Stored(coder, place, place, trainer.get("lm_name"))


def _coder(path: Path, kind: str) -> SparseCoder:
    if kind not in KINDS:
        raise AnamorphError(
            f"{path}: config.json says dict_class {kind!r}; expected one of {', '.join(KINDS)}."
        )
    weights = Weights(path / WEIGHTS)
    if kind == "GatedAutoEncoder":
        encoder, decoder = weights.take("encoder.weight").T, weights.take("decoder.weight").T
        names = ("gate_bias", "r_mag", "mag_bias", "decoder_bias")
        gate, scale, magnitudes, bias = (weights.take(name) for name in names)
        weights.end()
        return SparseCoder(gated(encoder, gate, scale, magnitudes, bias), decoder, bias)
    if kind in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"):
        encoder, decoder = weights.take("W_enc"), weights.take("W_dec")
        encoder_bias, bias = weights.take("b_enc"), weights.take("b_dec")
    else:
        encoder, decoder = weights.take("encoder.weight").T, weights.take("decoder.weight").T
        encoder_bias, bias = weights.take("encoder.bias"), weights.take(*BIASES)
    k = int(weights.take("k")) if kind == "AutoEncoderTopK" else None
    threshold = weights.take("threshold").expand(len(encoder_bias)) if kind in JUMPING else None
    weights.drop("k", "threshold", "group_sizes", "group_indices", "active_groups")
    weights.end()
    centre = None if kind in UNCENTRED else bias
    return SparseCoder(
        Encoder(encoder, encoder_bias, centre, threshold=threshold, k=k), decoder, bias
    )
