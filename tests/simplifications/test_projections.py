"""SVD, PCA and the moments that they share, against NumPy and scikit-learn."""

from itertools import combinations
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA as ScikitPCA

from anamorph.errors import AnamorphError
from anamorph.models.sites import Site
from anamorph.simplifications import (
    PCA,
    SVD,
    Where,
    check_simplification,
    find_simplification,
    parse,
)
from anamorph.simplifications.statistics.blocks import BLOCK
from anamorph.simplifications.statistics.moments import Moments

Random = find_simplification("random")


@pytest.fixture
def points() -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)) + 2.0)


def test_moments_in_pieces_are_those_of_the_whole(points: torch.Tensor) -> None:
    moments = Moments(6)
    for piece in torch.split(points, [1, 0, 99, 200]):
        moments.update(piece)
    x = points.numpy()
    assert moments.count == 300
    np.testing.assert_allclose(moments.mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.scatter, np.cov(x.T) * 299, rtol=1e-11)


def test_moments_do_not_depend_on_the_cuts_to_the_last_bit() -> None:
    rng = np.random.default_rng(3)
    wide = torch.from_numpy(rng.normal(size=(3 * BLOCK + 100, 3, 8)) + 5.0).float()
    x = wide[:, 1]  # not in one piece, as a head is not
    whole = Moments(8)
    whole.update(x.contiguous())
    for cuts in ([1] * 200, [BLOCK - 1, 2], [BLOCK, BLOCK], [5, 2 * BLOCK, 7], []):
        moments = Moments(8)
        for piece in torch.split(x, [*cuts, len(x) - sum(cuts)]):
            moments.update(piece)
            assert moments.scatter.isfinite().all()  # reading midway changes nothing
        assert moments.count == len(x)
        assert torch.equal(moments.mean, whole.mean)
        assert torch.equal(moments.scatter, whole.scatter)
    np.testing.assert_allclose(whole.mean, x.double().mean(dim=0), rtol=1e-12)
    expected = np.cov(x.double().numpy().T) * (len(x) - 1)
    np.testing.assert_allclose(whole.scatter, expected, rtol=1e-11, atol=1e-9)


def test_moments_copy_what_waits(points: torch.Tensor) -> None:
    moments = Moments(6)
    x = points.clone()
    moments.update(x)
    x.zero_()
    np.testing.assert_allclose(moments.mean, points.mean(dim=0), rtol=1e-12)


def test_moments_stay_on_the_device_of_the_points(monkeypatch: pytest.MonkeyPatch) -> None:
    # "meta" has no numbers, but as a GPU does it refuses to work together with the CPU.
    moved = Mock(side_effect=AssertionError("moved to the CPU"))
    monkeypatch.setattr(torch.Tensor, "cpu", moved)
    moments = Moments(4)
    for _ in range(3):
        moments.update(torch.empty(BLOCK - 10, 4, device="meta"))
    assert moments.count == 3 * BLOCK - 30
    assert moments._sums is not None
    assert moments._sums.count == 2 * BLOCK
    assert moments._sums.scatter.device.type == "meta"


@pytest.mark.parametrize("kind", [SVD, PCA])
def test_every_rank_of_a_long_float32_stream_is_that_of_the_whole(kind: type[SVD]) -> None:
    rng = np.random.default_rng(4)
    basis = np.linalg.qr(rng.normal(size=(16, 16)))[0]
    x = (rng.normal(size=(20_000, 16)) / np.arange(1, 17)) @ basis + 0.1
    stream = torch.from_numpy(x).float()
    double = stream.double().numpy()
    vt = np.linalg.svd(double - (double.mean(axis=0) if kind is PCA else 0), full_matrices=False)[2]
    moments = Moments(16)
    for piece in torch.split(stream, 777):
        moments.update(piece)
    for rank in range(1, 17):
        matrix, _ = kind(rank=rank).learn(moments).affine()
        assert np.linalg.norm(matrix.numpy() - vt[:rank].T @ vt[:rank]) < 1e-10


def test_moments_far_from_the_origin_keep_what_sets_points_apart() -> None:
    # Sum of squares minus squared sum would leave nothing: 1e-4 beside 1e8 is 1e-24 of the square.
    rng = np.random.default_rng(1)
    spread = rng.normal(size=(1000, 2)) * [1e-4, 1e-5]
    moments = Moments(2)
    for piece in torch.split(torch.from_numpy(spread + 1e8 * 0.5**10), 10):
        moments.update(piece)
    assert moments.centred_axes[0].abs()[0] > 0.99
    np.testing.assert_allclose(moments.scatter.diagonal(), spread.var(axis=0) * 1000, rtol=1e-2)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_svd_is_the_best_approximation_of_its_rank(points: torch.Tensor, rank: int) -> None:
    u, s, vt = np.linalg.svd(points.numpy(), full_matrices=False)
    svd = SVD(rank=rank).fit(points)
    np.testing.assert_allclose(svd(points), (u[:, :rank] * s[:rank]) @ vt[:rank], atol=1e-10)
    np.testing.assert_allclose(svd.components_.abs(), np.abs(vt[:rank]), atol=1e-9)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_pca_is_scikit_learns(points: torch.Tensor, rank: int) -> None:
    expected = ScikitPCA(rank, svd_solver="full").fit(points.numpy())
    pca = PCA(rank=rank).fit(points)
    np.testing.assert_allclose(pca.mean_, expected.mean_, rtol=1e-12)
    np.testing.assert_allclose(pca.components_.abs(), np.abs(expected.components_), atol=1e-9)
    new = np.random.default_rng(2).normal(size=(4, 5, 6))
    flat = new.reshape(-1, 6)
    mapped = expected.inverse_transform(expected.transform(flat)).reshape(new.shape)
    np.testing.assert_allclose(pca(torch.from_numpy(new)), mapped, atol=1e-10)


