"""Sites: the tensors inside a model that can be read and replaced, and the patterns that name them.

A site is written `layer.head.kind` (`1.0.query`, `0.2.pattern`) or, where a layer has one for all
heads, `layer.kind` (`3.residual`, `3.mlp`). A pattern may put in each place a `*`, a range `0-3`
(both ends included) or a set `{query,key}`.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from anamorph.errors import AnamorphError

HEAD_KINDS = ("query", "key", "value", "pattern", "output")
LAYER_KINDS = ("residual", "mlp")


class Site(NamedTuple):
    """One tensor of a model; `head` is None for the kinds that a layer has once."""

    layer: int
    head: int | None
    kind: str

    def __str__(self) -> str:
        head = "" if self.head is None else f"{self.head}."
        return f"{self.layer}.{head}{self.kind}"


def match_sites(pattern: str, sites: Iterable[Site]) -> list[Site]:
    """The sites that a pattern names, in the order in which they are given.

    Raises:
        AnamorphError: if the pattern cannot be read, or if it names no site.
    """
    sites = list(sites)
    places = _split_places(pattern)
    if len(places) == 2:
        layer, kind = places
        head = None
    elif len(places) == 3:
        layer, head, kind = places
    else:
        raise AnamorphError(
            f"Cannot read the site {pattern!r}: expected layer.head.kind, such as "
            "'1.0.query' or '*.*.{query,key}', or layer.kind, such as '3.residual'."
        )
    found = [
        site
        for site in sites
        if _matches(layer, str(site.layer), pattern)
        and _matches(kind, site.kind, pattern)
        and (site.head is None if head is None else _matches_head(head, site.head, pattern))
    ]
    if not found:
        raise AnamorphError(
            f"The model has no site {pattern!r}. Its sites are: {describe_sites(sites)}."
        )
    return found


def describe_sites(sites: Iterable[Site]) -> str:
    """All sites in a few words, such as `0-1.0-3.{query,key}, 0-1.mlp`."""
    grid: dict[str, tuple[set[int], set[int]]] = {}
    for site in sites:
        layers, heads = grid.setdefault(site.kind, (set(), set()))
        layers.add(site.layer)
        if site.head is not None:
            heads.add(site.head)
    by_place: dict[str, list[str]] = {}
    for kind, (layers, heads) in grid.items():
        place = f"{_range(layers)}." + (f"{_range(heads)}." if heads else "")
        by_place.setdefault(place, []).append(kind)
    return ", ".join(
        place + (kinds[0] if len(kinds) == 1 else "{" + ",".join(kinds) + "}")
        for place, kinds in by_place.items()
    )


def _range(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low}-{high}"


def _split_places(pattern: str) -> list[str]:
    return re.split(r"\.(?![^{]*\})", pattern.strip())


def _matches_head(place: str, head: int | None, pattern: str) -> bool:
    return head is not None and _matches(place, str(head), pattern)


def _matches(place: str, value: str, pattern: str) -> bool:
    if place == "*":
        return True
    if place.startswith("{") and place.endswith("}"):
        return any(_matches(p.strip(), value, pattern) for p in place[1:-1].split(","))
    if bounds := re.fullmatch(r"(\d+)-(\d+)", place):
        return value.isdigit() and int(bounds[1]) <= int(value) <= int(bounds[2])
    if not re.fullmatch(r"\w+", place):
        raise AnamorphError(
            f"Cannot read {place!r} in the site {pattern!r}: expected a name or number, '*', "
            "a range such as 0-3 or a set such as {query,key}."
        )
    return place == value
