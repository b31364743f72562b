"""What a stack makes of simplifications that somebody else wrote."""

import pytest
import torch
from torch import Tensor

from anamorph.auditing.stacks import StackedEdit
from anamorph.errors import AnamorphError
from anamorph.models.base import Context, LayerKind
from anamorph.models.sites import Site
from anamorph.simplifications import Replacement, Simplification


class Doubled(Replacement):
    """Twice what the stream holds, told as a map too."""

    name = "doubled"

    def reads(self, site: Site) -> tuple[Site, ...]:
        return (Site(site.layer, None, "middle"),)

    def affine(self) -> tuple[Tensor, Tensor]:
        return 2 * torch.eye(3), torch.zeros(3)

    def __call__(self, read: Tensor, **_: object) -> Tensor:
        return 2 * read


def context_of(read: dict[LayerKind, Tensor]) -> Context:
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    return Context(tokens, tokens.bool(), None, read)


def test_a_replacement_is_made_of_what_it_reads() -> None:
    stream, written = torch.randn(2, 1, 1, 4, 3)
    edit = StackedEdit(LayerKind(0, "mlp"), [{None: Doubled()}])
    out = edit(written, context_of({LayerKind(0, "middle"): stream}))
    assert torch.equal(out, 2 * stream)


class Mean(Simplification):
    """One point in place of all, or an error, by its hyper-parameter."""

    name = "mean"

    def __init__(self, *, fails: bool) -> None:
        self.fails = fails

    def __call__(self, x: Tensor) -> Tensor:
        return x @ torch.eye(7) if self.fails else x.mean(-2, keepdim=True)


def test_what_goes_wrong_in_a_map_says_where() -> None:
    x = torch.randn(1, 1, 2, 4, 3)
    of_heads = LayerKind(0, "key")
    with pytest.raises(AnamorphError, match=r"at 0\.1\.key: it must give \[1, 4, 3\].*\[1, 1, 3\]"):
        StackedEdit(of_heads, [{1: Mean(fails=False)}])(x, context_of({}))
    with pytest.raises(RuntimeError) as failed:
        StackedEdit(of_heads, [{1: Mean(fails=True)}])(x, context_of({}))
    assert failed.value.__notes__ == ["This was mean(fails=true), at 0.1.key."]
