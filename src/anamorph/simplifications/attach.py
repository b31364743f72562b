"""Where simplifications stand: an attachment puts one at sites, a proxy is a set of attachments."""

from __future__ import annotations

import re
from dataclasses import dataclass

from anamorph.errors import AnamorphError
from anamorph.simplifications.base import Simplification


@dataclass(frozen=True)
class Attachment:
    """One simplification at the sites of a pattern: `svd(rank=4)@1.*.{query,key}`.

    Attributes:
        simplification: what stands there; not fitted.
        sites: the pattern, without spaces; see `anamorph.models.sites`.
        joint: whether the sites of one head share one fit.

    Raises:
        AnamorphError: if a hyper-parameter makes no sense, or the pattern cannot be one.
    """

    simplification: Simplification
    sites: str
    joint: bool = False

    def __post_init__(self) -> None:
        sites = re.sub(r"\s*([.*{},-])\s*", r"\1", self.sites.strip())
        if not re.fullmatch(r"[\w.*{},-]+", sites):
            raise AnamorphError(
                f"Cannot attach {self.simplification} to the sites {self.sites!r}; expected a "
                "pattern such as '1.*.{query,key}'."
            )
        object.__setattr__(self, "sites", sites)
        self.simplification.validate()

    def __str__(self) -> str:
        return self.text()

    def text(self, *, without: str | None = None) -> str:
        """The spec text, with or without a hyper-parameter of that name."""
        extra = {"joint": True} if self.joint else {}
        return f"{self.simplification.text(without=without, **extra)}@{self.sites}"

    def __repr__(self) -> str:
        return f"Attachment({str(self)!r})"

    def __and__(self, other: Attachment | Simplified) -> Simplified:
        """Both at once in one proxy."""
        return Simplified((self,)) & other

    def __radd__(self, before: Simplification) -> Attachment:
        """`svd + kmeans @ sites` means what its text says, though `@` binds tighter in Python."""
        return (before + self.simplification).at(self.sites, joint=self.joint)


@dataclass(frozen=True)
class Simplified:
    """The model with simplifications standing at some of its sites; without any, the identity.

    `str(proxy)` is its spec text, which `parse` reads.
    """

    attachments: tuple[Attachment, ...]

    def __str__(self) -> str:
        return ";".join(map(str, self.attachments)) or "identity"

    def __repr__(self) -> str:
        return f"Simplified({str(self)!r})"

    def __and__(self, other: Attachment | Simplified) -> Simplified:
        """The attachments of both."""
        more = other.attachments if isinstance(other, Simplified) else (other,)
        return Simplified((*self.attachments, *more))

    @property
    def method(self) -> str:
        """The names alone, each once: `svd`, `svd+kmeans`, `svd; onehot`, `identity`."""
        names = ["+".join(p.name for p in a.simplification.parts()) for a in self.attachments]
        return "; ".join(dict.fromkeys(names)) or "identity"

    @property
    def family(self) -> str:
        """The spec text without the size: proxies that differ only in their size share it."""
        if self.size_name is None:
            return str(self)
        return ";".join(a.text(without=self.size_name) for a in self.attachments)

    @property
    def size_name(self) -> str | None:
        """What the size is called, such as `rank`; None where there is no size."""
        return self._sized[0] if self._sized else None

    @property
    def size(self) -> float | None:
        """The size of the stages that have one; None if none has, or they differ."""
        return self._sized[1] if self._sized else None

    @property
    def _sized(self) -> tuple[str, float] | None:
        parts = [part for a in self.attachments for part in a.simplification.parts()]
        found = {(p.size_name, p.size) for p in parts if p.size_name and p.size is not None}
        return found.pop() if len(found) == 1 else None

    @property
    def sites(self) -> str:
        """The site patterns, joined by `;`; empty for the identity."""
        return ";".join(a.sites for a in self.attachments)
