"""Which sites of a model the attachments of a proxy name, and from which layer on it differs."""

from collections.abc import Collection, Iterable, Iterator, Mapping

from anamorph.errors import AnamorphError
from anamorph.models.sites import Site, describe_sites, match_sites
from anamorph.simplifications.base import Attachment, Simplification, Simplified
from anamorph.simplifications.weight_change import changes_weights

Placement = list[tuple[Attachment, list[Site]]]

COMPUTED = (
    ("query", "key", "value"),
    ("pattern",),
    ("output",),
    ("heads",),
    ("attention",),
    ("middle",),
    ("mlp_input",),
    ("mlp",),
    ("residual",),
)
"""The kinds of site of a layer in the order in which they are computed."""


def placements(proxies: Iterable[Simplified], model_sites: Iterable[Site]) -> Iterator[Placement]:
    """Each attachment of every proxy with the sites that its pattern names.

    A pattern is looked for once, however many proxies have it: models have thousands of sites.

    Raises:
        AnamorphError: if a pattern names no site, or one that does not suit the simplification, or
            if two attachments of a proxy name the same site.
    """
    model_sites = list(model_sites)
    there, found = frozenset(model_sites), dict[str, list[Site]]()
    for proxy in proxies:
        for attachment in proxy.attachments:
            _check_weights(proxy, attachment)
            if attachment.sites not in found:
                found[attachment.sites] = match_sites(attachment.sites, model_sites)
        yield _placement(proxy, found, there)


def sites_of(proxy: Simplified, model_sites: Iterable[Site]) -> Placement:
    """Each attachment of a proxy with its sites; errors as of `placements`."""
    return next(placements([proxy], model_sites))


def _placement(
    proxy: Simplified, found: Mapping[str, list[Site]], there: Collection[Site]
) -> Placement:
    """Of a proxy whose patterns are found."""
    taken: set[Site] = set()
    placement = []
    for attachment in proxy.attachments:
        simplification, sites = attachment.simplification, found[attachment.sites]
        for site in sites:
            if site.kind not in simplification.kinds:
                raise AnamorphError(
                    f"{attachment}: {simplification} cannot be put at {site}; it can be put at "
                    f"sites of the kinds {', '.join(sorted(simplification.kinds))}."
                )
            _check_reads(attachment, site, there)
            if site in taken:
                raise AnamorphError(
                    f"{proxy}: two attachments edit {site}. To apply two simplifications one after "
                    "the other, chain them with '+', such as svd(rank=8)+kmeans(clusters=64)@…"
                )
            taken.add(site)
        placement.append((attachment, sites))
    layers = {kind: {s.layer for s in taken if s.kind == kind} for kind in ("attention", "pattern")}
    if changes_weights(proxy) and (both := layers["attention"] & layers["pattern"]):
        raise AnamorphError(
            f"{proxy}: in layer {min(both)}, attention and a pattern change the same weights, "
            "those of queries; give each as a proxy of its own."
        )
    return placement


def _check_weights(proxy: Simplified, attachment: Attachment) -> None:
    """Refuse of a change of weights what only what is fitted at sites can have."""
    if changes_weights(proxy) and (attachment.joint or attachment.keep):
        why, what = (
            ("has no fit that sites could share", "joint=true")
            if attachment.joint
            else ("is one at every position", f"keep={attachment.keep}")
        )
        raise AnamorphError(f"{attachment}: a change of weights {why}; leave out {what}.")


def first_layer(placed: Mapping[Site, Simplification], layers: int) -> int:
    """The first layer that a proxy reads or edits; the number of layers for the identity."""
    seen = (
        s for site, simplification in placed.items() for s in (site, *simplification.reads(site))
    )
    return min((site.layer for site in seen), default=layers)


def _check_reads(attachment: Attachment, site: Site, model_sites: Collection[Site]) -> None:
    for read in attachment.simplification.reads(site):
        if read not in model_sites:
            raise AnamorphError(
                f"{attachment}: at {site}, {attachment.simplification} reads {read}, which the "
                f"model does not have. Its sites are: {describe_sites(model_sites)}."
            )
        if read != site and not is_earlier(read, site):
            raise AnamorphError(
                f"{attachment}: at {site}, {attachment.simplification} reads {read}, which is not "
                "computed before it; let it read the site itself, or what comes earlier."
            )


def is_earlier(read: Site, site: Site) -> bool:
    """Whether one site is computed before another."""
    if read.layer == site.layer:
        return computed_before(read.kind, site.kind)
    return read.layer < site.layer


def computed_before(kind: str, other: str) -> bool:
    """Whether a layer computes one kind of site before another."""
    place = {kind: number for number, kinds in enumerate(COMPUTED) for kind in kinds}
    return place.get(kind, len(COMPUTED)) < place.get(other, 0)
