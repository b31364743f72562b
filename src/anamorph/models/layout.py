"""Which query head reads which keys and values."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from anamorph.errors import AnamorphError
from anamorph.models.sites import Site

KEY_KINDS = ("key", "value")
"""The kinds that several query heads may share."""


class HeadLayout(NamedTuple):
    """The heads of a layer.

    Keys and values may have fewer heads than queries (grouped-query attention, Ainslie et al. 2023,
    arXiv 2305.13245); then neighbouring query heads read the same.

    Attributes:
        heads: how many query heads there are; patterns and outputs are counted by them. 0 for a
            layer whose heads are not known.
        key_heads: how many heads of keys and values there are.

    Examples:
        >>> HeadLayout(8, 2).reads(5), HeadLayout(8, 2).readers(1)
        (1, range(4, 8))
    """

    heads: int
    key_heads: int

    @property
    def shared(self) -> int:
        """How many query heads read one key head.

        Raises:
            AnamorphError: if they cannot share evenly.
        """
        if not self.key_heads:
            return 1
        if self.heads % self.key_heads:
            raise AnamorphError(
                f"A layer has {self.heads} heads and {self.key_heads} of keys and values, which "
                "they cannot share evenly, so which head reads which is not known."
            )
        return self.heads // self.key_heads

    def count(self, kind: str) -> int:
        """How many heads a kind of site has."""
        return self.key_heads if kind in KEY_KINDS else self.heads

    def reads(self, head: int) -> int:
        """The key head that a query head reads."""
        return head // self.shared

    def readers(self, key_head: int) -> range:
        """The query heads that read a key head; all of them where that is not known."""
        if self.key_heads and self.heads % self.key_heads:
            return range(self.heads)
        return range(key_head * self.shared, (key_head + 1) * self.shared)

    def reading(self, head: int, kind: str) -> range:
        """The query heads that a head of some kind of site belongs to."""
        return self.readers(head) if kind in KEY_KINDS else range(head, head + 1)


def layout_of(sites: Iterable[Site], layers: int = 0) -> tuple[HeadLayout, ...]:
    """The heads of each layer, as its sites tell.

    Where a layer has no sites of one sort, of keys and values or of the others, it has as many
    heads of it as of the other sort.

    Args:
        sites: of a model.
        layers: how many the model has, if there are some without sites.
    """
    counts: Counter[tuple[int, bool]] = Counter()
    for layer, head, kind in sites:
        layers = max(layers, layer + 1)
        if head is not None:
            place = layer, kind in KEY_KINDS
            counts[place] = max(counts[place], head + 1)
    both = ((counts[layer, False], counts[layer, True]) for layer in range(layers))
    return tuple(HeadLayout(heads or keys, keys or heads) for heads, keys in both)
