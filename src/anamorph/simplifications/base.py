"""What a simplification is, how several are chained, and how one is attached to sites."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from operator import add
from pathlib import Path
from typing import ClassVar, Self, cast

from torch import Tensor

from anamorph.errors import AnamorphError, require
from anamorph.models.base import Context
from anamorph.models.sites import HEAD_KINDS, LAYER_KINDS, Site
from anamorph.models.weights import read_weights, write_weights
from anamorph.simplifications.estimator import Fittable, Where
from anamorph.simplifications.grammar import read_stages
from anamorph.simplifications.named import ProxySpec
from anamorph.simplifications.registry import find_class
from anamorph.simplifications.statistics.base import Several
from anamorph.simplifications.statistics.reservoir import USUAL, Reservoir
from anamorph.tasks.fitted_on import HALF, ORACLE, FittedOn

VECTOR_KINDS = frozenset({*HEAD_KINDS, *LAYER_KINDS} - {"pattern"})
"""The kinds of site whose last axis has a fixed width, so that something can be fitted there."""


class Simplification(Fittable):
    """A map from activations `[..., dim]` to simpler ones of the same shape, dtype and device.

    A subclass has a keyword-only `__init__` that stores its hyper-parameters and does nothing else,
    and defines `name` and `__call__`; one that is fitted, `statistic` and `learn` too.
    `check_simplification` tests it.

    Attributes:
        kinds: the kinds of site to which it can be attached.
        chains: whether it can be a stage of a chain.
        beside_model: whether it is shown what the model itself has where it stands
            (`Context.original`), for which the model runs along.
    """

    kinds: ClassVar[frozenset[str]] = VECTOR_KINDS
    chains: ClassVar[bool] = True
    beside_model: ClassVar[bool] = False

    def reads(self, site: Site) -> tuple[Site, ...]:
        """The sites from which a replacement makes what it writes at `site`; of a map, none."""
        return ()

    def parts(self) -> tuple[Simplification, ...]:
        """The stages of a chain; of any other simplification, itself."""
        return (self,)

    def __add__(self, other: Simplification) -> Chain:
        """`SVD(rank=8) + KMeans(clusters=64)`: one after the other at the same site."""
        if not isinstance(other, Simplification):
            return NotImplemented
        return Chain(stages=(*self.parts(), *other.parts()))

    def at(
        self, sites: str, *, joint: bool = False, on: str | None = None, keep: int = 0
    ) -> Attachment:
        """Attach to the sites of a pattern, such as `1.*.{query,key}`; see `Attachment`."""
        return Attachment(self, sites, joint, on, keep)

    def __matmul__(self, sites: str) -> Attachment:
        """`SVD(rank=4) @ "1.*.{query,key}"`: attach, each site with a fit of its own."""
        return self.at(sites)

    def save(self, path: Path | str) -> None:
        """Write to a safetensors file, with the spec text in its metadata.

        Raises:
            AnamorphError: if the file cannot be written.
        """
        write_weights(path, self.state_dict(), {"spec": str(self)})

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what `save` wrote.

        Raises:
            AnamorphError: if the file cannot be read or holds another kind of simplification.
        """
        state, metadata = read_weights(path)
        if "spec" not in metadata:
            raise AnamorphError(f"{path} holds no simplification; give a file made by save().")
        own = {} if inspect.isabstract(cls) or cls is Chain else {cls.name: cls}
        loaded = parse_simplification(metadata["spec"], known=own)
        if not isinstance(loaded, cls):
            raise AnamorphError(f"{path} holds {loaded}, not {cls.__name__}; use its own class.")
        return loaded.load_state(state) if loaded.kept else loaded.learn(None)


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
        AnamorphError: if no kind of site suits every stage.
    """

    name: ClassVar[str] = "chain"  # never in a spec, which names the stages

    stages_: tuple[Simplification, ...]

    def __init__(self, *, stages: tuple[Simplification, ...]) -> None:
        self.stages = stages

    @property
    def kinds(self) -> frozenset[str]:  # type: ignore[override]
        """The kinds of site that suit every stage."""
        return frozenset.intersection(*(stage.kinds for stage in self.stages))

    @property
    def beside_model(self) -> bool:  # type: ignore[override]
        """Whether a stage is."""
        return any(stage.beside_model for stage in self.stages)

    @property
    def size(self) -> float | None:
        """The size of the only stage that has one; None if several have."""
        sizes = [stage.size for stage in self.stages if stage.size is not None]
        return sizes[0] if len(sizes) == 1 else None

    def parts(self) -> tuple[Simplification, ...]:
        """The stages."""
        return self.stages

    def text(self, *, without: str | None = None, **extra: object) -> str:
        """The stages' texts with `+` between; `extra` is written with the first."""
        first, *others = self.stages
        texts = [stage.text(without=without) for stage in others]
        return "+".join([first.text(without=without, **extra), *texts])

    def fingerprint(self) -> str:
        """See `Fittable.fingerprint`; of all stages."""
        return "+".join(stage.fingerprint() for stage in self.stages)

    def validate(self, dim: int | None = None) -> None:
        """See `Simplification.validate`."""
        if len(self.stages) < 2:
            raise AnamorphError(f"A chain needs two stages or more; got {self.stages!r}.")
        for stage in self.stages:
            stage.validate(dim)
            if not stage.chains:
                raise AnamorphError(
                    f"{self}: {stage.name} needs a site of its own and cannot be a stage of a "
                    "chain; attach each at its own sites, joined by ';'."
                )
        if not self.kinds:
            each = "; ".join(f"{s.name}: {', '.join(sorted(s.kinds))}" for s in self.stages)
            raise AnamorphError(
                f"{self}: these stages have no kind of site in common ({each}). Attach each to its "
                "own sites, joined by ';', such as svd(rank=4)@1.*.{query,key};onehot@1.*.pattern."
            )

    def placed(self, where: Where) -> Self:
        """See `Fittable.placed`; every stage is."""
        return type(self)(stages=tuple(stage.placed(where) for stage in self.stages))

    def statistic(self, dim: int) -> Several:
        """The first stage's statistic and a sample."""
        self.validate(dim)
        first, *others = (stage.statistic(dim) for stage in self.stages)
        samples = [s for s in others if isinstance(s, Reservoir)]
        usual = Reservoir(capacity=USUAL, seed=0)
        return Several(first, max(samples, key=lambda sample: sample.capacity, default=usual))

    def learn(self, statistic: Several | None) -> Self:
        """Fit the stages from left to right."""
        stages = tuple(map(copy, self.stages))  # as they are placed
        if statistic is None:  # as at patterns, to which nothing can be fitted
            for stage in stages:
                stage.learn(None)
        else:
            seen, sample = statistic.statistics
            assert isinstance(sample, Reservoir)
            stages[0].learn(seen)
            points = sample.points()
            for before, stage in pairwise(stages):
                points = before(points)
                stage.fit(points)
        self.stages_ = stages
        return self

    def affine(self) -> tuple[Tensor, Tensor] | None:
        """The stages multiplied out, if all of them are affine."""
        maps = [stage.product() for stage in self.stages_]
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

    def apply(self, x: Tensor, *, context: Context) -> Tensor:
        """Apply the stages where `x` is in the model."""
        for stage in self.stages_:
            x = stage.apply(x, context=context)
        return x

    def state_dict(self) -> dict[str, Tensor]:
        """What the stages have learnt, under `stage number.attribute`."""
        return {
            f"{number}.{name}": value
            for number, stage in enumerate(vars(self).get("stages_", ()))
            for name, value in stage.state_dict().items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> Self:
        """Set what `state_dict` gave.

        Raises:
            AnamorphError: if it is the state of another chain.
        """
        own: dict[str, dict[str, Tensor]] = {str(number): {} for number in range(len(self.stages))}
        for key, value in state.items():
            number, _, name = key.partition(".")
            if number not in own:
                raise AnamorphError(
                    f"{self} has stages 0 to {len(own) - 1}, and no place for {key!r}; load the "
                    "state of a chain of the same stages."
                )
            own[number][name] = value
        pairs = zip(map(copy, self.stages), own.values(), strict=True)  # as they are placed
        self.stages_ = tuple(
            stage.load_state(some) if stage.kept else stage.learn(None) for stage, some in pairs
        )
        return self


@dataclass(frozen=True)
class Attachment:
    """One simplification at the sites of a pattern: `svd(rank=4)@1.*.{query,key}`.

    Attributes:
        simplification: what is put there; not fitted.
        sites: the pattern, without spaces; see `anamorph.models.sites`.
        joint: whether the sites of one head share one fit.
        on: what it is fitted on (`FittedOn`): `train+python`; None for the training split.
        keep: how many positions at the beginning of a sequence are neither changed nor fitted on.

    Raises:
        AnamorphError: if a hyper-parameter makes no sense, or the pattern cannot be one.
    """

    simplification: Simplification
    sites: str
    joint: bool = False
    on: str | None = None
    keep: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.joint, bool):
            raise AnamorphError(f"joint must be true or false; got {self.joint!r}.")
        require("keep", self.keep, whole=True, least=0)
        sites = re.sub(r"\s*([.*{},-])\s*", r"\1", self.sites.strip())
        if not re.fullmatch(r"[\w.*{},-]+", sites):
            raise AnamorphError(
                f"Cannot attach {self.simplification} to the sites {self.sites!r}; expected a "
                "pattern such as '1.*.{query,key}'."
            )
        object.__setattr__(self, "sites", sites)
        object.__setattr__(self, "on", FittedOn.read(self.on).text)
        self.simplification.validate()

    def __str__(self) -> str:
        return self.text()

    @property
    def fitted_on(self) -> FittedOn:
        """`on`, read."""
        return FittedOn.read(self.on)

    def text(self, *, without: str | None = None) -> str:
        """The spec text, with or without a hyper-parameter of that name."""
        extra = {k: v for k, v in vars(self).items() if v and k in ("joint", "on", "keep")}
        return f"{self.simplification.text(without=without, **extra)}@{self.sites}"

    def __repr__(self) -> str:
        return f"Attachment({str(self)!r})"

    def __and__(self, other: Attachment | Simplified) -> Simplified:
        """Both at once in one proxy."""
        return Simplified((self,)) & other

    def __radd__(self, before: Simplification) -> Attachment:
        """`svd + kmeans @ sites` means what its text says, though `@` binds tighter in Python."""
        return replace(self, simplification=before + self.simplification)


