"""`check_simplification` passes ours, and finds one that is broken in any single way."""

from typing import Self

import pytest
import torch
from test_wrong import SEEN_BY_THE_CHECK
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.models.sites import Site
from anamorph.simplifications import (
    LAWS,
    PCA,
    SVD,
    KMeans,
    Linear,
    LowRank,
    OneHot,
    Prune,
    Quantize,
    Simplification,
    check_simplification,
)
from anamorph.simplifications.methods.frozen import Frozen
from anamorph.simplifications.statistics.moments import Moments


@pytest.mark.parametrize(
    "simplification",
    [
        SVD(rank=3),
        PCA(rank=3),
        KMeans(clusters=5),
        KMeans(clusters=5, reservoir=50),
        OneHot(),
        Frozen(),
        Linear(),
        Linear(source="residual"),
        SVD(rank=3) + KMeans(clusters=5),
        PCA(rank=4) + SVD(rank=2),
        Quantize(bits=3, group=3),
        Quantize(bits=3, group=3, calibrated=True),
        Prune(density=0.5),
        Prune(density=0.5, by="wanda"),
        LowRank(rank=2),
        LowRank(rank=2, whitened=True),
    ],
    ids=str,
)
def test_ours_keep_every_law(simplification: Simplification) -> None:
    check_simplification(simplification)
    assert not hasattr(simplification, "components_")


class ByPosition(SVD):
    name = "broken"

    def __init__(self, rank: int) -> None:
        self.rank = rank


class NotAsGiven(SVD):
    name = "broken"

    def __init__(self, *, rank: int) -> None:
        self.rank = int(rank)


class MisreadText(SVD):
    def text(self, *, without: str | None = None, **extra: object) -> str:
        return f"svd(rank={self.rank + 1})"


class ReturnsNothing(SVD):
    name = "broken"

    def fit(self, x: Tensor) -> None:  # type: ignore[override]
        super().fit(x)


class PlainName(SVD):
    name = "broken"

    def learn(self, statistic: Moments) -> Self:
        self.basis = statistic.axes
        return super().learn(statistic)


class ChangesHyperParameter(SVD):
    name = "broken"

    def learn(self, statistic: Moments) -> Self:
        super().learn(statistic)
        self.rank += 1
        return self


class FitChangesInput(SVD):
    name = "broken"

    def fit(self, x: Tensor) -> Self:
        x -= 1
        return super().fit(x)


class CallChangesInput(SVD):
    name = "broken"

    def __call__(self, x: Tensor) -> Tensor:
        x -= 1
        return super().__call__(x)


class TakesNan(SVD):
    name = "broken"

    def fit(self, x: Tensor) -> Self:
        return super().fit(x.nan_to_num())


class GivesDouble(SVD):
    name = "broken"

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x).double()


class LooksAround(SVD):
    name = "broken"

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) + x.mean()


class Random(SVD):
    name = "broken"

    def learn(self, statistic: Moments) -> Self:
        super().learn(statistic)
        self.components_ = self.components_ + torch.rand(1)
        return self


class Remembers(SVD):
    name = "broken"

    def fit(self, x: Tensor) -> Self:
        self._before = vars(self).get("components_", 0)
        return super().fit(x)

    def learn(self, statistic: Moments) -> Self:
        super().learn(statistic)
        self.components_ = self.components_ + self._before
        return self


class LastMoments(Moments):
    def update(self, x: Tensor) -> None:
        self.__init__(self.dim)  # type: ignore[misc]
        super().update(x)


class NotAffine(SVD):
    name = "broken"

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) + 1


class OnlyLastChunk(SVD):
    name = "broken"

    def statistic(self, dim: int) -> Moments:
        return LastMoments(dim)


class LoseParts(Moments):
    def merge(self, later: Moments) -> None:
        pass


class LosesParts(SVD):
    name = "broken"

    def statistic(self, dim: int) -> Moments:
        return LoseParts(dim)


class ReadsAhead(Linear):
    name = "broken"

    def __init__(self, *, rank: int) -> None:
        self.rank = rank

    def reads(self, site: Site) -> tuple[Site, ...]:
        return (site._replace(layer=site.layer + 1),)


class ForgetsOnSave(PCA):
    name = "broken"

    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | {"mean_": torch.zeros(len(self.mean_), dtype=torch.float64)}


class RoundsOnSave(SVD):
    name = "broken"

    def state_dict(self) -> dict[str, Tensor]:
        return {k: v.half().double() for k, v in super().state_dict().items()}


class NotQuiteFull(SVD):
    name = "broken"

    def _learn(self, moments: Moments) -> None:
        self.components_ = moments.axes[: max(1, self.rank - 1)].clone()


BROKEN = {
    ByPosition: "hyper-parameters are keyword-only and stored as given",
    NotAsGiven: "hyper-parameters are keyword-only and stored as given",
    MisreadText: "the text reads back as the same simplification",
    ReturnsNothing: "fit returns self",
    PlainName: "what is learnt ends in an underscore",
    ChangesHyperParameter: "what is learnt ends in an underscore",
    FitChangesInput: "the input stays as it is",
    CallChangesInput: "the input stays as it is",
    TakesNan: "a NaN or infinity is refused",
    GivesDouble: "shape, dtype and device stay",
    LooksAround: "every point is mapped by itself",
    NotAffine: "an affine map is what it says",
    Random: "a second fit gives the same",
    Remembers: "a second fit gives the same",
    LosesParts: "a statistic of parts teaches the same",
    ReadsAhead: "what is read is computed before what is written",
    OnlyLastChunk: "a statistic updated in chunks teaches the same",
    ForgetsOnSave: "save and load keep every bit",
    RoundsOnSave: "save and load keep every bit",
    NotQuiteFull: "full size is the identity",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_each_law_has_a_culprit(kind: type[SVD | ReadsAhead]) -> None:
    with pytest.raises(AssertionError) as caught:
        check_simplification(kind(rank=3))
    assert str(caught.value).startswith(BROKEN[kind])


def test_no_law_is_left_without_a_culprit() -> None:
    in_place = {message.split(": ")[0] for message in SEEN_BY_THE_CHECK.values()}
    assert {*BROKEN.values(), *in_place} == set(LAWS)


class ForSixteen(Simplification):
    """Suits one width alone, as what comes from a file does."""

    name = "forsixteen"

    def __call__(self, x: Tensor) -> Tensor:
        return x @ torch.eye(16).to(x)


def test_it_is_tried_at_the_width_that_is_given_and_says_which() -> None:
    check_simplification(ForSixteen(), dim=16)
    with pytest.raises(AssertionError, match=r": forsixteen, with dim=8: "):
        check_simplification(ForSixteen())
    with pytest.raises(AssertionError, match=r": forsixteen, with dim=12: "):
        check_simplification(ForSixteen(), dim=12)


class Wide(Linear):
    """Writes what it reads, and so one width alone."""

    name = "wide"

    def __call__(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("dim", [(12, 8), (8, 12), (8, 8), 8])
def test_a_replacement_may_write_another_width_than_it_reads(dim: int | tuple[int, int]) -> None:
    check_simplification(Linear(), dim=dim)
    if dim == (12, 8):
        with pytest.raises(AssertionError, match=r"^shape, .*: wide, with dim=\(12, 8\): shape"):
            check_simplification(Wide(), dim=dim)


def test_there_must_be_as_many_widths_as_it_reads_and_writes() -> None:
    with pytest.raises(AnamorphError, match="reads 1 sites and writes one; give 2 widths"):
        check_simplification(Linear(), dim=(8, 8, 8))
