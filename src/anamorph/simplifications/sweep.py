"""One proxy a head, or one a layer, from proxies that stand at many."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from anamorph.errors import AnamorphError
from anamorph.models.sites import HEAD_KINDS, Site, match_sites
from anamorph.simplifications.attach import Attachment, Simplified
from anamorph.simplifications.spec import expand

Sweep = Literal["all", "layer", "head"]
SHARED = ("key", "value")  # kinds that several query heads may share


def sweep(
    simplify: Iterable[str | Attachment | Simplified], sites: Sequence[Site], by: Sweep = "head"
) -> list[Simplified]:
    """Split proxies by where they stand.

    A proxy that edits every head at once answers another question than one that edits a single
    head: errors of the first add up. Where query heads share keys and values, the proxy of a head
    edits the keys and values that this head reads, so the heads beside it see them edited, too.

    Args:
        simplify: spec strings, attachments or proxies; a list value stands for one proxy each.
        sites: the model's.
        by: `all` leaves proxies as they are, `layer` gives one a layer, `head` one a query head.

    Raises:
        AnamorphError: if a proxy cannot be split so.

    Example:
        >>> sites = [Site(0, head, kind) for kind in ("query", "key") for head in (0, 1)]
        >>> [str(proxy) for proxy in sweep(["svd(rank=2)@0.*.{query,key}"], sites)]
        ['svd(rank=2)@0.0.{query,key}', 'svd(rank=2)@0.1.{query,key}']
    """
    if by not in ("all", "layer", "head"):
        raise AnamorphError(f"Cannot sweep by {by!r}; expected all, layer or head.")
    proxies = expand(simplify)
    if by == "all":
        return proxies
    found: dict[str, Simplified] = {}
    for proxy in proxies:
        placed = [(a, match_sites(a.sites, sites)) for a in proxy.attachments]
        layers = sorted({site.layer for _, some in placed for site in some})
        for layer in layers:
            here = [(a, [s for s in some if s.layer == layer]) for a, some in placed]
            if by == "layer":
                split = [_at_layer(a, layer) for a, some in here if some]
                found.setdefault(str(Simplified(tuple(split))), Simplified(tuple(split)))
                continue
            group = _sharing(sites, layer)
            for head in range(_heads(sites, layer)):
                split = [x for a, some in here for x in _at_head(a, some, head, group)]
                if split:
                    found.setdefault(str(Simplified(tuple(split))), Simplified(tuple(split)))
    return list(found.values())


def _at_layer(attachment: Attachment, layer: int) -> Attachment:
    _, rest = attachment.sites.split(".", 1)
    return Attachment(attachment.simplification, f"{layer}.{rest}", attachment.joint)


def _heads(sites: Iterable[Site], layer: int) -> int:
    """How many heads a layer has: queries, or what there is if they are no sites."""
    return len({s.head for s in sites if s.layer == layer and s.head is not None}) or 1


def _sharing(sites: Sequence[Site], layer: int) -> dict[str, int]:
    """By kind, how many query heads share one head of a layer.

    Raises:
        AnamorphError: if they do not share evenly.
    """
    heads = _heads(sites, layer)
    group = dict.fromkeys(HEAD_KINDS, 1)
    for kind in SHARED:
        count = len({s.head for s in sites if s.layer == layer and s.kind == kind}) or heads
        if heads % count:
            raise AnamorphError(
                f"Layer {layer} has {heads} heads and {count} of {kind}, which they cannot share "
                "evenly, so which head reads which is not known; sweep by layer or all."
            )
        group[kind] = heads // count
    return group


def _at_head(
    attachment: Attachment, sites: Sequence[Site], head: int, group: Mapping[str, int]
) -> list[Attachment]:
    """What of an attachment stands at the tensors that a query head reads."""
    if any(site.head is None for site in sites):
        raise AnamorphError(
            f"{attachment} stands at tensors that all heads share, so it cannot be swept by head; "
            "sweep by layer or all."
        )
    kinds: dict[int, list[str]] = {}
    for site in sites:
        read = head // group[site.kind]
        if site.head == read:
            kinds.setdefault(read, []).append(site.kind)
    if attachment.joint and len(kinds) > 1:
        raise AnamorphError(
            f"{attachment} fits queries and keys jointly, but {max(group.values())} query heads "
            "share one key head here. Leave out joint=true."
        )
    places = {
        at: names[0] if len(names) == 1 else f"{{{','.join(names)}}}" for at, names in kinds.items()
    }
    return [
        Attachment(attachment.simplification, f"{sites[0].layer}.{at}.{names}", attachment.joint)
        for at, names in places.items()
    ]