@dataclass(frozen=True, repr=False)
class Simplified(ProxySpec):
    """The model with simplifications at some of its sites; without any, the identity."""

    attachments: tuple[Attachment, ...]

    def __str__(self) -> str:
        return ";".join(map(str, self.attachments)) or "identity"

    def __and__(self, other: Attachment | Simplified) -> Simplified:
        """The attachments of both."""
        more = other.attachments if isinstance(other, Simplified) else (other,)
        return Simplified((*self.attachments, *more))

    @property
    def method(self) -> str:
        """The names alone, each once: `svd`, `svd+kmeans`, `svd; onehot`, `identity`."""
        names = ["+".join(p.method for p in a.simplification.parts()) for a in self.attachments]
        return "; ".join(dict.fromkeys(names)) or "identity"

    @property
    def family(self) -> str:
        """The spec text without the size: proxies that differ only in their size share it."""
        return ";".join(a.text(without=self.size_name) for a in self.attachments) or "identity"

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
        sizes = {(p.size_name, float(p.size)) for p in parts if p.size_name and p.size is not None}
        return sizes.pop() if len(sizes) == 1 else None

    @property
    def control(self) -> str | None:
        """See `ProxySpec.control`; where attachments differ, what tells most."""
        by_nature = [p.control for a in self.attachments for p in a.simplification.parts()]
        fits = {a.fitted_on.control for a in self.attachments}
        ranked = [*by_nature, *(kind for kind in (ORACLE, HALF) if kind in fits)]
        return next(filter(None, ranked), None)

    @property
    def view(self) -> str:
        """See `ProxySpec.view`."""
        return Simplified(tuple(replace(a, on=None) for a in self.attachments)).family

    @property
    def on(self) -> tuple[str, ...]:
        """See `ProxySpec.on`."""
        return tuple(sorted({name for a in self.attachments for name in a.fitted_on.splits}))

    @property
    def sites(self) -> str:
        """The site patterns, joined by `;`; empty for the identity."""
        return ";".join(a.sites for a in self.attachments)


def parse_simplification(
    text: str, known: Mapping[str, type[Simplification]] | None = None
) -> Simplification:
    """The one simplification, or chain, of a text without sites.

    Args:
        text: such as `svd(rank=8)+kmeans(clusters=64)`.
        known: classes by name, besides the registry.

    Raises:
        AnamorphError: as `parse`, and for lists, `joint`, `on` and `keep`.
    """
    stages = read_stages(text)
    if any(len(value) > 1 for stage in stages for value in stage.values.values()):
        raise AnamorphError(f"{text!r} must name one simplification, without lists.")
    made = [
        cast(type[Simplification], (known or {}).get(name) or find_class(name)).with_params(
            {key: value for key, (value,) in values.items()}
        )
        for name, values in stages
    ]
    return reduce(add, made)
