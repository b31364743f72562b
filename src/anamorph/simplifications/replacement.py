"""Replacements: they make what is at one site from what is at others, earlier in the model."""

from abc import abstractmethod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.models.base import Context
from anamorph.models.sites import Site
from anamorph.simplifications.base import Simplification
from anamorph.simplifications.statistics.base import Statistic, as_points


class Replacement(Simplification):
    """A simplification that is attached to the site it writes, and reads others.

    A subclass defines what a `Simplification` does, and `reads`. A point that it is fitted to holds
    what it reads and, behind it, what the model has at the site that it writes, side by side.
    """

    chains: ClassVar[bool] = False

    @abstractmethod
    def reads(self, site: Site) -> tuple[Site, ...]:
        """The sites that are read to write `site`: of its layer or earlier, computed before it."""

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

    def fit(self, *points: Tensor) -> Self:
        """Learn from what is read, in the order of `reads`, and last what is written.

        Args:
            points: each [..., dim], with as many points as the others.

        Raises:
            AnamorphError: if there is a NaN or infinity, if one has more points than another, or if
                they do not suit the hyper-parameters.
        """
        parts = [as_points(x) for x in points]
        if len({len(part) for part in parts}) != 1:
            raise AnamorphError(
                f"{self}: what is read and what is written must have as many points; got "
                f"{', '.join(str(len(part)) for part in parts)}."
            )
        return self._fit(torch.cat(parts, dim=1), *(part.shape[1] for part in parts))
