"""One proxy a head, or one a layer, from proxies that edit many."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from anamorph.errors import AnamorphError
from anamorph.models.layout import KEY_KINDS, HeadLayout, layout_of
from anamorph.models.sites import Site, match_sites
from anamorph.simplifications.base import Attachment, Simplified
from anamorph.simplifications.named import ProxySpec
from anamorph.simplifications.spec import Spec, expand

Sweep = Literal["all", "layer", "head"]


def sweep(
    simplify: Spec | Iterable[Spec], sites: Sequence[Site], by: Sweep = "head"
) -> list[ProxySpec]:
    """Split proxies by what they edit.

    A proxy that edits every head at once answers another question than one that edits a single
    head: errors of the first add up. Where query heads share keys and values, the proxy of a head
    edits the keys and values that this head reads, so the heads beside it see them edited, too.

    Args:
        simplify: spec strings, attachments or proxies; a list value stands for one proxy each.
        sites: the model's.
        by: `all` leaves proxies as they are, `layer` gives one a layer, `head` one a query head.
            Another model is left as it is.

    Raises:
        AnamorphError: if a proxy cannot be split so.

    Examples:
        >>> sites = [Site(0, head, kind) for kind in ("query", "key") for head in (0, 1)]
        >>> [str(proxy) for proxy in sweep(["svd(rank=2)@0.*.{query,key}"], sites)]
        ['svd(rank=2)@0.0.{query,key}', 'svd(rank=2)@0.1.{query,key}']
    """
    if by not in ("all", "layer", "head"):
        raise AnamorphError(f"Cannot sweep by {by!r}; expected all, layer or head.")
    proxies = expand(simplify)
    if by == "all":
        return proxies
    # Keys and values may have other numbers of heads; every other kind has as many as queries.
    others = [site for site in sites if site.kind not in KEY_KINDS]
    layouts = {
        kind: layout_of([*others, *(site for site in sites if site.kind == kind)])
        for kind in KEY_KINDS
    }
    found: list[ProxySpec] = []
    for proxy in proxies:
        if not isinstance(proxy, Simplified):
            found.append(proxy)
            continue
        placed = [(a, match_sites(a.sites, sites)) for a in proxy.attachments]
        for layer in sorted({site.layer for _, some in placed for site in some}):
            here = [(a, [s for s in some if s.layer == layer]) for a, some in placed]
            here = [(a, some) for a, some in here if some]
            if by == "layer":
                splits = [[_at_layer(a, layer) for a, _ in here]]
            else:
                of_layer = {kind: layout[layer] for kind, layout in layouts.items()}
                _check_heads(here, layer, of_layer)
                splits = [
                    [x for a, some in here for x in _at_head(a, some, head, of_layer)]
                    for head in range(of_layer["key"].heads)
                ]
            found += [Simplified(tuple(split)) for split in splits if split]
    return expand(found)


def _at_layer(attachment: Attachment, layer: int) -> Attachment:
    _, rest = attachment.sites.split(".", 1)
    return replace(attachment, sites=f"{layer}.{rest}")


def _check_heads(
    placed: Iterable[tuple[Attachment, Sequence[Site]]],
    layer: int,
    layouts: Mapping[str, HeadLayout],
) -> None:
    """Whether it is known what each query head of a layer reads."""
    for attachment, sites in placed:
        if any(site.head is None for site in sites):
            raise AnamorphError(
                f"{attachment} edits tensors that all heads share, so it cannot be swept by head; "
                "sweep by layer or all."
            )
    for kind, (heads, key_heads) in layouts.items():
        if key_heads and heads % key_heads:
            raise AnamorphError(
                f"Layer {layer} has {heads} heads and {key_heads} of {kind}, which they cannot "
                "share evenly, so which head reads which is not known; sweep by layer or all."
            )


def _at_head(
    attachment: Attachment, sites: Sequence[Site], head: int, layouts: Mapping[str, HeadLayout]
) -> list[Attachment]:
    """An attachment at only those tensors that a query head reads."""
    kinds: dict[int, list[str]] = {}
    for site in sites:
        layout = layouts.get(site.kind)
        if site.head == (head if layout is None else layout.reads(head)):
            kinds.setdefault(site.head, []).append(site.kind)
    if attachment.joint and len(kinds) > 1:
        shared = max(layout.shared for layout in layouts.values())
        raise AnamorphError(
            f"{attachment} fits queries and keys jointly, but {shared} query heads share one key "
            "head here. Leave out joint=true."
        )
    places = {
        at: names[0] if len(names) == 1 else f"{{{','.join(names)}}}" for at, names in kinds.items()
    }
    return [
        replace(attachment, sites=f"{sites[0].layer}.{at}.{names}") for at, names in places.items()
    ]
