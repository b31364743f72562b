"""Sparse autoencoders that people have on disk."""

from typing import ClassVar

from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.simplifications.formats.coder import SparseCoder
from anamorph.simplifications.formats.reading import read_coder
from anamorph.simplifications.formats.stored import Stored
from anamorph.simplifications.from_disk import FromDisk


class SAE(FromDisk[SparseCoder]):
    """A sparse autoencoder from a folder: what is there is written as a sum of few directions.

    `sae(coders/layer-12)@12.residual`. SAELens, Gemma Scope, sparsify and dictionary_learning are
    read; a folder may also hold a folder a layer, for `@*.residual`.

    Source: Cunningham et al. 2023, arXiv 2309.08600.

    Args:
        path: the folder, or the file of weights in it.
        error: whether what it gets wrong is added back, so that the proxy equals the model.
    """

    name: ClassVar[str] = "sae"

    def __init__(self, *, path: str, error: bool = False) -> None:
        self.path = path
        self.error = error

    def stored(self, layer: int | None) -> Stored[SparseCoder]:
        """See `FromDisk.stored`."""
        stored = read_coder(self.path, layer)
        if stored.reads != stored.writes:
            raise AnamorphError(
                f"what is in {self.path} reads {stored.reads} and writes {stored.writes}: it is no "
                "autoencoder. Use transcoder(PATH) at the site that it writes."
            )
        return stored

    def __call__(self, x: Tensor) -> Tensor:
        """What the autoencoder makes of `x` [..., dim]."""
        return self.with_error(self.made_of(x), x)