def test_a_hand_computed_case() -> None:
    # Points on the line through (1, 1) and (1, 3): its mean is (1, 2), its axis (0, 1).
    points = torch.tensor([[1.0, 1.0], [1.0, 3.0]])
    pca = PCA(rank=1).fit(points)
    assert torch.equal(pca.components_, torch.tensor([[0.0, 1.0]], dtype=torch.float64))
    assert torch.allclose(pca(torch.tensor([7.0, 9.0])), torch.tensor([1.0, 9.0]))
    # Uncentred, the axis goes through the origin: xᵀx = [[2, 4], [4, 10]], slope 1 + √2.
    axis = SVD(rank=1).fit(points).components_[0]
    assert axis[1] / axis[0] == pytest.approx(1 + 2**0.5)


def test_the_sign_makes_the_greatest_entry_positive(points: torch.Tensor) -> None:
    components = SVD(rank=6).fit(points).components_
    greatest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    assert (greatest > 0).all()


def test_ranks_of_one_pass_are_nested(points: torch.Tensor) -> None:
    moments = SVD(rank=1).statistic(6)
    moments.update(points)
    assert moments.key == PCA(rank=4).statistic(6).key
    four, two = (SVD(rank=rank).learn(moments).components_ for rank in (4, 2))
    assert torch.equal(four[:2], two)
    moments.update(points * torch.arange(6))  # the axes kept from before must not stay
    fresh = SVD(rank=4).fit(torch.cat([points, points * torch.arange(6)]))
    torch.testing.assert_close(SVD(rank=4).learn(moments).components_, fresh.components_)


@pytest.mark.parametrize("kind", [SVD, PCA])
def test_the_affine_form_is_the_map(points: torch.Tensor, kind: type[SVD]) -> None:
    fitted = kind(rank=2).fit(points)
    matrix, bias = fitted.affine()
    torch.testing.assert_close(points @ matrix + bias, fitted(points))
    torch.testing.assert_close(matrix @ matrix, matrix)  # a projection


@pytest.mark.parametrize("kind", [SVD, PCA])
def test_full_rank_in_float32_is_the_identity_up_to_rounding(kind: type[SVD]) -> None:
    x = torch.randn(500, 32, generator=torch.Generator().manual_seed(0))
    assert (kind(rank=32).fit(x)(x) - x).abs().max() < 1e-6


@pytest.mark.parametrize("rank", [0, -3, 1.5, True, "four", None])
def test_a_rank_that_makes_no_sense(points: torch.Tensor, rank: object) -> None:
    svd = SVD(rank=rank)  # type: ignore[arg-type]
    with pytest.raises(AnamorphError, match="rank must be a whole number, 1 or more"):
        svd.fit(points)


def test_a_rank_above_the_dimension(points: torch.Tensor) -> None:
    with pytest.raises(AnamorphError, match=r"rank above dimension.*6 dimensions.*1 to 6"):
        PCA(rank=7).fit(points)


def test_no_points() -> None:
    with pytest.raises(AnamorphError, match="no points"):
        SVD(rank=1).fit(torch.empty(0, 4))


def test_random_directions_are_an_orthogonal_projection_about_the_mean(
    points: torch.Tensor,
) -> None:
    fitted = Random(rank=4, seed=1).fit(points)
    rows = fitted.components_.numpy()
    np.testing.assert_allclose(rows @ rows.T, np.eye(4), atol=1e-12)
    x, mean = points.numpy(), points.numpy().mean(axis=0)
    np.testing.assert_allclose(fitted(points), mean + (x - mean) @ rows.T @ rows, atol=1e-10)
    check_simplification(Random(rank=3))
    assert torch.equal(Random(rank=4, seed=1).fit(-points).components_, fitted.components_)
    assert not torch.allclose(Random(rank=4, seed=2).fit(points).components_, fitted.components_)


def test_random_directions_of_lower_ranks_are_among_those_of_higher(points: torch.Tensor) -> None:
    two, five = (Random(rank=rank).fit(points).components_ for rank in (2, 5))
    torch.testing.assert_close(two @ five.T @ five, two)


def test_random_directions_are_a_control() -> None:
    kinds = [p.control for p in parse("random(rank=[2,4])@1.0.key") + parse("svd(rank=2)@1.0.key")]
    assert kinds == ["random", "random", None]


def test_random_directions_are_uniform() -> None:
    """The squared length that a fixed vector keeps is Beta(rank / 2, (dim - rank) / 2)."""
    points = torch.zeros(2, 6)
    kept = [
        float(Random(rank=2, seed=seed).fit(points).components_[:, 0].square().sum())
        for seed in range(400)
    ]
    variance = 2 / 6 * 4 / 6 / (1 + 3)  # a b / ((a + b)² (a + b + 1)), of a = 1, b = 2
    assert np.mean(kept) == pytest.approx(1 / 3, abs=4 * (variance / 400) ** 0.5)
    assert np.var(kept) == pytest.approx(variance, rel=0.3)


def test_random_directions_differ_from_site_to_site(points: torch.Tensor) -> None:
    sites = [Site(1, 0, "query"), Site(1, 0, "key"), Site(1, 1, "key"), Site(2, 0, "key")]
    found = [
        Random(rank=2).placed(Where((site,))).fit(points).components_ for site in (*sites, sites[0])
    ]
    assert torch.equal(found[0], found[-1])
    for one, other in combinations(found[:-1], 2):
        assert not torch.allclose(one, other)
