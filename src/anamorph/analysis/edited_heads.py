"""Which attention head a proxy edits."""

import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import polars as pl

from anamorph.models.layout import KEY_KINDS, HeadLayout, layout_of
from anamorph.models.sites import HEAD_KINDS, LAYER_KINDS, NORM_KINDS, Site, match_sites

_ONE_HEAD = re.compile(r"(\d+)\.(\d+)\.(?:\{(\w+(?:,\w+)*)\}|(\w+))")


class EditedHead(NamedTuple):
    """The one head that a proxy edits.

    Attributes:
        layer: counted from 0.
        head: the query head; a key head if only keys or values are edited that several query
            heads share.
        kinds: what of it is edited, in the order of `HEAD_KINDS`.
        shared: whether `head` counts key heads.
    """

    layer: int
    head: int
    kinds: tuple[str, ...]
    shared: bool


def edited_head(sites: str, of_model: Sequence[Site]) -> EditedHead | None:
    """The head that a proxy edits if it edits one alone.

    Keys and values count as part of the query head that reads them, even if others read them too.
    Where a layer has a single head there is nothing to tell apart, and the answer is None.

    Args:
        sites: the proxy's site patterns, joined by `;`.
        of_model: the model's sites.

    Examples:
        >>> of_model = [Site(0, head, "query") for head in range(4)]
        >>> of_model += [Site(0, head, "key") for head in range(2)]
        >>> edited_head("0.3.query;0.1.key", of_model)
        EditedHead(layer=0, head=3, kinds=('query', 'key'), shared=False)
        >>> edited_head("0.1.key", of_model).shared
        True
        >>> edited_head("0.3.query;0.0.key", of_model)  # query head 3 reads key head 1
    """
    edited = [site for part in filter(None, sites.split(";")) for site in _named(part, of_model)]
    if len({site.layer for site in edited}) != 1:
        return None
    layout = layout_of(of_model)[edited[0].layer]
    if layout.heads < 2:
        return None
    own = {site.head for site in edited if site.kind not in KEY_KINDS}
    read = {site.head for site in edited if site.kind in KEY_KINDS}
    kinds = tuple(kind for kind in HEAD_KINDS if kind in {site.kind for site in edited})
    if len(own or read) != 1:
        return None
    (head,) = own or read
    if head is None or (own and not read <= {layout.reads(head)}):
        return None
    return EditedHead(edited[0].layer, head, kinds, not own and layout.shared > 1)


def _named(pattern: str, of_model: Sequence[Site]) -> list[Site]:
    found = _ONE_HEAD.fullmatch(pattern)  # as sweeps write it; searching all sites takes long
    if not found:
        return match_sites(pattern, of_model)
    layer, head, several, one = found.groups()
    return [Site(int(layer), int(head), kind) for kind in (several or one).split(",")]


def single_heads(results: pl.DataFrame, model: Mapping[str, Any]) -> dict[str, EditedHead]:
    """Of the proxies that edit one head alone the head, by spec string; arguments as `Heads.of`."""
    if model.get("heads", 0) < 2:
        return {}
    sites = sites_of(model)
    frame = results.select("simplification", "sites").unique(maintain_order=True)
    found = ((name, edited_head(where, sites)) for name, where in frame.iter_rows())
    return {name: head for name, head in found if head is not None}


def sites_of(model: Mapping[str, Any]) -> list[Site]:
    """The sites of a model with these `layers`, `heads` and, if some are shared, `key_heads`."""
    layers = range(model["layers"])
    layout = HeadLayout(model["heads"], model.get("key_heads", model["heads"]))
    of_heads = [
        Site(layer, head, kind)
        for layer, kind in product(layers, HEAD_KINDS)
        for head in range(layout.count(kind))
    ]
    whole = product(layers, (*LAYER_KINDS, *NORM_KINDS))
    return of_heads + [Site(layer, None, kind) for layer, kind in whole]
