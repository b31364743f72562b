"""What a replacement says of its map does not make it a map of the site that it writes."""

import torch
from torch import Tensor

from anamorph.auditing.stacks import StackedEdit
from anamorph.models.base import Context, LayerKind
from anamorph.models.sites import Site
from anamorph.simplifications.replacement import Replacement


class Doubled(Replacement):
    """Twice what the stream holds, told as a map too."""

    name = "doubled"

    def reads(self, site: Site) -> tuple[Site, ...]:
        return (Site(site.layer, None, "middle"),)

    def affine(self) -> tuple[Tensor, Tensor]:
        return 2 * torch.eye(3), torch.zeros(3)

    def __call__(self, read: Tensor, **_: object) -> Tensor:
        return 2 * read


def test_a_replacement_is_made_of_what_it_reads() -> None:
    stream, written = torch.randn(2, 1, 1, 4, 3)
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    read = {LayerKind(0, "middle"): stream}
    edit = StackedEdit(LayerKind(0, "mlp"), [{None: Doubled()}])
    out = edit(written, Context(tokens, tokens.bool(), None, read))
    assert torch.equal(out, 2 * stream)
