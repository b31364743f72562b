"""What sites a model has, their shapes, and how often each fires: measured, not looked up."""

from collections.abc import Sequence
from itertools import groupby

import polars as pl
import torch
from torch import Tensor

from anamorph.models.base import Batch, EditBy, LayerKind, Model
from anamorph.models.huggingface.model import HuggingFace
from anamorph.models.sites import HEAD_KINDS

LENGTH = 8  # tokens of each of the two sequences that are tried
PORTS = ("attention", "middle", "mlp_input")
SIDE_BY_SIDE = "attention and MLP are given the same stream there, so none lies between them"
NO_MLP = "no submodule of their blocks gives just what an MLP adds to the residual stream"
NOT_FOUND = "no submodule of their blocks was found to give or take just that"
SCHEMA = {
    "site": pl.String,
    "layer": pl.Int64,
    "head": pl.Int64,
    "kind": pl.String,
    "shape": pl.String,
    "fires": pl.Int64,
}


@torch.inference_mode()
def list_sites(model: Model, tokens: Tensor | None = None) -> pl.DataFrame:
    """Every site of a model.

    Args:
        model: in inference mode.
        tokens: [batch, position]; None for a few made-up ones.

    Returns:
        a row a site: `site` (such as `1.0.query`), `layer`, `head` (null where a layer has the kind
        once), `kind`, `shape` of what a simplification is given (`[position, 64]`; null if nothing
        can be recorded), and `fires`: how often an edit there is made in one forward. Only a site
        that fires exactly once can be audited.

    Raises:
        AnamorphError: if the model cannot run on the tokens.
    """
    if tokens is None:  # the lowest ids always exist
        length = min(LENGTH, model.context or LENGTH)
        tokens = torch.arange(2 * length).view(2, length) % model.vocabulary
    edits = {LayerKind(site.layer, site.kind): EditBy(torch.clone) for site in model.sites}
    recorded = model.run(Batch.whole(tokens.to(model.device)), edits, edits.keys()).recorded
    rows = []
    for site in model.sites:
        key = LayerKind(site.layer, site.kind)
        shape = f"[position, {recorded[key].shape[-1]}]" if key in recorded else None
        shape = "[query, key]" if shape and site.kind == "pattern" else shape
        rows.append((str(site), *site, shape, edits[key].fired))
    return pl.DataFrame(rows, SCHEMA, orient="row")


def group_sites(sites: pl.DataFrame) -> pl.DataFrame:
    """Rows of `list_sites` joined: those alike in kind, shape and firing make one pattern.

    Returns:
        a row a pattern: `sites` (the pattern, such as `0-29.0-8.query`), the `number` of them,
        `shape` and `fires`.
    """
    alike = "kind", "shape", "fires"
    of_layers = sites.group_by(*alike, "layer", maintain_order=True).agg(pl.col.head.drop_nulls())
    rows = []
    for kind, shape, fires, heads, layers in (
        of_layers.group_by(*alike, "head", maintain_order=True).agg("layer").iter_rows()
    ):
        places = [_numbers(layers), *([_numbers(heads)] if heads else []), kind]
        rows.append((".".join(places), len(layers) * max(1, len(heads)), shape, fires))
    schema = {"sites": pl.String, "number": pl.Int64, "shape": pl.String, "fires": pl.Int64}
    return pl.DataFrame(rows, schema, orient="row")


def missing_sites(model: Model) -> list[str]:
    """Which kinds of site a model lacks, in which layers and why, in a sentence each."""
    if not isinstance(model, HuggingFace):
        return []
    reasons: dict[tuple[str, str], list[int]] = {}
    for layer, block in enumerate(model.blocks):
        between = ["middle"] if block.side_by_side else []
        for kinds, reason in (
            ([*HEAD_KINDS, "heads"] if block.headless else [], block.headless),
            (between, SIDE_BY_SIDE),
            ([kind for kind in PORTS if kind not in (*block.ports, *between)], NOT_FOUND),
            (["mlp"] if "mlp" not in block.ports else [], NO_MLP),
            (["norm"] if block.normless else [], block.normless),
        ):
            if kinds:
                words = f"{', '.join(kinds[:-1])} and {kinds[-1]}" if kinds[1:] else kinds[0]
                reasons.setdefault((words, reason), []).append(layer)
    name = type(model.model).__name__
    sentences = [
        f"No {kinds} in layers {_numbers(layers)} of {name}: {reason}."
        for (kinds, reason), layers in reasons.items()
    ]
    if any(reason != SIDE_BY_SIDE for _, reason in reasons):
        sentences.append(
            "In Python, am.HookedModel puts sites at any submodule of any model "
            "(docs/own_models.md)."
        )
    return sentences


def _numbers(numbers: Sequence[int]) -> str:
    """`3`, `0-5` or `{0-2,4}`, as a pattern of sites takes them."""
    runs = []
    for _, run in groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0]):
        some = [number for _, number in run]
        runs.append(str(some[0]) if len(some) == 1 else f"{some[0]}-{some[-1]}")
    return runs[0] if len(runs) == 1 else f"{{{','.join(runs)}}}"
