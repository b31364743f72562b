"""Hooks: where in somebody's module the tensor of a site is found, and how its heads lie in it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, Literal

from torch import Tensor, nn

from anamorph.errors import AnamorphError, require
from anamorph.models.base import LayerKind
from anamorph.models.sites import HEAD_KINDS, LAYER_KINDS
from anamorph.models.wrapped import Side


@dataclass(frozen=True)
class Hook:
    """The tensor that goes into or comes out of a submodule, or some columns of it.

    The tensor, or the first one of a tuple, is `[batch, position, width]`; for kinds with heads it
    may also have an axis of its own for them, as attention patterns do.

    Attributes:
        path: of the submodule, as `get_submodule` takes it; a `*` in it stands for the layer.
        heads: how many heads lie side by side in the last axis: `[batch, position, heads · dim]`.
        part: `(i, n)`: only the i-th of n equal parts of the last axis, counted from 0, such as
            `(0, 3)` for the queries in GPT-2's `c_attn`.
        columns: `(start, stop)`: only these columns of the last axis, where parts are not equal.
        within_heads: whether each head has a `part` or `columns` of its own, as GPT-NeoX has it.
        side: whether the submodule's `output` is meant or its first `input`.
        head_axis: where an axis for heads stands: 1 in `[batch, head, position, dim]` (and in
            patterns, `[batch, head, query, key]`), 2 in `[batch, position, head, dim]`.
    """

    path: str
    heads: int | None = None
    part: tuple[int, int] | None = None
    columns: tuple[int, int] | None = None
    within_heads: bool = False
    side: Side = "output"
    head_axis: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        require(f"{self}: side", self.side, among=("output", "input"))
        require(f"{self}: head_axis", self.head_axis, among=(1, 2))
        if self.heads is not None:
            require(f"{self}: heads", self.heads, whole=True, least=1)
        for pair in self.part, self.columns:
            if pair is not None and [type(x) for x in pair] != [int, int]:
                raise AnamorphError(f"{self}: part and columns are two whole numbers each.")
        if self.part is not None and self.columns is not None:
            raise AnamorphError(f"{self}: give part or columns, not both.")
        if self.part is not None and not 0 <= self.part[0] < self.part[1]:
            raise AnamorphError(f"{self}: part is (i, n), the i-th of n parts counted from 0.")
        if self.columns is not None and not 0 <= self.columns[0] < self.columns[1]:
            raise AnamorphError(f"{self}: columns is (start, stop) with 0 <= start < stop.")

    def __str__(self) -> str:
        given = [
            f"{f.name}={v!r}" for f in fields(self)[1:] if (v := getattr(self, f.name)) != f.default
        ]
        return f"Hook({', '.join([repr(self.path), *given])})"

    def view(self, x: Tensor, kind: str, shape: tuple[int, int, int]) -> Tensor:
        """The site's tensor as a view of the submodule's.

        Args:
            x: [copy · batch, position, width], or with an axis for heads.
            kind: of the site.
            shape: (copy, batch, position).

        Returns:
            [copy, batch, position, dim], or [copy, batch, head, position, dim] of head kinds.

        Raises:
            AnamorphError: if it has another shape, or does not divide as this hook says.
        """
        copies, batch, positions = shape
        of_heads = kind in HEAD_KINDS
        heads_first = of_heads and x.dim() == 4 and self.head_axis == 1
        if (
            x.dim() not in ((3, 4) if of_heads else (3,))
            or x.shape[0] != copies * batch
            or x.shape[2 if heads_first else 1] != positions
            or (kind == "pattern" and (x.dim() == 3 or x.shape[-1] != positions))
        ):
            rest = {
                "pattern": "[batch, head, query, key]",
                **dict.fromkeys(LAYER_KINDS, "[batch, position, width]"),
            }.get(kind, "[batch, position, heads · dim] or [batch, head, position, dim]")
            raise AnamorphError(
                f"the {self.where} is {list(x.shape)}; expected {rest} with batch "
                f"{copies * batch} and position {positions}."
            )
        if of_heads and x.dim() == 3:
            x = self._some(self._split(x)) if self.within_heads else self._split(self._some(x))
        else:
            x = self._some(x)
        if of_heads and not heads_first:
            x = x.transpose(1, 2)
        if of_heads and self.heads not in (None, x.shape[1]):
            raise AnamorphError(
                f"the {self.where} has {x.shape[1]} heads on axis {self.head_axis}, not "
                f"{self.heads}; leave heads out, or give head_axis."
            )
        return x.unflatten(0, (copies, batch))  # type: ignore[no-any-return, no-untyped-call]

    @property
    def where(self) -> str:
        """In words, for errors."""
        return f"{self.side} of {self.path!r}"

    def _split(self, x: Tensor) -> Tensor:
        """[..., heads · dim] as [..., head, dim]."""
        if self.heads is None:
            raise AnamorphError(
                f"the {self.where} has {x.dim()} axes, and none for heads; say how many lie side "
                "by side, such as Hook(path, heads=4)."
            )
        if x.shape[-1] % self.heads:
            raise AnamorphError(
                f"the {x.shape[-1]} columns of the {self.where} do not divide into {self.heads} "
                "heads."
            )
        return x.unflatten(-1, (self.heads, -1))  # type: ignore[no-any-return, no-untyped-call]

    def _some(self, x: Tensor) -> Tensor:
        """The columns that are meant."""
        width = x.shape[-1]
        start, stop = self.columns or (0, width)
        if self.part is not None:
            number, parts = self.part
            if width % parts:
                raise AnamorphError(
                    f"the {width} columns of the {self.where} do not divide into {parts} parts."
                )
            start, stop = (i * width // parts for i in (number, number + 1))
        if stop > width:
            raise AnamorphError(f"the {self.where} has {width} columns, not {stop}.")
        return x[..., start:stop]


def resolve(module: nn.Module, sites: Mapping[str, str | Hook]) -> dict[LayerKind, Hook]:
    """The hook of every layer and kind.

    Args:
        module: in which the hooks' paths lead somewhere.
        sites: from `layer.kind` or `layer.*.kind`, where layer may be `*`, to hooks or paths.

    Raises:
        AnamorphError: if a name or a path leads nowhere, or two say the same.
    """
    known = [name for name, _ in module.named_modules(remove_duplicate=False) if name]
    found: dict[LayerKind, Hook] = {}
    for name, given in sites.items():
        hook = Hook(given) if isinstance(given, str) else given
        layer, kind = _read(name)
        for number in _layers(name, hook, known) if layer == "*" else [int(layer)]:
            key = LayerKind(number, kind)
            here = replace(hook, path=hook.path.replace("*", str(number)))
            if here.path not in known:
                raise AnamorphError(
                    f"The site {name!r} stands at {here.path!r}, but {type(module).__name__} has "
                    f"no such submodule; {_similar(here.path, known)}."
                )
            if key in found:
                raise AnamorphError(
                    f"The site {name!r} names {kind} of layer {number}, which has a hook already "
                    f"({found[key]}); give it one."
                )
            found[key] = here
    if not found:
        raise AnamorphError(
            "A HookedModel needs at least one site, such as sites={'*.residual': 'blocks.*'}."
        )
    return dict(sorted(found.items(), key=lambda item: (_ORDER.index(item[0].kind), item[0].layer)))


_ORDER = (*HEAD_KINDS, *LAYER_KINDS)


def _read(name: str) -> tuple[str, str]:
    """Layer and kind of a site's name."""
    match = re.fullmatch(r"(\*|0|[1-9][0-9]*)\.(\*\.)?(\w+)", name)
    if match is None or match[3] not in _ORDER or bool(match[2]) != (match[3] in HEAD_KINDS):
        raise AnamorphError(
            f"Cannot read the site {name!r}; expected layer.*.kind, such as '0.*.query' or "
            f"'*.*.key', with a kind out of {', '.join(HEAD_KINDS)}; or layer.kind, such as "
            f"'0.residual' or '*.mlp', with a kind out of {', '.join(LAYER_KINDS)}."
        )
    return match[1], match[3]


