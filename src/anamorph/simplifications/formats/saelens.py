"""SAELens: a folder with `cfg.json` and `sae_weights.safetensors` (versions 1 to 6).

Read with the package's own sources beside it (6.18). What is stored as `batchtopk` in training is a
`jumprelu` on disk.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from anamorph.errors import AnamorphError
from anamorph.files import replacing
from anamorph.models.sites import Site
from anamorph.simplifications.formats.coder import (
    Encoder,
    Norm,
    SparseCoder,
    gated,
    picked_by_norm,
)
from anamorph.simplifications.formats.files import Weights, read_settings
from anamorph.simplifications.formats.stored import Stored, lens_name

WEIGHTS = "sae_weights.safetensors"

TRANSCODERS = (
    "transcoder",
    "skip_transcoder",
    "jumprelu_transcoder",
    "jumprelu_skip_transcoder",
)
ARCHITECTURES = ("standard", "topk", "jumprelu", "gated", *TRANSCODERS)

CHANGING = ("fold_ln", "center_writing_weights")
"""What TransformerLens can do to a model's weights that changes activations."""

OF_HEADS = ("fold_value_biases", "refactor_factored_attn_matrices")
"""Likewise, those of heads alone."""

OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}


def looks(path: Path) -> bool:
    """Whether a folder is of this format."""
    return (path / "cfg.json").is_file() and (path / WEIGHTS).is_file()


def read(path: Path) -> Stored[SparseCoder]:
    """The coder in a folder.

    Raises:
        AnamorphError: if it is damaged, or made for activations that are scaled by a number that is
            not in it, or for a model that was changed before.
    """
    said = _as_of_now(read_settings(path / "cfg.json"))
    about = said["metadata"]
    kind = said.get("architecture", "standard")
    if kind not in ARCHITECTURES:
        raise AnamorphError(
            f"{path}: the architecture is {kind!r}; expected one of {', '.join(ARCHITECTURES)}."
        )
    _require_plain(path, said)
    return Stored(
        partial(_coder, path, kind, said),
        about.get("hook_name"),
        about.get("hook_name_out") if kind in TRANSCODERS else about.get("hook_name"),
        about.get("model_name"),
        about.get("hook_head_index"),
    )


def _as_of_now(said: dict[str, Any]) -> dict[str, Any]:
    """Settings as version 6 writes them; before, all were side by side."""
    if "metadata" in said:
        return said
    said = {OLD_NAMES.get(name, name): value for name, value in said.items()}
    if said.get("activation_fn") == "topk":
        said |= {"architecture": "topk", "k": said.get("activation_fn_kwargs", {}).get("k")}
    scaled = said.get("normalize_activations")
    if isinstance(scaled, bool):
        said["normalize_activations"] = "expected_average_only_in" if scaled else "none"
    if scaled is None:
        said["normalize_activations"] = "none"
    return said | {"metadata": said}


def _require_plain(path: Path, said: dict[str, Any]) -> None:
    """Refuse what would need numbers that are not in the file, or another model."""
    if said.get("normalize_activations") == "expected_average_only_in":
        raise AnamorphError(
            f"{path}: it was trained on activations scaled to a mean length of √{said.get('d_in')} "
            "by a number that is not in its files (normalize_activations: "
            "expected_average_only_in). In SAELens, fold that number into the weights "
            "(fold_activation_norm_scaling_factor) and save again."
        )
    if said.get("finetuning_scaling_factor"):
        raise AnamorphError(
            f"{path}: it has a scaling factor of fine-tuning, which is not read; fold it into "
            "the decoder and save again."
        )
    options = said["metadata"].get("model_from_pretrained_kwargs") or {}
    changing = CHANGING + (OF_HEADS if "attn." in str(said["metadata"].get("hook_name")) else ())
    folded = [name for name in changing if options.get(name)]
    if folded:
        raise AnamorphError(
            f"{path}: it was trained on a model that TransformerLens had changed "
            f"({', '.join(folded)}), whose activations are not those of the model itself. Give "
            "one that was trained on the model as it is (from_pretrained_no_processing)."
        )


