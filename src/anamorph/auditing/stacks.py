"""The edits of many proxies to one tensor, as one edit along the copy axis."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from anamorph.errors import AnamorphError, told_where
from anamorph.models.base import Context, Edit, LayerKind
from anamorph.models.layout import KEY_KINDS
from anamorph.models.sites import Site
from anamorph.models.tap import rows_at
from anamorph.simplifications import FittedProxy, Simplification


class StackedEdit(Edit):
    """The edits of all proxies of a stack to one tensor of a layer.

    Args:
        key: the tensor.
        placed: for each copy the simplification at each head (None for kinds without heads); a head
            that is not there is left as it is.
        led: whether the first copy is the model itself, which simplifications are then shown.
        keep: of a copy and a head, how many positions at the beginning are left as they are.
    """

    def __init__(
        self,
        key: LayerKind,
        placed: Sequence[Mapping[int | None, Simplification]],
        led: bool = False,
        keep: Mapping[tuple[int, int | None], int] = MappingProxyType({}),
    ) -> None:
        self.key, self.placed, self.led, self.keep = key, placed, led, keep
        self.copies = len(placed)
        read = {s for here in placed for head, x in here.items() for s in x.reads(self.site(head))}
        self.reads = tuple(sorted({LayerKind(site.layer, site.kind) for site in read} - {key}))
        self.heads: list[int] = sorted({h for here in placed for h in here if h is not None})
        self.fired = 0

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        """[1 or copy, batch, ...] to [copy, batch, ...]."""
        if not self.heads:
            self.fired += 1
            return self._edit_head(None, x, context)
        return self.of_heads(x, range(x.shape[2]), context)

    def of_heads(self, x: Tensor, heads: Sequence[int], context: Context) -> Tensor:
        """The same for some heads: [1 or copy, batch, head, ...] to [copy, batch, heads, ...]."""
        self.fired += 1
        if len(heads) == 1:
            return self._edit_head(heads[0], x[:, :, heads[0]], context)[:, :, None]
        out = x.new_empty(self.copies, x.shape[1], len(heads), *x.shape[3:])
        for place, head in enumerate(heads):
            here = x[:, :, head]
            out[:, :, place] = self._edit_head(head, here, context) if head in self.heads else here
        return out

    def _edit_head(self, head: int | None, x: Tensor, context: Context) -> Tensor:
        """Every copy of one head: [1 or copy, batch, ...] to [copy, batch, ...]."""
        # Only of what maps this very tensor, all of it: a replacement is a function of others.
        site = self.site(head)
        products = [
            placed[head].products(x)
            if head in placed and not placed[head].reads(site) and not self.keep.get((copy, head))
            else None
            for copy, placed in enumerate(self.placed)
        ]
        alike: dict[int, list[int]] = {}  # copies by how many products they are; 0 for others
        for copy, some in enumerate(products):
            alike.setdefault(0 if some is None else len(some), []).append(copy)
        others = alike.pop(0, [])
        made = {
            tuple(copies): _multiplied(
                _copies(x, copies), [products[copy] or () for copy in copies]
            )
            for copies in alike.values()
        }
        if len(made) == 1 and not others:
            return next(iter(made.values()))
        if self.led:
            context = replace(context, original=x[0])
        out = x.new_empty(len(products), *x.shape[1:])
        for copies, several in made.items():
            for copy, one in zip(copies, several, strict=True):
                out[copy] = one
        for copy in others:
            source, placed = x[copy if len(x) > 1 else 0], self.placed[copy]
            if head in placed:
                edited = _edited(placed[head], site, copy, source, context)
                source = _first_left(edited, source, context, self.keep.get((copy, head), 0))
            out[copy] = source
        return out

    def site(self, head: int | None) -> Site:
        """The site of a head, or of the whole tensor."""
        return Site(self.key.layer, head, self.key.kind)


def _edited(
    simplification: Simplification, site: Site, copy: int, x: Tensor, context: Context
) -> Tensor:
    """What a simplification makes of a copy's `x` [batch, ...] at a site, of the same shape."""
    with told_where(simplification, site):
        given = [
            x if read == site else _read(read, copy, context) for read in simplification.reads(site)
        ] or [x]
        made = simplification.apply(*given, context=context)
        if not isinstance(made, Tensor):
            raise AnamorphError(f"it must give a tensor; it gave a {type(made).__name__}.")
        if made.shape != x.shape:
            raise AnamorphError(
                f"it must give {list(x.shape)}, as the model has there; it gave {list(made.shape)}."
            )
        return made


def _first_left(made: Tensor, own: Tensor, context: Context, keep: int) -> Tensor:
    """What is made [batch, position, ...], but for the first positions what was there."""
    if not keep:
        return made
    at = torch.arange(made.shape[1], device=made.device) if context.at is None else context.at
    return torch.where((at < keep)[..., None], own, made)


def _read(site: Site, copy: int, context: Context) -> Tensor:
    """What a copy has at a site that is read, [batch, position, dim], at the edit's positions."""
    x = context.read[LayerKind(site.layer, site.kind)]
    x = x[copy if len(x) > 1 else 0][None]
    x = x if site.head is None else x[:, :, site.head]
    return rows_at(x, context.at if site.kind in KEY_KINDS else None)[0]


def _copies(x: Tensor, copies: Sequence[int]) -> Tensor:
    """Some copies of x [1 or copy, ...], or the one that all share."""
    whole = len(x) in (1, len(copies))
    return x if whole else torch.stack([x[copy] for copy in copies])  # a GPU waits for no list


def _multiplied(x: Tensor, products: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """X [1 or copy, ..., dim] by what each copy is multiplied with, to [copy, ..., dim].

    Args:
        x: what copies have.
        products: of each copy as many matrices, and last the bias [dim]; see `Fittable.products`.
    """
    *before, last, biases = zip(*products, strict=True)
    flat = x.reshape(len(x), -1, x.shape[-1]).expand(len(products), -1, -1)
    for matrices in before:
        flat = flat @ _side_by_side(matrices)
    bias = torch.stack(biases)[:, None]
    return torch.baddbmm(bias, flat, _side_by_side(last)).view(-1, *x.shape[1:])


def _side_by_side(matrices: Sequence[Tensor]) -> Tensor:
    """[copy, rows, columns] of matrices whose ranks may differ, with zeros beside the smaller."""
    rows, columns = (max(matrix.shape[axis] for matrix in matrices) for axis in (0, 1))
    return torch.stack(
        [F.pad(m, (0, columns - m.shape[1], 0, rows - m.shape[0])) for m in matrices]
    )


def stacked_edits(stack: Sequence[FittedProxy], led: bool = False) -> dict[LayerKind, StackedEdit]:
    """The edits that make the copies of a stack into the given proxies.

    Args:
        stack: a proxy a copy.
        led: whether one copy more comes first, the model itself.
    """
    placed: dict[LayerKind, list[dict[int | None, Simplification]]] = {}
    keep: dict[LayerKind, dict[tuple[int, int | None], int]] = {}
    for copy, fitted in enumerate(stack, start=int(led)):
        for site, simplification in fitted.by_site.items():
            key = LayerKind(site.layer, site.kind)
            copies = placed.setdefault(key, [{} for _ in range(led + len(stack))])
            copies[copy][site.head] = simplification
        for site, first in fitted.keep.items():
            keep.setdefault(LayerKind(site.layer, site.kind), {})[copy, site.head] = first
    return {key: StackedEdit(key, placed[key], led, keep.get(key, {})) for key in sorted(placed)}