def _layers(name: str, hook: Hook, known: list[str]) -> list[int]:
    """The layers that a `*` stands for: the numbers with which the path leads somewhere."""
    if "*" not in hook.path:
        raise AnamorphError(
            f"The site {name!r} is one of every layer, but {hook.path!r} is one submodule; put a "
            "* in its place for the layer, such as 'blocks.*.mlp'."
        )
    pattern = re.escape(hook.path).replace(r"\*", r"(\d+)", 1).replace(r"\*", r"\1")
    numbers = sorted({int(m[1]) for path in known if (m := re.fullmatch(pattern, path))})
    if not numbers:
        raise AnamorphError(
            f"The site {name!r} stands at {hook.path!r}, but no submodule is called so with a "
            f"number for the *; {_similar(hook.path.replace('*', '0'), known)}."
        )
    return numbers


def _similar(path: str, known: list[str]) -> str:
    near = get_close_matches(path, known, n=3) or known[:3]
    return f"similar ones are: {', '.join(near) or 'none'}"


def first_tensor(value: Any, what: str) -> Tensor:
    """A tensor, or the first one of a tuple.

    Raises:
        AnamorphError: if it is neither; names `what`.
    """
    x = value[0] if isinstance(value, (tuple, list)) and value else value
    if not isinstance(x, Tensor):
        raise AnamorphError(
            f"{what} is of type {type(value).__name__}; expected a tensor, or a tuple with one "
            "in front."
        )
    return x