def _coder(path: Path, kind: str, said: dict[str, Any]) -> SparseCoder:
    weights = Weights(path / WEIGHTS)
    transcodes = kind in TRANSCODERS
    encoder, decoder = weights.take("W_enc"), weights.take("W_dec")
    bias = weights.take("b_dec")
    centre = bias if said.get("apply_b_dec_to_input", True) and not transcodes else None
    if kind == "gated":
        gate, scale, magnitudes = (weights.take(name) for name in ("b_gate", "r_mag", "b_mag"))
        encode = gated(encoder, gate, scale, magnitudes, centre)
        weights.drop("b_enc")
    else:
        jumps = kind.startswith("jumprelu")
        encode = Encoder(
            encoder,
            weights.take("b_enc"),
            centre,
            threshold=weights.take("threshold") if jumps else None,
            k=int(said["k"]) if kind == "topk" else None,
        )
    skip = weights.take("W_skip").T if "skip" in kind else None
    weights.drop("scaling_factor")
    weights.end()
    coder = SparseCoder(
        encode,
        decoder,
        bias,
        skip,
        Norm(said.get("normalize_activations") or "none"),
        not transcodes,
    )
    return picked_by_norm(coder) if said.get("rescale_acts_by_decoder_norm") else coder


def write_at(folder: Path | str, coder: SparseCoder, site: Site, model: str) -> Path:
    """Write an autoencoder at a site, into a folder of its own named as TransformerLens does.

    Returns:
        that folder.

    Raises:
        AnamorphError: as `write`, or if TransformerLens has no name for the site.
    """
    name = lens_name(site)
    path = Path(folder) / (name if site.head is None else f"{name}.{site.head}")
    write(path, coder, reads=name, model=model, head=site.head)
    return path


def write(
    path: Path | str,
    coder: SparseCoder,
    *,
    reads: str,
    writes: str | None = None,
    model: str,
    head: int | None = None,
) -> None:
    """Write a coder as SAELens 6 does, so that others can read it.

    Args:
        path: the folder; it is made if need be.
        coder: what to write.
        reads: TransformerLens' name of what it reads, such as `blocks.3.hook_resid_post`.
        writes: likewise of what it writes, if it is a transcoder.
        model: the name of the model.
        head: the head, if it is of one head.

    Raises:
        AnamorphError: if SAELens has no form for it, or the folder cannot be written.
    """
    encoder, folder = coder.encoder, Path(path)
    tensors = {
        "W_enc": encoder.weight,
        "b_enc": encoder.bias,
        "W_dec": coder.weight,
        "b_dec": coder.bias,
        "threshold": encoder.threshold,
        "W_skip": None if coder.skip is None else coder.skip.T,
    }
    tied = encoder.centre is not None and torch.equal(encoder.centre, coder.bias)
    form = _form(coder, writes is not None)
    if form is None or not (tied or encoder.centre is None):
        raise AnamorphError(
            f"SAELens has no form for a coder like this ({coder}); it has: "
            f"{', '.join(ARCHITECTURES)}."
        )
    about = {
        "model_name": model,
        "hook_name": reads,
        "hook_name_out": writes,
        "hook_head_index": head,
        "sae_lens_version": "6.18.0",
    }
    said = {
        "architecture": form,
        "d_in": coder.read,
        "d_sae": coder.features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": tied,
        "normalize_activations": str(coder.norm),
        "reshape_activations": "hook_z" if reads.endswith("hook_z") else "none",
        "metadata": {name: value for name, value in about.items() if value is not None},
    }
    said |= {"k": encoder.k} if form == "topk" else {}
    said |= {} if writes is None else {"d_out": coder.written}
    with replacing(folder / WEIGHTS) as temporary:
        save_file(
            {k: v.float().contiguous() for k, v in tensors.items() if v is not None}, temporary
        )
    with replacing(folder / "cfg.json") as temporary:
        temporary.write_text(json.dumps(said, indent=1), encoding="utf-8")


def _form(coder: SparseCoder, transcodes: bool) -> str | None:
    """The architecture that does what a coder does, if there is one."""
    encoder = coder.encoder
    if not encoder.rectified or encoder.groups is not None:
        return None
    has = (encoder.k is not None, encoder.threshold is not None, coder.skip is not None)
    autoencoders = {
        (False, False, False): "standard",
        (True, False, False): "topk",
        (False, True, False): "jumprelu",
    }
    transcoders = {
        (False, False, False): "transcoder",
        (False, False, True): "skip_transcoder",
        (False, True, False): "jumprelu_transcoder",
        (False, True, True): "jumprelu_skip_transcoder",
    }
    return (transcoders if transcodes else autoencoders).get(has)
