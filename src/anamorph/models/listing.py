"""What sites a model has, with shape and how often each fires: measured, not looked up."""

from collections.abc import Sequence
from itertools import groupby

import polars as pl
import torch
from torch import Tensor

from anamorph.models.base import Batch, Context, Edit, LayerKind, Model
from anamorph.models.huggingface.model import HuggingFace
from anamorph.models.sites import HEAD_KINDS

LENGTH = 8  # tokens of the two sequences that are tried
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
        a row a site: site (such as `1.0.query`), layer, head (null for the kinds that a layer has
        once), kind, shape of what a simplification gets there (`[position, 64]`; null if nothing
        can be recorded), and fires: how often one forward puts an edit there into effect. A site
        that does not fire once cannot be audited.

    Raises:
        AnamorphError: if the model cannot run on them.
    """
    tokens = (_some_tokens(model) if tokens is None else tokens).to(model.device)
    keys = list(dict.fromkeys(LayerKind(site.layer, site.kind) for site in model.sites))
    edits = {key: _Counted() for key in keys}
    recorded = model.run(Batch(tokens, torch.ones_like(tokens).bool()), edits, keys).recorded
    rows = [
        (str(site), *site, _shape(recorded.get(key), site.kind), edits[key].fired)
        for site in model.sites
        for key in [LayerKind(site.layer, site.kind)]
    ]
    return pl.DataFrame(rows, SCHEMA, orient="row")


def group_sites(sites: pl.DataFrame) -> pl.DataFrame:
    """The rows of `list_sites` that are alike in kind, shape and firing, as one pattern each.

    Returns:
        sites (a pattern, such as `0-29.0-8.query`), number, shape, fires.
    """
    rows = []
    alike = sites.group_by("kind", "shape", "fires", maintain_order=True)
    for (kind, shape, fires), some in alike:
        heads: dict[tuple[int, ...], list[int]] = {}
        for (layer,), here in some.group_by("layer", maintain_order=True):
            heads.setdefault(tuple(here["head"].drop_nulls()), []).append(int(str(layer)))
        for named, layers in heads.items():
            places = [_numbers(layers), *([_numbers(named)] if named else []), kind]
            number = len(layers) * max(1, len(named))
            rows.append((".".join(map(str, places)), number, shape, fires))
    schema = {"sites": pl.String, "number": pl.Int64, "shape": pl.String, "fires": pl.Int64}
    return pl.DataFrame(rows, schema, orient="row")


def missing_sites(model: Model) -> list[str]:
    """What sites of the usual kinds a model has not, and why, in a sentence each."""
    if not isinstance(model, HuggingFace):
        return []
    reasons: dict[tuple[str, str], list[int]] = {}
    for layer, block in enumerate(model.blocks):
        between = ["middle"] if block.side_by_side else []
        for kinds, reason in (
            ([*HEAD_KINDS, "heads"] if block.headless else [], block.headless),
            (between, SIDE_BY_SIDE),
            ([x for x in PORTS if x not in {*block.ports, *between}], NOT_FOUND),
            (["mlp"] if "mlp" not in block.ports else [], NO_MLP),
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


class _Counted(Edit):
    """An edit that changes nothing and counts."""

    fired = 0

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        self.fired += 1
        return x.clone()


def _some_tokens(model: Model) -> Tensor:
    """[2, position] tokens that a model knows."""
    length = min(LENGTH, model.context or LENGTH)
    return torch.arange(2 * length).view(2, length) % model.vocabulary  # the low ids always exist


def _shape(x: Tensor | None, kind: str) -> str | None:
    if x is None:
        return None
    return "[query, key]" if kind == "pattern" else f"[position, {x.shape[-1]}]"


def _numbers(numbers: Sequence[int]) -> str:
    """`3`, `0-5` or `{0-2,4}`, as a pattern of sites takes them."""
    runs = []
    for _, run in groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0]):
        some = [number for _, number in run]
        runs.append(str(some[0]) if len(some) == 1 else f"{some[0]}-{some[-1]}")
    return runs[0] if len(runs) == 1 else f"{{{','.join(runs)}}}"
