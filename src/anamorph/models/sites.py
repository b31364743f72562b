"""Sites: the tensors inside a model that can be read and replaced, and the patterns that name them.

A site is written `layer.head.kind` (`1.0.query`, `0.2.pattern`) or, where a layer has one for all
heads, `layer.kind` (`3.residual`, `3.mlp`). A pattern may have in each place a `*`, a range `0-3`
(both ends included) or a set `{query,key}`. A `*` stands for all that there is. What is named must
be there: a number, both ends of a range, each member of a set. A `*` for the kind does not stand
for `NAMED_KINDS`. `norm` for the kind stands for all of `NORM_KINDS` that a layer has.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations, product
from typing import Any, NamedTuple

from anamorph.errors import AnamorphError

HEAD_KINDS = ("query", "key", "value", "pattern", "output")
"""Of each head: `query` and `key` are as they enter the scores, `output` is before the output
projection."""

LAYER_KINDS = ("residual", "mlp", "heads", "attention", "middle", "mlp_input")
"""Of the whole layer: the residual stream behind the block; what its MLP adds to the stream; the
outputs of all heads side by side, before the output projection; what attention adds to the stream;
the stream between attention and MLP; what the MLP is given, after its norm."""

NORM_KINDS = ("norm_1", "norm_2", "norm_3", "norm_4", "norm_final")
"""Of the whole layer, the scale [position, 1] of each of its norms, in the order in which they run;
and, in the last layer, that of the norm before the unembedding. See `anamorph.models.norms`."""

FINAL = NORM_KINDS[-1]

OF_HEADS = frozenset({*HEAD_KINDS, "heads"})
"""What attention makes, before the output projection."""

NAMED_KINDS = frozenset({*LAYER_KINDS[2:], *NORM_KINDS})
"""Kinds that a `*` does not stand for: they hold what other sites hold, at another stage, or no
stream at all."""


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
        AnamorphError: if the pattern cannot be read, or if it names a site that is not there.
    """
    sites = list(sites)
    places = re.split(r"\.(?![^{]*\})", pattern.strip())  # at dots, but not within a set
    if len(places) not in (2, 3):
        raise AnamorphError(
            f"Cannot read the site {pattern!r}: expected layer.head.kind, such as "
            "'1.0.query' or '*.*.{query,key}', or layer.kind, such as '3.residual'."
        )
    named = [_read_place(place, pattern) for place in places]
    layers, *heads, kinds = named
    # Each layer, head and kind is looked at once: models have thousands of sites.
    of_layers = _meant(layers, {site.layer for site in sites})
    of_heads = _meant(heads[0], {site.head for site in sites}) if heads else {None}
    by_name = [part for part in kinds if part.text != "*"]
    unnamed = {kind for kind in NAMED_KINDS if not any(part.holds(kind) for part in by_name)}
    of_kinds = _meant(kinds, {site.kind for site in sites} - unnamed)
    found = [
        site
        for site in sites
        if site.layer in of_layers and site.kind in of_kinds and site.head in of_heads
    ]
    there = [[value for value in site if value is not None] for site in found]
    missing = [
        ".".join(part.text for part in parts)
        for parts in product(*([end for part in parts for end in part.ends()] for parts in named))
        if not any(all(map(_Part.holds, parts, values)) for values in there)
    ]
    if missing:
        left_out = any(site.layer in of_layers and site.kind in NAMED_KINDS for site in sites)
        what = repr(pattern)
        if found:
            several = ", ".join(missing[:4]) + (", …" if len(missing) > 4 else "")
            what = f"{several}, which {pattern!r} names"
        raise AnamorphError(
            f"The model has no site {what}. Its sites are: {describe_sites(sites)}."
            + (_SHARED if _shared(missing, sites) else "")
            + (_BY_NAME if not found and left_out and any(p.text == "*" for p in kinds) else "")
        )
    return found


