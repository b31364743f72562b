"""Replacements: they make what is at one site from what is at others, earlier in the model."""

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from anamorph.models.base import Context
from anamorph.models.sites import Site
from anamorph.simplifications.base import Simplification
from anamorph.simplifications.statistics.base import Statistic


class Replacement(Simplification):
    """A simplification that is attached to the site it writes, and reads others.

    A subclass defines what a `Simplification` does, and `reads`. A point that it is fitted to holds
    what it reads and, behind it, what the model has at the site that it writes, side by side.
    """

    chains: ClassVar[bool] = False

    @abstractmethod
    def reads(self, site: Site) -> tuple[Site, ...]:
        """The sites that are read to write `site`: computed before it, or the site itself."""

    def statistic(self, *dims: int) -> Statistic | None:
        """An empty statistic; by default None: there is nothing to fit.

        Args:
            dims: the widths of what is read, in the order of `reads`, and last of what is written.

        Raises:
            AnamorphError: if a hyper-parameter makes no sense for these widths.
        """
        return None

    @abstractmethod
    def __call__(self, *read: Any, **_: Any) -> Tensor:
        """Make [..., dim] from what is read, in the order of `reads`, every point by itself."""

    def apply(self, *read: Tensor, context: Context) -> Tensor:
        """Make what is written from what is read, each [batch, position, dim].

        Args:
            read: in the order of `reads`.
            context: as for a map.

        Returns:
            [batch, position, dim]; what `__call__` gives by default.
        """
        return self(*read)
