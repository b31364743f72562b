"""Cross-layer transcoders that people have on disk."""

from typing import ClassVar

from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.models.sites import Site
from anamorph.simplifications.estimator import Where
from anamorph.simplifications.formats.cross_layer import CrossLayer
from anamorph.simplifications.formats.reading import read_cross_layer
from anamorph.simplifications.formats.stored import Stored
from anamorph.simplifications.from_disk import ReplacementFromDisk


class CLT(ReplacementFromDisk[CrossLayer]):
    """A cross-layer transcoder from a folder: features of a layer write to all MLPs behind it.

    `clt(coders/clt)@*.mlp`. It reads every layer up to the one that it writes. circuit-tracer and
    Gemma Scope 2 are read.

    Source: Ameisen et al. 2025, *Circuit Tracing*.

    Args:
        path: the folder.
        source: the kind of site that it reads, if the folder does not say; `mlp_input` by default.
        error: whether what it gets wrong is added back, so that the proxy equals the model.
    """

    name: ClassVar[str] = "clt"
    one_fit: ClassVar[bool] = True

    def __init__(self, *, path: str, source: str | None = None, error: bool = False) -> None:
        self.path = path
        self.source = source
        self.error = error

    def stored(self, layer: int | None) -> Stored[CrossLayer]:
        """See `FromDisk.stored`."""
        return read_cross_layer(self.path, layer or 0)

    def reads(self, site: Site) -> tuple[Site, ...]:
        """The same place of each layer up to that of `site`; and the site itself, if needed."""
        last = self.read_for(site)
        return (*(last._replace(layer=layer) for layer in range(last.layer + 1)), *self.own(site))

    def check_suits(self, coder: CrossLayer, where: Where) -> None:
        """See `FromDisk.check_suits`; it must have as many layers as the model."""
        super().check_suits(coder, where)
        layers = where.model.get("layers", coder.layers)
        if layers != coder.layers:
            raise AnamorphError(
                f"what is in {self.path} has {coder.layers} layers, and the model {layers}; it was "
                "made for another model."
            )

    def __call__(self, *read: Tensor) -> Tensor:
        """What is written in a layer [..., width].

        Args:
            read: what is read in each layer up to it; last, what it stands in for, if needed.
        """
        return self.finished(self.made_of(*self.for_coder(read)), read)
