"""Simplifications applied one after the other at the same site."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import ClassVar, Self

from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.simplifications.base import NotFittedError, Simplification, Statistic
from anamorph.simplifications.statistics.reservoir import Reservoir

RESERVOIR = 32768  # points that later stages are fitted to, unless one of them asks for its own


class ChainStatistic:
    """What the first stage must see, and a sample of raw points for the later ones."""

    def __init__(self, first: Statistic | None, sample: Reservoir) -> None:
        self.first = first
        self.sample = sample

    @property
    def key(self) -> Hashable:
        """Both keys."""
        return ("chain", None if self.first is None else self.first.key, self.sample.key)

    def update(self, x: Tensor) -> None:
        """Take in `x` [points, dim]."""
        if self.first is not None:
            self.first.update(x)
        self.sample.update(x)


class Chain(Simplification):
    """Several simplifications, from left to right: `SVD(rank=8) + KMeans(clusters=64)`.

    The first stage sees the whole stream. A later one is fitted to a sample of the raw points,
    mapped by the stages before it: for k-means this is the very sample that it would have drawn
    from the mapped stream.

    Args:
        stages: two simplifications or more; they are copied, not fitted in place.

    Attributes:
        stages_: the fitted stages.

    Raises:
        AnamorphError: if the stages can stand at no kind of site in common.
    """

    name: ClassVar[str] = "chain"  # never in a spec, which names the stages

    stages_: tuple[Simplification, ...]

    def __init__(self, *, stages: tuple[Simplification, ...]) -> None:
        self.stages = stages

    @property
    def kinds(self) -> frozenset[str]:  # type: ignore[override]
        """The kinds of site at which every stage may stand."""
        return frozenset.intersection(*(stage.kinds for stage in self.stages))

    @property
    def size(self) -> float | None:
        """The size of the only stage that has one; None if several have."""
        sizes = [stage.size for stage in self.stages if stage.size is not None]
        return sizes[0] if len(sizes) == 1 else None

    def parts(self) -> tuple[Simplification, ...]:
        """The stages."""
        return self.stages

    def text(self, *, without: str | None = None, **extra: object) -> str:
        """The stages' texts with `+` between; `extra` stands with the first."""
        first, *others = self.stages
        texts = [stage.text(without=without) for stage in others]
        return "+".join([first.text(without=without, **extra), *texts])

    def validate(self, dim: int | None = None) -> None:
        """See `Simplification.validate`."""
        if len(self.stages) < 2:
            raise AnamorphError(f"A chain needs two stages or more; got {self.stages!r}.")
        for stage in self.stages:
            stage.validate(dim)
        if not self.kinds:
            each = "; ".join(f"{s.name}: {', '.join(sorted(s.kinds))}" for s in self.stages)
            raise AnamorphError(
                f"{self}: these stages have no kind of site in common ({each}). Attach each at its "
                "own sites, joined by ';', such as svd(rank=4)@1.*.{query,key};onehot@1.*.pattern."
            )

    def statistic(self, dim: int) -> ChainStatistic:
        """The first stage's statistic and a sample."""
        self.validate(dim)
        wanted = [stage.statistic(dim) for stage in self.stages]
        samples = [s for s in wanted[1:] if isinstance(s, Reservoir)]
        sample = max(
            samples,
            key=lambda reservoir: reservoir.capacity,
            default=Reservoir(capacity=RESERVOIR, seed=0),
        )
        return ChainStatistic(wanted[0], sample)

    def learn(self, statistic: ChainStatistic) -> Self:
        """Fit the stages from left to right."""
        first, *others = (stage.clone() for stage in self.stages)
        if statistic.first is not None:
            first.learn(statistic.first)
        fitted = [first]
        points = statistic.sample.points()
        for stage in others:
            points = fitted[-1](points)
            seen = stage.statistic(points.shape[1])
            if seen is not None:
                seen.update(points)
                stage.learn(seen)
            fitted.append(stage)
        self.stages_ = tuple(fitted)
        return self

    def affine(self) -> tuple[Tensor, Tensor] | None:
        """The stages multiplied out, if all of them are affine."""
        maps = [stage.affine() for stage in self.stages_]
        whole = maps[0]
        for part in maps[1:]:
            if whole is None or part is None:
                return None
            whole = whole[0] @ part[0], whole[1] @ part[0] + part[1]
        return whole

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the stages to `x` [..., dim]."""
        for stage in self.stages_:
            x = stage(x)
        return x

    def state_dict(self) -> dict[str, Tensor]:
        """What the stages have learnt, under `stage number.attribute`."""
        try:
            stages = self.stages_
        except NotFittedError:
            return {}
        return {
            f"{number}.{name}": value
            for number, stage in enumerate(stages)
            for name, value in stage.state_dict().items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> Self:
        """Set what `state_dict` gave."""
        parts: list[dict[str, Tensor]] = [{} for _ in self.stages]
        for key, value in state.items():
            number, name = key.split(".", 1)
            parts[int(number)][name] = value
        super().load_state({})
        if state:
            self.stages_ = tuple(
                stage.clone().load_state(part)
                for stage, part in zip(self.stages, parts, strict=True)
            )
        return self
