"""What changes of weights are fitted to: what the matrices behind their sites are given."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from anamorph.errors import AnamorphError, told_where
from anamorph.models.base import Batch, Model
from anamorph.models.changing import watched
from anamorph.models.matrices import Matrix
from anamorph.models.sites import Site
from anamorph.simplifications.base import Attachment, Simplification
from anamorph.simplifications.seen_part import SeenPart, Source
from anamorph.simplifications.statistics.base import Statistic
from anamorph.simplifications.weight_change import Seen, WeightChange
from anamorph.tasks.fitted_on import refuse_unfitted

Fits = dict[Attachment, dict[Site, Simplification]]


class WeightFits:
    """The fits of changes of weights, in one pass over a split.

    Statistics are updated while the model runs, so that what one matrix is given need not be kept
    until all have been. Matrices that are given the same share them.

    Args:
        model: whose weights.
        placed: the attachments of changes of weights, with the sites of each.
        fed: which statistics the pass feeds.

    Attributes:
        empty: the statistics that it feeds, before they have seen anything: by the name of a
            matrix, of what it is given, and by their keys.
        names: by the module at which inputs are seen, that of its first matrix.
    """

    def __init__(
        self,
        model: Model,
        placed: Mapping[Attachment, Sequence[Site]],
        fed: Callable[[Statistic], bool],
    ) -> None:
        self.placed, self._fed = placed, fed
        self.empty: dict[str, dict[Hashable, Statistic]] = {}
        self.names: dict[nn.Module, str] = {}
        self._inputs: dict[tuple[Attachment, Site], dict[str, tuple[str, Hashable]]] = {}
        self._matrices: dict[Site, list[Matrix]] = {}
        for attachment, sites in placed.items():
            for site in sites:
                if site not in self._matrices:
                    with told_where(attachment, site):
                        self._matrices[site] = model.matrices(site)
                found = {m.name: self._input(attachment, m) for m in self._matrices[site]}
                inputs = {k: s for k, s in found.items() if s is not None}
                if not inputs:
                    refuse_unfitted(attachment, attachment.on)
                self._inputs[attachment, site] = inputs

    @property
    def fitted(self) -> bool:
        """Whether any change is fitted to what its matrices are given."""
        return bool(self.names)

    def _input(self, attachment: Attachment, matrix: Matrix) -> tuple[str, Hashable] | None:
        """Where the statistic of what a matrix is given is, if its change is fitted to anything."""
        statistic = attachment.simplification.clone().statistic(matrix.width)
        if statistic is None:
            return None
        name = self.names.setdefault(matrix.inputs, matrix.name)
        if self._fed(statistic):
            self.empty.setdefault(name, {}).setdefault(statistic.key, statistic)
        return name, statistic.key

    @contextmanager
    def watching(
        self, batch: Batch, rows: Tensor, sequence: Tensor, seen: SeenPart
    ) -> Iterator[None]:
        """Take in what matrices are given while the model runs on a batch, without padding.

        Args:
            batch: on the model's device.
            rows: [points] there too: which of the batch's tokens are no padding.
            sequence: [points] on the CPU: the number of the sequence of each, which an error names.
            seen: the part of the split to which the batch belongs.

        Raises:
            AnamorphError: if they are not given it once, or there is a NaN or infinity in it.
        """
        fed: dict[nn.Module, Tensor] = {}

        def take(module: nn.Module, x: Tensor) -> None:
            points = x.flatten(0, -2)
            if len(points) != batch.mask.numel() or module in fed:
                raise AnamorphError(
                    f"{self.names[module]} does not see every token once, so its inputs cannot be "
                    "taken in."
                )
            points = points.index_select(0, rows)
            fed[module] = points.abs().amax(1).isfinite()
            name = self.names[module]
            for statistic in seen.of(name, self.empty[name]):
                statistic.update(points)

        modules = [module for module, name in self.names.items() if name in self.empty]
        with watched(modules, take):
            yield
        finite = torch.stack(list(fed.values())) if fed else torch.ones(0)
        if not finite.all():  # one look at a device for all
            number, bad = (~finite.cpu()).nonzero()[0].tolist()
            raise AnamorphError(
                f"Cannot fit {self.names[list(fed)[number]]}: sequence {int(sequence[bad])} of "
                "the data gives it a NaN or infinity; check the model's weights."
            )
        if missed := {*modules} - fed.keys():
            raise AnamorphError(
                f"{', '.join(sorted(self.names[m] for m in missed))} saw no tokens when the model "
                "ran, so there is nothing to fit to."
            )

    def learn(self, statistics: Mapping[Source, Mapping[Hashable, Statistic]]) -> Fits:
        """Of each attachment the fitted change at every site."""
        return {
            attachment: {site: self._learn(attachment, site, statistics) for site in sites}
            for attachment, sites in self.placed.items()
        }

    def _learn(
        self,
        attachment: Attachment,
        site: Site,
        statistics: Mapping[Source, Mapping[Hashable, Statistic]],
    ) -> WeightChange:
        change, found = attachment.simplification.clone(), self._inputs[attachment, site]
        assert isinstance(change, WeightChange)
        inputs = {matrix: statistics[name][key] for matrix, (name, key) in found.items()}
        matrices = {m.name: m.read() for m in self._matrices[site]} if inputs else {}
        with told_where(attachment, site):
            return change.learn(Seen(site, matrices, inputs) if inputs else None)