def describe_sites(sites: Iterable[Site]) -> str:
    """All sites in a few words, such as `0-1.0-3.{query,key}, 0-1.mlp`."""
    layers: dict[str, set[int]] = defaultdict(set)
    heads: dict[str, set[int]] = defaultdict(set)
    for layer, head, kind in sites:
        layers[kind].add(layer)
        if head is not None:
            heads[kind].add(head)
    by_place: dict[str, list[str]] = defaultdict(list)
    for kind in layers:
        place = ".".join(_range(numbers) for numbers in (layers[kind], heads[kind]) if numbers)
        by_place[place].append(kind)
    return ", ".join(
        f"{place}.{kinds[0]}" if len(kinds) == 1 else f"{place}.{{{','.join(kinds)}}}"
        for place, kinds in by_place.items()
    )


def _range(numbers: set[int]) -> str:
    return "-".join(map(str, sorted({min(numbers), max(numbers)})))


_SHARED = (
    " Its query heads share keys and values, which have fewer heads: name queries and keys apart, "
    "such as svd(rank=4)@1.{0,4}.query;svd(rank=4)@1.{0,1}.key."
)

_BY_NAME = f" A * for the kind leaves out {', '.join(LAYER_KINDS[2:])} and norm: name these."


def _shared(missing: Iterable[str], sites: Iterable[Site]) -> bool:
    """Whether what is missing are keys or values of heads that have queries."""
    queries = {
        f"{x}.{site.head}" for site in sites if site.kind == "query" for x in ("*", site.layer)
    }
    names = [name.rpartition(".") for name in missing]
    return all(kind in ("key", "value") and place in queries for place, _, kind in names)


class _Part(NamedTuple):
    """What a place names, or a member of a set there: `*`, a word, or numbers."""

    text: str
    numbers: range | None = None

    def holds(self, value: int | str) -> bool:
        """Whether a layer, head or kind is meant."""
        if self.numbers is None:
            return self.text in ("*", value) or (self.text == "norm" and value in NORM_KINDS)
        return isinstance(value, int) and value in self.numbers

    def ends(self) -> "list[_Part]":
        """What has to be there: itself, or of a range both ends."""
        if self.numbers is None:
            return [self]
        ends = sorted({self.numbers[0], self.numbers[-1]})
        return [_Part(str(end), range(end, end + 1)) for end in ends]

    def meets(self, other: "_Part") -> bool:
        """Whether another part names something that this one names."""
        if self.numbers is None or other.numbers is None:
            return self.text == other.text
        return max(self.numbers[0], other.numbers[0]) <= min(self.numbers[-1], other.numbers[-1])


def _meant(parts: Sequence[_Part], values: Iterable[Any]) -> set[Any]:
    """The layers, heads or kinds that a place of a pattern names."""
    return {x for x in values if x is not None and any(part.holds(x) for part in parts)}


def _read_place(place: str, pattern: str) -> list[_Part]:
    members = place[1:-1].split(",") if re.fullmatch(r"\{.*\}", place) else [place]
    parts = [_read_part(member.strip(), pattern) for member in members]
    for one, other in combinations(parts, 2):
        if one.meets(other):
            both = one.text if one == other else f"what is in both {one.text} and {other.text}"
            raise AnamorphError(f"The site {pattern!r} names {both} twice; name it once.")
    return parts


def _read_part(text: str, pattern: str) -> _Part:
    number = "(0|[1-9][0-9]*)"
    if bounds := re.fullmatch(f"{number}(?:-{number})?", text):
        low, high = int(bounds[1]), int(bounds[2] or bounds[1])
        if low > high:
            raise AnamorphError(
                f"The range {text} in the site {pattern!r} runs backwards; write {high}-{low}."
            )
        return _Part(text, range(low, high + 1))
    if not re.fullmatch(r"\w+|\*", text):
        raise AnamorphError(
            f"Cannot read {text!r} in the site {pattern!r}: expected a name or number, '*', "
            "a range such as 0-3 or a set such as {query,key}."
        )
    return _Part(text)
