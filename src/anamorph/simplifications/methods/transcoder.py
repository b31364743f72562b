"""Transcoders that people have on disk."""

from typing import ClassVar

from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.models.sites import Site
from anamorph.simplifications.formats.coder import SparseCoder
from anamorph.simplifications.formats.reading import read_coder
from anamorph.simplifications.formats.stored import Stored
from anamorph.simplifications.from_disk import ReplacementFromDisk


class Transcoder(ReplacementFromDisk[SparseCoder]):
    """A transcoder from a folder: it writes what an MLP writes, from what the MLP reads.

    `transcoder(coders/layer-3)@3.mlp`. SAELens, Gemma Scope 2, circuit-tracer and sparsify are
    read; a folder may also hold a file or a folder a layer, for `@*.mlp`.

    Source: Dunefsky et al. 2024, arXiv 2406.11944.

    Args:
        path: the folder, or the file of weights in it.
        source: the kind of site that it reads, if the folder does not say; `mlp_input` by default.
        error: whether what it gets wrong is added back, so that the proxy equals the model.
    """

    name: ClassVar[str] = "transcoder"

    def __init__(self, *, path: str, source: str | None = None, error: bool = False) -> None:
        self.path = path
        self.source = source
        self.error = error

    def stored(self, layer: int | None) -> Stored[SparseCoder]:
        """See `FromDisk.stored`."""
        stored = read_coder(self.path, layer)
        if stored.writes is not None and stored.reads == stored.writes:
            raise AnamorphError(
                f"what is in {self.path} reads and writes {stored.writes}: it is an autoencoder. "
                "Use sae(PATH) at that site."
            )
        return stored

    def reads(self, site: Site) -> tuple[Site, ...]:
        """What the file says, of the layer of `site`; and the site itself, where it is needed."""
        return (self.read_for(site), *self.own(site))

    def __call__(self, *read: Tensor) -> Tensor:
        """Make what is written [..., written] from what is read [..., read]."""
        return self.finished(self.made_of(*self.for_coder(read)), read)
