"""One pass over a split, or a part of it: sites are recorded, and statistics see the points."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

from torch import nn

from anamorph.errors import AnamorphError, told_where
from anamorph.machine.threads import side_by_side
from anamorph.models.base import Model
from anamorph.models.sites import Site
from anamorph.simplifications.base import Attachment, Simplification
from anamorph.simplifications.estimator import Where
from anamorph.simplifications.points import (
    Lengths,
    Numbered,
    Place,
    Points,
    Stream,
    points_at,
    record,
)
from anamorph.simplifications.seen_part import SeenPart, Source, count_points
from anamorph.simplifications.statistics.base import Foreseeing, Statistic
from anamorph.simplifications.streamed import Steps
from anamorph.simplifications.weight_change import WeightChange
from anamorph.simplifications.weight_fitting import Fits, WeightFits
from anamorph.tasks.fitted_on import refuse_unfitted

Fit = tuple[Simplification, Stream]
Placed = Mapping[Attachment, Sequence[Site]]
"""What is fitted on a split, with the sites of each."""


class Pass:
    """What is fitted on a split, and one pass over the split or over a part of it.

    Args:
        model: whose activations are the points.
        placed: what is fitted, with the sites of each.
        threads: how many a learner may use.
        fed: which statistics this pass feeds; the others are fed elsewhere.
        whole: of all sequences of the split, if they are known.
    """

    def __init__(
        self,
        model: Model,
        placed: Placed,
        threads: int = 1,
        fed: Callable[[Statistic], bool] = lambda statistic: True,
        whole: Lengths | None = None,
    ) -> None:
        of_weights = {a: s for a, s in placed.items() if isinstance(a.simplification, WeightChange)}
        self.model, self.threads, self.fed, self.whole = model, threads, fed, whole
        self.weights = WeightFits(model, of_weights, fed)
        self.placed = {a: sites for a, sites in placed.items() if a not in of_weights}
        self.described = model.describe()  # once: there may be thousands of fits
        read = {
            read
            for attachment, sites in self.placed.items()
            for site in sites
            for read in (site, *attachment.simplification.reads(site))
        }
        # A pattern is as wide as its sequence is long, so that nothing can be fitted to it.
        self.sites = [site for site in model.sites if site.kind != "pattern" and site in read]
        self.streams: dict[Attachment, list[Stream]] = {}
        self.empty: dict[Stream, dict[Hashable, Statistic]] = {}  # that it feeds
        self.keys: dict[Fit, Hashable | None] = {}  # of its statistic, if it is fitted to points
        self.learners: dict[Fit, Simplification] = {}
        self.learnt: dict[Fit, Simplification] = {}
        self.seen: SeenPart | None = None  # of all parts before the one that is open
        self.open: SeenPart | None = None  # of the part that goes on
        self.part = 0  # its number
        if not self.sites:
            self.begin({})

    @property
    def needs_data(self) -> bool:
        """Whether anything is fitted to data, in this pass or elsewhere."""
        return bool(self.sites or self.weights.fitted)

    @property
    def sees(self) -> bool:
        """Whether this pass sees anything of the data."""
        return bool(self.sites or self.weights.empty)

    def begin(self, widths: Mapping[Site, int]) -> None:
        """Prepare what is fitted to points of these widths."""
        for attachment in self.placed:
            self.streams[attachment] = self._streams(attachment, widths)
            for stream in self.streams[attachment]:
                fit = attachment.simplification, stream
                if fit not in self.learners:
                    self._prepare(attachment, stream, widths)
                if self.keys[fit] is None:
                    refuse_unfitted(attachment, attachment.on, attachment.joint)

    def _prepare(self, attachment: Attachment, stream: Stream, widths: Mapping[Site, int]) -> None:
        fit = attachment.simplification, stream
        known = all(site in widths for site in stream.places[0])
        dims = tuple(widths[site] for site in stream.places[0] if known)
        with told_where(attachment, stream):
            placed = attachment.simplification.clone().placed(self._where(stream, dims))
            statistic = placed.statistic(*dims) if known else None
        self.learners[fit] = placed
        self.keys[fit] = None if statistic is None else statistic.key
        if isinstance(statistic, Steps):
            statistic.threads = self.threads
        if isinstance(statistic, Foreseeing) and self.whole:
            statistic.foresee(count_points(self.whole, stream))
        if statistic is not None and self.fed(statistic):
            self.empty.setdefault(stream, {}).setdefault(statistic.key, statistic)

    def look_at_fed(self) -> bool:
        """Have nothing recorded but what the pass feeds; whether that is anything at all."""
        fed = {site for stream in self.empty for place in stream.places for site in place}
        self.sites = [site for site in self.sites if site in fed]
        return self.sees

    def see(self, batches: Iterable[Numbered]) -> SeenPart:
        """What is seen of these batches, part by part."""
        one = not (self.model.parallel and self.model.device.type == "cpu")
        workers = 1 if one or self.weights.empty else self.threads
        if self.sees:
            for points in side_by_side(self.points, batches, workers):
                self.take(points)
                if not (self.empty or self.weights.empty):
                    break  # widths alone had to be known
            if self.open is None:
                raise AnamorphError("There is no data to fit to; give at least one batch.")
        self._close()
        return self.seen or SeenPart(Lengths())

    def take(self, points: Points) -> None:
        """Take in the activations of the next batch."""
        seen = self._part(points.of)
        if not self.streams:
            self.begin({site: x.shape[1] for site, x in points.at.items()})
        if not seen.widths:
            seen.widths = {site: x.shape[1] for site, x in points.at.items()}
        seen.lengths.update(points.of.lengths)
        before = self.seen.statistics if self.seen else self.empty
        for stream in self.empty:
            x = points.seen_by(stream)
            for statistic in seen.of(stream, before[stream]):
                if len(x):
                    statistic.update(x)

    def _part(self, of: Numbered) -> SeenPart:
        """What is seen of the part of a batch; the parts before it are merged."""
        if self.open is None or self.part != of.part:
            self._close()
            self.open, self.part = SeenPart(of.before), of.part
        return self.open

    def _close(self) -> None:
        if self.seen is not None and self.open is not None:
            self.seen.merge(self.open)
        self.seen, self.open = self.seen or self.open, None

    def share(self, seen: SeenPart, names: Mapping[nn.Module, str]) -> SeenPart:
        """What this pass would have seen, of what one with more proxies has.

        Args:
            seen: by that.
            names: of that: what it calls the inputs of matrices (`WeightFits.names`).
        """
        self.begin(seen.widths)
        own: dict[Source, dict[Hashable, Statistic]] = {}
        for stream, empty in self.empty.items():
            own[stream] = {key: seen.statistics[stream][key] for key in empty}
        for module, name in self.weights.names.items():
            theirs = seen.statistics.get(names[module], {})
            own[name] = {key: theirs[key] for key in self.weights.empty.get(name, ())}
        return SeenPart(seen.before, seen.lengths, seen.widths, own)

    def learn_unfitted(self) -> None:
        """Learn what needs no points."""
        for attachment, streams in self.streams.items():
            for stream in streams:
                if self.keys[attachment.simplification, stream] is None:
                    self._learn(attachment, stream, SeenPart(Lengths()))

    def learn(self, seen: SeenPart) -> Fits:
        """Of each attachment the fitted simplification at every site; equal ones are one object."""
        return self.weights.learn(seen.statistics) | {
            attachment: {
                place[-1]: self._learn(attachment, stream, seen)
                for stream in streams
                for place in stream.places
            }
            for attachment, streams in self.streams.items()
        }

    def _learn(self, attachment: Attachment, stream: Stream, seen: SeenPart) -> Simplification:
        fit = attachment.simplification, stream
        key = self.keys[fit]
        if key is not None and not count_points(seen.lengths, stream):
            raise AnamorphError(
                f"{attachment}: no sequence that is fitted on is longer than keep={stream.keep}."
            )
        if fit not in self.learnt:
            self.learnt[fit] = self.learners[fit]
            with told_where(attachment, stream):
                self.learnt[fit].learn(None if key is None else seen.statistics[stream][key])
        return self.learnt[fit]

    def _where(self, stream: Stream, widths: tuple[int, ...]) -> Where:
        *reads, _ = stream.places[0]
        sites = tuple(place[-1] for place in stream.places)
        return Where(sites, tuple(reads), widths, self.described)

    def _streams(self, attachment: Attachment, dims: Mapping[Site, int]) -> list[Stream]:
        """The points of each fit of an attachment."""
        groups: dict[Hashable, list[Place]] = {}
        for site in self.placed[attachment]:
            place = (*attachment.simplification.reads(site), site)
            same_fit: Hashable = site
            if attachment.simplification.one_fit:
                same_fit = "all"
            elif attachment.joint:
                same_fit = (site.layer, site.head, *map(dims.get, place))
            groups.setdefault(same_fit, []).append(place)
        return [Stream(tuple(places), attachment.keep) for places in groups.values()]

    def points(self, of: Numbered) -> Points:
        """What the model computes at the sites, sequence by sequence and without padding."""
        # On the host, which would have to wait for a device to know how many points there are.
        sequence, position = of.mask.nonzero(as_tuple=True)  # [points] without padding
        batch = of.batch.to(self.model.device)
        rows = sequence * batch.tokens.shape[1] + position
        rows = rows.to(batch.tokens.device, non_blocking=batch.tokens.is_cuda)
        number = of.first + sequence
        if self.weights.empty:  # one batch at a time: these are taken in as the model runs
            with self.weights.watching(batch, rows, number, self._part(of)):
                recorded = record(self.model, batch, self.sites, whole=True)
        else:
            recorded = record(self.model, batch, self.sites, whole=False)
        return Points(of, sequence, position, points_at(recorded, self.sites, rows, number))
