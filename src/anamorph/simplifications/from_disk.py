"""What the views from disk share: a folder, the site that it names, and what is left as it was."""

from __future__ import annotations

import re
from abc import abstractmethod
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from anamorph.errors import AnamorphError, require
from anamorph.models.sites import LAYER_KINDS, Site
from anamorph.simplifications.base import Simplification
from anamorph.simplifications.estimator import Where
from anamorph.simplifications.fingerprint import fingerprint_of
from anamorph.simplifications.formats.reading import folder_of
from anamorph.simplifications.formats.stored import Stored, site_named
from anamorph.simplifications.placing import computed_before
from anamorph.simplifications.replacement import Replacement

FEATURES = 2**24
"""So many features, over all points, are worked out at a time: 64 MB in float32."""

PLACE = r"(?:.*\.)?(?:blocks|layers|h)\.\d+\..+"
"""How TransformerLens and Hugging Face name places in a layer."""


class Numbers(Protocol):
    """A coder, whatever it reads."""

    @property
    def read(self) -> int:
        """The width of what is read."""

    @property
    def written(self) -> int:
        """The width of what is written."""

    @property
    def features(self) -> int:
        """How many features there are, of one layer at most."""

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Self:
        """The same with its numbers in another dtype, on another device."""

    def encode(self, *read: Any) -> Tensor:
        """The features [..., features], of one layer, where this is read [..., read]."""

    def __call__(self, *read: Any) -> Tensor:
        """What is written [..., written] where this is read [..., read]."""


_Numbers = TypeVar("_Numbers", bound=Numbers)


NORM_BEHIND = "Gemma[23]|Olmo[23]"
"""Classes of transformers whose layers put a norm behind attention and MLP."""


