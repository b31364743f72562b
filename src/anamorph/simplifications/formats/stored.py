"""What a file says of a coder besides its numbers: its model, what it reads and writes."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from anamorph.errors import AnamorphError
from anamorph.models.sites import Site

_Coder = TypeVar("_Coder", covariant=True)


@dataclass(frozen=True)
class Stored(Generic[_Coder]):
    """A coder on disk.

    Attributes:
        coder: reads the numbers; it raises an AnamorphError if they are damaged, or not all there.
        reads: the place that it reads, in the file's own words; None if the file does not say. Of a
            cross-layer transcoder, the last that is read to write a layer.
        writes: the place that it writes, likewise.
        model: the name of the model that it was trained on, likewise.
        head: the head that it was trained on, where it is of one head.
    """

    coder: Callable[[], _Coder]
    reads: str | None = None
    writes: str | None = None
    model: str | None = None
    head: int | None = None


LENS = {
    "hook_resid_mid": "middle",
    "hook_resid_post": "residual",
    "hook_mlp_out": "mlp",
    "hook_attn_out": "attention",
    "attn.hook_z": "heads",
    "mlp.hook_in": "mlp_input",
    "hook_mlp_in": "middle",
}
"""TransformerLens' names of places in a layer, and ours."""

HEADS = {
    "attn.hook_q": "query",
    "attn.hook_k": "key",
    "attn.hook_v": "value",
    "attn.hook_z": "output",
}
"""Likewise, of one head."""

MODULES = {
    "output": "residual",
    "mlp.input": "mlp_input",
    "mlp.output": "mlp",
    "self_attn.o_proj.input": "heads",
    "self_attn.output": "attention",
    "attn.output": "attention",
    "attention.output": "attention",
    "pre_feedforward_layernorm.output": "mlp_input",
    "post_feedforward_layernorm.output": "mlp",
    "post_attention_layernorm.output": "attention",
}
"""Modules of a Hugging Face layer, with what is taken of them, and ours.

Of Gemma's layers only, whose four norms these are: elsewhere `post_attention_layernorm` is the norm
before the MLP."""


SUBMODULES = {"resid_post": "residual", "mlp_out": "mlp", "attn_out": "attention"}
"""What comes before `_layer_3` in names that people give in dictionary_learning, and ours."""


def site_named(name: str, head: int | None = None) -> Site | None:
    """Our site for a place that a file names; None if we have none.

    Args:
        name: as TransformerLens names places, such as `blocks.3.hook_resid_post`, or a module and
            its `input` or `output`, such as `model.layers.3.mlp.output`, or `mlp_out_layer_3`.
        head: the head, if it is one head's.
    """
    plain = re.fullmatch(r"(\w+)_layer_(\d+)", name)
    if plain and plain[1] in SUBMODULES:
        return Site(int(plain[2]), None, SUBMODULES[plain[1]])
    lens = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    module = re.fullmatch(r"(?:.*\.)?(?:layers|h)\.(\d+)\.(.+)", name)
    if lens and head is not None:
        return Site(int(lens[1]), head, HEADS[lens[2]]) if lens[2] in HEADS else None
    if lens and lens[2] == "hook_resid_pre":  # what the layer before leaves
        return Site(int(lens[1]) - 1, None, "residual") if lens[1] != "0" else None
    found, kinds = (lens, LENS) if lens else (module, MODULES)
    if found is None or found[2] not in kinds:
        return None
    return Site(int(found[1]), None, kinds[found[2]])


def lens_name(site: Site) -> str:
    """TransformerLens' name of a site; of a head's, that of all heads together.

    Raises:
        AnamorphError: if it has none.
    """
    for name, kind in (LENS if site.head is None else HEADS).items():
        if kind == site.kind:
            return f"blocks.{site.layer}.{name}"
    raise AnamorphError(
        f"TransformerLens has no name for the site {site}; it has for the kinds "
        f"{', '.join(dict.fromkeys([*LENS.values(), *HEADS.values()]))}."
    )
