"""What is learnt is made ready once for a dtype and device, and anew once it is another."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from anamorph.auditing.stacks import StackedEdit
from anamorph.models.base import Context, LayerKind
from anamorph.simplifications import PCA, SVD, KMeans, Simplification
from anamorph.simplifications.methods.ablations import Mean, Resample, Zero
from anamorph.simplifications.methods.concepts import Concepts
from anamorph.simplifications.methods.linear import Linear
from anamorph.simplifications.methods.projections import Random
from anamorph.simplifications.methods.topk import TopKSAE, TopKTranscoder
from anamorph.simplifications.prepared import READY

DIM = 12
POINTS = torch.randn(300, DIM, generator=torch.Generator().manual_seed(0))
OTHERS = POINTS.flip(-1) * 2 + 1

EVERY: list[Simplification] = [
    SVD(rank=3),
    PCA(rank=3),
    PCA(rank=9),
    Random(rank=3),
    KMeans(clusters=4),
    Mean(),
    Resample(reservoir=50),
    Linear(),
    Concepts(concepts=5),
    TopKSAE(features=9, k=2),
    TopKTranscoder(features=9, k=2, skip=True),
    PCA(rank=8) + SVD(rank=3),
]
pytestmark = pytest.mark.filterwarnings("ignore:.*was learnt in")


def fitted(tried: Simplification, points: Tensor = POINTS) -> Simplification:
    read = (points, points.square()) if tried.name in ("linear", "topk_transcoder") else (points,)
    return tried.clone().fit(*read)


@pytest.mark.parametrize("tried", EVERY, ids=str)
def test_what_is_learnt_anew_counts_at_once(tried: Simplification) -> None:
    one, other = fitted(tried), fitted(tried, OTHERS)
    before, expected = one(POINTS), other(POINTS)
    assert not torch.equal(before, expected)
    assert torch.equal(one.load_state(other.state_dict())(POINTS), expected)
    read = (POINTS, POINTS.square()) if tried.name in ("linear", "topk_transcoder") else (POINTS,)
    assert torch.equal(one.fit(*read)(POINTS), before)


@pytest.mark.parametrize("tried", EVERY, ids=str)
def test_every_dtype_gets_its_own_and_one_is_kept(tried: Simplification) -> None:
    one = fitted(tried)
    double = one(POINTS.double())
    assert double.dtype == torch.float64
    assert one(POINTS).dtype == torch.float32
    stages = [one, *vars(one).get("stages_", ())]
    made = [len(vars(stage).get(READY, ())) for stage in stages]
    assert torch.equal(one(POINTS.double()), double)
    assert made == [len(vars(stage).get(READY, ())) for stage in stages]
    assert any(made)


@pytest.mark.parametrize("tried", EVERY, ids=str)
def test_nobody_else_sees_it(tried: Simplification) -> None:
    fresh, used = fitted(tried), fitted(tried)
    used(POINTS)
    assert used.fingerprint() == fresh.fingerprint()
    assert used.state_dict().keys() == fresh.state_dict().keys()
    assert len(pickle.dumps(used)) == len(pickle.dumps(fresh))
    for copied in (copy.copy(used), copy.deepcopy(used)):
        assert READY not in vars(copied)
        assert torch.equal(copied(POINTS), used(POINTS))


def test_it_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one, made = PCA(rank=3).fit(POINTS), []
    own = PCA.factors
    monkeypatch.setattr(PCA, "factors", lambda self: made.append(0) or own(self))
    for _ in range(3):
        one(POINTS)
        edit = StackedEdit(LayerKind(0, "mlp"), [{None: one}])
        edit(POINTS[None, None], context_of(POINTS[None]))
    assert len(made) == 1
    one.mean_ = one.mean_ + 1
    one(POINTS)
    assert len(made) == 2


def test_threads_with_dtypes_of_their_own_do_not_disturb_each_other() -> None:
    one = KMeans(clusters=4).fit(POINTS)
    expected = {dtype: one(POINTS.to(dtype)) for dtype in (torch.float32, torch.float64)}
    with ThreadPoolExecutor(4) as pool:
        for dtype, found in pool.map(lambda d: (d, one(POINTS.to(d))), [*expected] * 40):
            assert torch.equal(found, expected[dtype])


# --- factors --------------------------------------------------------------------------------------


def context_of(x: Tensor) -> Context:
    tokens = torch.zeros(x.shape[:2], dtype=torch.long)
    return Context(tokens, tokens.bool())


@pytest.mark.parametrize("copies", [1, 8])
@pytest.mark.parametrize("head", [None, 1])
def test_a_stack_of_ranks_is_what_numpy_projects(copies: int, head: int | None) -> None:
    """Low ranks as factors, high ones as a matrix, others as they are: each copy its own."""
    x = POINTS[:40].view(1, 5, 8, DIM) + torch.arange(copies).view(-1, 1, 1, 1)
    kinds = [
        SVD(rank=2),
        PCA(rank=5),
        SVD(rank=12),
        KMeans(clusters=3),
        Random(rank=1),
        PCA(rank=7),
    ]
    fits: list[Any] = [kind.fit(POINTS) for kind in kinds] + [Zero()]
    placed = [*({head: fit} for fit in fits), {}]
    kind = "mlp" if head is None else "key"
    given = x if head is None else x[:, :, None].expand(-1, -1, 3, -1, -1)
    out = StackedEdit(LayerKind(0, kind), placed)(given, context_of(x[0]))
    for copy_, fit in enumerate([*fits, None]):
        own = x[copy_ if copies > 1 else 0].double().numpy()
        if isinstance(fit, (SVD, PCA, Random)):
            axes = fit.components_.numpy()
            middle = np.zeros(DIM) if isinstance(fit, SVD) else fit.mean_.numpy()
            expected = (own - middle) @ axes.T @ axes + middle
        else:
            expected = (fit(x[copy_ if copies > 1 else 0]) if fit else torch.tensor(own)).numpy()
        found = out[copy_] if head is None else out[copy_, :, head]
        np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)
        if head is not None:
            assert torch.equal(out[copy_, :, 0], given[copy_ if copies > 1 else 0, :, 0])


def test_low_ranks_are_multiplied_as_factors() -> None:
    """Two products of rank · dim where that is less than one of dim · dim."""
    shapes = {
        rank: [tuple(m.shape) for m in PCA(rank=rank).fit(POINTS).products(POINTS) or ()]
        for rank in (1, 5, 6, 12)
    }
    square = [(DIM, DIM), (DIM,)]
    assert shapes == {
        1: [(12, 1), (1, 12), (12,)],
        5: [(12, 5), (5, 12), (12,)],
        6: square,
        12: square,
    }


class Factored(Simplification):
    """Somebody's own map, which says its factors and no matrix."""

    name = "factored"

    def __init__(self, *, rank: int) -> None:
        self.rank = rank

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        down = torch.ones(DIM, self.rank, dtype=torch.float64) / 4
        return down, down.T, torch.arange(DIM).double()

    def __call__(self, x: Tensor) -> Tensor:
        return (x.sum(-1, keepdim=True) * self.rank / 16).expand_as(x) + torch.arange(DIM).to(x)


class Otherwise(Factored):
    """Maps points in another way than the class above it says."""

    name = "otherwise"

    def __call__(self, x: Tensor) -> Tensor:
        return 3 * x


@pytest.mark.parametrize("rank", [1, 11])
def test_somebodys_own_factors(rank: int) -> None:
    x = POINTS[None, None]
    for own in (Factored(rank=rank), Otherwise(rank=rank)):
        out = StackedEdit(LayerKind(0, "mlp"), [{None: own}])(x, context_of(x[0]))
        torch.testing.assert_close(out[0], own(x[0]), atol=1e-5, rtol=1e-5)
    matrix, _ = Factored(rank=rank).affine() or (None, None)
    assert matrix is not None
    assert torch.equal(matrix.float(), torch.full((DIM, DIM), rank / 16))
    assert Otherwise(rank=rank).products(x) is None
    chain = (Factored(rank=rank) + SVD(rank=DIM)).fit(POINTS)
    assert chain.product() is not None