class FromDisk(Simplification, Generic[_Numbers]):
    """A view whose numbers are in a folder; a run pins the folder by its content.

    Attributes:
        path: the folder, or the file of weights in it.
        error: whether what the view gets wrong is added back.
        coder_: its numbers.
    """

    kept: ClassVar[bool] = False

    path: str
    error: bool

    coder_: _Numbers

    _where: Where | None = None

    @abstractmethod
    def stored(self, layer: int | None) -> Stored[_Numbers]:
        """What is on disk for a layer, or where it is not told."""

    def validate(self, dim: int | None = None) -> None:
        """See `Simplification.validate`."""
        if not isinstance(self.path, str) or not self.path.strip():
            raise AnamorphError(
                f"{self.name}: the path is {self.path!r}; give the folder as text, such as "
                f"{self.name}(coders/layer-3)."
            )
        if not isinstance(self.error, bool):
            raise AnamorphError(f"{self}: error must be true or false; got {self.error!r}.")

    def fingerprint(self) -> str:
        """A digest of the parameters and of all files in the folder."""
        return fingerprint_of(type(self), str(self), folder_of(self.path))

    def placed(self, where: Where) -> Self:
        """A clone for one place.

        Raises:
            AnamorphError: if the folder is of no known format, or names another site.
        """
        placed = self.clone()
        placed._where = where
        for site in where.sites:
            self._check_named(site, str(where.model.get("class", "")))
        return placed

    def _check_named(self, site: Site, model: str) -> None:
        """Whether the folder names this site, if it names one, for a model of a class."""
        stored = self.stored(site.layer)
        named = place_named(stored.writes, stored.head)
        if named is not None and named != site:
            of = f" of {stored.model}" if stored.model else ""
            raise AnamorphError(
                f"what is in {self.path} was made for {named}{of} (the file says "
                f"{stored.writes}), and is attached to {site}; attach it to {named}, or give the "
                f"folder of {site}."
            )
        if re.match(NORM_BEHIND, model) and re.search(
            r"\.(mlp|self_attn)\.output$", stored.writes or ""
        ):
            raise AnamorphError(
                f"what is in {self.path} writes {stored.writes}, the output of a module, to which "
                f"{model} applies a norm before it is added to the stream; {site} is behind that "
                "norm. Give a coder of what is behind it."
            )

    def learn(self, statistic: None) -> Self:
        """Read the numbers.

        Raises:
            AnamorphError: if they are damaged, or of other widths than the model's.
        """
        where = self._where
        coder = self.stored(None if where is None else where.sites[0].layer).coder()
        if where is not None:
            self.check_suits(coder, where)
        self.coder_ = coder
        return self

    def check_suits(self, coder: _Numbers, where: Where) -> None:
        """Whether the widths of a coder are those of a place, if they are known.

        Raises:
            AnamorphError: if they are not.
        """
        if not where.widths:
            return
        read = where.reads[0] if where.reads else where.sites[0]
        widths = (
            (read, where.widths[0], coder.read),
            (where.sites[0], where.widths[-1], coder.written),
        )
        for site, width, own in widths:
            if width != own:
                raise AnamorphError(
                    f"what is in {self.path} is for activations of width {own}, and {site} has "
                    f"width {width}; it was made for another model, or another site."
                )

    def made_of(self, *read: Tensor) -> Tensor:
        """What the coder makes [..., written] of what is read [..., read], some points at a time.

        A point has thousands of features, so that those of a whole batch would not fit.
        """
        coder = self._coder_like(read[0])
        step = max(1, FEATURES // coder.features)
        parts = zip(*(torch.split(x.reshape(-1, x.shape[-1]), step) for x in read), strict=True)
        made = torch.cat([coder(*some) for some in parts])
        return made.view(*read[0].shape[:-1], coder.written)

    def encode(self, *read: Tensor) -> Tensor:
        """See `Estimator.encode`; of several layers those of the last."""
        return self._coder_like(read[0]).encode(*read)

    def _coder_like(self, like: Tensor) -> _Numbers:
        """The coder in the dtype of a tensor, on its device."""
        return self.prepared(like, "coder", lambda: self.coder_)

    def with_error(self, made: Tensor, own: Tensor) -> Tensor:
        """What is written, with what it gets wrong added back if that is asked for.

        Args:
            made: what the view makes [..., dim].
            own: what it stands in for.
        """
        return made + (own - made) if self.error else made


class ReplacementFromDisk(FromDisk[_Numbers], Replacement):
    """A view from disk that stands in for an MLP, and reads something else.

    Attributes:
        source: the kind of site that it reads, if the folder does not say.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"mlp"})

    source: str | None

    _reads_from: tuple[int, str] | None = None  # how many layers before, and the kind

    def validate(self, dim: int | None = None) -> None:
        """See `Simplification.validate`."""
        super().validate(dim)
        if self.source is not None:
            require(f"{self}: source", self.source, among=LAYER_KINDS)

    def placed(self, where: Where) -> Self:
        """See `FromDisk.placed`."""
        placed = super().placed(where)
        placed._reads_from = self._find(where.sites[0].layer)
        return placed

    def read_for(self, site: Site) -> Site:
        """What is read of the layer of a site, or of one before it.

        Raises:
            AnamorphError: if the folder names a place that is no site, or `source` another site.
        """
        back, kind = self._reads_from or self._find(site.layer)
        return Site(site.layer - back, None, kind)

    def own(self, site: Site) -> tuple[Site, ...]:
        """The site itself, if it has to be read too."""
        return (site,) if self.error else ()

    def _find(self, layer: int) -> tuple[int, str]:
        stored = self.stored(layer)
        if self.source is None:
            hint = f" If you know what it reads, say so: {self.name}(PATH, source=mlp_input)."
            named = place_named(stored.reads, hint=hint)
            if named is None:
                return 0, "mlp_input"
            written = place_named(stored.writes)
            return (layer if written is None else written.layer) - named.layer, named.kind
        said = None if stored.reads is None else site_named(stored.reads)
        if said is not None and said.kind != self.source:
            raise AnamorphError(
                f"what is in {self.path} reads {said} (the file says {stored.reads}), and source "
                f"is {self.source}; leave source out."
            )
        return int(not computed_before(self.source, "mlp")), self.source

    def for_coder(self, read: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What the coder reads of all that is read: not what it stands in for."""
        return read[:-1] if self.error else read

    def encode(self, *read: Tensor) -> Tensor:
        """See `FromDisk.encode`."""
        return super().encode(*self.for_coder(read))

    def finished(self, made: Tensor, read: tuple[Tensor, ...]) -> Tensor:
        """What is written; what it stands in for comes last in what is read, if at all."""
        return self.with_error(made, read[-1]) if self.error else made


def place_named(name: str | None, head: int | None = None, hint: str = "") -> Site | None:
    """Our site for a place that a file names; None if it names none.

    Args:
        name: in the file's own words.
        head: the head, if it is one head's.
        hint: what an error is to say besides.

    Raises:
        AnamorphError: if it names a place in a layer that is no site of ours.
    """
    found = None if name is None else site_named(name, head)
    if found is None and name is not None and re.fullmatch(PLACE, name):
        why = ""
        if "hook_normalized" in name:
            why = (
                ": TransformerLens has there what a norm makes before its gain is multiplied in, "
                "which a model as it is does not show"
            )
        raise AnamorphError(
            f"it was made for {name}, which is no site of the model as it is{why}.{hint}"
        )
    return found
